//! Centrifugo, which `benches/results.sh` builds below `target/tools`: one channel for every event,
//! or one for each session.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
};

use serde_json::json;

use super::{
    running::Target,
    spawn::{follow, free_port, listening_in_time},
};
use crate::support::{Result, publisher::Publishing};

/// Returns what is not installed.
pub(super) fn missing() -> Option<&'static str> {
    (!program().exists()).then_some("benches/results.sh has not built target/tools/centrifugo")
}

/// Starts it on a free port.
pub(super) fn start() -> Result<Target> {
    let files = tempfile::tempdir()?;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
    let config = files.path().join("centrifugo.json");
    fs::write(&config, configuration(address))?;
    let mut command = Command::new(program());
    command.arg("--config").arg(&config);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let complaints = Arc::default();
    let log = child.stdout.take().ok_or("centrifugo has no log")?;
    let _ = follow(log, &complaints, |_| false);
    listening_in_time(&mut child, address, &complaints)?;
    let mut target = Target::of(child, complaints);
    target.address = address;
    target.publishing = Some(Publishing { address, request, is_kept_alive: true });
    target.files = Some(files);
    Ok(target)
}

/// Returns the defaults, without credentials of subscribers and of the publisher.
fn configuration(address: SocketAddr) -> String {
    json!({
        "http_server": { "address": address.ip(), "port": address.port() },
        "http_api": { "insecure": true },
        "client": { "insecure": true },
        "uni_sse": { "enabled": true },
        "log": { "level": "warn" },
    })
    .to_string()
}

/// Returns the path and query of a subscriber of one session or of all events.
pub(crate) fn subscribe_target(session: Option<&str>) -> String {
    // {"subs":{"CHANNEL":{}}}, encoded for a query.
    let channel = channel(session);
    format!("/connection/uni_sse?cf_connect=%7B%22subs%22%3A%7B%22{channel}%22%3A%7B%7D%7D%7D")
}

/// Returns the payload of a message to a subscriber; `None` for one without an event, such as the
/// answer to the connect or a ping.
pub(crate) fn payload(message: &[u8]) -> Option<&[u8]> {
    let at = memchr::memmem::find(message, PUBLICATION)?;
    message[at + PUBLICATION.len()..].strip_suffix(b"}}")
}

fn channel(session: Option<&str>) -> String {
    format!("events{}", session.unwrap_or_default())
}

/// Appends the request that publishes one payload.
fn request(address: SocketAddr, session: Option<&str>, payload: &[u8], request: &mut Vec<u8>) {
    let channel = channel(session);
    let start = format!(r#"{{"channel":"{channel}","data":"#);
    let length = start.len() + payload.len() + 1;
    let head = format!(
        "POST /api/publish HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n\
        Content-Length: {length}\r\n\r\n{start}"
    );
    request.extend_from_slice(head.as_bytes());
    request.extend_from_slice(payload);
    request.push(b'}');
}

/// The path of the program.
fn program() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("tools/centrifugo")
}

const PUBLICATION: &[u8] = br#""pub":{"data":"#;

pub(super) const DIFFERENCE: &str = "published to over one kept-alive connection, it reads no stream; keeps no events, its default; \
    by session, each session is a channel, and no subscriber could get every event; no ids; each payload stands in JSON";
