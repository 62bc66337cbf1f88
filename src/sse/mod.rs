//! Server-Sent Events: the decoder of an upstream's bytes, and the only encoder.
//!
//! ```text
//!  chunks of bytes ─► Decoder ─► frames
//!  id, payload ─► encode_event ─► HTTP/1.1 chunk ⊃ frame ⊃ payload
//! ```
//!
//! The decoder follows the WHATWG HTML standard, section 9.2.6 "Interpreting an event stream", and
//! returns the same frames however the bytes are cut into chunks. An event beyond the bound is
//! skipped and reported; the stream continues.
//!
//! Touches no runtime and no disk.
//!
//! May use: no other module.

#[cfg(test)]
mod tests;

use std::{fmt::Display, mem, ops::Range, time::Duration};

use bytes::{BufMut, Bytes, BytesMut};
use memchr::{memchr, memchr_iter, memchr2, memchr3};

/// Decoder of an event stream. Time is linear in the bytes; memory is bounded by `max_event_bytes`.
#[derive(Debug)]
pub(crate) struct Decoder {
    max_event_bytes: usize,
    chunk: Bytes,
    /// Beginning of a line whose end has not arrived.
    line: BytesMut,
    line_is_overlong: bool,
    /// Only the stream's first line may begin with a byte order mark.
    first_line: bool,
    /// The last line ended with CR: an LF that follows, perhaps in the next chunk, belongs to that
    /// end.
    skip_line_feed: bool,
    event: Bytes,
    data_buffer: DataBuffer,
    /// Survives a dispatch: the standard's last event ID buffer.
    last_event_id: Bytes,
    has_own_id: bool,
}

impl Decoder {
    /// Creates a decoder at the start of a stream, for events of up to `max_event_bytes` of
    /// payload.
    pub(crate) fn new(max_event_bytes: usize) -> Self {
        Self {
            max_event_bytes,
            chunk: Bytes::new(),
            line: BytesMut::new(),
            line_is_overlong: false,
            first_line: true,
            skip_line_feed: false,
            event: Bytes::new(),
            data_buffer: DataBuffer::None,
            last_event_id: Bytes::new(),
            has_own_id: false,
        }
    }

    /// Passes in the next chunk. The previous one must be used up: [`Decoder::next`] has returned
    /// [`None`].
    pub(crate) fn feed(&mut self, chunk: Bytes) {
        debug_assert!(self.chunk.is_empty(), "the previous chunk is used up");
        self.chunk = chunk;
    }

    /// Returns the next result of the bytes so far, or [`None`] if more bytes are needed. An event
    /// that is unfinished when the stream ends is never returned, as the standard demands.
    pub(crate) fn next(&mut self) -> Option<Decoded> {
        while let Some(line) = self.next_line() {
            if let Some(decoded) = self.interpret(&line) {
                return Some(decoded);
            }
        }
        None
    }

    /// Returns the next complete line without its end, which is LF, CR or CRLF.
    fn next_line(&mut self) -> Option<Line> {
        if self.skip_line_feed && !self.chunk.is_empty() {
            self.skip_line_feed = false;
            if self.chunk.first() == Some(&b'\n') {
                drop(self.chunk.split_to(1));
            }
        }
        let Some(end) = memchr2(b'\n', b'\r', &self.chunk) else {
            let rest = mem::take(&mut self.chunk);
            self.buffer_partial_line(&rest);
            return None;
        };
        let part = self.chunk.split_to(end);
        let terminator = self.chunk.split_to(1);
        self.skip_line_feed = terminator.first() == Some(&b'\r');
        // A line within one chunk stays a view of it: the usual case copies nothing here.
        let line = if self.line.is_empty() && part.len() <= self.max_line_bytes() {
            part
        } else {
            self.buffer_partial_line(&part);
            self.line.split().freeze()
        };
        let overlong = mem::take(&mut self.line_is_overlong);
        let without_bom = match mem::take(&mut self.first_line) {
            true if line.starts_with(BYTE_ORDER_MARK) => line.slice(BYTE_ORDER_MARK.len()..),
            _ => line,
        };
        Some(Line { bytes: without_bom, overlong })
    }

    /// Appends to the line whose end has not arrived. Past the bound, bytes are counted as missing
    /// and dropped.
    fn buffer_partial_line(&mut self, part: &[u8]) {
        let capacity = self.max_line_bytes().saturating_sub(self.line.len());
        let (buffered, excess) = part.split_at(part.len().min(capacity));
        self.line.extend_from_slice(buffered);
        self.line_is_overlong |= !excess.is_empty();
    }

    /// Returns the bound on a line: a field name, a byte order mark and the largest value.
    fn max_line_bytes(&self) -> usize {
        self.max_event_bytes + BYTE_ORDER_MARK.len() + "event: ".len()
    }

