//! Buffer between the log and stderr, with a thread of its own.
//!
//! In: lines. Out: the same lines on stderr, or a count of what was dropped. stderr may be a pipe
//! whose reader is slow or stands still; a request that writes a line never waits for it.
//!
//! May use: `printable`.

use std::{
    io::{self, Write},
    mem,
    sync::Arc,
    thread,
    time::Duration,
};

use parking_lot::{Condvar, Mutex, MutexGuard};
use tracing::warn;

use crate::printable::without_hidden;

/// Lines that wait for the writer thread, up to [`MAX_BUFFERED_BYTES`].
#[derive(Debug, Default)]
pub(super) struct LogBuffer {
    state: Mutex<BufferState>,
    /// Signalled when lines have come, the buffer is closed, or the thread has ended.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct BufferState {
    lines: Vec<u8>,
    /// Lines dropped since the last report.
    dropped: u64,
    is_closed: bool,
    has_ended: bool,
}

impl LogBuffer {
    fn push(&self, line: &[u8]) {
        // Values of peers are in the line. The formats escape some control characters and leave
        // others, those of the direction of text among them.
        let escaped = str::from_utf8(line).map(without_hidden);
        let line = escaped.as_ref().map_or(line, |line| line.as_bytes());
        let mut state = self.lock();
        if state.lines.len() + line.len() > MAX_BUFFERED_BYTES {
            state.dropped += 1;
        } else {
            state.lines.extend_from_slice(line);
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Waits for lines, and takes them with the count of lines dropped behind them. Returns
    /// [`None`] when the buffer is closed and empty.
    fn take(&self) -> Option<(Vec<u8>, u64)> {
        let is_idle = |state: &mut BufferState| {
            state.lines.is_empty() && state.dropped == 0 && !state.is_closed
        };
        let mut state = self.lock();
        self.changed.wait_while(&mut state, is_idle);
        let taken = (mem::take(&mut state.lines), mem::take(&mut state.dropped));
        (!taken.0.is_empty() || taken.1 > 0).then_some(taken)
    }

    /// Writes all lines to `output` until the buffer is closed and empty.
    fn write_to(&self, mut output: impl Write) {
        while let Some((lines, dropped)) = self.take() {
            // Where stderr is closed, there is nowhere to report that.
            let _ = output.write_all(&lines);
            if dropped > 0 {
                // Comes back through this buffer, in the log's format. The lines that it counts
                // came when the buffer was full, behind those written just now.
                warn!(
                    lines = dropped,
                    "log lines were dropped: the reader of stderr is too slow for them"
                );
            }
        }
        let _ = output.flush();
        self.lock().has_ended = true;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, BufferState> {
        self.state.lock()
    }
}

/// Takes a line with each call: the subscriber calls `write_all` once for every line.
impl Write for &LogBuffer {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Owner of the writer thread. Dropping it writes what is buffered, for as long as
/// [`CLOSE_TIMEOUT`].
#[derive(Debug)]
pub(crate) struct LogGuard {
    buffer: Arc<LogBuffer>,
}

impl LogGuard {
    /// Starts the thread that writes the buffer's lines to `output`.
    ///
    /// # Errors
    ///
    /// When the system refuses a thread.
    pub(super) fn start(
        buffer: Arc<LogBuffer>,
        output: impl Write + Send + 'static,
    ) -> io::Result<Self> {
        let lines = Arc::clone(&buffer);
        // Not joined: a join has no time-out, and stderr may stand still. `drop` waits for its end.
        thread::Builder::new().name("log".to_owned()).spawn(move || lines.write_to(output))?;
        Ok(Self { buffer })
    }
}

impl Drop for LogGuard {
    fn drop(&mut self) {
        self.buffer.lock().is_closed = true;
        self.buffer.changed.notify_all();
        let is_writing = |state: &mut BufferState| !state.has_ended;
        // A time-out is no failure of the command: the lines have no reader.
        self.buffer.changed.wait_while_for(&mut self.buffer.lock(), is_writing, CLOSE_TIMEOUT);
    }
}

/// Maximum bytes that wait for stderr, some thousands of lines: a reader that pauses for a while
/// misses nothing of a relay that works.
const MAX_BUFFERED_BYTES: usize = 1024 * 1024;

/// Time for the reader of stderr to take what is buffered at the end of the process.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    /// Output that waits for a permit before each write, and shows what was written.
    struct Gate {
        permits: Receiver<()>,
        written: Sender<Vec<u8>>,
    }

    impl Write for Gate {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            // Without a sender of permits, the gate is open.
            let _ = self.permits.recv();
            self.written.send(bytes.to_vec()).unwrap();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn gate() -> (Gate, Sender<()>, Receiver<Vec<u8>>) {
        let ((permit, permits), (written, output)) = (channel(), channel());
        (Gate { permits, written }, permit, output)
    }

    #[test]
    fn lines_are_written_whole_and_in_order_at_the_latest_at_the_end() {
        let (gate, permit, output) = gate();
        drop(permit);
        let buffer = Arc::new(LogBuffer::default());
        let guard = LogGuard::start(Arc::clone(&buffer), gate).unwrap();
        let lines: Vec<_> = (0..1000).map(|n| format!("line {n}\n").into_bytes()).collect();
        lines.iter().for_each(|line| (&*buffer).write_all(line).unwrap());
        drop(guard);
        let written: Vec<_> = output.try_iter().flatten().collect();
        assert_eq!(written, lines.concat());
    }

    #[test]
    fn characters_that_a_terminal_would_obey_are_escaped() {
        let (gate, permit, output) = gate();
        drop(permit);
        let buffer = Arc::new(LogBuffer::default());
        let guard = LogGuard::start(Arc::clone(&buffer), gate).unwrap();
        (&*buffer)
            .write_all("a \u{1b}[31mred\u{1b}[0m \u{202e}b\u{9b}\u{200f} é\n".as_bytes())
            .unwrap();
        drop(guard);
        let written = String::from_utf8(output.try_iter().flatten().collect()).unwrap();
        assert_eq!(written, "a \u{1b}[31mred\u{1b}[0m \\u202eb\\u009b\\u200f é\n");
    }

    #[test]
    fn an_output_that_stands_still_delays_no_line_and_costs_a_bounded_buffer() {
        let (gate, permit, output) = gate();
        let buffer = Arc::new(LogBuffer::default());
        let guard = LogGuard::start(Arc::clone(&buffer), gate).unwrap();
        let line = [b'x'; 1024];
        // Three times as much as the thread holds and the buffer together.
        for _ in 0..6 * 1024 {
            (&*buffer).write_all(&line).unwrap();
        }
        let dropped = buffer.lock().dropped;
        assert!((4 * 1024..6 * 1024).contains(&dropped), "{dropped}");
        assert!(buffer.lock().lines.capacity() <= 2 * MAX_BUFFERED_BYTES);
        drop(permit);
        drop(guard);
        let written = output.try_iter().flatten().count();
        assert_eq!(written, line.len() * (6 * 1024 - usize::try_from(dropped).unwrap()));
    }

    #[test]
    fn the_end_does_not_wait_for_ever_for_an_output_that_stands_still() {
        let (gate, _permit, _output) = gate();
        let buffer = Arc::new(LogBuffer::default());
        let guard = LogGuard::start(Arc::clone(&buffer), gate).unwrap();
        (&*buffer).write_all(b"line\n").unwrap();
        let began = std::time::Instant::now();
        drop(guard);
        assert!((CLOSE_TIMEOUT..2 * CLOSE_TIMEOUT).contains(&began.elapsed()));
    }
}
