//! The framing of the requests on one HTTP/1.1 connection (RFC 9112, sections 6 and 7.1), beside
//! hyper's own reading of it.
//!
//! hyper tells a handler neither that a request had a length beside its transfer coding, nor how
//! large a chunk is that has been announced and has not come. So the bytes that hyper reads are
//! looked at on their way to it.
//!
//! ```text
//! RequestLine ─► Fields ─┬─────────────────── no body ───────────────────► RequestLine
//!                        ├─► Data, by Content-Length ────────────────────► RequestLine
//!                        └─► ChunkSize ─► Data ─► ChunkEnd ─► ChunkSize …
//!                                    └─ 0 ─► Trailers ───────────────────► RequestLine
//! ```
//!
//! Nothing here refuses a request: where this reading cannot follow, it stops, and hyper's holds.
//!
//! May use: no other module.

use std::mem;

use parking_lot::{Mutex, MutexGuard};

/// Mark of a request, among its extensions, whose framing a proxy in front may have read
/// differently (request smuggling; RFC 9112, sections 6.1 and 11.2).
#[derive(Clone, Copy, Debug)]
pub(crate) struct AmbiguousFraming;

/// What is known of the framing of a connection's requests. The connection's reader writes it, and
/// the dispatch of a request and the reader of its body read it.
///
/// Requests have numbers, because hyper reads the next request while it answers one.
#[derive(Debug, Default)]
pub(super) struct FramingNotes(Mutex<Notes>);

#[derive(Debug, Default)]
struct Notes {
    /// Requests that were passed to the router.
    dispatched: u32,
    /// First request with a length beside a transfer coding, 0 for none. Its answer is the last.
    contradictory: u32,
    /// Latest request with a chunked body.
    chunked: u32,
    /// Sum of the sizes of the chunks of that request which have begun.
    announced: u64,
}

impl FramingNotes {
    /// Counts a request that is passed to the router. Returns its number, and whether it has a
    /// length beside a transfer coding.
    pub(super) fn begin_request(&self) -> (u32, bool) {
        let mut notes = self.lock();
        notes.dispatched = notes.dispatched.wrapping_add(1);
        (notes.dispatched, notes.dispatched == notes.contradictory)
    }

    /// Returns how many bytes the body of this request has at least, by its chunks' sizes.
    pub(super) fn announced_bytes(&self, request: u32) -> u64 {
        let notes = self.lock();
        if notes.chunked == request { notes.announced } else { 0 }
    }

    fn lock(&self) -> MutexGuard<'_, Notes> {
        // Numbers only, each valid by itself. Uncontended: a connection is one task.
        self.0.lock()
    }
}

/// Position in the requests that one connection sends.
#[derive(Debug)]
pub(super) struct RequestFraming {
    step: Step,
    /// Beginning of the line that is being read, up to [`MAX_LINE_BYTES`].
    line: Vec<u8>,
    head: HeadFields,
    /// Heads that were read to their end.
    heads: u32,
}

/// Fields of the head that is being read.
#[derive(Debug, Default)]
struct HeadFields {
    length: Option<u64>,
    /// Number of the fields `Transfer-Encoding`.
    codings: u32,
    is_chunked: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Step {
    RequestLine(RequestLine),
    Fields,
    Data {
        remaining: u64,
        is_chunk: bool,
    },
    ChunkSize,
    ChunkEnd,
    Trailers,
    /// The framing is malformed, and hyper ends the connection, or it is no HTTP/1.1 any more.
    Unfollowed,
}

/// Progress in a request line.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum RequestLine {
    Method { is_empty: bool },
    Target,
}

impl RequestLine {
    /// Returns the progress after a further byte, [`None`] at the end of the line.
    fn advance(self, byte: u8) -> Option<Self> {
        match (self, byte) {
            // Empty lines before a request are skipped (RFC 9112, section 2.2).
            (Self::Method { is_empty: true }, b'\r' | b'\n') => Some(self),
            (_, b'\n') => None,
            (Self::Method { .. }, b' ') => Some(Self::Target),
            (Self::Method { .. }, _) => Some(Self::Method { is_empty: false }),
            (Self::Target, _) => Some(Self::Target),
        }
    }
}

impl RequestFraming {
    pub(super) fn new() -> Self {
        Self { step: Step::START, line: Vec::new(), head: HeadFields::default(), heads: 0 }
    }

    /// Returns whether the connection is in the midst of a request's target, or of the version
    /// behind it.
    pub(super) fn is_in_target(&self) -> bool {
        self.step == Step::RequestLine(RequestLine::Target)
    }

