//! Laws of the decoder and the encoder of event streams.

use std::time::Duration;

use bytes::Bytes;

use crate::sse::{self, Decoded, Decoder, Frame};

/// Checks that a stream decodes the same however it is cut; that it decodes as the standard demands
/// if it is within the bound; and that decoded frames can be encoded and decoded again. The first
/// byte is the bound on events, the second the cut, the rest the stream.
pub fn decoder(input: &[u8]) {
    let [bound, cut, stream @ ..] = input else { return };
    let max_event_bytes = if *bound == u8::MAX { 1 << 20 } else { usize::from(*bound) + 1 };
    let cut = usize::from(*cut);
    let expected = decode_chunks([stream], max_event_bytes);
    let (first, second) = stream.split_at(cut.min(stream.len()));
    assert_eq!(decode_chunks([first, b"", second], max_event_bytes), expected, "in two pieces");
    for size in [1, cut + 2] {
        assert_eq!(
            decode_chunks(stream.chunks(size), max_event_bytes),
            expected,
            "in pieces of {size}"
        );
    }
    if stream.len() <= max_event_bytes {
        assert_eq!(expected, reference_decode(stream));
    }
    for decoded in &expected {
        if let Decoded::Frame(frame) = decoded {
            check_frame(frame, max_event_bytes);
        }
    }
}

fn check_frame(frame: &Frame, max_event_bytes: usize) {
    assert!(frame.data.len() <= max_event_bytes);
    assert!(!sse::breaks_framing(&frame.id));
    assert!(
        !frame.event.contains(&b'\n')
            && !frame.event.contains(&b'\r')
            && !frame.data.contains(&b'\r')
    );
    let encoded = sse::encode_event("7-42", &frame.data);
    assert_eq!(encoded.payload.bytes_in(&encoded.chunk), frame.data);
    let wire = encoded.chunk.slice(encoded.frame);
    assert_eq!(sse::encode_http1_chunk(&wire), encoded.chunk);
    let again = Frame {
        event: Bytes::new(),
        data: frame.data.clone(),
        id: Bytes::from_static(b"7-42"),
        has_own_id: true,
    };
    assert_eq!(decode_chunks([&*wire], max_event_bytes), [Decoded::Frame(again)]);
}

fn decode_chunks<'a>(
    chunks: impl IntoIterator<Item = &'a [u8]>,
    max_event_bytes: usize,
) -> Vec<Decoded> {
    let mut decoder = Decoder::new(max_event_bytes);
    let mut decoded = Vec::new();
    for chunk in chunks {
        decoder.feed(Bytes::copy_from_slice(chunk));
        while let Some(item) = decoder.next() {
            decoded.push(item);
        }
    }
    decoded
}

/// Decodes a stream by the standard, word for word, without regard to speed or bounds.
fn reference_decode(stream: &[u8]) -> Vec<Decoded> {
    let mut decoded = Vec::new();
    let (mut data, mut event, mut id, mut has_own_id) =
        (None::<Vec<u8>>, Vec::new(), Vec::new(), false);
    for line in lines(stream.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(stream)) {
        if line.is_empty() {
            let (event, has_own_id) = (std::mem::take(&mut event), std::mem::take(&mut has_own_id));
            if let Some(data) = data.take() {
                let frame = Frame {
                    event: event.into(),
                    data: data.into(),
                    id: id.clone().into(),
                    has_own_id,
                };
                decoded.push(Decoded::Frame(frame));
            }
            continue;
        }
        let colon = line.iter().position(|byte| *byte == b':').unwrap_or(line.len());
        let value = line.get(colon + 1..).unwrap_or_default();
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match &line[..colon] {
            b"data" => match &mut data {
                None => data = Some(value.to_vec()),
                Some(data) => data.extend([b"\n", value].concat()),
            },
            b"event" => event = value.to_vec(),
            b"id" if !value.contains(&0) => (id, has_own_id) = (value.to_vec(), true),
            b"retry" if !value.is_empty() && value.iter().all(u8::is_ascii_digit) => {
                let digits = String::from_utf8(value.to_vec()).unwrap();
                decoded.extend(
                    digits.parse().ok().map(|wait| Decoded::Retry(Duration::from_millis(wait))),
                );
            }
            _ => {}
        }
    }
    decoded
}

/// Returns the lines that are complete: ended by LF, CR or CRLF.
fn lines(stream: &[u8]) -> Vec<Vec<u8>> {
    let mut lines = vec![Vec::new()];
    let mut before = 0;
    for byte in stream {
        match byte {
            b'\n' if before == b'\r' => {}
            b'\n' | b'\r' => lines.push(Vec::new()),
            other => lines.last_mut().unwrap().push(*other),
        }
        before = *byte;
    }
    lines.pop();
    lines
}
