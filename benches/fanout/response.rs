//! What a subscriber reads: an HTTP/1.1 head, then the blocks of an event stream, in chunks or not,
//! or the frames of a WebSocket, which are shown as the same blocks. However it is cut.
//!
//! Whole blocks are read where they lie; only what is unfinished at the end of a read is kept.

use memchr::{memchr, memmem};

/// One response, read so far.
#[derive(Debug)]
pub(crate) struct Response {
    place: Place,
    /// The unfinished head, then the unfinished block.
    rest: Vec<u8>,
}

/// Where in the response the next byte stands.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Place {
    Head,
    /// In the line with a chunk's size, which is this so far; none before its first digit.
    Size(Option<usize>),
    /// In a chunk's data, this far from its end.
    Data(usize),
    /// In the line end behind a chunk's data.
    DataEnd,
    /// In a body without chunks, which ends with the connection.
    Plain,
    /// In the frames of a WebSocket.
    Frames,
    /// Behind the last chunk or frame.
    End,
}

/// One block of an event stream.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Block<'a> {
    /// The last `id`.
    pub(crate) id: Option<&'a [u8]>,
    /// The last `event`.
    pub(crate) name: Option<&'a [u8]>,
    /// The last `data`; nothing here spans lines.
    pub(crate) data: Option<&'a [u8]>,
}

impl Response {
    /// At its first byte.
    pub(crate) fn new() -> Self {
        Self { place: Place::Head, rest: Vec::new() }
    }

    /// Behind its head, which somebody else has read, with as many chunks as that one shows.
    pub(crate) fn body() -> Self {
        Self { place: Place::Plain, rest: Vec::new() }
    }

    /// Whether the head has been read.
    pub(crate) fn has_begun(&self) -> bool {
        self.place != Place::Head
    }

    /// Whether it came to its proper end.
    pub(crate) fn has_ended(&self) -> bool {
        self.place == Place::End
    }

    /// Reads on, and shows every block that is whole now.
    ///
    /// # Errors
    ///
    /// When it is neither a 200 nor a 101, or cannot be read.
    pub(crate) fn feed(
        &mut self,
        bytes: &[u8],
        mut see: impl FnMut(Block<'_>),
    ) -> Result<(), String> {
        let joined;
        let mut bytes = bytes;
        if self.place == Place::Head {
            self.rest.extend_from_slice(bytes);
            let Some(end) = memmem::find(&self.rest, b"\r\n\r\n") else {
                return Ok(());
            };
            joined = std::mem::take(&mut self.rest);
            self.place = behind_head(&joined[..end])?;
            bytes = &joined[end + 4..];
        }
        while let Some((&byte, behind)) = bytes.split_first() {
            match self.place {
                Place::Data(left) => {
                    let (data, behind) = bytes.split_at(left.min(bytes.len()));
                    self.keep_unread(data, |data| Ok(read_blocks(data, &mut see)))?;
                    bytes = behind;
                    self.place = match left - data.len() {
                        0 => Place::DataEnd,
                        left => Place::Data(left),
                    };
                    continue;
                }
                Place::Plain => {
                    self.keep_unread(bytes, |bytes| Ok(read_blocks(bytes, &mut see)))?;
                    return Ok(());
                }
                Place::Frames => {
                    let mut is_closed = false;
                    self.keep_unread(bytes, |bytes| read_frames(bytes, &mut see, &mut is_closed))?;
                    if is_closed {
                        self.place = Place::End;
                    }
                    return Ok(());
                }
                Place::Size(size) => self.place = in_size(size, byte)?,
                Place::DataEnd if byte == b'\n' => self.place = Place::Size(None),
                Place::DataEnd if byte == b'\r' => {}
                Place::DataEnd | Place::Head => return Err(format!("byte {byte} behind a chunk")),
                Place::End => return Ok(()),
            }
            bytes = behind;
        }
        Ok(())
    }

    /// Has what was kept read together with `data`, and keeps what `read` does not use of it.
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

/// The place behind one more byte of the line with a chunk's size.
fn in_size(size: Option<usize>, byte: u8) -> Result<Place, String> {
    let so_far = size.unwrap_or(0);
    match (byte, char::from(byte).to_digit(16)) {
        (_, Some(digit)) if so_far < MAX_CHUNK_BYTES => {
            Ok(Place::Size(Some(so_far * 16 + digit as usize)))
        }
        (b'\r', _) if size.is_some() => Ok(Place::Size(size)),
        (b'\n', _) if size == Some(0) => Ok(Place::End),
        (b'\n', _) if size.is_some() => Ok(Place::Data(so_far)),
        _ => Err(format!("byte {byte} in the size of a chunk")),
    }
}

fn behind_head(head: &[u8]) -> Result<Place, String> {
    let is_chunked =
        || memmem::find(&head.to_ascii_lowercase(), b"transfer-encoding: chunked").is_some();
    if head.starts_with(b"HTTP/1.1 200 ") {
        return Ok(if is_chunked() { Place::Size(None) } else { Place::Plain });
    }
    if head.starts_with(b"HTTP/1.1 101 ") {
        return Ok(Place::Frames);
    }
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    Err(format!("answered {:?}, neither 200 nor 101", String::from_utf8_lossy(line)))
}

/// Shows every whole block and returns where the last one ends.
fn read_blocks(bytes: &[u8], see: &mut impl FnMut(Block<'_>)) -> usize {
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
            see(block);
            block = Block::default();
            used = at;
        }
    }
    used
}

/// Shows every whole message and returns where the last frame ends. The relay sends each message in
/// one frame.
fn read_frames(
    bytes: &[u8],
    see: &mut impl FnMut(Block<'_>),
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
            0x81 => see(message_block(message).ok_or("a message that is not as promised")?),
            0x88 => *is_closed = true,
            0x89 => {} // a ping: a subscriber that only listens may leave it
            _ => return Err(format!("byte {first} at the beginning of a frame")),
        }
    }
}

/// `{"id":"…","event":"…","data":…}`, where `data` may be missing.
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