    /// Follows the bytes that were read next.
    pub(super) fn observe(&mut self, mut bytes: &[u8], notes: &FramingNotes) {
        while !bytes.is_empty() {
            bytes = match self.step {
                Step::Unfollowed => return,
                Step::RequestLine(line) => self.read_request_line(line, bytes),
                Step::Data { remaining, is_chunk } => self.skip_data(remaining, is_chunk, bytes),
                Step::Fields | Step::ChunkSize | Step::ChunkEnd | Step::Trailers => {
                    self.read_line(bytes, notes)
                }
            };
        }
    }

    fn read_request_line<'a>(&mut self, mut line: RequestLine, bytes: &'a [u8]) -> &'a [u8] {
        for (index, byte) in bytes.iter().enumerate() {
            match line.advance(*byte) {
                Some(next) => line = next,
                None => {
                    self.step = Step::Fields;
                    return bytes.get(index + 1..).unwrap_or_default();
                }
            }
        }
        self.step = Step::RequestLine(line);
        &[]
    }

    fn skip_data<'a>(&mut self, remaining: u64, is_chunk: bool, bytes: &'a [u8]) -> &'a [u8] {
        let skipped = usize::try_from(remaining).unwrap_or(usize::MAX).min(bytes.len());
        let remaining = remaining - skipped as u64;
        self.step = match (remaining, is_chunk) {
            (0, true) => Step::ChunkEnd,
            (0, false) => Step::START,
            _ => Step::Data { remaining, is_chunk },
        };
        bytes.get(skipped..).unwrap_or_default()
    }

    /// Gathers a line, and takes the next step at its end.
    fn read_line<'a>(&mut self, bytes: &'a [u8], notes: &FramingNotes) -> &'a [u8] {
        let end = bytes.iter().position(|byte| *byte == b'\n');
        let part = bytes.get(..end.unwrap_or(bytes.len())).unwrap_or_default();
        let room = MAX_LINE_BYTES.saturating_sub(self.line.len()).min(part.len());
        self.line.extend_from_slice(part.get(..room).unwrap_or_default());
        let Some(end) = end else { return &[] };
        let mut line = mem::take(&mut self.line);
        self.end_line(line.strip_suffix(b"\r").unwrap_or(&line), notes);
        line.clear();
        self.line = line; // its memory, for the next line
        bytes.get(end + 1..).unwrap_or_default()
    }

    fn end_line(&mut self, line: &[u8], notes: &FramingNotes) {
        self.step = match (self.step, line) {
            (Step::Fields, []) => self.end_head(notes),
            (Step::Fields, line) => self.read_field(line),
            (Step::ChunkSize, line) => self.begin_chunk(line, notes),
            (Step::ChunkEnd, []) => Step::ChunkSize,
            (Step::Trailers, []) => Step::START,
            (Step::Trailers, _) => Step::Trailers,
            _ => Step::Unfollowed,
        };
    }

    fn read_field(&mut self, line: &[u8]) -> Step {
        let colon = line.iter().position(|byte| *byte == b':').unwrap_or(line.len());
        let (name, value) = line.split_at(colon);
        let value = value.strip_prefix(b":").unwrap_or_default().trim_ascii();
        let is_cut = line.len() >= MAX_LINE_BYTES;
        if name.eq_ignore_ascii_case(b"transfer-encoding") {
            self.head.codings += 1;
            self.head.is_chunked = !is_cut && value.eq_ignore_ascii_case(b"chunked");
        } else if name.eq_ignore_ascii_case(b"content-length") {
            let length = (!is_cut).then(|| parse_length(value)).flatten();
            // hyper refuses lengths that differ.
            if length.is_none() || self.head.length.is_some_and(|known| Some(known) != length) {
                return Step::Unfollowed;
            }
            self.head.length = length;
        }
        Step::Fields
    }

    fn end_head(&mut self, notes: &FramingNotes) -> Step {
        self.heads = self.heads.wrapping_add(1);
        let HeadFields { length, codings, is_chunked } = mem::take(&mut self.head);
        let mut notes = notes.lock();
        if codings > 0 && length.is_some() && notes.contradictory == 0 {
            notes.contradictory = self.heads;
        }
        match (codings, length) {
            (0, None | Some(0)) => Step::START,
            (0, Some(remaining)) => Step::Data { remaining, is_chunk: false },
            (1, _) if is_chunked => {
                (notes.chunked, notes.announced) = (self.heads, 0);
                Step::ChunkSize
            }
            _ => Step::Unfollowed,
        }
    }

    fn begin_chunk(&mut self, line: &[u8], notes: &FramingNotes) -> Step {
        match parse_chunk_size(line) {
            None => Step::Unfollowed,
            Some(0) => Step::Trailers,
            Some(remaining) => {
                let mut notes = notes.lock();
                if notes.chunked == self.heads {
                    notes.announced = notes.announced.saturating_add(remaining);
                }
                Step::Data { remaining, is_chunk: true }
            }
        }
    }
}

