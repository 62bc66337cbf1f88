//! What fan-out costs: the real relay beside the least that could do its job, on the same work, in
//! the same run.
//!
//! ```text
//! upstream (this process) ──frames──► target (a process of its own) ──streams──► load (this process)
//!    stamps number and time         its CPU and memory are measured          checks every byte, takes times
//! ```
//!
//! ```text
//! cargo bench --bench fanout -- [--quick] [--pairs N] [--all | --only relay,naive,…] [A A5 B C D L E U R S …]
//! ```
//!
//! | target | is |
//! |---|---|
//! | relay | the relay with its log in memory |
//! | durable | the relay with a store, in a directory of its own beside the build, which must lie on a real disk |
//! | websocket | the relay with its log in memory, whose subscribers come by WebSocket |
//! | bare | the least that could be called a relay |
//! | naive | what one would write in an hour: axum and a broadcast channel |
//! | nchan | nginx with nchan, where Debian's `nginx-core` and `libnginx-mod-nchan` are installed |
//! | pushpin | Pushpin, where Debian's `pushpin` is installed |
//! | h2, tls, tls-h2 | the relay with its log in memory, whose subscribers come by HTTP/2 with prior knowledge, by HTTP/1.1 over TLS, by HTTP/2 over TLS |
//! | naive-h2, naive-tls, naive-tls-h2 | naive by the same ways: hyper-util's auto builder, before it tokio-rustls |
//!
//! Each has a file in `../support/target/`, but `bare` and `naive`, which stand here; what is not
//! the same work is said above the tables. `--only` names those that take turns within each pair,
//! `--all` all of them; without either these are relay and bare. So `--pairs 5 --only relay,durable
//! A C` tells what the store costs those who listen. R and S need a store: they run against
//! durable, whatever else is named, and U against relay and durable. The ways by TLS and HTTP/2 are
//! measured in A, A5 and B. `benches/results.sh` runs everything once and writes
//! `benches/RESULTS.md`; `benches/callgrind.sh` counts instructions (with K).
//!
//! | scenario | measures |
//! |---|---|
//! | A, A5 | the price of one delivery when an event goes to all of 1 000 subscribers, at 50 and at 5 events/s |
//! | B | what 10 000 idle subscribers hold in memory and burn in CPU, and when the last of them has an event |
//! | C | the price of an event that one among 10 000 subscribers gets, and how it grows with those who do not |
//! | D | whether 1 000 000 deliveries/s are carried without a loss, and how late they come |
//! | L | how much 200 subscribers can be offered, in steps, before one loses an event or p99 is over 200 ms; and that beyond, of a relay that keeps 256 events, all that is missing is told |
//! | E | the price of a subscriber who comes and goes, and whether those who stay notice |
//! | U | an upstream of 100 000 events/s, whose queue of 256 events must never be full; with a store, that what it cannot keep is told, and that who listens notices nothing |
//! | R | the store, with 1 000 000 events of 1 000 sessions: how fast it takes them, how soon a new process serves from it, when the first old event comes and how fast the others, and what those who listen notice when 1 000 come back at once |
//! | S | what 1 000 subscribers hold in memory who take nothing, first those who were listening, then as many who come back |
//!
//! How to read the numbers:
//!
//! - **CPU** is user and system time of the whole target process, all threads, by the kernel's
//!   account, from before the first event to after the last delivery. On loopback it includes most
//!   of the receiver's TCP work, which the kernel does within the sender's `send`: that part is the
//!   same for every target, and no server can be cheaper than `bare` by much.
//! - **Latency** runs from the moment before the upstream writes the frame to the moment after the
//!   subscriber's `read`, on one clock. Load, upstream and target share the machine, so it shows
//!   the differences between targets, not what a network adds.
//! - **Memory** is what the target has for itself (`Private_*` of `smaps_rollup`). Kernel memory is
//!   the whole machine's, both ends of each connection, and only for information.
//! - **R**: the upstream keeps at most some 16 000 events ahead of the store, so that none has to
//!   leave memory unkept: the rate is the store's. *Cold* means that the kernel was made to forget
//!   the files (`dd iflag=nocache`) before; what a disk or a host below caches, it keeps. The first
//!   event is timed from before the connect, and the median of seven counts. Who comes back gets
//!   everything missed, the one gap that the restart left, and what is live; all of it is checked.
//! - **S**: memory is full of events before the first of them come, so what grows is theirs; before
//!   the others come back, the relay is started anew. These stall at places of their own, so that
//!   no two hold the same events. More than 64 KiB each breaks a promise.
//! - **TLS and HTTP/2**: the load is two threads with a tokio runtime each, hyper and rustls, 100
//!   streams on a connection of HTTP/2, and checks what it checks elsewhere. It costs more than
//!   what it measures does, and takes turns with it on the same cores; its CPU is not counted, only
//!   the target's, but it is in the latency, for a time is taken when a stream has its bytes,
//!   behind decryption and frames. So latencies compare two servers by one way, not two ways. In B
//!   they take a handshake each by TLS and HTTP/1.1, and the budget for memory is the same as for
//!   every connection (ARCHITECTURE.md): 64 KiB.
//! - **Other things** on the machine spoil all of it: where `cores busy with other things` is not
//!   near 0, measure again.
//! - **Ratios** of two targets, taken in turns, mean more than absolute numbers. Time and memory
//!   are those of a target's whole process tree; the shared memory of nginx's workers is not in it.
//! - **U**: the kernel's buffer before the queue is set to 256 KiB; the relay's own receive buffer
//!   is as it comes.
//!
//! Exits with 1 when an event was lost, damaged, seen twice, out of order or by the wrong
//! subscriber, when a gap was announced that was none or one was not, and when stalled subscribers
//! hold more than is promised; never because something was slow, and never for what naive, nchan or
//! Pushpin do wrong, which is shown as seen. `--quick` is a smoke test of about a minute: smaller,
//! and no target but the relay.
//!
//! Needs Linux (`/proc`), some 12 000 file descriptors and 4 GB of disk; for TLS also `openssl`.
//! Runs only under `cargo bench`; as a test it does nothing.
#![allow(
    clippy::indexing_slicing,
    reason = "a bench reads what it has written itself; a wrong index is a bug to see at once"
)]

