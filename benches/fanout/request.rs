//! Requests of subscribers, by protocol.

use crate::{
    support::{
        payload::PRODUCT,
        target::{
            centrifugo,
            kind::{Endpoint, Protocol},
        },
    },
    tally::Resume,
};

/// Returns a subscriber's request: the text of an HTTP/1.1 request, or the URL for HTTP/2.
pub(crate) fn request(endpoint: Endpoint, session: Option<&str>, resume: Option<Resume>) -> String {
    let query_session = session.map(|session| format!("{}={session}", endpoint.filter));
    let resume = resume.map(|resume| format!("last_event_id={resume}"));
    let query: Vec<String> = query_session.into_iter().chain(resume).collect();
    let query = if query.is_empty() { String::new() } else { format!("?{}", query.join("&")) };
    let target = endpoint.address;
    match endpoint.protocol {
        Protocol::CentrifugoSse => {
            let path = centrifugo::subscribe_target(session);
            format!("GET {path} HTTP/1.1\r\nHost: {target}\r\n\r\n")
        }
        Protocol::Sse | Protocol::Tls => {
            format!(
                "GET /stream/{PRODUCT}{query} HTTP/1.1\r\nHost: {target}\r\nAccept: text/event-stream\r\n\r\n"
            )
        }
        Protocol::WebSocket => format!(
            "GET /ws/{PRODUCT}{query} HTTP/1.1\r\nHost: {target}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
            Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        ),
        // hyper encodes the request of HTTP/2.
        Protocol::Http2 => format!("http://{target}/stream/{PRODUCT}{query}"),
        Protocol::TlsHttp2 => format!("https://{target}/stream/{PRODUCT}{query}"),
    }
}
