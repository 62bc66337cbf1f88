//! The first process of a namespace, as in a container: the kernel discards signals for which it
//! has no handler (`pid_namespaces(7)`), so handlers must be installed first of all.

use std::{
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::common::{relay::Setup, wait};

/// Sends each signal only once the handler is installed: the kernel discards a signal that arrives
/// before the program's first instruction.
#[test]
fn a_sigterm_in_the_first_milliseconds_always_ends_the_process() {
    let (_directory, file) = Setup::new().write();
    for run in 0..60_u64 {
        let mut first = FirstProcess::start(&["serve", "--config", file.to_str().unwrap()]);
        first.wait_for_handler();
        thread::sleep(Duration::from_micros(83 * run)); // 0 to 5 ms, in each run another moment
        first.terminate();
        first.wait_for_end(run);
    }
}

/// Uses a pipe that is never written to as the configuration, so that reading it blocks.
#[test]
fn the_handler_is_installed_before_the_configuration_is_read() {
    let pipe = Pipe::new();
    FirstProcess::start(&["serve", "--config", &pipe.path]).wait_for_handler();
}

#[test]
fn other_commands_end_by_a_signal_too() {
    for arguments in
        [&["simulate", "--listen", "127.0.0.1:0"][..], &["tail", "http://127.0.0.1:1/stream/p"]]
    {
        let mut first = FirstProcess::start(arguments);
        first.wait_for_handler();
        first.terminate();
        first.wait_for_end(0);
    }
}

/// Blocks the command on a pipe, where it cannot poll for a signal.
#[test]
fn a_command_that_is_blocked_ends_by_a_signal_too() {
    let pipe = Pipe::new();
    let mut first = FirstProcess::start(&["check", "--config", &pipe.path]);
    first.wait_for_handler();
    first.terminate();
    first.wait_for_end(0);
}

/// Named pipe that is used as a file.
struct Pipe {
    _directory: TempDir,
    path: String,
}

impl Pipe {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("relay.toml").to_str().unwrap().to_owned();
        assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
        Self { _directory: directory, path }
    }
}

/// Relay that is process 1 of its own PID namespace.
struct FirstProcess {
    unshare: Child,
    pid: Pid,
}

impl FirstProcess {
    /// Starts the relay in a new PID namespace.
    ///
    /// # Panics
    ///
    /// Panics if the kernel refuses such a namespace.
    fn start(arguments: &[&str]) -> Self {
        let binary = env!("CARGO_BIN_EXE_autoplay-relay");
        let mut unshare = Command::new("unshare")
            .args(["-Urpf", "--kill-child", binary])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let children = format!("/proc/{0}/task/{0}/children", unshare.id());
        let deadline = Instant::now() + wait::TIMEOUT;
        let pid = loop {
            assert!(
                unshare.try_wait().unwrap().is_none() && Instant::now() < deadline,
                "the kernel refuses a namespace of processes: unshare -Urpf"
            );
            let child = std::fs::read_to_string(&children).unwrap_or_default();
            if let Ok(pid) = child.trim().parse::<i32>()
                && std::fs::read_link(format!("/proc/{pid}/exe")).ok()
                    == Some(PathBuf::from(binary))
            {
                break Pid::from_raw(pid).unwrap();
            }
        };
        Self { unshare, pid }
    }

    /// Waits until SIGTERM has a handler.
    fn wait_for_handler(&self) {
        let path = format!("/proc/{}/status", self.pid.as_raw_nonzero());
        wait::until("SIGTERM has a handler", || {
            let status = std::fs::read_to_string(&path).unwrap_or_default();
            let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
            let caught = caught.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
            caught.is_some_and(|mask| mask & (1 << (15 - 1)) != 0)
        });
    }

    fn terminate(&self) {
        kill_process(self.pid, Signal::TERM).unwrap();
    }

    fn wait_for_end(&mut self, run: u64) {
        wait::until(&format!("run {run}: the process ends"), || {
            self.unshare.try_wait().unwrap().is_some()
        });
    }
}

impl Drop for FirstProcess {
    fn drop(&mut self) {
        let _ = self.unshare.kill(); // and its child with it
        let _ = self.unshare.wait();
    }
}
