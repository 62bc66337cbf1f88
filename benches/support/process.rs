//! The kernel's figures of a process and of the machine.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError, Sender},
    thread::{self, JoinHandle},
    time::Duration,
};

use crate::support::Result;

/// Returns a process and all its descendants, itself first.
pub(crate) fn family(pid: u32) -> Vec<u32> {
    let mut family = vec![pid];
    let mut at = 0;
    while let Some(&member) = family.get(at) {
        at += 1;
        let threads = fs::read_dir(format!("/proc/{member}/task")).into_iter().flatten().flatten();
        for thread in threads {
            let children = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            family
                .extend(children.split_whitespace().filter_map(|child| child.parse::<u32>().ok()));
        }
    }
    family
}

/// Returns the user and system time of all threads of a process and its descendants since they
/// started.
pub(crate) fn family_cpu(pid: u32) -> Result<Duration> {
    family(pid).into_iter().map(cpu).sum()
}

/// Returns the user and system time of all threads of a process since it started.
pub(crate) fn cpu(pid: u32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field is the name, in parentheses, and may contain any byte.
    let (_, fields) = stat.rsplit_once(')').ok_or("no name in /proc/PID/stat")?;
    let ticks = |nth: usize| -> Result<u64> {
        let field = fields.split_whitespace().nth(nth - 3).ok_or("/proc/PID/stat is short")?;
        Ok(field.parse()?)
    };
    Ok(of_ticks(ticks(14)? + ticks(15)?))
}

/// Returns whether every thread of a process sleeps, and none has run while the others were looked
/// at.
pub(crate) fn is_asleep(pid: u32) -> Result<bool> {
    let before = turns(pid)?;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let stat = fs::read_to_string(thread?.path().join("stat"))?;
        let (_, fields) = stat.rsplit_once(')').ok_or("no name in /proc/PID/task/TID/stat")?;
        if !fields.trim_start().starts_with('S') {
            return Ok(false);
        }
    }
    Ok(before == turns(pid)?)
}

/// Returns how often a processor has begun to run a thread of this process.
fn turns(pid: u32) -> Result<u64> {
    let turns = |thread: std::io::Result<fs::DirEntry>| -> Result<u64> {
        let stat = fs::read_to_string(thread?.path().join("schedstat"))?;
        Ok(stat.split_whitespace().nth(2).ok_or("schedstat is short")?.parse()?)
    };
    fs::read_dir(format!("/proc/{pid}/task"))?.map(turns).sum()
}

/// Returns the time that all cores of the machine have worked since boot.
pub(crate) fn machine_cpu() -> Result<Duration> {
    let stat = fs::read_to_string("/proc/stat")?;
    let mut fields = stat.split_whitespace().skip(1).map_while(|field| field.parse::<u64>().ok());
    // user, nice, system; then idle and iowait, which are no work; then hard and soft interrupts.
    let tasks: u64 = fields.by_ref().take(3).sum();
    let interrupts: u64 = fields.skip(2).take(2).sum();
    Ok(of_ticks(tasks + interrupts))
}

fn of_ticks(ticks: u64) -> Duration {
    Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND)
}

/// Returns the private memory of a process and its descendants in KiB, without memory that they
/// share.
pub(crate) fn private_kib(pid: u32) -> Result<f64> {
    family(pid).into_iter().map(own_private_kib).sum()
}

fn own_private_kib(pid: u32) -> Result<f64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let private = rollup.lines().filter(|line| line.starts_with("Private_"));
    let kib = private.filter_map(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok());
    Ok(kib.sum())
}

/// The maximum of a process's private memory while it is watched.
#[derive(Debug)]
pub(crate) struct Peak {
    stop: Sender<()>,
    thread: JoinHandle<f64>,
}

impl Peak {
    /// Starts to watch.
    pub(crate) fn watch(pid: u32) -> Self {
        let (stop, is_over) = mpsc::channel();
        let thread = thread::spawn(move || {
            let mut highest = 0.0;
            loop {
                // The other measurements report a process that has ended.
                let now = private_kib(pid).unwrap_or(0.0);
                highest = f64::max(highest, now);
                if is_over.recv_timeout(POLL_INTERVAL) != Err(RecvTimeoutError::Timeout) {
                    return highest;
                }
            }
        });
        Self { stop, thread }
    }

    /// Stops, and returns the maximum in KiB.
    pub(crate) fn kib(self) -> Result<f64> {
        drop(self.stop);
        Ok(self.thread.join().map_err(|_| "the thread that watches memory panicked")?)
    }
}

/// Returns the bytes that a process has caused to be written to disks.
pub(crate) fn written_bytes(pid: u32) -> Result<f64> {
    let io = fs::read_to_string(format!("/proc/{pid}/io"))?;
    let written = io.lines().find_map(|line| line.strip_prefix("write_bytes: "));
    Ok(written.ok_or("no write_bytes in /proc/PID/io")?.parse()?)
}

/// Drops a file from the page cache, so that its next reader waits for the disk. Dirty pages stay.
pub(crate) fn drop_from_cache(file: &Path) -> Result<()> {
    let mut argument = std::ffi::OsString::from("if=");
    argument.push(file);
    let dd = Command::new("dd")
        .arg(argument)
        .args(["iflag=nocache", "count=0"])
        .stderr(Stdio::null())
        .status()?;
    match dd.success() {
        true => Ok(()),
        false => Err(format!("dd cannot drop {} from the page cache: {dd}", file.display()).into()),
    }
}

/// Returns the memory of all TCP socket buffers of the machine in KiB.
pub(crate) fn kernel_buffer_kib() -> Result<f64> {
    let sockstat = fs::read_to_string("/proc/net/sockstat")?;
    let tcp = sockstat.lines().find(|line| line.starts_with("TCP:"));
    let pages = tcp.and_then(|line| line.split_whitespace().last());
    let pages: f64 = pages.ok_or("no TCP in /proc/net/sockstat")?.parse()?;
    Ok(pages * PAGE_KIB)
}

/// Returns the memory of all kernel objects of the machine (sockets, files, `epoll` entries among
/// them) in KiB.
pub(crate) fn kernel_object_kib() -> Result<f64> {
    let meminfo = fs::read_to_string("/proc/meminfo")?;
    let slab = meminfo.lines().find(|line| line.starts_with("SUnreclaim:"));
    let kib = slab.and_then(|line| line.split_whitespace().nth(1));
    Ok(kib.ok_or("no SUnreclaim in /proc/meminfo")?.parse()?)
}

/// Returns a description of the machine and its load.
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

/// Short compared to the watched work, long compared to one measurement, which takes a millisecond
/// of the machine.
const POLL_INTERVAL: Duration = Duration::from_millis(25);
