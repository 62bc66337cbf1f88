//! What is measured: a process of its own, told where its events come from, asked where it listens.

use std::{
    env,
    fmt::{self, Display},
    fs,
    io::{BufRead, BufReader, Read},
    net::SocketAddr,
    path::PathBuf,
    process::{Child, Command, Stdio},
    str::FromStr,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{self, Sender},
    },
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use tempfile::TempDir;

use crate::{Result, payload::PRODUCT};

/// Which program.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    /// `autoplay-relay serve`, with the log in memory.
    Relay,
    /// `autoplay-relay serve`, with a store beside the build.
    Durable,
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
    home: Option<Home>,
}

/// What a relay finds when it starts, and finds again when it is started anew.
#[derive(Debug)]
struct Home {
    config: TempDir,
    /// None where the log is in memory.
    data: Option<TempDir>,
    /// Tables of its configuration that not every relay has.
    tables: String,
}

/// A relay's way from one life to the next.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Restart {
    /// From SIGTERM to the end of the process.
    pub(crate) stopping: Duration,
    /// From the start of the next to the moment at which it serves.
    pub(crate) starting: Duration,
}

impl Target {
    /// Starts one that reads from `upstream`.
    pub(crate) fn start(kind: Kind, upstream: SocketAddr, pace: Pace) -> Result<Self> {
        match kind {
            Kind::Relay => Self::relay(Home::new(upstream, None, "")?),
            Kind::Durable => Self::durable(upstream, ""),
            Kind::Bare => Self::bare(upstream, pace),
        }
    }

    /// Starts a relay with a store that reads from `upstream`, with further tables in its configuration.
    pub(crate) fn durable(upstream: SocketAddr, tables: &str) -> Result<Self> {
        Self::relay(Home::new(upstream, Some(data_dir()?), tables)?)
    }

    fn relay(home: Home) -> Result<Self> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_autoplay-relay"));
        for (name, _) in env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("AUTOPLAY")) {
            command.env_remove(name);
        }
        command
            .args(["serve", "--log-format", "json", "--config"])
            .arg(home.config())
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
            home: Some(home),
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
        Ok(Self { address, admin: None, child, complaints, home: None })
    }

    /// Ends it in order and starts it again on what it has kept. The upstream must take it back. What it has complained of
    /// so far goes into `remarks`.
    ///
    /// # Errors
    ///
    /// When it does not end well, or does not start.
    pub(crate) fn restart(mut self, remarks: &mut Vec<String>) -> Result<(Self, Restart)> {
        let home = self.home.take().ok_or("only a relay can be restarted")?;
        let began = Instant::now();
        let told = Command::new("kill").args(["-TERM", &self.pid().to_string()]).status()?;
        let ended = self.child.wait()?;
        if !told.success() || !ended.success() {
            return Err(format!("the relay did not end in order: {ended}").into());
        }
        let stopping = began.elapsed();
        remarks.extend(self.complaints());
        let began = Instant::now();
        let target = Self::relay(home)?;
        Ok((target, Restart { stopping, starting: began.elapsed() }))
    }

    /// The files that it keeps.
    pub(crate) fn files(&self) -> Result<Vec<PathBuf>> {
        let data = self.home.as_ref().and_then(|home| home.data.as_ref()).ok_or("the target keeps no files")?;
        fs::read_dir(data)?.map(|entry| Ok(entry?.path())).collect()
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

impl Home {
    fn new(upstream: SocketAddr, data: Option<TempDir>, tables: &str) -> Result<Self> {
        let home = Self { config: tempfile::tempdir()?, data, tables: tables.to_owned() };
        fs::write(home.config(), home.configuration(upstream))?;
        Ok(home)
    }

    fn config(&self) -> PathBuf {
        self.config.path().join("relay.toml")
    }

    /// Defaults, but for what a bench on loopback needs.
    fn configuration(&self, upstream: SocketAddr) -> String {
        let data_dir = self.data.as_ref().map_or_else(String::new, |data| data.path().display().to_string());
        let tables = &self.tables;
        format!(
            r#"
[server]
listen = "127.0.0.1:0"
admin_listen = "127.0.0.1:0"
max_connects_per_second = 0
write_timeout = "10m"

[log]
data_dir = "{data_dir}"
retention_bytes = "64GiB"

[[upstreams]]
product_id = "{PRODUCT}"
url = "http://{upstream}/stream/{PRODUCT}"
token = "not-a-secret"

[auth]
allow_anonymous = true

{tables}
"#
        )
    }
}

/// Makes this executable the reference: followed by the upstream's address and its pace.
pub(crate) const BARE: &str = "--bare";

/// On a real disk, which the place for temporary files may not be.
fn data_dir() -> Result<TempDir> {
    Ok(tempfile::Builder::new().prefix("bench-data-").tempdir_in(env!("CARGO_TARGET_TMPDIR"))?)
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

impl Kind {
    /// All, in the order of the report's columns.
    pub(crate) const ALL: [Self; 3] = [Self::Relay, Self::Durable, Self::Bare];
}

impl Display for Kind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Relay => "relay",
            Self::Durable => "durable",
            Self::Bare => "bare",
        })
    }
}

impl FromStr for Kind {
    type Err = ();

    fn from_str(text: &str) -> std::result::Result<Self, ()> {
        Self::ALL.into_iter().find(|kind| kind.to_string() == text).ok_or(())
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
