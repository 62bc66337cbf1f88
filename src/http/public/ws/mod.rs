//! `GET /ws/{product_id}`: a subscription over WebSocket (RFC 6455).
//!
//! In: an upgrade request. Out: 101, and a [`WsConnection`] on the upgraded socket, on a shard.
//! Everything is checked before the upgrade, so a refused client gets the same problem (RFC 9457)
//! as over SSE.
//!
//! ```text
//! Origin ─► grant, product ─► Handshake ─► filter, position ─► WsSubscriber ─► 101
//!                                             upgraded ─► ShardPlacement ─► WsConnection
//! ```
//!
//! May use: `config`, `metrics`, `net`, `shard`, `subscriber`.

pub(in crate::http) mod message;
mod socket;
mod subscriber;

use std::sync::Arc;

use aws_lc_rs::digest::{Context as Digest, SHA1_FOR_LEGACY_USE_ONLY};
use axum::{
    body::Body,
    extract::{Extension, Path, RawQuery, Request, State, rejection::PathRejection},
    response::{IntoResponse, Response},
};
use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use hyper::{
    HeaderMap, StatusCode, Version,
    header::{
        CONNECTION, HOST, HeaderName, HeaderValue, ORIGIN, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY,
        SEC_WEBSOCKET_VERSION, UPGRADE,
    },
};

use self::{socket::WsConnection, subscriber::WsSubscriber};
use super::{admit::SubscriptionSource, request::SubscriptionRequest};
use crate::{
    config,
    http::{problem::Problem, state::Relay},
    metrics::Transport,
    net::{Connection, DetachedConnection, UpgradedConnection},
    shard::ShardSubscriber,
    subscriber::SubscriberSocket,
};

/// Upgrades one subscriber's connection.
///
/// # Errors
///
/// 403 for a page of another site; 401, 403, 404, 426, 400 in this order; 429 or 503 past a limit.
pub(crate) async fn socket(
    State(relay): State<Arc<Relay>>,
    Extension(origins): Extension<Arc<[config::Origin]>>,
    Extension(connection): Extension<Connection>,
    path: Result<Path<String>, PathRejection>,
    RawQuery(query): RawQuery,
    mut request: Request,
) -> Result<Response, Problem> {
    let upgrade = hyper::upgrade::on(&mut request);
    let (query, headers) = (query.unwrap_or_default(), request.headers());
    check_origin(headers, &origins)?;
    let (grant, product) = relay.authorize_subscribe(path, &query, headers)?;
    let key = match Handshake::read(request.version(), headers) {
        Handshake::Key(key) => key,
        Handshake::Refused(problem) => return Err(problem),
        Handshake::UpgradeRequired => return Ok(upgrade_required(request.version())),
    };
    let mut requested = SubscriptionRequest::parse(&query, headers)?;
    requested.scope = grant.narrow(requested.scope)?;
    let from = (connection.peer.ip(), headers);
    let connected = SubscriptionSource::public(&relay, &grant, true).admit(
        &relay,
        &product.feed,
        requested,
        from,
        Transport::WebSocket,
        None,
    )?;
    let subscriber = WsSubscriber::new(connected, grant);
    let (shards, home_shard) = (Arc::clone(&relay.shards), product.feed.home_shard);
    connection.spawn_upgraded(
        upgrade,
        move |UpgradedConnection { socket, session, read_ahead }| {
            let scope = subscriber.connected.scope().clone();
            let factory = |socket| {
                let socket = SubscriberSocket::new(DetachedConnection::new(socket, session));
                Box::new(WsConnection::new(socket, read_ahead, subscriber))
                    as Box<dyn ShardSubscriber>
            };
            let late = shards.take(socket, &scope, home_shard, Box::new(factory));
            async move {
                // Too late for the shards: polled here, so that the client gets its close frame.
                if let Some(late) = late {
                    shards.finish_off_shard(late).await;
                }
            }
        },
    );
    Ok(switching_protocols(&key))
}

/// Checks that every `Origin` is this host or listed.
///
/// A page of another site may open a WebSocket with its visitor's cookies, and no preflight comes
/// before (RFC 6455, section 10.2). The check applies to any credential. Browsers always send
/// `Origin`; a request without one comes from another client and passes.
///
/// # Errors
///
/// 403 for any other origin.
fn check_origin(headers: &HeaderMap, listed: &[config::Origin]) -> Result<(), Problem> {
    let host = headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let is_known = |origin: &HeaderValue| {
        // Normalized: a browser omits the scheme's default port, and `Host` may contain it.
        let Some(origin) =
            origin.to_str().ok().and_then(|origin| config::Origin::parse(origin).ok())
        else {
            return false;
        };
        let scheme = origin.as_str().split_once("://").map_or("", |(scheme, _)| scheme);
        let own = config::Origin::parse(&format!("{scheme}://{host}"));
        listed.contains(&origin) || own.is_ok_and(|own| own == origin)
    };
    match headers.get_all(ORIGIN).iter().all(is_known) {
        true => Ok(()),
        false => Err(Problem::forbidden(
            "Origin is neither this host nor in server.cors_allowed_origins",
        )),
    }
}

