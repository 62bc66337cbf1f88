//! The binary as a process: what it prints, how it ends.

use std::{
    io::{BufRead, BufReader, Read},
    net::SocketAddr,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, LazyLock, Mutex},
    thread,
    time::Instant,
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::wait;

/// A running command of the binary. Killed when dropped; what it wrote to stderr is shown when the
/// test fails.
pub(crate) struct Process {
    child: Child,
    pub(crate) stdout: Lines,
    pub(crate) stderr: Lines,
}

impl Process {
    /// Starts `autoplay-relay` with these arguments, and nothing in its environment but these
    /// variables.
    pub(crate) fn start(arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        Self::start_by("", arguments, environment)
    }

    /// The same by another command, which the binary's path is appended to, and which becomes it.
    pub(crate) fn start_by(
        command: &str,
        arguments: &[&str],
        environment: &[(&str, &str)],
    ) -> Self {
        allow_files();
        let mut words = command.split_whitespace().chain([env!("CARGO_BIN_EXE_autoplay-relay")]);
        let mut child = Command::new(words.next().unwrap())
            .args(words)
            .args(arguments)
            .env_clear()
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = Lines::of(child.stdout.take().unwrap());
        let stderr = Lines::of(child.stderr.take().unwrap());
        Self { child, stdout, stderr }
    }

    /// The arguments' process by another command, which the binary's path is appended to.
    pub(crate) fn run_by(command: &str, arguments: &[&str]) -> Finished {
        let mut words = command.split(' ');
        let output = Command::new(words.next().unwrap())
            .args(words)
            .arg(env!("CARGO_BIN_EXE_autoplay-relay"))
            .args(arguments)
            .output()
            .unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Finished {
            code: output.status.code(),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        }
    }

    /// Runs a command to its end.
    pub(crate) fn run(arguments: &[&str], environment: &[(&str, &str)]) -> Finished {
        let mut process = Self::start(arguments, environment);
        let status = process.status();
        Finished {
            code: status.code(),
            stdout: process.stdout.whole(),
            stderr: process.stderr.whole(),
        }
    }

    /// Waits for the end, and returns the exit code.
    pub(crate) fn exit_code(&mut self) -> Option<i32> {
        self.status().code()
    }

    fn status(&mut self) -> ExitStatus {
        wait::value("the process ends", || self.child.try_wait().unwrap())
    }

    /// Whether it has not ended yet.
    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Lets it have at most this many files open.
    pub(crate) fn limit_files(&self, most: usize) {
        let pid = self.child.id().to_string();
        let limit = format!("--nofile={most}:{most}");
        assert!(Command::new("prlimit").args(["--pid", &pid, &limit]).status().unwrap().success());
    }

    /// Lets no file of its grow beyond this, as a full disk does; none lets all grow again.
    pub(crate) fn limit_file_size(&self, most: Option<u64>) {
        let pid = self.child.id().to_string();
        let limit =
            format!("--fsize={}:", most.map_or("unlimited".to_owned(), |most| most.to_string()));
        assert!(Command::new("prlimit").args(["--pid", &pid, &limit]).status().unwrap().success());
    }

    /// Ends it as nothing it does can prevent.
    pub(crate) fn kill_dash_nine(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// What it was started with, as everybody on the machine can read it.
    pub(crate) fn arguments(&self) -> String {
        std::fs::read_to_string(format!("/proc/{}/cmdline", self.child.id())).unwrap()
    }

    /// Processor time that it has used so far.
    pub(crate) fn processor_time(&self) -> std::time::Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let behind_name = stat.rsplit(')').next().unwrap().split_whitespace();
        let ticks: u64 =
            behind_name.skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum();
        std::time::Duration::from_millis(ticks * 10) // 100 a second, on every Linux
    }

    /// Memory that it has for itself, in KiB.
    pub(crate) fn private_kib(&self) -> u64 {
        let rollup =
            std::fs::read_to_string(format!("/proc/{}/smaps_rollup", self.child.id())).unwrap();
        let private = rollup.lines().filter(|line| line.starts_with("Private_"));
        private.map(|line| line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()).sum()
    }

