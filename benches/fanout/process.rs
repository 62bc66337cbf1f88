//! What the kernel says about a process and the machine.

use std::{fs, time::Duration};

use crate::Result;

/// User and system time of all threads of a process since it began.
pub(crate) fn cpu(pid: u32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field is the name, in parentheses, and may hold anything.
    let (_, fields) = stat.rsplit_once(')').ok_or("no name in /proc/PID/stat")?;
    let ticks = |nth: usize| -> Result<u64> {
        let field = fields.split_whitespace().nth(nth - 3).ok_or("/proc/PID/stat is short")?;
        Ok(field.parse()?)
    };
    Ok(of_ticks(ticks(14)? + ticks(15)?))
}

/// The time that all cores of the machine have worked since it began.
pub(crate) fn machine_cpu() -> Result<Duration> {
    let stat = fs::read_to_string("/proc/stat")?;
    let mut fields = stat.split_whitespace().skip(1).map_while(|field| field.parse::<u64>().ok());
    // user, nice, system; then idle and waiting for disks, which are no work; then interrupts, hard and soft.
    let tasks: u64 = fields.by_ref().take(3).sum();
    let interrupts: u64 = fields.skip(2).take(2).sum();
    Ok(of_ticks(tasks + interrupts))
}

fn of_ticks(ticks: u64) -> Duration {
    Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND)
}

/// Memory that a process has for itself, in KiB.
pub(crate) fn private_kib(pid: u32) -> Result<f64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let private = rollup.lines().filter(|line| line.starts_with("Private_"));
    let kib = private.filter_map(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok());
    Ok(kib.sum())
}

/// Memory of what all TCP sockets of the machine hold in their buffers, in KiB.
pub(crate) fn kernel_buffer_kib() -> Result<f64> {
    let sockstat = fs::read_to_string("/proc/net/sockstat")?;
    let tcp = sockstat.lines().find(|line| line.starts_with("TCP:"));
    let pages = tcp.and_then(|line| line.split_whitespace().last());
    let pages: f64 = pages.ok_or("no TCP in /proc/net/sockstat")?.parse()?;
    Ok(pages * PAGE_KIB)
}

/// Memory of all kernel objects of the machine (sockets, files, `epoll` entries among them), in KiB.
pub(crate) fn kernel_object_kib() -> Result<f64> {
    let meminfo = fs::read_to_string("/proc/meminfo")?;
    let slab = meminfo.lines().find(|line| line.starts_with("SUnreclaim:"));
    let kib = slab.and_then(|line| line.split_whitespace().nth(1));
    Ok(kib.ok_or("no SUnreclaim in /proc/meminfo")?.parse()?)
}

/// The machine, and whether it has other things to do.
pub(crate) fn machine() -> String {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.split_once(':').map_or("?", |(_, value)| value.trim()).to_owned()
    };
    let kernel = read("/proc/sys/kernel/osrelease");
    let processor = field(&read("/proc/cpuinfo"), "model name");
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let load = read("/proc/loadavg");
    let load: Vec<_> = load.split_whitespace().take(3).collect();
    format!(
        "{cores} cores ({processor}), Linux {}, load average before: {}. Loopback; load, upstream and target share the machine.",
        kernel.trim(),
        load.join(" "),
    )
}

/// `USER_HZ`, which the kernel's interface fixes at 100 on every architecture Rust runs on.
const TICKS_PER_SECOND: u64 = 100;

const PAGE_KIB: f64 = 4.0;
