//! Checks of a request's head that come before all others: framing, `Host`, and the lengths.
//!
//! In: requests of every listener. Out: the requests whose head is unambiguous. A proxy and the
//! relay that take different hosts from one request would route it differently, so a request
//! without one clear host is refused before any other check (RFC 9112, section 3.2), and so is one
//! whose body they could delimit differently (section 6.1).
//!
//! May use: `net`.

use std::net::Ipv6Addr;

use axum::{
    extract::Request,
    middleware::Next,
    response::{IntoResponse, Response},
};
use hyper::{
    Version,
    header::{CONNECTION, HOST, HeaderValue},
};

use super::problem::Problem;
use crate::net::AmbiguousFraming;

/// Passes a request on unless its head is refused, as a middleware.
pub(in crate::http) async fn check(request: Request, next: Next) -> Response {
    match refusal(&request) {
        None => next.run(request).await,
        Some(refusal) => refusal,
    }
}

/// Returns the answer to a request whose head is refused: 400 for ambiguous framing and for a bad
/// `Host`, 414 for a target that is too long, 431 for a method or fields that are. The connection
/// closes after it, so that the relay reads nothing after such a head.
pub(in crate::http) fn refusal(request: &Request) -> Option<Response> {
    let problem = verify_framing(request)
        .and_then(|()| verify_host(request))
        .and_then(|()| verify_lengths(request))
        .err()?;
    let mut response = problem.into_response();
    // Over HTTP/2 hyper drops the field.
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    Some(response)
}

fn verify_framing(request: &Request) -> Result<(), Problem> {
    match request.extensions().get::<AmbiguousFraming>() {
        None => Ok(()),
        Some(AmbiguousFraming) => Err(Problem::bad_request(
            "the end of the body is not clear: send a Content-Length, or the one transfer coding \
             chunked, and not both",
        )),
    }
}

fn verify_host(request: &Request) -> Result<(), Problem> {
    let authority = request.uri().authority();
    if authority.is_some_and(|authority| !matches_host_grammar(authority.as_str().as_bytes())) {
        return Err(Problem::bad_request("the target's host is not a host with an optional port"));
    }
    let mut hosts = request.headers().get_all(HOST).iter();
    let Some(host) = hosts.next() else {
        // HTTP/2 has `:authority` instead (RFC 9113, section 8.3.1), and clients of HTTP/1.0,
        // old health checks among them, send neither.
        let has_authority = request.version() >= Version::HTTP_2 && authority.is_some();
        return match has_authority || request.version() <= Version::HTTP_10 {
            true => Ok(()),
            false => Err(Problem::bad_request("Host is missing")),
        };
    };
    if hosts.next().is_some() {
        return Err(Problem::bad_request("there is more than one Host"));
    }
    if !matches_host_grammar(host.as_bytes()) {
        return Err(Problem::bad_request("Host is not a host with an optional port"));
    }
    // In HTTP/1.1 the authority of an absolute target replaces `Host` (RFC 9112, section 3.2.2). In
    // HTTP/2 the two must name the same.
    let differs = authority.is_some_and(|authority| {
        !authority.as_str().as_bytes().eq_ignore_ascii_case(host.as_bytes())
    });
    match request.version() == Version::HTTP_2 && differs {
        true => Err(Problem::bad_request("Host differs from :authority")),
        false => Ok(()),
    }
}

/// Returns whether a `Host` has the form of RFC 9110, section 7.2: a name or an address, and
/// perhaps a port.
fn matches_host_grammar(host: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(host) else { return false };
    let (is_host, port) = match text.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, port)) => (address.parse::<Ipv6Addr>().is_ok(), port),
            None => return false,
        },
        None => {
            let end = text.find(':').unwrap_or(text.len());
            let (name, port) = text.split_at(end);
            (matches_registered_name(name), port)
        }
    };
    let is_port = |port: &str| {
        port.is_empty()
            || port.bytes().all(|digit| digit.is_ascii_digit()) && port.parse::<u16>().is_ok()
    };
    is_host && (port.is_empty() || port.strip_prefix(':').is_some_and(is_port))
}

/// Returns whether a name is valid in `Host` (RFC 3986, section 3.2.2).
///
/// A comma is not accepted, although that section allows it: proxies join two fields by one.
fn matches_registered_name(name: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+;=".contains(&byte);
    let mut bytes = name.bytes();
    let mut is_valid = !name.is_empty();
    while let Some(byte) = bytes.next() {
        is_valid &= match byte {
            b'%' => [bytes.next(), bytes.next()]
                .into_iter()
                .all(|digit| digit.is_some_and(|digit| digit.is_ascii_hexdigit())),
            byte => is_allowed(byte),
        };
    }
    is_valid
}