/// Client's half of the opening handshake.
#[derive(Debug)]
enum Handshake {
    /// A valid request, with its `Sec-WebSocket-Key`.
    Key(HeaderValue),
    /// No upgrade request, or one of another version or over another protocol than HTTP/1.1.
    UpgradeRequired,
    /// An upgrade request with an invalid key.
    Refused(Problem),
}

impl Handshake {
    /// Reads the handshake from a request's head (RFC 6455, section 4.2.1).
    fn read(version: Version, headers: &HeaderMap) -> Self {
        let asks_for_upgrade = lists_token(headers, &CONNECTION, "upgrade")
            && lists_token(headers, &UPGRADE, "websocket");
        if !asks_for_upgrade
            || version != Version::HTTP_11
            || headers.get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version != WEBSOCKET_VERSION)
        {
            return Self::UpgradeRequired;
        }
        let key = headers.get(SEC_WEBSOCKET_KEY).filter(|key| {
            BASE64.decode(key.as_bytes()).is_ok_and(|nonce| nonce.len() == HANDSHAKE_KEY_BYTES)
        });
        match key {
            Some(key) => Self::Key(key.clone()),
            None => {
                Self::Refused(Problem::bad_request("Sec-WebSocket-Key is not 16 bytes in base64"))
            }
        }
    }
}

/// Returns whether a list header contains a token, in any case of letters.
fn lists_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    let lists = headers.get_all(name).iter().filter_map(|list| list.to_str().ok());
    lists.flat_map(|list| list.split(',')).any(|found| found.trim().eq_ignore_ascii_case(token))
}

/// Returns 426, with the upgrade to ask for.
fn upgrade_required(version: Version) -> Response {
    let detail = match version {
        Version::HTTP_11 => {
            "this is a WebSocket: ask with Upgrade: websocket and Sec-WebSocket-Version: 13"
        }
        _ => concat!(
            "this is a WebSocket, which is opened over HTTP/1.1 and no other: ",
            "ask there with Upgrade: websocket"
        ),
    };
    let mut response = Problem::new(StatusCode::UPGRADE_REQUIRED, detail).into_response();
    let headers = response.headers_mut();
    headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static(WEBSOCKET_VERSION));
    // An HTTP/2 message with one of these fields is malformed (RFC 9113, section 8.2.2).
    if version != Version::HTTP_2 {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    }
    response
}

/// Returns the 101 that switches the connection to WebSocket.
fn switching_protocols(key: &HeaderValue) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    // Base64 is always a valid header value.
    if let Ok(accept) = HeaderValue::try_from(accept_key(key.as_bytes())) {
        headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    }
    response
}

/// Returns `Sec-WebSocket-Accept` for a key (RFC 6455, section 4.2.2). The protocol prescribes
/// SHA-1 here, as a checksum: security does not depend on its strength.
fn accept_key(key: &[u8]) -> String {
    let mut digest = Digest::new(&SHA1_FOR_LEGACY_USE_ONLY);
    digest.update(key);
    digest.update(HANDSHAKE_GUID);
    BASE64.encode(digest.finish())
}

/// Version of RFC 6455, the only one that is deployed.
const WEBSOCKET_VERSION: &str = "13";

/// Length of `Sec-WebSocket-Key`, decoded.
const HANDSHAKE_KEY_BYTES: usize = 16;

/// Suffix that RFC 6455 appends to the key before hashing.
const HANDSHAKE_GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_proof_is_that_of_the_rfcs_example() {
        assert_eq!(accept_key(b"dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn an_answer_over_http2_has_no_upgrade_header() {
        let has = |version| upgrade_required(version).headers().contains_key(UPGRADE);
        assert!(has(Version::HTTP_11) && has(Version::HTTP_10));
        assert!(
            !has(Version::HTTP_2)
                && !upgrade_required(Version::HTTP_2).headers().contains_key(CONNECTION)
        );
    }

    #[test]
    fn an_origin_is_this_host_or_listed() {
        let listed = [config::Origin::parse("https://app.example.com").unwrap()];
        let admits = |host: &'static str, origins: &[&'static str]| {
            let mut headers = HeaderMap::new();
            headers.insert(HOST, HeaderValue::from_static(host));
            for origin in origins {
                headers.append(ORIGIN, HeaderValue::from_static(origin));
            }
            check_origin(&headers, &listed).is_ok()
        };
        for origin in [
            "http://relay:81",
            "HTTPS://Relay:81",
            "https://app.example.com",
            "https://app.example.com:443",
        ] {
            assert!(admits("relay:81", &[origin]), "{origin}");
        }
        assert!(admits("relay:81", &[]));
        assert!(admits("relay", &["https://relay"]) && admits("relay:443", &["https://relay"]));
        let foreign = [
            "http://relay",
            "http://relay:82",
            "http://relay.example",
            "http://app.example.com",
            "null",
            "",
        ];
        for origin in foreign.into_iter().chain([
            "http://127.0.0.1",
            "http://localhost",
            "file://",
            "http://relay:81/x",
        ]) {
            assert!(!admits("relay:81", &[origin]), "{origin}");
        }
        assert!(
            !admits("relay:81", &["http://relay:81", "http://evil.example"]),
            "each of several counts"
        );
        assert!(!admits("", &["http://"]) && !admits("a b", &["http://a b"]));
    }
}
