//! Incremental parser of a subscriber's response: an HTTP/1.1 head, then the blocks of an event
//! stream, with or without chunks, or the frames of a WebSocket as the same blocks. Reads may cut
//! it anywhere.
//!
//! Whole blocks are parsed in place; only an unfinished rest is buffered.

use memchr::{memchr, memmem};

/// The state of one response.
#[derive(Debug)]
pub(crate) struct Response {
    position: Position,
    /// The unfinished head, then the unfinished block.
    rest: Vec<u8>,
}

/// Position of the next byte.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Position {
    Head,
    /// In the line with a chunk's size, which is this so far; `None` before its first digit.
    Size(Option<usize>),
    /// In a chunk's data, this many bytes from its end.
    Data(usize),
    /// In the line end after a chunk's data.
    DataEnd,
    /// In a body without chunks, which ends with the connection.
    Plain,
    /// In the frames of a WebSocket.
    Frames,
    /// After the last chunk or frame.
    End,
}

/// One block of an event stream.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Block<'a> {
    /// The last `id`.
    pub(crate) id: Option<&'a [u8]>,
    /// The last `event`.
    pub(crate) name: Option<&'a [u8]>,
    /// The last `data`; no payload here spans lines.
    pub(crate) data: Option<&'a [u8]>,
}

impl Response {
    /// Starts at the first byte.
    pub(crate) fn new() -> Self {
        Self { position: Position::Head, rest: Vec::new() }
    }

    /// Starts after the head and without chunks, which the caller has decoded.
    pub(crate) fn body() -> Self {
        Self { position: Position::Plain, rest: Vec::new() }
    }

    /// Returns true once the head has been read.
    pub(crate) fn has_begun(&self) -> bool {
        self.position != Position::Head
    }

    /// Returns true after a proper end.
    pub(crate) fn has_ended(&self) -> bool {
        self.position == Position::End
    }