    /// Applies one line, by its field.
    fn interpret(&mut self, line: &Line) -> Option<Decoded> {
        if line.bytes.is_empty() {
            return self.dispatch();
        }
        let colon = memchr(b':', &line.bytes).unwrap_or(line.bytes.len());
        let name = line.bytes.slice(..colon);
        let mut value = line.bytes.slice((colon + 1).min(line.bytes.len())..);
        if value.first() == Some(&b' ') {
            value = value.slice(1..);
        }
        match &*name {
            // A truncated value must not pass for a whole one. Comments and unknown fields may have
            // any length.
            b"data" | b"event" | b"id" if line.overlong => self.data_buffer = DataBuffer::TooLarge,
            b"data" => {
                self.data_buffer =
                    mem::take(&mut self.data_buffer).with_line(value, self.max_event_bytes);
            }
            b"event" => self.event = value,
            // The standard ignores an id that holds NUL.
            b"id" if memchr(0, &value).is_none() => {
                (self.last_event_id, self.has_own_id) = (value, true);
            }
            b"retry" => return reconnection_time(&value).map(Decoded::Retry),
            _ => {} // a comment, or a field that the standard does not know
        }
        None
    }

    /// Ends the event at a blank line.
    fn dispatch(&mut self) -> Option<Decoded> {
        let event = mem::take(&mut self.event);
        let (id, has_own_id) = (self.last_event_id.clone(), mem::take(&mut self.has_own_id));
        match mem::take(&mut self.data_buffer) {
            // No `data` line: the standard dispatches nothing, but keeps the id.
            DataBuffer::None => None,
            DataBuffer::OneLine(data) => {
                Some(Decoded::Frame(Frame { event, data, id, has_own_id }))
            }
            DataBuffer::Lines(lines) => {
                Some(Decoded::Frame(Frame { event, data: lines.freeze(), id, has_own_id }))
            }
            DataBuffer::TooLarge => Some(Decoded::TooLarge),
        }
    }
}

/// One line of the stream.
struct Line {
    bytes: Bytes,
    /// Whether bytes are missing at its end.
    overlong: bool,
}

/// The standard's data buffer. One line, the usual case, is not copied.
#[derive(Debug, Default)]
enum DataBuffer {
    #[default]
    None,
    OneLine(Bytes),
    Lines(BytesMut),
    TooLarge,
}

impl DataBuffer {
    /// Returns the buffer with one more line.
    fn with_line(self, line: Bytes, max_bytes: usize) -> Self {
        match self {
            Self::None if line.len() <= max_bytes => Self::OneLine(line),
            Self::OneLine(first) if first.len() + 1 + line.len() <= max_bytes => {
                let mut lines = BytesMut::with_capacity(first.len() + 1 + line.len());
                lines.extend_from_slice(&first);
                Self::Lines(append_line(lines, &line))
            }
            Self::Lines(lines) if lines.len() + 1 + line.len() <= max_bytes => {
                Self::Lines(append_line(lines, &line))
            }
            _ => Self::TooLarge,
        }
    }
}

fn append_line(mut lines: BytesMut, line: &[u8]) -> BytesMut {
    lines.put_u8(b'\n');
    lines.extend_from_slice(line);
    lines
}

/// Result of decoding.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Decoded {
    /// A dispatched event.
    Frame(Frame),
    /// Reconnection time that the upstream asks for.
    Retry(Duration),
    /// An event exceeded the bound and was skipped.
    TooLarge,
}

/// A dispatched event. Its bytes may be any: the standard's replacement of invalid UTF-8 is left to
/// the reader of the frame, which rejects such a payload instead.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Frame {
    /// The event's name; empty means `message`.
    pub(crate) event: Bytes,
    /// The data lines, joined by LF.
    pub(crate) data: Bytes,
    /// The last event id in force, empty when there is none.
    pub(crate) id: Bytes,
    /// Whether that id came with this event, rather than with an earlier one.
    pub(crate) has_own_id: bool,
}

/// Parses the value of a `retry` field. The standard ignores the field unless it has digits only.
fn reconnection_time(digits: &[u8]) -> Option<Duration> {
    let text = std::str::from_utf8(digits).ok()?;
    let is_digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if is_digits { text.parse().ok().map(Duration::from_millis) } else { None }
}

const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

/// Returns whether the bytes hold CR, LF or NUL, which no single-line field survives.
pub(crate) fn breaks_framing(bytes: &[u8]) -> bool {
    memchr3(b'\r', b'\n', 0, bytes).is_some()
}