    /// How many files it has open.
    pub(crate) fn open_files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().count()
    }

    /// Returns how many of them are sockets. The descriptors it keeps in reserve are not: they are
    /// opened a moment after it serves.
    pub(crate) fn open_sockets(&self) -> usize {
        let files = std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap();
        // One that is closed meanwhile has no target any more.
        let targets = files.filter_map(|file| std::fs::read_link(file.unwrap().path()).ok());
        targets.filter(|target| target.to_string_lossy().starts_with("socket:")).count()
    }

    /// Sends both signals at once, as near as a shell can.
    pub(crate) fn two_signals(&self, first: &str, second: &str) {
        let id = self.child.id();
        let sent = Command::new("sh")
            .args(["-c", &format!("kill -{first} {id}; kill -{second} {id}")])
            .status()
            .unwrap();
        assert!(sent.success(), "kill -{first}; kill -{second}");
    }

    /// Sends a signal, named as `kill` has it.
    pub(crate) fn signal(&self, name: &str) {
        let sent = Command::new("kill")
            .args([format!("-{name}"), self.child.id().to_string()])
            .status()
            .unwrap();
        assert!(sent.success(), "kill -{name}");
    }

    /// The first line of the log with this message, as it comes.
    pub(crate) fn log_line(&self, message: &str) -> serde_json::Value {
        self.stderr.first(&format!("the log says {message:?}"), |line| {
            let line: serde_json::Value = serde_json::from_str(line).ok()?;
            (line["message"] == message).then_some(line)
        })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("stderr of the binary:\n{}", self.stderr.whole());
        }
    }
}

/// Raises this process's limit on open files as far as it may go, and returns it: tests that run
/// side by side have sockets by the hundred.
pub(crate) fn allow_files() -> u64 {
    static LIMIT: LazyLock<u64> = LazyLock::new(|| {
        let most = getrlimit(Resource::Nofile).maximum;
        setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most }).unwrap();
        most.unwrap_or(u64::MAX)
    });
    *LIMIT
}

/// How a command went.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// The lines of one output, gathered by a thread so that the process never waits for a reader.
#[derive(Clone)]
pub(crate) struct Lines(Arc<Mutex<Gathered>>);

#[derive(Default)]
struct Gathered {
    lines: Vec<String>,
    is_closed: bool,
}

impl Lines {
    fn of(output: impl Read + Send + 'static) -> Self {
        let lines = Self(Arc::default());
        let gathered = Arc::clone(&lines.0);
        thread::spawn(move || {
            for line in BufReader::new(output).split(b'\n') {
                let Ok(line) = line else { break };
                gathered.lock().unwrap().lines.push(String::from_utf8_lossy(&line).into_owned());
            }
            gathered.lock().unwrap().is_closed = true;
        });
        lines
    }

    /// The lines so far.
    pub(crate) fn so_far(&self) -> Vec<String> {
        self.0.lock().unwrap().lines.clone()
    }

    /// Everything, once the process has closed this output.
    pub(crate) fn whole(&self) -> String {
        let deadline = Instant::now() + wait::PATIENCE;
        while !self.0.lock().unwrap().is_closed && Instant::now() < deadline {
            thread::yield_now();
        }
        self.so_far().join("\n")
    }

    /// Waits for a line in which `look` finds something.
    pub(crate) fn first<T>(&self, what: &str, look: impl Fn(&str) -> Option<T>) -> T {
        wait::value(what, || self.so_far().iter().find_map(|line| look(line)))
    }

    /// Waits until there are `count` lines.
    pub(crate) fn wait_for(&self, count: usize) -> Vec<String> {
        wait::value(&format!("{count} lines"), || {
            Some(self.so_far()).filter(|lines| lines.len() >= count)
        })
    }
}

/// An address in a field of a log line.
pub(crate) fn address(line: &serde_json::Value, field: &str) -> Option<SocketAddr> {
    let text = line[field].as_str()?;
    text.trim_start_matches("Some(").trim_end_matches(')').parse().ok()
}
