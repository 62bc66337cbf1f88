//! The binary as a process: its output, its signals, its resources, its exit code.

use std::{
    io::{BufRead, BufReader, Read},
    net::SocketAddr,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, LazyLock, Mutex},
    thread,
    time::Duration,
    time::Instant,
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::wait;

/// A running command of the binary. Dropping it kills the process; if the test has failed, stderr
/// is printed.
pub(crate) struct Process {
    child: Child,
    pub(crate) stdout: Lines,
    pub(crate) stderr: Lines,
}

impl Process {
    /// Starts `autoplay-relay` with these arguments, and these variables as its whole environment.
    pub(crate) fn start(arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        Self::start_under("", arguments, environment)
    }

    /// Starts the binary under another command, to which its path is appended and which executes
    /// it.
    pub(crate) fn start_under(
        command: &str,
        arguments: &[&str],
        environment: &[(&str, &str)],
    ) -> Self {
        raise_descriptor_limit();
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

    /// Runs the binary to its end under another command, to which its path is appended.
    pub(crate) fn run_under(command: &str, arguments: &[&str]) -> Finished {
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

    /// Runs a command of the binary to its end.
    pub(crate) fn run(arguments: &[&str], environment: &[(&str, &str)]) -> Finished {
        let mut process = Self::start(arguments, environment);
        let status = process.status();
        Finished {
            code: status.code(),
            stdout: process.stdout.whole(),
            stderr: process.stderr.whole(),
        }
    }

    /// Waits for the process to end, and returns its exit code.
    pub(crate) fn exit_code(&mut self) -> Option<i32> {
        self.status().code()
    }

    fn status(&mut self) -> ExitStatus {
        wait::value("the process ends", || self.child.try_wait().unwrap())
    }

    /// Returns true while the process runs.
    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Limits the open descriptors of the process.
    pub(crate) fn limit_descriptors(&self, max: usize) {
        let pid = self.child.id().to_string();
        let limit = format!("--nofile={max}:{max}");
        assert!(Command::new("prlimit").args(["--pid", &pid, &limit]).status().unwrap().success());
    }

    /// Limits the size of every file that the process writes, which fails like a full disk; `None`
    /// removes the limit.
    pub(crate) fn limit_file_size(&self, max: Option<u64>) {
        let pid = self.child.id().to_string();
        let limit =
            format!("--fsize={}:", max.map_or("unlimited".to_owned(), |max| max.to_string()));
        assert!(Command::new("prlimit").args(["--pid", &pid, &limit]).status().unwrap().success());
    }

    /// Kills the process (SIGKILL), and waits for its end.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Returns the command line of the process, which every user of the machine can read.
    pub(crate) fn arguments(&self) -> String {
        std::fs::read_to_string(format!("/proc/{}/cmdline", self.child.id())).unwrap()
    }

    /// Returns the processor time that the process has used.
    pub(crate) fn processor_time(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let behind_name = stat.rsplit(')').next().unwrap().split_whitespace();
        let ticks: u64 =
            behind_name.skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum();
        Duration::from_millis(ticks * 10) // USER_HZ is 100 on every Linux
    }

    /// Returns how often threads of the process have waited for something, each of which ends with
    /// a wake-up.
    pub(crate) fn wake_ups(&self) -> i64 {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        // A thread that ends meanwhile has no file any more.
        let states = threads.filter_map(|thread| {
            std::fs::read_to_string(thread.unwrap().path().join("status")).ok()
        });
        let waits = |state: String| {
            let line = state.lines().find(|line| line.starts_with("voluntary_ctxt_switches:"))?;
            line.split_whitespace().nth(1)?.parse::<i64>().ok()
        };
        states.filter_map(waits).sum()
    }

    /// Returns the processor time of the threads of this name.
    pub(crate) fn thread_time(&self, name: &str) -> Duration {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        let time = |thread: std::io::Result<std::fs::DirEntry>| {
            let path = thread.unwrap().path();
            let is_named = std::fs::read_to_string(path.join("comm")).ok()?.trim_end() == name;
            let times =
                std::fs::read_to_string(path.join("schedstat")).ok().filter(|_| is_named)?;
            Some(Duration::from_nanos(times.split_whitespace().next()?.parse().unwrap()))
        };
        threads.filter_map(time).sum()
    }

    /// Returns the private memory of the process, in KiB.
    pub(crate) fn private_kib(&self) -> u64 {
        let rollup =
            std::fs::read_to_string(format!("/proc/{}/smaps_rollup", self.child.id())).unwrap();
        let private = rollup.lines().filter(|line| line.starts_with("Private_"));
        private.map(|line| line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()).sum()
    }

    /// Returns the number of open descriptors.
    pub(crate) fn open_descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().count()
    }

    /// Returns the number of open sockets. The reserve descriptors are no sockets: the relay opens
    /// them a moment after it serves.
    pub(crate) fn open_sockets(&self) -> usize {
        let files = std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap();
        // A descriptor that is closed meanwhile has no target any more.
        let targets = files.filter_map(|file| std::fs::read_link(file.unwrap().path()).ok());
        targets.filter(|target| target.to_string_lossy().starts_with("socket:")).count()
    }

    /// Sends both signals as close together as a shell can.
    pub(crate) fn two_signals(&self, first: &str, second: &str) {
        let id = self.child.id();
        let sent = Command::new("sh")
            .args(["-c", &format!("kill -{first} {id}; kill -{second} {id}")])
            .status()
            .unwrap();
        assert!(sent.success(), "kill -{first}; kill -{second}");
    }

    /// Sends a signal, by the name that `kill` uses.
    pub(crate) fn signal(&self, name: &str) {
        let sent = Command::new("kill")
            .args([format!("-{name}"), self.child.id().to_string()])
            .status()
            .unwrap();
        assert!(sent.success(), "kill -{name}");
    }

    /// Waits for the first line of the log with this message, and returns it.
    pub(crate) fn log_line(&self, message: &str) -> serde_json::Value {
        self.stderr.first(&format!("the log has {message:?}"), |line| {
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

/// Raises the descriptor limit of this process to its maximum, and returns it: tests that run at
/// the same time have hundreds of sockets.
pub(crate) fn raise_descriptor_limit() -> u64 {
    static LIMIT: LazyLock<u64> = LazyLock::new(|| {
        let max = getrlimit(Resource::Nofile).maximum;
        setrlimit(Resource::Nofile, Rlimit { current: max, maximum: max }).unwrap();
        max.unwrap_or(u64::MAX)
    });
    *LIMIT
}

/// Exit code and output of a command that has ended.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// The lines of one output, collected by a thread so that the process never waits for a reader.
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

    /// Returns the lines so far.
    pub(crate) fn so_far(&self) -> Vec<String> {
        self.0.lock().unwrap().lines.clone()
    }

    /// Waits until the process has closed this output, and returns all of it.
    pub(crate) fn whole(&self) -> String {
        let deadline = Instant::now() + wait::TIMEOUT;
        while !self.0.lock().unwrap().is_closed && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
        self.so_far().join("\n")
    }

    /// Waits for the first line for which `look` returns a value.
    pub(crate) fn first<T>(&self, what: &str, look: impl Fn(&str) -> Option<T>) -> T {
        wait::value(what, || self.so_far().iter().find_map(|line| look(line)))
    }

    /// Waits until there are `count` lines, and returns all lines so far.
    pub(crate) fn wait_for(&self, count: usize) -> Vec<String> {
        wait::value(&format!("{count} lines"), || {
            Some(self.so_far()).filter(|lines| lines.len() >= count)
        })
    }
}

/// Returns the address in a field of a log line.
pub(crate) fn address(line: &serde_json::Value, field: &str) -> Option<SocketAddr> {
    let text = line[field].as_str()?;
    text.trim_start_matches("Some(").trim_end_matches(')').parse().ok()
}
