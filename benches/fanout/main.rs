//! Benchmark of the fan-out: the real relay beside the simplest program that could do its job, on
//! the same work, in the same run.
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
//! | websocket | the relay with its log in memory, whose subscribers use WebSocket |
//! | bare | the simplest program that could be called a relay |
//! | naive | an obvious server: axum and a broadcast channel |
//! | nchan | nginx with nchan, where Debian's `nginx-core` and `libnginx-mod-nchan` are installed |
//! | pushpin | Pushpin, where Debian's `pushpin` is installed |
//! | centrifugo | Centrifugo over its unidirectional SSE, where Go could build it: `benches/results.sh` does |
//! | h2, tls, tls-h2 | the relay with its log in memory, whose subscribers use HTTP/2 with prior knowledge, HTTP/1.1 over TLS, HTTP/2 over TLS |
//! | naive-h2, naive-tls, naive-tls-h2 | naive over the same protocols: hyper-util's auto builder, with tokio-rustls in front of it for TLS |
//!
//! Each target has a file in `../support/target/`, except `bare` and `naive`, which are here; the
//! differences of their work are printed above the tables. `--only` names the targets that take
//! turns within each pair, `--all` all of them; the default is relay and bare. So `--pairs 5 --only
//! relay,durable A C` shows what the store costs live subscribers. R and S need a store: they run
//! against durable, whichever targets are named, and U against relay and durable. TLS and HTTP/2
//! are measured in A, A5 and B. `benches/results.sh` runs everything once and writes
//! `benches/RESULTS.md`. With K and Kc, which send few events one by one, `benches/callgrind.sh`
//! shows instructions by function, and `benches/counts.py --check`, a step of the gate, compares
//! instructions and system calls for an event with `benches/counts.toml`.
//!
//! | scenario | measures |
//! |---|---|
//! | A, A5 | the price of one delivery when an event goes to all of 1 000 subscribers, at 50 and at 5 events/s |
//! | B | what 10 000 idle subscribers hold in memory and burn in CPU, and when the last of them has an event |
//! | C | the price of an event that one among 10 000 subscribers gets, and how it grows with the subscribers that do not get it |
//! | D | whether 1 000 000 deliveries/s are carried without a loss, and how late they come |
//! | L | how much 200 subscribers can be offered, in steps, before one loses an event or p99 is over 200 ms; and that a relay that keeps 256 events announces every loss beyond |
//! | E | the price of a subscriber that connects and disconnects, and whether the others are affected |
//! | U | an upstream of 100 000 events/s, whose queue of 256 events must never be full; with a store, that every event not persisted is announced, and that a live subscriber is unaffected |
//! | R | the store, with 1 000 000 events of 1 000 sessions: the rate of persisting, the time until a new process serves, the latency of the first replayed event and the rate of the others, and the effect on live subscribers when 1 000 resume at once |
//! | S | the memory of 1 000 stalled subscribers, first live ones, then as many that resume |
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
//! - **Memory** is the private memory of the target (`Private_*` of `smaps_rollup`). Kernel memory
//!   is the whole machine's, both ends of each connection, and only for information.
//! - **R**: the upstream stays at most some 16 000 events ahead of the store, so that no event is
//!   evicted from memory before it is persisted: the rate is the store's. *Cold* means that the
//!   files were dropped from the page cache (`dd iflag=nocache`) before; caches of a disk or of a
//!   host below remain. The first event is timed from before the connect, and the median of seven
//!   counts. A resuming subscriber gets all missed events, the one gap of the restart, and live
//!   events; all of it is checked.
//! - **S**: the log in memory is full before the first subscribers connect, so the growth is
//!   theirs; before the others resume, the relay is restarted. These stall at different positions,
//!   so that no two hold the same events. More than 64 KiB each breaks a guarantee.
//! - **TLS and HTTP/2**: the load is two threads with a tokio runtime each, hyper and rustls, 100
//!   streams on a connection of HTTP/2, with the same checks as elsewhere. It costs more than the
//!   target does and shares the cores with it. Its CPU is not counted, only the target's, but it is
//!   in the latency: a time is taken when a stream has its bytes, after decryption and frames. So
//!   latencies compare two servers over one protocol, not two protocols. In B each subscriber takes
//!   a handshake over TLS and HTTP/1.1, and the memory budget is that of every connection
//!   (ARCHITECTURE.md): 64 KiB.
//! - **Other processes** on the machine spoil all results: where `cores busy with other things` is
//!   not near 0, measure again.
//! - **Ratios** of two targets, measured in turns, mean more than absolute numbers. Time and memory
//!   are those of a target's whole process tree, without the shared memory of nginx's workers.
//! - **U**: the kernel's buffer before the queue is set to 256 KiB; the relay's own receive buffer
//!   has its default size.
//!
//! Exits with 1 if an event was lost, damaged, delivered twice, out of order or to the wrong
//! subscriber, if a gap was announced wrongly or not at all, or if stalled subscribers hold more
//! than is guaranteed; never because a target was slow, and never for faults of naive, nchan,
//! Pushpin or Centrifugo, which are reported as seen. `--quick` is a smoke test of about a minute: smaller, and
//! with the relay as the only target.
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

/// Runs the requested scenarios and prints their reports.
fn measure(options: &Options) -> Result<ExitCode> {
    println!("{}", process::machine());
    let kinds = installed(&options.kinds);
    let mut is_sound = true;
    for &scenario in &options.scenarios {
        let mut report = Report::new(scenario, options);
        for pair in 0..options.pairs {
            let mut kinds = scenario.kinds(&kinds);
            // The targets take turns at being first, so that neither always finds the machine as
            // the other left it.
            if pair % 2 == 1 {
                kinds.reverse();
            }
            for kind in kinds {
                let outcome = match scenario.run(kind, options.size) {
                    Err(error) if !kind.must_be_correct() => Outcome::failed(&*error),
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

/// Returns the targets that can run here. Prints for the others what is missing, and for each
/// target how its work differs from the relay's.
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
