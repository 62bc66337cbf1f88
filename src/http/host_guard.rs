//! Keeps web pages of other sites out where no credential is demanded.
//!
//! A page on the open web can make its visitor's browser call a relay on loopback, by DNS rebinding
//! or directly. The browser then sends the page's host in `Host` or its origin in `Origin`; both
//! must be known. A resource that a page loads without reading it, such as an image or a script,
//! brings no `Origin`, but says so in `Sec-Fetch-Site`.
//!
//! May use: `config`.

use std::net::IpAddr;

use axum::{
    extract::{Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use hyper::{
    HeaderMap, Uri,
    header::{HOST, ORIGIN},
};

use super::problem::Problem;
use crate::config::{HostAndPort, Origin};

/// Hosts and origins that may reach a listener that demands no credential.
#[derive(Clone, Debug)]
pub(crate) struct HostGuard {
    /// Host names that count as the relay's own, beside addresses and `localhost`.
    pub(crate) allowed_hosts: Vec<HostAndPort>,
    /// Origins whose pages may call the listener.
    pub(crate) allowed_origins: Vec<Origin>,
}

impl HostGuard {
    /// Passes a request on if [`HostGuard::verify`] accepts it, as a middleware.
    pub(crate) async fn check(
        State(guard): State<std::sync::Arc<Self>>,
        request: Request,
        next: Next,
    ) -> Response {
        match guard.verify(request.uri(), request.headers()) {
            Ok(()) => next.run(request).await,
            Err(problem) => problem.into_response(),
        }
    }

    /// Checks that a request's host and origin are known.
    ///
    /// # Errors
    ///
    /// 403 if one is not.
    pub(super) fn verify(&self, uri: &Uri, headers: &HeaderMap) -> Result<(), Problem> {
        // HTTP/2 has `:authority` instead of `Host` (RFC 9113, section 8.3.1), and hyper shows it
        // in the URI. It counts before `Host`, as the authority of an absolute target does in
        // HTTP/1.1 (RFC 9112, section 3.2.2).
        let host = uri.authority().map(|authority| authority.as_str().as_bytes());
        let host =
            host.or_else(|| headers.get(HOST).map(|host| host.as_bytes())).unwrap_or_default();
        // DNS rebinding: the browser believes that the page's own host resolves to this relay, so
        // `Host` is the page's. A name that a stranger cannot point here is safe.
        if !self.is_own_host(host) {
            return Err(Problem::forbidden(
                "Host is not an address, localhost or in server.allowed_hosts, \
                and no credential is demanded here",
            ));
        }
        // All of them: a second `Origin` field must not hide the first.
        let mut origins = headers.get_all(ORIGIN).iter();
        if !origins.all(|origin| self.is_known_origin(origin.as_bytes())) {
            return Err(Problem::forbidden(
                "Origin is neither an own host nor in server.cors_allowed_origins, \
                and no credential is demanded here",
            ));
        }
        // Without `Origin`: requests of the no-cors mode (images, scripts), whose answer a page may
        // not read but whose effect it has.
        if !headers.contains_key(ORIGIN) && loaded_cross_site(headers) {
            return Err(Problem::forbidden(
                "a page of another site asks (Sec-Fetch-Site) without saying which, \
                and no credential is demanded here",
            ));
        }
        Ok(())
    }

    fn is_known_origin(&self, origin: &[u8]) -> bool {
        let Ok(origin) = std::str::from_utf8(origin) else {
            return false;
        };
        let is_listed = self
            .allowed_origins
            .iter()
            .any(|allowed| allowed.as_str().eq_ignore_ascii_case(origin));
        is_listed
            || origin.split_once("://").is_some_and(|(_, host)| self.is_own_host(host.as_bytes()))
    }

    fn is_own_host(&self, host: &[u8]) -> bool {
        let Some(host) =
            std::str::from_utf8(host).ok().and_then(|host| HostAndPort::parse(host).ok())
        else {
            return false;
        };
        // An IPv6 address is in brackets (RFC 3986, section 3.2.2).
        let name = host.host().trim_start_matches('[').trim_end_matches(']');
        // A listed host without a port means all ports.
        let is_listed = self.allowed_hosts.iter().any(|allowed| {
            allowed.host().eq_ignore_ascii_case(name)
                && (allowed.port().is_none() || allowed.port() == host.port())
        });
        // An address is safe: DNS rebinding needs a name, which the browser puts into `Host`.
        is_listed || name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok()
    }
}

/// Returns true if a browser says that it loads this for a page of another site (Fetch Metadata,
/// `Sec-Fetch-Site`).
///
/// A navigation is let through: a person follows a link. A form that is sent by any method but GET
/// has an `Origin`.
fn loaded_cross_site(headers: &HeaderMap) -> bool {
    let has_value = |name: &str, values: &[&[u8]]| {
        headers.get_all(name).iter().any(|value| values.contains(&value.as_bytes()))
    };
    has_value("sec-fetch-site", &[b"cross-site", b"same-site"])
        && !has_value("sec-fetch-mode", &[b"navigate"])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admits(host: Option<&str>, origin: Option<&str>) -> bool {
        let guard = HostGuard {
            allowed_hosts: vec![
                HostAndPort::parse("relay.internal").unwrap(),
                HostAndPort::parse("other:81").unwrap(),
            ],
            allowed_origins: vec![Origin::parse("https://app.example.com").unwrap()],
        };
        let mut headers = HeaderMap::new();
        if let Some(host) = host {
            headers.insert(HOST, host.parse().unwrap());
        }
        if let Some(origin) = origin {
            headers.insert(ORIGIN, origin.parse().unwrap());
        }
        guard.verify(&Uri::from_static("/stream/p"), &headers).is_ok()
    }

    #[test]
    fn hosts_that_no_stranger_can_point_here_are_own_hosts() {
        for host in [
            "127.0.0.1",
            "127.0.0.1:8080",
            "[::1]:8080",
            "LOCALHOST:1",
            "10.1.2.3",
            "Relay.internal:99",
            "other:81",
        ] {
            assert!(admits(Some(host), None), "{host}");
        }
        for host in [
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "other:82",
            "other",
            "",
            "a b",
        ] {
            assert!(!admits(Some(host), None), "{host}");
        }
        assert!(!admits(None, None));
    }

    #[test]
    fn origins_are_own_hosts_or_listed() {
        for origin in [
            "http://127.0.0.1:3000",
            "http://localhost:5173",
            "https://app.example.com",
            "http://relay.internal",
        ] {
            assert!(admits(Some("localhost"), Some(origin)), "{origin}");
        }
        for origin in [
            "null",
            "https://evil.example",
            "http://app.example.com",
            "https://app.example.com.evil.example",
            "",
        ] {
            assert!(!admits(Some("localhost"), Some(origin)), "{origin}");
        }
    }

    #[test]
    fn the_authority_of_http2_counts_as_host() {
        let guard = HostGuard { allowed_hosts: Vec::new(), allowed_origins: Vec::new() };
        let admits =
            |uri: &'static str| guard.verify(&Uri::from_static(uri), &HeaderMap::new()).is_ok();
        assert!(admits("http://127.0.0.1:8080/stream/p"));
        assert!(!admits("http://evil.example/stream/p"));
    }
}
