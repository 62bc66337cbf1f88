//! Benchmark of webhooks: the real relay with a store, delivering to the simplest receiver, in the
//! same run.
//!
//! ```text
//! upstream (this process) ──frames──► relay (a process of its own, with a store) ──POST──► sink (this process)
//!    stamps number and time              its CPU and memory are measured                 checks every body and the order
//! ```
//!
//! ```text
//! cargo bench --bench webhooks -- [--quick] [--million] [A B C D …]
//! ```
//!
//! | scenario | measures |
//! |---|---|
//! | A | deliveries per second, each committed to the store before it is sent, and the CPU of one |
//! | B | from the upstream's write to the first byte at the receiver, at 1 000 events/s |
//! | C | memory with 100 000 events queued for a receiver that is down (`--million`: a million), and the rate of deliveries once it is up again |
//! | D | B again, beside a receiver that refuses every connection, and beside one that accepts them and never answers |
//!
//! Payloads have 1 KiB, of 1 000 sessions; webhooks have `max_in_flight = 64`. All processes share
//! the machine and its loopback, so the numbers are for comparison only. `benches/support` does the
//! same work as in the fan-out bench; the head of `benches/fanout` says how to read CPU, latency
//! and memory.
//!
//! Exits with 1 if a delivery was lost, damaged, out of order or repeated, or if the relay logged
//! warnings other than those about the failing receivers; never because a target was slow. Needs
//! Linux (`/proc`). As a test it does nothing.
#![allow(
    clippy::indexing_slicing,
    reason = "a bench reads what it has written itself; a wrong index is a bug to see at once"
)]

mod rig;
mod sink;
#[path = "../support/mod.rs"] // each bench compiles its own copy
mod support;

use std::{
    net::{SocketAddr, TcpListener},
    process::ExitCode,
    time::{Duration, Instant},
};

