//! What is measured: a process of its own, told where its events come from, asked where it listens.

use std::{
    env,
    fmt::{self, Display},
    fs,
    io::{BufRead, BufReader, Read},
    net::SocketAddr,
    process::{Child, Command, Stdio},
    str::FromStr,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{self, Sender},
    },
    thread,
    time::Duration,
};

use serde_json::Value;
use tempfile::TempDir;

use crate::{Result, options::BARE, payload::PRODUCT};

/// Which program.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    /// `autoplay-relay serve`.
    Relay,
    /// The least that could do its job.
    Bare,
}

/// How `bare` writes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Pace {
    /// One write for each event and subscriber.
    Each,
    /// One write for each subscriber with all events that have come meanwhile.
    Gather,
}

/// A running one. Killed when dropped.
#[derive(Debug)]
pub(crate) struct Target {
    child: Child,
    /// Where subscribers go.
    pub(crate) address: SocketAddr,
    /// Where metrics are, if it has any.
    pub(crate) admin: Option<SocketAddr>,
    complaints: Arc<Mutex<Vec<String>>>,
    /// Holds the configuration.
    _home: Option<TempDir>,
}

impl Target {
    /// Starts one that reads from `upstream`.
    pub(crate) fn start(kind: Kind, upstream: SocketAddr, pace: Pace) -> Result<Self> {
        match kind {
            Kind::Relay => Self::relay(upstream),
            Kind::Bare => Self::bare(upstream, pace),
        }
    }

    fn relay(upstream: SocketAddr) -> Result<Self> {
        let home = tempfile::tempdir()?;
        let config = home.path().join("relay.toml");
        fs::write(&config, configuration(upstream))?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_autoplay-relay"));
        for (name, _) in env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("AUTOPLAY")) {
            command.env_remove(name);
        }
        command
            .args(["serve", "--log-format", "json", "--config"])
            .arg(&config)
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
        Ok(Self {
            address: address("listen")?,
            admin: Some(address("admin_listen")?),
            child,
            complaints,
            _home: Some(home),
        })
    }

    fn bare(upstream: SocketAddr, pace: Pace) -> Result<Self> {
        let mut child = Command::new(env::current_exe()?)
            .args([BARE, &upstream.to_string(), &pace.to_string()])
            .stdout(Stdio::piped())
            .spawn()?;
        let complaints = Arc::default();
        let output = child.stdout.take().ok_or("bare has no output")?;
        let line = follow(output, &complaints, |line| line.parse::<SocketAddr>().is_ok());
        let address = line_in_time(&mut child, &line, &complaints)?.parse()?;
        Ok(Self { address, admin: None, child, complaints, _home: None })
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Warnings and errors it has logged so far.
    pub(crate) fn complaints(&self) -> Vec<String> {
        self.complaints.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How it ended, if it did.
    pub(crate) fn has_ended(&mut self) -> Option<String> {
        let status = self.child.try_wait().ok()??;
        Some(status.to_string())
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        // It may have ended already; then there is nothing to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Defaults, but for what a bench on loopback needs.
fn configuration(upstream: SocketAddr) -> String {
    format!(
        r#"
[server]
listen = "127.0.0.1:0"
admin_listen = "127.0.0.1:0"
max_connects_per_second = 0

[[upstreams]]
product_id = "{PRODUCT}"
url = "http://{upstream}/stream/{PRODUCT}"
token = "not-a-secret"

[auth]
allow_anonymous = true
"#
    )
}

/// Reads lines to their end on a thread of its own; hands over the first that is looked for, keeps the first few complaints.
fn follow(
    output: impl Read + Send + 'static,
    complaints: &Arc<Mutex<Vec<String>>>,
    is_looked_for: impl Fn(&str) -> bool + Send + 'static,
) -> mpsc::Receiver<String> {
    let (found, line) = mpsc::channel();
    let complaints = Arc::clone(complaints);
    let mut found: Option<Sender<String>> = Some(found);
    thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(std::io::Result::ok) {
            if let Some(found) = found.take_if(|_| is_looked_for(&line)) {
                // Nobody waits any more: then the run is over anyway.
                let _ = found.send(line);
                continue;
            }
            let is_complaint =
                found.is_some() || line.contains(r#""level":"WARN""#) || !line.contains(r#""level":"INFO""#);
            let mut complaints = complaints.lock().unwrap_or_else(PoisonError::into_inner);
            if is_complaint && complaints.len() < MOST_COMPLAINTS {
                complaints.push(line);
            }
        }
    });
    line
}

fn line_in_time(child: &mut Child, line: &mpsc::Receiver<String>, complaints: &Mutex<Vec<String>>) -> Result<String> {
    match line.recv_timeout(Duration::from_secs(10)) {
        Ok(line) => {
            // What it said before is no complaint.
            complaints.lock().unwrap_or_else(PoisonError::into_inner).clear();
            Ok(line)
        }
        Err(_) => {
            let _ = child.kill();
            let _ = child.wait();
            let said = complaints.lock().unwrap_or_else(PoisonError::into_inner).join("\n");
            Err(format!("the target did not start:\n{said}").into())
        }
    }
}

const MOST_COMPLAINTS: usize = 20;

impl Display for Kind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Relay => "relay",
            Self::Bare => "bare",
        })
    }
}

impl FromStr for Kind {
    type Err = ();

    fn from_str(text: &str) -> std::result::Result<Self, ()> {
        [Self::Relay, Self::Bare].into_iter().find(|kind| kind.to_string() == text).ok_or(())
    }
}

impl Display for Pace {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Each => "each",
            Self::Gather => "gather",
        })
    }
}

impl FromStr for Pace {
    type Err = ();

    fn from_str(text: &str) -> std::result::Result<Self, ()> {
        [Self::Each, Self::Gather].into_iter().find(|pace| pace.to_string() == text).ok_or(())
    }
}
