//! nginx with nchan, Debian's packages `nginx-core` and `libnginx-mod-nchan`: one channel for every
//! event, or one for each session.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
};

use super::{
    running::Target,
    spawn::{follow, free_port, listening_in_time},
};
use crate::support::{Result, publisher::Publishing};

/// Returns what is not installed.
pub(super) fn missing() -> Option<&'static str> {
    let is_there = Path::new(NGINX).exists() && Path::new(MODULE).exists();
    (!is_there).then_some("Debian's nginx-core and libnginx-mod-nchan are not installed")
}

/// Starts it on a free port.
pub(super) fn start() -> Result<Target> {
    let files = tempfile::tempdir()?;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
    let config = files.path().join("nginx.conf");
    fs::write(&config, configuration(files.path(), address))?;
    let mut child = Command::new(NGINX)
        .arg("-p")
        .arg(files.path())
        .arg("-c")
        .arg(&config)
        .stderr(Stdio::piped())
        .spawn()?;
    let complaints = Arc::default();
    let log = child.stderr.take().ok_or("nginx has no log")?;
    let _ = follow(log, &complaints, |_| false);
    listening_in_time(&mut child, address, &complaints)?;
    let publishing = Publishing { address, request, is_kept_alive: true };
    let mut target = Target::of(child, complaints);
    target.address = address;
    target.publishing = Some(publishing);
    target.files = Some(files);
    Ok(target)
}

/// Returns the defaults, with higher limits for connections and for the messages that a subscriber
/// may lag behind.
fn configuration(directory: &Path, address: SocketAddr) -> String {
    let directory = directory.display();
    format!(
        r#"load_module {MODULE};
daemon off;
user root;
worker_processes auto;
pid {directory}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 20000; }}
http {{
    access_log off;
    keepalive_requests 1000000000;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    nchan_shared_memory_size 512m;
    server {{
        listen {address} backlog=4096;
        location = /publish {{
            nchan_publisher;
            nchan_channel_id "events$arg_session_id";
            nchan_message_buffer_length 2000;
            nchan_message_timeout 60s;
        }}
        location /stream/ {{
            nchan_subscriber eventsource;
            nchan_channel_id "events$arg_session_id";
            nchan_subscriber_first_message newest;
        }}
    }}
}}
"#
    )
}

/// Appends the request that publishes one payload.
fn request(address: SocketAddr, session: Option<&str>, payload: &[u8], request: &mut Vec<u8>) {
    let query = session.map(|session| format!("?session_id={session}")).unwrap_or_default();
    let length = payload.len();
    let head = format!(
        "POST /publish{query} HTTP/1.1\r\nHost: {address}\r\nContent-Length: {length}\r\n\r\n"
    );
    request.extend_from_slice(head.as_bytes());
    request.extend_from_slice(payload);
}

pub(super) const DIFFERENCE: &str = "published to over one kept-alive connection, it reads no stream; 2 000 messages kept for each \
    channel; by session, each session is a channel, and no subscriber could get every event; ids are its own; no chunks; one worker for each core";

const NGINX: &str = "/usr/sbin/nginx";

const MODULE: &str = "/usr/lib/nginx/modules/ngx_nchan_module.so";
