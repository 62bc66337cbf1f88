//! URLs, origins and hosts.
//!
//! In: text of the operator or of the admin API. Out: checked and normalised values that compare as
//! browsers compare them. An error never quotes a URL: its query or user information may be a
//! secret.
//!
//! May use: no other module.

use std::fmt;
use std::net::Ipv6Addr;

use hyper::Uri;

use super::{findings::quoted, secret::MASK};

/// An absolute `http` or `https` URL with a host, without user information and fragment.
#[derive(Clone, Eq, PartialEq)]
pub(crate) struct HttpUrl(Uri);

impl HttpUrl {
    /// Parses a URL.
    ///
    /// # Errors
    ///
    /// A message that says what to write instead, without the URL.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        const NOT_A_URL: &str = "is not a URL; write e.g. https://example.com/events";
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(
                "must be a URL in visible ASCII; write anything else percent-encoded".to_owned()
            );
        }
        // The parser of `http::Uri` drops a fragment silently.
        if text.contains('#') {
            return Err("must be a URL without a fragment (#…)".to_owned());
        }
        let uri: Uri = text.parse().map_err(|_| NOT_A_URL.to_owned())?;
        let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
            return Err(NOT_A_URL.to_owned());
        };
        if !matches!(scheme, "http" | "https") {
            return Err("must be a URL that starts with http:// or https://".to_owned());
        }
        if authority.as_str().contains('@') {
            return Err(
                "must be a URL without a user name or password; give those as the token or secret"
                    .to_owned(),
            );
        }
        HostAndPort::parse(authority.as_str()).map_err(|_| NOT_A_URL.to_owned())?;
        Ok(Self(uri))
    }

    /// Returns the URL in the form that requests take.
    pub(crate) fn as_uri(&self) -> &Uri {
        &self.0
    }

    /// Returns scheme, host and port as written, which hold no secret.
    pub(crate) fn origin(&self) -> String {
        let authority = self.0.authority().map_or("", |authority| authority.as_str());
        format!("{}://{authority}", self.0.scheme_str().unwrap_or_default())
    }

    /// Returns the last segment of the path, percent-decoded; [`None`] if it is empty or not UTF-8.
    pub(crate) fn last_segment(&self) -> Option<String> {
        let (_, segment) = self.0.path().rsplit_once('/')?;
        percent_decode(segment).filter(|decoded| !decoded.is_empty())
    }
}

impl HttpUrl {
    /// Returns the URL with its query masked, which may hold a secret.
    pub(super) fn masked(&self) -> String {
        let text = self.to_string();
        match text.split_once('?') {
            Some((path, _)) => format!("{path}?{MASK}"),
            None => text,
        }
    }
}

impl fmt::Debug for HttpUrl {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.masked())
    }
}

impl fmt::Display for HttpUrl {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(out)
    }
}

/// A host in lower case, and a port if one is written.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) struct HostAndPort {
    host: String,
    port: Option<u16>,
}

impl HostAndPort {
    /// Parses `relay.internal`, `relay.internal:8080`, `10.0.0.1` or `[::1]:8080`.
    ///
    /// # Errors
    ///
    /// A message that says what to write instead, if the text is no host or the port is out of
    /// range.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let refused = || {
            format!(
                "{} is not a host; write a name or name:port, without a scheme or path",
                quoted(text)
            )
        };
        let host_end = text
            .find(']')
            .map_or_else(|| text.find(':').unwrap_or(text.len()), |bracket| bracket + 1);
        let (host, rest) = text.split_at_checked(host_end).ok_or_else(refused)?;
        let port = match rest.strip_prefix(':') {
            Some(digits) => Some(digits.parse().ok().filter(|port| *port > 0).ok_or_else(refused)?),
            None if rest.is_empty() => None,
            None => return Err(refused()),
        };
        if !valid_host(host) {
            return Err(refused());
        }
        Ok(Self { host: host.to_ascii_lowercase(), port })
    }

    /// Returns the host in lower case; an IPv6 address keeps its brackets, as in a `Host` header.
    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    /// Returns the port, if one is written.
    pub(crate) fn port(&self) -> Option<u16> {
        self.port
    }
}

impl fmt::Display for HostAndPort {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => write!(out, "{}:{port}", self.host),
            None => out.write_str(&self.host),
        }
    }
}

/// A web origin as a browser sends it: lower case, without a path, without the scheme's own port.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) struct Origin(String);