fn verify_lengths(request: &Request) -> Result<(), Problem> {
    let target = request.uri().path_and_query().map_or(0, |target| target.as_str().len());
    if target > MAX_TARGET_BYTES {
        return Err(Problem::target_too_long());
    }
    let fields = request.headers().iter();
    let fields = fields.map(|(name, value)| name.as_str().len() + value.len() + FIELD_EXTRA_BYTES);
    if request.method().as_str().len() + fields.sum::<usize>() > MAX_FIELDS_BYTES {
        return Err(Problem::head_too_large());
    }
    Ok(())
}

/// Returns whether a request of HTTP/1.1 had a long target. hyper keeps the buffer that it grew for
/// such a head while the connection is idle, so the connection ends with the answer.
pub(in crate::http) fn exceeds_usual_query(request: &Request) -> bool {
    request.version() <= Version::HTTP_11
        && request.uri().query().is_some_and(|query| query.len() > MAX_USUAL_QUERY_BYTES)
}

/// Size of hyper's read buffer before targets of 60 KiB were accepted.
const MAX_USUAL_QUERY_BYTES: usize = 16 * 1024;

/// Maximum of path and query: a filter of a thousand UUIDs has 48 KB.
const MAX_TARGET_BYTES: usize = 60 * 1024;

/// Maximum of method and fields. Tokens and cookies are a few kilobytes.
const MAX_FIELDS_BYTES: usize = 16 * 1024;

/// Colon, blank and line end of a field of HTTP/1.1.
const FIELD_EXTRA_BYTES: usize = 4;

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use hyper::StatusCode;

    use super::*;

    fn status(version: Version, target: &str, hosts: &[&[u8]]) -> u16 {
        let mut request = Request::builder().version(version).uri(target);
        for host in hosts {
            request = request.header(HOST, HeaderValue::from_bytes(host).unwrap());
        }
        let refusal = refusal(&request.body(Body::empty()).unwrap());
        refusal.map_or(200, |response| response.status().as_u16())
    }

    #[test]
    fn a_request_has_one_host_of_the_right_form() {
        let host = |hosts: &[&[u8]]| status(Version::HTTP_11, "/", hosts);
        for good in [
            "relay.test",
            "relay.test:8080",
            "RELAY",
            "a_b.internal",
            "127.0.0.1:1",
            "[::1]",
            "[::1]:8080",
            "relay:",
            "xn--bcher-kva.test",
            "relay.test.",
            "a%2Db.test",
        ] {
            assert_eq!(host(&[good.as_bytes()]), 200, "{good}");
        }
        for bad in [
            "", " ", "a b", "a, b", "a,b", "http://a", "a/b", "user@a", "a:b", "a:1:2", "a:70000",
            "a:+1", "[::1", "::1", "[a]", "[::1]x", "a?b", "a#b", ":80", "a\tb", "a%zz", "a%2",
        ] {
            assert_eq!(host(&[bad.as_bytes()]), 400, "{bad:?}");
        }
        assert_eq!(host(&["ä".as_bytes()]), 400);
        assert_eq!(host(&[]), 400);
        assert_eq!(host(&[b"a", b"a"]), 400, "the same twice is twice");
    }

    #[test]
    fn an_authority_replaces_host_over_http2_only() {
        let absolute = "http://relay.test/";
        assert_eq!(status(Version::HTTP_2, absolute, &[]), 200);
        assert_eq!(status(Version::HTTP_2, absolute, &[b"RELAY.test"]), 200);
        assert_eq!(status(Version::HTTP_2, absolute, &[b"other.test"]), 400);
        assert_eq!(status(Version::HTTP_2, "/", &[]), 400);
        for authority in ["http://u:p@relay.test/", "http://a,b/", "http://a:99999/"] {
            assert_eq!(status(Version::HTTP_2, authority, &[]), 400, "{authority}");
            assert_eq!(status(Version::HTTP_11, authority, &[b"relay.test"]), 400, "{authority}");
        }
        assert_eq!(status(Version::HTTP_11, absolute, &[]), 400);
        assert_eq!(status(Version::HTTP_11, absolute, &[b"other.test"]), 200, "it is replaced");
        assert_eq!(status(Version::HTTP_10, "/", &[]), 200);
        assert_eq!(status(Version::HTTP_10, "/", &[b"a", b"b"]), 400);
    }

    #[test]
    fn a_target_and_the_fields_have_a_bound_each() {
        let target = |bytes: usize| format!("/{}", "x".repeat(bytes - 1));
        let of = |bytes| status(Version::HTTP_11, &target(bytes), &[b"a"]);
        assert_eq!((of(MAX_TARGET_BYTES), of(MAX_TARGET_BYTES + 1)), (200, 414));
        let with = |bytes: usize| {
            let request =
                Request::builder().uri("/").header(HOST, "a").header("x", "x".repeat(bytes));
            refusal(&request.body(Body::empty()).unwrap()).map(|response| response.status())
        };
        assert_eq!(with(16_000), None);
        assert_eq!(with(16_500), Some(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE));
    }
}
