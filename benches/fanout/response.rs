//! What a subscriber reads: an HTTP/1.1 head, chunks, and in them the blocks of an event stream. However it is cut.
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
    /// Behind the last chunk.
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
    /// When it is not a chunked 200 with an event stream.
    pub(crate) fn feed(&mut self, bytes: &[u8], mut see: impl FnMut(Block<'_>)) -> Result<(), String> {
        let joined;
        let mut bytes = bytes;
        if self.place == Place::Head {
            self.rest.extend_from_slice(bytes);
            let Some(end) = memmem::find(&self.rest, b"\r\n\r\n") else {
                return Ok(());
            };
            joined = std::mem::take(&mut self.rest);
            check_head(&joined[..end])?;
            self.place = Place::Size(None);
            bytes = &joined[end + 4..];
        }
        while let Some((&byte, behind)) = bytes.split_first() {
            match self.place {
                Place::Data(left) => {
                    let (data, behind) = bytes.split_at(left.min(bytes.len()));
                    self.blocks(data, &mut see);
                    bytes = behind;
                    self.place = match left - data.len() {
                        0 => Place::DataEnd,
                        left => Place::Data(left),
                    };
                    continue;
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

    /// Shows the whole blocks up to the end of `data` and keeps the rest.
    fn blocks(&mut self, data: &[u8], see: &mut impl FnMut(Block<'_>)) {
        if self.rest.is_empty() {
            let used = read_blocks(data, see);
            self.rest.extend_from_slice(&data[used..]);
            return;
        }
        self.rest.extend_from_slice(data);
        let used = read_blocks(&self.rest, see);
        self.rest.drain(..used);
    }
}

/// The place behind one more byte of the line with a chunk's size.
fn in_size(size: Option<usize>, byte: u8) -> Result<Place, String> {
    let so_far = size.unwrap_or(0);
    match (byte, char::from(byte).to_digit(16)) {
        (_, Some(digit)) if so_far < MAX_CHUNK_BYTES => Ok(Place::Size(Some(so_far * 16 + digit as usize))),
        (b'\r', _) if size.is_some() => Ok(Place::Size(size)),
        (b'\n', _) if size == Some(0) => Ok(Place::End),
        (b'\n', _) if size.is_some() => Ok(Place::Data(so_far)),
        _ => Err(format!("byte {byte} in the size of a chunk")),
    }
}

fn check_head(head: &[u8]) -> Result<(), String> {
    let is_chunked = || memmem::find(&head.to_ascii_lowercase(), b"transfer-encoding: chunked").is_some();
    if head.starts_with(b"HTTP/1.1 200 ") && is_chunked() {
        return Ok(());
    }
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    Err(format!("answered {:?}, not 200 in chunks", String::from_utf8_lossy(line)))
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

const MAX_CHUNK_BYTES: usize = 1 << 24;
