//! Finds the credential of a request.
//!
//! In: query and headers. Out: the one credential that counts. The header wins over the cookie, and
//! the cookie over the query; a bad credential that wins is not replaced by another.
//!
//! May use: `auth`, `config`.

use std::borrow::Cow;

use hyper::{
    HeaderMap,
    header::{AUTHORIZATION, COOKIE, HOST, ORIGIN},
};

use crate::{
    auth::{self, Credential},
    config::{AuthConfig, HostAndPort, Origin},
};

/// The places in which scoped tokens are looked for.
#[derive(Clone, Debug)]
pub(crate) struct CredentialSources {
    cookie_name: Option<String>,
    allow_query_token: bool,
    /// Origins whose pages may send the cookie along.
    origins: Vec<Origin>,
}

impl CredentialSources {
    /// The places of the configuration.
    pub(crate) fn new(auth: &AuthConfig, origins: &[Origin]) -> Self {
        let jwt = auth.jwt.as_ref();
        Self {
            cookie_name: jwt.and_then(|jwt| jwt.cookie_name.clone()),
            allow_query_token: jwt.is_some_and(|jwt| jwt.allow_query_token),
            origins: origins.to_vec(),
        }
    }

    /// Whether tokens may come in a cookie.
    pub(in crate::http) fn accepts_cookie(&self) -> bool {
        self.cookie_name.is_some()
    }

    /// The credential that counts, if there is one.
    pub(in crate::http) fn credential<'a>(
        &self,
        query: &'a str,
        headers: &'a HeaderMap,
    ) -> Option<Credential<'a>> {
        if let Some(value) = headers.get(AUTHORIZATION) {
            return Some(Credential::KeyOrToken(
                auth::bearer_token(value.as_bytes()).unwrap_or_default().into(),
            ));
        }
        let in_cookie =
            || self.cookie_token(headers).map(|token| Credential::TokenOnly(token.into()));
        in_cookie().or_else(|| self.query_token(query).map(Credential::TokenOnly))
    }

    /// The token in the cookie, if the page that has the browser send it is one of ours.
    fn cookie_token<'a>(&self, headers: &'a HeaderMap) -> Option<&'a [u8]> {
        let name = self.cookie_name.as_ref()?;
        let pairs = headers
            .get_all(COOKIE)
            .iter()
            .flat_map(|value| value.as_bytes().split(|byte| *byte == b';'));
        let values = pairs
            .filter_map(|pair| pair.trim_ascii().strip_prefix(name.as_bytes())?.strip_prefix(b"="));
        // A browser may send two of a name, of two paths or domains: the first is the more specific
        // one (RFC 6265, 5.4).
        let value = values.map(<[u8]>::trim_ascii).find(|value| !value.is_empty())?;
        let value =
            value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\"")).unwrap_or(value);
        self.is_from_trusted_page(headers).then_some(value)
    }

    /// The token in the query. Where none is allowed, it is a bad one: who sends it must not be
    /// taken for nobody.
    fn query_token<'a>(&self, query: &'a str) -> Option<Cow<'a, [u8]>> {
        let (_, token) =
            form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == "access_token")?;
        if !self.allow_query_token {
            return Some(Cow::Borrowed(&[]));
        }
        Some(match token {
            Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
            Cow::Owned(text) => Cow::Owned(text.into_bytes()),
        })
    }

    /// Whether a page of the own host or of a listed origin asks, or no page at all. A browser
    /// sends cookies for any page.
    fn is_from_trusted_page(&self, headers: &HeaderMap) -> bool {
        let mut origins = headers.get_all(ORIGIN).iter().peekable();
        if origins.peek().is_none() {
            let mut sites = headers.get_all("sec-fetch-site").iter();
            return sites
                .all(|site| [b"none".as_slice(), b"same-origin"].contains(&site.as_bytes()));
        }
        let host = headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
        let is_own =
            |origin: &str| lists_origin(&self.origins, origin) || origin_matches_host(origin, host);
        origins.all(|origin| origin.to_str().is_ok_and(is_own))
    }
}

/// Whether the list has this origin.
pub(in crate::http) fn lists_origin(origins: &[Origin], origin: &str) -> bool {
    origins.iter().any(|listed| listed.as_str().eq_ignore_ascii_case(origin))
}

/// Whether a page of this origin was served by this host and port.
pub(in crate::http) fn origin_matches_host(origin: &str, host: &str) -> bool {
    let default_port = match origin.split_once("://") {
        Some(("http", _)) => 80,
        Some(("https", _)) => 443,
        _ => return false,
    };
    let page =
        origin.split_once("://").and_then(|(_, authority)| HostAndPort::parse(authority).ok());
    let (Some(page), Ok(own)) = (page, HostAndPort::parse(host)) else { return false };
    let port = |at: &HostAndPort| at.port().unwrap_or(default_port);
    page.host().eq_ignore_ascii_case(own.host()) && port(&page) == port(&own)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_own_page_has_the_host_and_port_of_the_request() {
        for (origin, host) in [
            ("https://relay.test", "relay.test"),
            ("https://relay.test", "Relay.Test:443"),
            ("http://relay.test", "relay.test:80"),
            ("http://127.0.0.1:8080", "127.0.0.1:8080"),
            ("http://[::1]:8080", "[::1]:8080"),
        ] {
            assert!(origin_matches_host(origin, host), "{origin} {host}");
        }
        for (origin, host) in [
            ("https://relay.test", "relay.test:80"),
            ("http://localhost:3000", "localhost:8080"),
            ("https://relay.test.evil.test", "relay.test"),
            ("https://evil.test#relay.test", "relay.test"),
            ("https://relay.test@evil.test", "relay.test"),
            ("ftp://relay.test", "relay.test"),
            ("null", "null"),
            ("https://", ""),
            ("", ""),
        ] {
            assert!(!origin_matches_host(origin, host), "{origin} {host}");
        }
    }
}
