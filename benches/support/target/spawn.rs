//! Starts a process, reads its output, ends it with all its descendants.

use std::{
    io::{BufRead, BufReader, Read},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    process::{Child, Command},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{self, Sender},
    },
    thread,
    time::{Duration, Instant},
};

use crate::support::{Result, process};

/// Warnings and errors that a process has logged.
pub(super) type Complaints = Arc<Mutex<Vec<String>>>;

/// Reads all lines on a thread of its own: sends the first matching one, and keeps the first few
/// complaints.
pub(super) fn follow(
    output: impl Read + Send + 'static,
    complaints: &Complaints,
    is_looked_for: impl Fn(&str) -> bool + Send + 'static,
) -> mpsc::Receiver<String> {
    let (found, line) = mpsc::channel();
    let complaints = Arc::clone(complaints);
    let mut found: Option<Sender<String>> = Some(found);
    thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(std::io::Result::ok) {
            if let Some(found) = found.take_if(|_| is_looked_for(&line)) {
                // Sending fails if the caller has timed out.
                let _ = found.send(line);
                continue;
            }
            let is_complaint = found.is_some()
                || line.contains(r#""level":"WARN""#)
                || !line.contains(r#""level":"INFO""#);
            let mut complaints = complaints.lock().unwrap_or_else(PoisonError::into_inner);
            if is_complaint && complaints.len() < MAX_COMPLAINTS {
                complaints.push(line);
            }
        }
    });
    line
}

/// Waits for the matching line.
///
/// # Errors
///
/// If the line does not arrive: the lines logged instead.
pub(super) fn line_in_time(
    child: &mut Child,
    line: &mpsc::Receiver<String>,
    complaints: &Mutex<Vec<String>>,
) -> Result<String> {
    match line.recv_timeout(START_TIMEOUT) {
        Ok(line) => {
            // Lines before it are no complaints.
            complaints.lock().unwrap_or_else(PoisonError::into_inner).clear();
            Ok(line)
        }
        Err(_) => Err(not_started(child, complaints)),
    }
}

/// Waits until a process listens at this address.
///
/// # Errors
///
/// If no process does: the lines logged meanwhile.
pub(super) fn listening_in_time(
    child: &mut Child,
    address: SocketAddr,
    complaints: &Mutex<Vec<String>>,
) -> Result<()> {
    let deadline = Instant::now() + START_TIMEOUT;
    while TcpStream::connect(address).is_err() {
        if Instant::now() > deadline {
            return Err(not_started(child, complaints));
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

fn not_started(
    child: &mut Child,
    complaints: &Mutex<Vec<String>>,
) -> Box<dyn std::error::Error + Send + Sync> {
    end(child);
    let said = complaints.lock().unwrap_or_else(PoisonError::into_inner).join("\n");
    format!("the target did not start:\n{said}").into()
}

/// Ends a process and all its descendants: a process with children gets SIGTERM first, and
/// [`END_TIMEOUT`] to end them.
pub(super) fn end(child: &mut Child) {
    let family = process::family(child.id());
    if family.len() > 1 {
        signal("-TERM", child.id());
        let deadline = Instant::now() + END_TIMEOUT;
        while matches!(child.try_wait(), Ok(None)) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(10));
        }
        for pid in family.into_iter().skip(1).filter(|pid| process::cpu(*pid).is_ok()) {
            signal("-KILL", pid);
        }
    }
    // Both fail if the process has ended already.
    let _ = child.kill();
    let _ = child.wait();
}

fn signal(name: &str, pid: u32) {
    // A process that has ended needs no signal.
    let _ = Command::new("kill").args([name, &pid.to_string()]).status();
}

/// Returns a free port, for programs that cannot choose one and report it.
pub(super) fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

const MAX_COMPLAINTS: usize = 20;

const START_TIMEOUT: Duration = Duration::from_secs(10);

const END_TIMEOUT: Duration = Duration::from_secs(3);