impl Origin {
    /// Parses `https://app.example.com` or `http://localhost:3000`. Other schemes are accepted,
    /// such as those of browser extensions.
    ///
    /// # Errors
    ///
    /// A message that says what to write instead, for `*`, for a text without a scheme, and for a
    /// text with anything after the host.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        if text == "*" {
            let message = "\"*\" would let every web page read the events; list the origins, e.g. https://app.example.com";
            return Err(message.to_owned());
        }
        let refused = || {
            format!(
                "{} is not an origin; write scheme://host, e.g. https://app.example.com",
                quoted(text)
            )
        };
        let (scheme, rest) = text.split_once("://").ok_or_else(refused)?;
        if rest.contains(['/', '?', '#']) {
            return Err(format!(
                "{} must end after the host and port: an origin has no path",
                quoted(text)
            ));
        }
        let scheme_is_valid = scheme.starts_with(|first: char| first.is_ascii_alphabetic())
            && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte));
        let mut host =
            HostAndPort::parse(rest).ok().filter(|_| scheme_is_valid).ok_or_else(refused)?;
        let scheme = scheme.to_ascii_lowercase();
        if matches!((scheme.as_str(), host.port), ("https", Some(443)) | ("http", Some(80))) {
            host.port = None;
        }
        Ok(Self(format!("{scheme}://{host}")))
    }

    /// Returns the origin, to compare with an `Origin` header.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

fn valid_host(text: &str) -> bool {
    if let Some(address) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return address.parse::<Ipv6Addr>().is_ok();
    }
    let is_name = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte));
    is_name && text.starts_with(|first: char| first.is_ascii_alphanumeric() || first == '_')
}

/// Returns the text with `%41` decoded to `A`; [`None`] if a `%` is not followed by two hexadecimal
/// digits, or if the result is not UTF-8.
fn percent_decode(text: &str) -> Option<String> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        let next = match byte {
            b'%' => hex_digit(bytes.next()?)? * 16 + hex_digit(bytes.next()?)?,
            other => other,
        };
        decoded.push(next);
    }
    String::from_utf8(decoded).ok()
}

fn hex_digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_gives_its_last_segment_decoded() {
        let url = HttpUrl::parse("https://Connector.example.com/stream/prod%5fabc?x=1").unwrap();
        assert_eq!(url.last_segment().as_deref(), Some("prod_abc"));
        let url = HttpUrl::parse("http://[::1]:9000").unwrap();
        assert_eq!(url.last_segment(), None);
        assert_eq!(url.as_uri().path(), "/");
    }

    #[test]
    fn a_last_segment_that_is_empty_or_cannot_be_decoded_is_none() {
        for text in ["http://h/a/", "http://h/%f", "http://h/%zz", "http://h/%ff"] {
            assert_eq!(HttpUrl::parse(text).unwrap().last_segment(), None, "{text}");
        }
    }

    #[test]
    fn a_text_that_is_not_a_plain_http_url_is_refused_without_being_quoted() {
        let refused = [
            "",
            "example",
            "/stream/hush",
            "hush.example.com:80",
            "ftp://hush/",
            "http://",
            "http://:80/",
            "http://u:hush@h/",
            "http://h/#hush",
            "http://h:99999/",
            "http://h:0/",
            "http://h:/",
            "http://h/a hush",
            "http://hü/",
            "http://[::1/",
        ];
        for text in refused {
            let message = HttpUrl::parse(text).unwrap_err();
            assert!(message.contains("URL") && !message.contains("hush"), "{text}: {message}");
        }
    }

    #[test]
    fn a_host_is_a_name_or_an_address_with_or_without_a_port() {
        let text = |text: &str| HostAndPort::parse(text).map(|host| host.to_string());
        assert_eq!(text("Relay.Internal"), Ok("relay.internal".to_owned()));
        assert_eq!(text("relay:8080"), Ok("relay:8080".to_owned()));
        assert_eq!(text("[::1]:80"), Ok("[::1]:80".to_owned()));
        for refused in [
            "", ":80", "a:", "a:b", "a:0", "a:65536", "a/b", "http://a", "::1", "[a]", "a]b",
            "é]:1", "a b", ".a", "*",
        ] {
            assert!(
                HostAndPort::parse(refused).unwrap_err().contains("is not a host"),
                "{refused}"
            );
        }
    }

    #[test]
    fn an_origin_is_kept_as_a_browser_sends_it() {
        let text = |text: &str| Origin::parse(text).map(|origin| origin.as_str().to_owned());
        assert_eq!(text("HTTPS://App.example.com:443"), Ok("https://app.example.com".to_owned()));
        assert_eq!(text("http://localhost:3000"), Ok("http://localhost:3000".to_owned()));
        assert_eq!(text("http://a:443"), Ok("http://a:443".to_owned()));
        assert_eq!(text("chrome-extension://abc"), Ok("chrome-extension://abc".to_owned()));
    }

    #[test]
    fn a_text_that_is_not_an_origin_is_refused_with_a_correction() {
        assert!(Origin::parse("*").unwrap_err().contains("every web page"));
        for text in ["https://a/", "https://a/b", "https://a?b"] {
            assert!(Origin::parse(text).unwrap_err().contains("no path"), "{text}");
        }
        for text in [
            "",
            "null",
            "app.example.com",
            "https://",
            "://a",
            "1x://a",
            "https://*.example.com",
            "https://u@a",
        ] {
            assert!(Origin::parse(text).unwrap_err().contains("is not an origin"), "{text}");
        }
    }
}
