//! Starting a process, reading what it says, ending it with all that it has started.

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

/// What a process has complained of.
pub(super) type Complaints = Arc<Mutex<Vec<String>>>;

/// Reads lines to their end on a thread of its own; hands over the first that is looked for, keeps
/// the first few complaints.
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
                // Nobody waits any more: then the run is over anyway.
                let _ = found.send(line);
                continue;
            }
            let is_complaint = found.is_some()
                || line.contains(r#""level":"WARN""#)
                || !line.contains(r#""level":"INFO""#);
            let mut complaints = complaints.lock().unwrap_or_else(PoisonError::into_inner);
            if is_complaint && complaints.len() < MOST_COMPLAINTS {
                complaints.push(line);
            }
        }
    });
    line
}

/// Waits for the line that is looked for.
///
/// # Errors
///
/// When it does not come: with what was said instead.
pub(super) fn line_in_time(
    child: &mut Child,
    line: &mpsc::Receiver<String>,
    complaints: &Mutex<Vec<String>>,
) -> Result<String> {
    match line.recv_timeout(PATIENCE) {
        Ok(line) => {
            // What it said before is no complaint.
            complaints.lock().unwrap_or_else(PoisonError::into_inner).clear();
            Ok(line)
        }
        Err(_) => Err(not_started(child, complaints)),
    }
}

/// Waits until somebody listens there.
///
/// # Errors
///
/// When nobody does: with what was said meanwhile.
pub(super) fn listening_in_time(
    child: &mut Child,
    address: SocketAddr,
    complaints: &Mutex<Vec<String>>,
) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
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

/// Ends a process and all that it has started: who has children must tell them, and is given a
/// moment for it.
pub(super) fn end(child: &mut Child) {
    let family = process::family(child.id());
    if family.len() > 1 {
        signal("-TERM", child.id());
        let deadline = Instant::now() + A_MOMENT;
        while matches!(child.try_wait(), Ok(None)) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(10));
        }
        for pid in family.into_iter().skip(1).filter(|pid| process::cpu(*pid).is_ok()) {
            signal("-KILL", pid);
        }
    }
    // It may have ended already; then there is nothing to do.
    let _ = child.kill();
    let _ = child.wait();
}

fn signal(name: &str, pid: u32) {
    // Who is gone needs no signal.
    let _ = Command::new("kill").args([name, &pid.to_string()]).status();
}

/// A port that nobody has, for those who cannot choose one themselves and tell.
pub(super) fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

const MOST_COMPLAINTS: usize = 20;

const PATIENCE: Duration = Duration::from_secs(10);

const A_MOMENT: Duration = Duration::from_secs(3);
