//! What a subscriber asks for, by each of the ways in.

use crate::{
    support::{
        payload::PRODUCT,
        target::kind::{Door, Way},
    },
    tally::Resume,
};

/// What a subscriber asks for.
pub(crate) fn request(door: Door, session: Option<&str>, resume: Option<Resume>) -> String {
    let session = session.map(|session| format!("session_id={session}"));
    let resume = resume.map(|resume| format!("last_event_id={resume}"));
    let query: Vec<String> = session.into_iter().chain(resume).collect();
    let query = if query.is_empty() { String::new() } else { format!("?{}", query.join("&")) };
    let target = door.address;
    match door.way {
        Way::Sse | Way::Tls => {
            format!(
                "GET /stream/{PRODUCT}{query} HTTP/1.1\r\nHost: {target}\r\nAccept: text/event-stream\r\n\r\n"
            )
        }
        Way::WebSocket => format!(
            "GET /ws/{PRODUCT}{query} HTTP/1.1\r\nHost: {target}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
            Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        ),
        // There it is no text: hyper writes it.
        Way::Http2 => format!("http://{target}/stream/{PRODUCT}{query}"),
        Way::TlsHttp2 => format!("https://{target}/stream/{PRODUCT}{query}"),
    }
}
