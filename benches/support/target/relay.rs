//! The relay itself, as its users run it.

use std::{
    env,
    net::SocketAddr,
    process::{Command, Stdio},
    sync::Arc,
};

use serde_json::Value;

use super::{
    relay_files::RelayFiles,
    running::Target,
    spawn::{follow, line_in_time},
};
use crate::support::Result;

/// Starts a relay with these files, under the command in `BENCH_RELAY_UNDER` (valgrind, say).
pub(super) fn start(relay_files: RelayFiles) -> Result<Target> {
    let binary = env!("CARGO_BIN_EXE_autoplay-relay");
    let under = env::var(UNDER).unwrap_or_default();
    let mut words = under.split_whitespace().chain([binary]);
    let mut command = Command::new(words.next().unwrap_or(binary));
    command.args(words);
    for (name, _) in
        env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("AUTOPLAY"))
    {
        command.env_remove(name);
    }
    command
        .args(["serve", "--log-format", "json", "--config"])
        .arg(relay_files.config())
        .env("RUST_LOG", "info")
        .stderr(Stdio::piped());
    let mut child = command.spawn()?;
    let complaints = Arc::default();
    let log = child.stderr.take().ok_or("the relay has no log")?;
    let line = follow(log, &complaints, |line| line.contains(r#""message":"serving""#));
    let serving: Value = serde_json::from_str(&line_in_time(&mut child, &line, &complaints)?)?;
    let address = |field: &str| -> Result<SocketAddr> {
        let text = serving[field].as_str().ok_or_else(|| format!("no {field} in {serving}"))?;
        Ok(text.parse()?)
    };
    let (listen, admin) = (address("listen")?, address("admin_listen")?);
    let mut target = Target::of(child, complaints);
    target.address = listen;
    target.admin = Some(admin);
    target.relay_files = Some(relay_files);
    Ok(target)
}

const UNDER: &str = "BENCH_RELAY_UNDER";