use rig::Rig;
use sink::Sink;
use support::{Result, payload::Series, process};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if !arguments.iter().any(|argument| argument == "--bench") {
        return ExitCode::SUCCESS; // started as a test, or to be listed
    }
    let outcome = Size::read(&arguments).and_then(|(size, scenarios)| measure(size, &scenarios));
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            println!("\nNot sound: see the faults above.");
            ExitCode::FAILURE
        }
        Err(error) => {
            println!("\nbench failed: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Size of the scenarios.
#[derive(Clone, Copy, Debug)]
struct Size {
    /// Deliveries in A.
    deliveries: u64,
    /// Seconds of B, and of each part of D.
    seconds: u64,
    /// Events queued in C.
    queued: u64,
}

impl Size {
    fn read(arguments: &[String]) -> Result<(Self, Vec<char>)> {
        let (mut size, mut scenarios) =
            (Self { deliveries: 100_000, seconds: 20, queued: 100_000 }, Vec::new());
        for argument in arguments {
            match argument.as_str() {
                "--bench" => {}
                "--quick" => size = Self { deliveries: 10_000, seconds: 3, queued: 10_000 },
                "--million" => size.queued = 1_000_000,
                "A" | "B" | "C" | "D" => scenarios.extend(argument.chars()),
                other => {
                    return Err(format!(
                        "{other:?} is not known\nusage: … -- [--quick] [--million] [A B C D …]"
                    )
                    .into());
                }
            }
        }
        if scenarios.is_empty() {
            scenarios = vec!['A', 'B', 'C', 'D'];
        }
        Ok((size, scenarios))
    }
}

/// Runs the requested scenarios and prints their results. Returns true if there was no fault.
fn measure(size: Size, scenarios: &[char]) -> Result<bool> {
    println!("{}\n\n| | |\n|---|---:|", process::machine());
    let mut faults = Vec::new();
    for scenario in scenarios {
        let found = match scenario {
            'A' => throughput(size)?,
            'B' => latency(size, "B", &[])?,
            'C' => queue(size)?,
            _ => beside_failing_receivers(size)?,
        };
        faults.extend(found);
    }
    for fault in &faults {
        println!("\nFAULT: {fault}");
    }
    Ok(faults.is_empty())
}

/// Measures A: the maximum rate of deliveries.
fn throughput(size: Size) -> Result<Vec<String>> {
    let sink = Sink::open()?;
    let mut rig = Rig::start(&[sink.address])?;
    let warm_up = size.deliveries / 10;
    rig.send_to_sink(&sink, series(), warm_up)?;
    let (cpu, start) = (rig.cpu()?, Instant::now());
    rig.send_to_sink(&sink, series(), size.deliveries)?;
    let (seconds, cpu) = (start.elapsed().as_secs_f64(), rig.cpu()?.saturating_sub(cpu));
    row("A: deliveries per second", size.deliveries as f64 / seconds);
    row("A: CPU per delivery, µs", cpu.as_secs_f64() * 1e6 / size.deliveries as f64);
    Ok(faults(rig, &sink, "A"))
}

/// Measures B and D: the latency of deliveries at a moderate rate.
fn latency(size: Size, what: &str, others: &[SocketAddr]) -> Result<Vec<String>> {
    let sink = Sink::open()?;
    let hooks: Vec<SocketAddr> =
        std::iter::once(sink.address).chain(others.iter().copied()).collect();
    let mut rig = Rig::start(&hooks)?;
    rig.send(series(), PER_SECOND, PER_SECOND)?;
    sink.wait_for(rig.sent())?;
    sink.forget_latency();
    let cpu = rig.cpu()?;
    rig.send(series(), size.seconds * PER_SECOND, PER_SECOND)?;
    sink.wait_for(rig.sent())?;
    let cpu = rig.cpu()?.saturating_sub(cpu);
    let latency = sink.tally().latency;
    for (name, part) in [("p50", 0.5), ("p99", 0.99)] {
        row(
            &format!("{what}, {PER_SECOND} events/s: {name} to the first byte, ms"),
            latency.quantile(part) as f64 / 1e3,
        );
    }
    row(
        &format!("{what}: CPU per delivery, µs"),
        cpu.as_secs_f64() * 1e6 / (size.seconds * PER_SECOND) as f64,
    );
    let mut faults = faults(rig, &sink, what);
    if !others.is_empty() {
        faults.retain(|fault| !is_of_failing_receiver(fault));
    }
    Ok(faults)
}

/// Measures C: the memory of queued deliveries, and their rate at the end.
fn queue(size: Size) -> Result<Vec<String>> {
    let mut sink = Sink::closed()?;
    let mut rig = Rig::start(&[sink.address])?;
    rig.fill_store(series(), WARM_UP)?;
    let before = rig.private_mib()?;
    let peak = rig.watch();
    rig.fill_store(series(), size.queued)?;
    // Webhooks read committed events a moment later.
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut pending = rig.pending(0)?;
    while pending < rig.sent() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(50));
        pending = rig.pending(0)?;
    }
    row("C: events queued", pending as f64);
    row("C: memory of the relay before, MiB", before);
    row("C: memory with all of them queued, MiB", rig.private_mib()?);
    row("C: highest while they came, MiB", peak.kib()? / 1024.0);
    let peak = rig.watch();
    sink.listen()?;
    let start = Instant::now();
    sink.wait_for(1)?;
    row("C: from the receiver's return to the first delivery, s", start.elapsed().as_secs_f64());
    let start = Instant::now();
    sink.wait_for(rig.sent())?;
    row("C: deliveries per second then", rig.sent() as f64 / start.elapsed().as_secs_f64());
    row("C: highest while they went, MiB", peak.kib()? / 1024.0);
    let mut found = Vec::new();
    if pending != rig.sent() {
        found.push(format!("C: {pending} of {} were pending", rig.sent()));
    }
    found
        .extend(faults(rig, &sink, "C").into_iter().filter(|fault| !is_of_failing_receiver(fault)));
    Ok(found)
}

/// Measures D: the effect of failing receivers on the others.
fn beside_failing_receivers(size: Size) -> Result<Vec<String>> {
    let mut faults = latency(size, "D, alone", &[])?;
    let refusing = Sink::closed()?;
    faults.extend(latency(size, "D, beside one that refuses", &[refusing.address])?);
    // The kernel accepts connections for it; no process reads them.
    let hanging = TcpListener::bind("127.0.0.1:0")?;
    faults.extend(latency(size, "D, beside one that hangs", &[hanging.local_addr()?])?);
    Ok(faults)
}

/// Returns the faults of a run.
fn faults(rig: Rig, sink: &Sink, what: &str) -> Vec<String> {
    let (tally, sent, received) = (sink.tally(), rig.sent(), sink.received());
    let mut found = rig.finish();
    for (count, name) in [
        (tally.damaged, "damaged"),
        (tally.out_of_order, "out of order or again"),
        (received.saturating_sub(sent), "more than were sent"),
    ] {
        if count > 0 {
            found.push(format!("{what}: {count} deliveries {name}"));
        }
    }
    found
}

/// Returns true for a log line about a receiver that is meant to fail.
fn is_of_failing_receiver(line: &str) -> bool {
    line.contains(r#""level":"WARN""#) && line.contains("webhook")
}

fn series() -> Series {
    Series { sessions: 1000, events: u64::MAX }
}

fn row(name: &str, value: f64) {
    println!("| {name} | {value:.2} |");
}

const PER_SECOND: u64 = 1000;

/// Events before memory is measured, so that one-time allocations are included.
const WARM_UP: u64 = 1000;