impl Step {
    const START: Self = Self::RequestLine(RequestLine::Method { is_empty: true });
}

fn parse_length(value: &[u8]) -> Option<u64> {
    // `parse` accepts a sign.
    let is_number = value.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(value).ok().filter(|_| is_number)?.parse().ok()
}

/// Returns the size at the beginning of a line, [`u64::MAX`] for all that are larger; [`None`] if
/// there is none, or it is too long to tell.
fn parse_chunk_size(line: &[u8]) -> Option<u64> {
    let digits: Vec<u32> = line.iter().map_while(|byte| char::from(*byte).to_digit(16)).collect();
    if digits.is_empty() || digits.len() >= MAX_LINE_BYTES {
        return None;
    }
    let append = |size: u64, digit: u32| size.checked_mul(16)?.checked_add(digit.into());
    Some(digits.into_iter().fold(0, |size, digit| append(size, digit).unwrap_or(u64::MAX)))
}

/// Bytes of a line that are looked at: longer than any field with a length or a coding that is
/// accepted, and than the size of a chunk without dozens of leading zeros.
const MAX_LINE_BYTES: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the notes after these bytes, which must not depend on how they are cut into reads.
    fn notes(bytes: &str) -> (u32, u32, u64) {
        let after = |piece: usize| {
            let (mut framing, notes) = (RequestFraming::new(), FramingNotes::default());
            bytes.as_bytes().chunks(piece).for_each(|read| framing.observe(read, &notes));
            let notes = notes.lock();
            (notes.contradictory, notes.chunked, notes.announced)
        };
        let whole = after(bytes.len());
        for piece in 1..20 {
            assert_eq!(after(piece), whole, "{bytes:?} in pieces of {piece}");
        }
        whole
    }

    const CHUNKED: &str = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n";
    const SIZED: &str = "POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\n5\r\nab";

    #[test]
    fn the_sizes_of_chunks_are_summed_up_as_soon_as_they_are_announced() {
        for (body, announced) in [
            ("", 0),
            ("5", 0),
            ("5\r\n", 5),
            ("05;a=\"b\"\r\nab\ncdx\r\n", 5), // hyper refuses what follows the data
            ("5\r\nabcde\r\nA \r\n", 15),
            ("ffffffffffffffff\r\n1", u64::MAX),
            ("10000000000000000\r\n", u64::MAX),
            ("00000000000000000000000000000000005\r\nab", 5),
            ("x\r\n5\r\n", 0),
            ("\r\n5\r\n", 0),
        ] {
            assert_eq!(notes(&format!("{CHUNKED}{body}")), (0, 1, announced), "{body:?}");
        }
        let zeros = format!("{CHUNKED}{}5\r\n", "0".repeat(2 * MAX_LINE_BYTES));
        assert_eq!(notes(&zeros), (0, 1, 0), "it is hyper's to read");
    }

    #[test]
    fn the_next_request_is_found_behind_each_kind_of_body() {
        let long = format!("GET / HTTP/1.1\nX: {}\n\n", "x: y".repeat(100));
        for before in [
            "\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
            SIZED,
            &format!("{CHUNKED}5;x\r\nabcde\r\n0\r\n\r\n"),
            &format!("{CHUNKED}1\r\na\r\n00\r\nX: Content-Length\r\n\r\n\r\n"),
            &long,
        ] {
            assert_eq!(notes(&format!("{before}{CHUNKED}7\r\n")), (0, 2, 7), "{before:?}");
        }
    }

    #[test]
    fn a_length_beside_a_coding_is_noted_for_its_request_only() {
        let both = "POST / HTTP/1.1\r\ncontent-length: 5\r\nTRANSFER-ENCODING: chunked\r\n\r\n";
        assert_eq!(notes(both).0, 1);
        let second = format!("{SIZED}{}", both.replace("chunked", "gzip, chunked"));
        assert_eq!(notes(&second).0, 2);
        let framing = FramingNotes::default();
        RequestFraming::new().observe(second.as_bytes(), &framing);
        assert_eq!([framing.begin_request(), framing.begin_request()], [(1, false), (2, true)]);
        for one in [SIZED, CHUNKED, "GET / HTTP/1.1\r\nX: Transfer-Encoding: chunked\r\n\r\n"] {
            assert_eq!(notes(one).0, 0, "{one:?}");
        }
    }

    #[test]
    fn another_requests_chunks_are_not_counted() {
        let notes = FramingNotes::default();
        RequestFraming::new().observe(format!("{SIZED}{CHUNKED}9\r\n").as_bytes(), &notes);
        assert_eq!([1, 2].map(|request| notes.announced_bytes(request)), [0, 9]);
    }
}