mod bare;
mod load;
mod naive;
mod options;
mod outcome;
mod reader;
mod report;
mod request;
mod response;
mod rig;
mod scenario;
#[path = "../support/mod.rs"] // each bench compiles its own copy
mod support;
mod tally;
mod visitors;

use std::process::ExitCode;

use options::{Command, Options};
use outcome::Outcome;
use report::{Report, Trial};
use support::{Result, process, target::kind::Kind};

fn main() -> ExitCode {
    let command = match Command::read(std::env::args().skip(1)) {
        Ok(command) => command,
        Err(problem) => {
            println!("{problem}");
            return ExitCode::from(2);
        }
    };
    let outcome = match command {
        Command::Nothing => return ExitCode::SUCCESS,
        Command::Bare { upstream, pace } => bare::run(upstream, pace).map(|()| ExitCode::SUCCESS),
        Command::Naive { upstream, naive } => {
            naive::run(upstream, naive).map(|()| ExitCode::SUCCESS)
        }
        Command::Measure(options) => measure(&options),
    };
    outcome.unwrap_or_else(|error| {
        println!("\nbench failed: {error}");
        ExitCode::FAILURE
    })
}

/// Runs what was asked for and prints it, scenario by scenario.
fn measure(options: &Options) -> Result<ExitCode> {
    println!("{}", process::machine());
    let kinds = installed(&options.kinds);
    let mut is_sound = true;
    for &scenario in &options.scenarios {
        let mut report = Report::new(scenario, options);
        for pair in 0..options.pairs {
            let mut kinds = scenario.kinds(&kinds);
            // Taking turns at being first, so that neither always finds the machine as the other
            // left it.
            if pair % 2 == 1 {
                kinds.reverse();
            }
            for kind in kinds {
                let outcome = match scenario.run(kind, options.size) {
                    Err(error) if !kind.is_held_to_account() => Outcome::failed(&*error),
                    outcome => outcome?,
                };
                report.add(Trial { kind, pair, outcome });
            }
        }
        println!("{report}");
        is_sound &= report.is_sound();
    }
    if !is_sound {
        println!("Not sound: see the faults above.");
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

/// Those of these that can run here. Says of the others why not, and of each what is not the same
/// work as the relay's.
fn installed(kinds: &[Kind]) -> Vec<Kind> {
    println!();
    for kind in kinds {
        match (kind.missing(), kind.difference()) {
            (Some(missing), _) => println!("- {kind}: not measured, {missing}"),
            (None, Some(difference)) => println!("- {kind}: {difference}"),
            (None, None) => {}
        }
    }
    kinds.iter().copied().filter(|kind| kind.missing().is_none()).collect()
}