    /// Parses more bytes, and calls `visit` with every complete block.
    ///
    /// # Errors
    ///
    /// If the status is neither 200 nor 101, or the bytes are invalid.
    pub(crate) fn feed(
        &mut self,
        bytes: &[u8],
        mut visit: impl FnMut(Block<'_>),
    ) -> Result<(), String> {
        let joined;
        let mut bytes = bytes;
        if self.position == Position::Head {
            self.rest.extend_from_slice(bytes);
            let Some(end) = memmem::find(&self.rest, b"\r\n\r\n") else {
                return Ok(());
            };
            joined = std::mem::take(&mut self.rest);
            self.position = behind_head(&joined[..end])?;
            bytes = &joined[end + 4..];
        }
        while let Some((&byte, behind)) = bytes.split_first() {
            match self.position {
                Position::Data(left) => {
                    let (data, behind) = bytes.split_at(left.min(bytes.len()));
                    self.keep_unread(data, |data| Ok(read_blocks(data, &mut visit)))?;
                    bytes = behind;
                    self.position = match left - data.len() {
                        0 => Position::DataEnd,
                        left => Position::Data(left),
                    };
                    continue;
                }
                Position::Plain => {
                    self.keep_unread(bytes, |bytes| Ok(read_blocks(bytes, &mut visit)))?;
                    return Ok(());
                }
                Position::Frames => {
                    let mut is_closed = false;
                    self.keep_unread(bytes, |bytes| {
                        read_frames(bytes, &mut visit, &mut is_closed)
                    })?;
                    if is_closed {
                        self.position = Position::End;
                    }
                    return Ok(());
                }
                Position::Size(size) => self.position = in_size(size, byte)?,
                Position::DataEnd if byte == b'\n' => self.position = Position::Size(None),
                Position::DataEnd if byte == b'\r' => {}
                Position::DataEnd | Position::Head => {
                    return Err(format!("byte {byte} behind a chunk"));
                }
                Position::End => return Ok(()),
            }
            bytes = behind;
        }
        Ok(())
    }

    /// Calls `read` with the buffered rest and `data`, and buffers the bytes that `read` does not
    /// use.
    fn keep_unread(
        &mut self,
        data: &[u8],
        mut read: impl FnMut(&[u8]) -> Result<usize, String>,
    ) -> Result<(), String> {
        if self.rest.is_empty() {
            let used = read(data)?;
            self.rest.extend_from_slice(&data[used..]);
            return Ok(());
        }
        self.rest.extend_from_slice(data);
        let used = read(&self.rest)?;
        self.rest.drain(..used);
        Ok(())
    }
}

/// Returns the position after one more byte of the line with a chunk's size.
fn in_size(size: Option<usize>, byte: u8) -> Result<Position, String> {
    let so_far = size.unwrap_or(0);
    match (byte, char::from(byte).to_digit(16)) {
        (_, Some(digit)) if so_far < MAX_CHUNK_BYTES => {
            Ok(Position::Size(Some(so_far * 16 + digit as usize)))
        }
        (b'\r', _) if size.is_some() => Ok(Position::Size(size)),
        (b'\n', _) if size == Some(0) => Ok(Position::End),
        (b'\n', _) if size.is_some() => Ok(Position::Data(so_far)),
        _ => Err(format!("byte {byte} in the size of a chunk")),
    }
}

fn behind_head(head: &[u8]) -> Result<Position, String> {
    let is_chunked =
        || memmem::find(&head.to_ascii_lowercase(), b"transfer-encoding: chunked").is_some();
    if head.starts_with(b"HTTP/1.1 200 ") {
        return Ok(if is_chunked() { Position::Size(None) } else { Position::Plain });
    }
    if head.starts_with(b"HTTP/1.1 101 ") {
        return Ok(Position::Frames);
    }
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    Err(format!("answered {:?}, neither 200 nor 101", String::from_utf8_lossy(line)))
}

/// Calls `visit` with every complete block, and returns the end of the last one.
fn read_blocks(bytes: &[u8], visit: &mut impl FnMut(Block<'_>)) -> usize {
    let (mut at, mut used) = (0, 0);
    let mut block = Block::default();
    while let Some(length) = memchr(b'\n', &bytes[at..]) {
        let line = &bytes[at..at + length];
        at += length + 1;
        if let Some(data) = line.strip_prefix(b"data: ") {
            block.data = Some(data);
        } else if let Some(id) = line.strip_prefix(b"id: ") {
            block.id = Some(id);
        } else if let Some(name) = line.strip_prefix(b"event: ") {
            block.name = Some(name);
        } else if line.is_empty() {
            visit(block);
            block = Block::default();
            used = at;
        }
    }
    used
}

/// Calls `visit` with every complete message, and returns the end of the last frame. The relay
/// sends each message in one frame.
fn read_frames(
    bytes: &[u8],
    visit: &mut impl FnMut(Block<'_>),
    is_closed: &mut bool,
) -> Result<usize, String> {
    let mut used = 0;
    loop {
        let frame = &bytes[used..];
        let (Some(first), Some(length)) = (frame.first(), frame.get(1)) else { return Ok(used) };
        let (length, start) = match (*length, frame.get(2..4), frame.get(2..10)) {
            (126, Some(&[high, low]), _) => (usize::from(u16::from_be_bytes([high, low])), 4),
            (127, _, Some(length)) => {
                (length.iter().fold(0, |value, byte| value << 8 | usize::from(*byte)), 10)
            }
            (126 | 127, ..) => return Ok(used),
            (length @ ..126, ..) => (usize::from(length), 2),
            (length, ..) => {
                return Err(format!("byte {length} where a server's frame has its length"));
            }
        };
        let Some(message) = frame.get(start..start + length) else { return Ok(used) };
        used += start + length;
        match first {
            0x81 => visit(message_block(message).ok_or("a message with unexpected fields")?),
            0x88 => *is_closed = true,
            0x89 => {} // a ping, which the load does not answer
            _ => return Err(format!("byte {first} at the beginning of a frame")),
        }
    }
}

/// Parses `{"id":"…","event":"…","data":…}`, of which `data` may be missing.
fn message_block(message: &[u8]) -> Option<Block<'_>> {
    let (id, rest) = until_quote(message.strip_prefix(br#"{"id":""#)?)?;
    let (name, rest) = until_quote(rest.strip_prefix(br#","event":""#)?)?;
    let data = rest.strip_prefix(br#","data":"#).and_then(|data| data.strip_suffix(b"}"));
    Some(Block { id: Some(id), name: (name != b"message").then_some(name), data })
}

fn until_quote(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = memchr(b'"', text)?;
    Some((&text[..end], &text[end + 1..]))
}

const MAX_CHUNK_BYTES: usize = 1 << 24;
