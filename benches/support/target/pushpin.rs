//! Pushpin, Debian's package `pushpin`: a proxy that holds streams for an origin and delivers
//! published messages.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use serde_json::json;

use super::{
    running::Target,
    spawn::{follow, free_port, listening_in_time},
};
use crate::support::{Result, publisher::Publishing};

/// Returns what is not installed.
pub(super) fn missing() -> Option<&'static str> {
    (!Path::new(PUSHPIN).exists()).then_some("Debian's pushpin is not installed")
}

/// Starts it on free ports, in front of an origin in this process.
pub(super) fn start() -> Result<Target> {
    let files = tempfile::tempdir()?;
    let local = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let (address, control) = (local(free_port()?), local(free_port()?));
    let origin = TcpListener::bind(local(0))?;
    fs::create_dir(files.path().join("run"))?;
    fs::write(files.path().join("routes"), format!("* {}\n", origin.local_addr()?))?;
    let config = files.path().join("pushpin.conf");
    fs::write(&config, configuration(files.path(), address, control))?;
    thread::spawn(move || serve(&origin));
    let mut child = Command::new(PUSHPIN)
        .arg(format!("--config={}", config.display()))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let complaints = Arc::default();
    let log = child.stderr.take().ok_or("pushpin has no log")?;
    let _ = follow(log, &complaints, |_| false);
    listening_in_time(&mut child, address, &complaints)?;
    listening_in_time(&mut child, control, &complaints)?;
    let deadline = Instant::now() + START_TIMEOUT;
    while !serves(address)? && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(50));
    }
    let mut target = Target::of(child, complaints);
    target.address = address;
    target.publishing = Some(Publishing { address: control, request, is_kept_alive: false });
    target.files = Some(files);
    Ok(target)
}

/// Returns whether all of Pushpin's processes are connected: before that it answers with an error.
fn serves(address: SocketAddr) -> Result<bool> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(START_TIMEOUT))?;
    write!(stream, "GET /stream/bench HTTP/1.1\r\nHost: {address}\r\n\r\n")?;
    let mut status = [0; b"HTTP/1.1 200".len()];
    Ok(stream.read_exact(&mut status).is_ok() && status == *b"HTTP/1.1 200")
}

/// Returns Debian's defaults, except for paths and the limit on messages. Pushpin runs its own
/// `zurl`, as Debian's service for it is not used.
fn configuration(home: &Path, address: SocketAddr, control: SocketAddr) -> String {
    let (home, port) = (home.display(), control.port());
    format!(
        r"[global]
include=/usr/lib/pushpin/internal.conf
rundir={home}/run
ipc_prefix=bench-
port_offset=0

[runner]
services=condure,zurl,pushpin-proxy,pushpin-handler
http_port={address}
logdir={home}
log_level=1
client_buffer_size=8192
client_maxconn=50000

[proxy]
routesfile={home}/routes
zurl_out_specs=ipc://{{rundir}}/{{ipc_prefix}}zurl-in
zurl_out_stream_specs=ipc://{{rundir}}/{{ipc_prefix}}zurl-in-stream
zurl_in_specs=ipc://{{rundir}}/{{ipc_prefix}}zurl-out
sig_iss=pushpin
sig_key=bench

[handler]
push_in_spec=ipc://{{rundir}}/{{ipc_prefix}}push
push_in_sub_specs=ipc://{{rundir}}/{{ipc_prefix}}push-sub
push_in_http_addr=127.0.0.1
push_in_http_port={port}
command_spec=ipc://{{rundir}}/{{ipc_prefix}}command
message_rate=0
message_hwm=1000000
"
    )
}

/// Serves the origin, which has each stream held on the channel of its session or of all events.
fn serve(listener: &TcpListener) {
    for stream in listener.incoming().flatten() {
        thread::spawn(move || answer(stream));
    }
}

/// Answers requests until the proxy closes; errors end the connection.
fn answer(stream: TcpStream) -> Option<()> {
    let mut writer = stream.try_clone().ok()?;
    let mut lines = BufReader::new(stream).lines().map_while(std::io::Result::ok);
    loop {
        let line = lines.next()?;
        lines.find(String::is_empty)?;
        let session = line.split_once("session_id=").and_then(|(_, rest)| rest.split(' ').next());
        let channel = channel(session);
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nGrip-Hold: stream\r\nGrip-Channel: {channel}\r\n\
            Content-Length: 0\r\n\r\n"
        );
        writer.write_all(head.as_bytes()).ok()?;
    }
}

fn channel(session: Option<&str>) -> String {
    format!("events{}", session.unwrap_or_default())
}

/// Appends the request that publishes one payload.
fn request(address: SocketAddr, session: Option<&str>, payload: &[u8], request: &mut Vec<u8>) {
    let content = format!("data: {}\n\n", String::from_utf8_lossy(payload));
    let item = json!({ "channel": channel(session), "formats": { "http-stream": { "content": content } } });
    let body = json!({ "items": [item] }).to_string();
    let length = body.len();
    let head =
        format!("POST /publish/ HTTP/1.1\r\nHost: {address}\r\nContent-Length: {length}\r\n\r\n");
    request.extend_from_slice(head.as_bytes());
    request.extend_from_slice(body.as_bytes());
}

pub(super) const DIFFERENCE: &str = "published to over HTTP, which takes a connection for each event; each stream is requested from an \
    origin (this process); keeps no events; its limit on messages is off; by session, each session is a channel, and no subscriber could get every event; no ids";

const START_TIMEOUT: Duration = Duration::from_secs(10);

const PUSHPIN: &str = "/usr/bin/pushpin";