/// Encodes the frame of an event, blank line included, within the framing of an HTTP/1.1 chunk (RFC
/// 9112, section 7.1), so that a task that writes to a socket directly needs one write. A payload
/// of several lines takes as many `data` lines.
///
/// The payload must not hold CR: a client would read it as the end of a line. The decoder never
/// returns one.
pub(crate) fn encode_event(id: &str, payload: &[u8]) -> EncodedEvent {
    let lines = 1 + memchr_iter(b'\n', payload).count();
    // The LF between two lines is counted with the payload; the last line needs one of its own.
    let length = "id: \n\n".len() + id.len() + payload.len() + 1 + lines * "data: ".len();
    let (size, begin) = chunk_size(length);
    let size = size.get(begin..).unwrap_or_default();
    let mut chunk = BytesMut::with_capacity(size.len() + length + CHUNK_END.len());
    chunk.put_slice(size);
    chunk.put_slice(b"id: ");
    chunk.put_slice(id.as_bytes());
    chunk.put_u8(b'\n');
    let mut begin = 0;
    for end in memchr_iter(b'\n', payload).chain([payload.len()]) {
        chunk.put_slice(b"data: ");
        chunk.put_slice(payload.get(begin..end).unwrap_or_default());
        chunk.put_u8(b'\n');
        begin = end + 1;
    }
    chunk.put_u8(b'\n');
    chunk.put_slice(CHUNK_END);
    let chunk = chunk.freeze();
    let end = size.len() + length - "\n\n".len();
    let payload = match lines {
        1 => EncodedPayload::InChunk(end - payload.len()..end),
        _ => EncodedPayload::Own(Bytes::copy_from_slice(payload)),
    };
    EncodedEvent { chunk, frame: size.len()..size.len() + length, payload }
}

/// An event in the form in which it is sent.
#[derive(Debug)]
pub(crate) struct EncodedEvent {
    /// The frame as a chunk.
    pub(crate) chunk: Bytes,
    /// Range of the frame within the chunk.
    pub(crate) frame: Range<usize>,
    /// Where the payload is.
    pub(crate) payload: EncodedPayload,
}

/// Place of an encoded event's payload.
#[derive(Debug)]
pub(crate) enum EncodedPayload {
    /// The one line of the payload, within the chunk. A range and no view: a second reference to
    /// the buffer is an allocation, and few events are asked for their payload.
    InChunk(Range<usize>),
    /// A payload of several lines is not contiguous in the frame, and has a buffer of its own.
    Own(Bytes),
}

impl EncodedPayload {
    /// Returns the payload of the event that was encoded as `chunk`.
    pub(crate) fn bytes_in(&self, chunk: &Bytes) -> Bytes {
        match self {
            Self::InChunk(range) => chunk.slice(range.clone()),
            Self::Own(payload) => payload.clone(),
        }
    }

    /// Returns the payload of the event that was encoded as `chunk`, without another reference.
    pub(crate) fn slice_of<'a>(&'a self, chunk: &'a Bytes) -> &'a [u8] {
        match self {
            Self::InChunk(range) => chunk.get(range.clone()).unwrap_or_default(),
            Self::Own(payload) => payload,
        }
    }

    /// Returns the length of the payload in bytes.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::InChunk(range) => range.len(),
            Self::Own(payload) => payload.len(),
        }
    }
}

/// Encodes bytes other than an event as an HTTP/1.1 chunk. Without bytes this is the last chunk,
/// which ends a body (RFC 9112, section 7.1).
pub(crate) fn encode_http1_chunk(bytes: &[u8]) -> Bytes {
    let (size, begin) = chunk_size(bytes.len());
    [size.get(begin..).unwrap_or_default(), bytes, CHUNK_END].concat().into()
}

/// Returns the line with a chunk's size at the end of an array, and where it begins there. Every
/// event has one, so it takes neither an allocation nor `fmt`.
fn chunk_size(bytes: usize) -> ([u8; MAX_CHUNK_SIZE_BYTES], usize) {
    let mut line = *b"0000000000000000\r\n";
    let (mut rest, mut begin) = (bytes, MAX_CHUNK_SIZE_BYTES - CHUNK_END.len());
    for digit in line.iter_mut().rev().skip(CHUNK_END.len()) {
        let value = u8::try_from(rest & 0xf).unwrap_or_default();
        *digit = if value < 10 { b'0' + value } else { b'a' + value - 10 };
        (rest, begin) = (rest >> 4, begin - 1);
        if rest == 0 {
            break;
        }
    }
    (line, begin)
}

/// Sixteen digits, and the end of the line.
const MAX_CHUNK_SIZE_BYTES: usize = 18;

const CHUNK_END: &[u8] = b"\r\n";

/// Encodes the heartbeat block. `last_event_id` moves the client's last event id on.
pub(crate) fn encode_heartbeat(last_event_id: Option<impl Display>) -> Bytes {
    match last_event_id {
        None => Bytes::from_static(b"event: heartbeat\ndata:\n\n"),
        Some(position) => format!("id: {position}\nevent: heartbeat\ndata:\n\n").into(),
    }
}

/// Encodes a comment, which keeps a connection alive and which clients ignore.
pub(crate) fn encode_keep_alive() -> Bytes {
    Bytes::from_static(b":\n")
}

/// Encodes a gap notice, given in JSON, under the id that a resume continues from.
pub(crate) fn encode_gap(id: impl Display, notice: &str) -> Bytes {
    format!("id: {id}\nevent: gap\ndata: {notice}\n\n").into()
}

/// Encodes a reconnection time, without a blank line of its own: the SDK would log a block without
/// `data` as an error.
pub(crate) fn encode_retry(wait: Duration) -> Bytes {
    format!("retry: {}\n", wait.as_millis()).into()
}
