//! The decoder against the standard, web-platform-tests and every chunking; the encoder byte for
//! byte.

use proptest::prelude::*;

use super::*;

/// Decodes a stream that arrives in these pieces.
fn decode(pieces: &[&[u8]], max_event_bytes: usize) -> Vec<Decoded> {
    let mut decoder = Decoder::new(max_event_bytes);
    let mut decoded = Vec::new();
    for piece in pieces {
        decoder.feed(Bytes::copy_from_slice(piece));
        while let Some(one) = decoder.next() {
            decoded.push(one);
        }
    }
    decoded
}

fn frames(stream: &[u8]) -> Vec<Decoded> {
    decode(&[stream], 1024)
}

fn frame(event: &str, data: &str, id: &str) -> Decoded {
    let bytes = |text: &str| Bytes::copy_from_slice(text.as_bytes());
    Decoded::Frame(Frame {
        event: bytes(event),
        data: bytes(data),
        id: bytes(id),
        has_own_id: !id.is_empty(),
    })
}

/// Checks the cases of web-platform-tests, as data: `tests/data/eventsource-format.json` names the
/// source of each.
#[test]
fn web_platform_tests_format_cases_decode_as_they_must() {
    let suite: serde_json::Value =
        serde_json::from_str(include_str!("../../tests/data/eventsource-format.json")).unwrap();
    let cases = suite["cases"].as_array().unwrap();
    assert!(cases.len() >= 25);
    // A stream of another media type is never decoded: the client refuses it, which tests of the
    // binary show.
    for case in cases.iter().filter(|case| case["accepted"] != false) {
        let input = case["input"].as_str().unwrap().as_bytes();
        let bytewise: Vec<&[u8]> = input.chunks(1).collect();
        for pieces in [vec![input], bytewise] {
            assert_case(case, decode(&pieces, 1 << 20));
        }
    }
}

fn assert_case(case: &serde_json::Value, decoded: Vec<Decoded>) {
    let name = &case["name"];
    let mut retry = None;
    let mut events = Vec::new();
    for one in decoded {
        match one {
            Decoded::Frame(frame) => events.push(frame),
            Decoded::Retry(wait) => retry = Some(wait.as_millis() as u64),
            Decoded::TooLarge => panic!("{name}: too large"),
        }
    }
    let text = |bytes: &Bytes| String::from_utf8(bytes.to_vec()).unwrap();
    let expected = case["expect"].as_array().unwrap();
    assert_eq!(events.len(), expected.len(), "{name}");
    for (event, expected) in events.iter().zip(expected) {
        let kind = if event.event.is_empty() { "message".to_owned() } else { text(&event.event) };
        assert_eq!(kind, expected["event"].as_str().unwrap(), "{name}");
        assert_eq!(text(&event.data), expected["data"].as_str().unwrap(), "{name}");
        assert_eq!(text(&event.id), expected["id"].as_str().unwrap(), "{name}");
    }
    assert_eq!(retry, case["retry_ms"].as_u64(), "{name}");
}

#[test]
fn an_id_stays_in_force_and_is_distinguished_from_an_events_own_id() {
    let stream = b"id: 1\ndata: a\n\ndata: b\n\nid: 2\n\ndata: c\n\nid: 2\ndata: d\n\n";
    let ids = frames(stream).into_iter().map(|decoded| match decoded {
        Decoded::Frame(frame) => (frame.id, frame.has_own_id),
        other => panic!("{other:?}"),
    });
    let bytes = Bytes::from_static;
    assert!(ids.eq([
        (bytes(b"1"), true),
        (bytes(b"1"), false),
        (bytes(b"2"), false),
        (bytes(b"2"), true)
    ]));
}

#[test]
fn an_unfinished_last_event_is_discarded() {
    assert_eq!(frames(b"data: one\n\ndata: two\n"), [frame("", "one", "")]);
}

#[test]
fn an_event_past_the_bound_is_skipped_and_the_next_one_is_not() {
    let exactly = [b"data: ".as_slice(), &[b'x'; 10], b"\n\n"].concat();
    let one_more = [b"data: ".as_slice(), &[b'x'; 11], b"\n\n"].concat();
    let endless = [b"data: ".as_slice(), &[b'x'; 5000], b"\n\n"].concat();
    let lines = b"data: 12345\ndata: 12345\n\n".to_vec();
    let fits = frame("", "xxxxxxxxxx", "");
    for (stream, expected) in [
        (one_more, Decoded::TooLarge),
        (endless, Decoded::TooLarge),
        (lines, Decoded::TooLarge),
        (exactly, fits),
    ] {
        let stream = [stream, b"data: after\n\n".to_vec()].concat();
        let bytewise: Vec<&[u8]> = stream.chunks(1).collect();
        for pieces in [vec![stream.as_slice()], bytewise] {
            assert_eq!(decode(&pieces, 10), [expected.clone(), frame("", "after", "")]);
        }
    }
}

#[test]
fn a_comment_or_unknown_field_of_any_length_takes_no_memory_and_changes_no_event() {
    let mut decoder = Decoder::new(10);
    for field in [":".as_bytes(), b"unknown: "] {
        decoder.feed(Bytes::copy_from_slice(field));
        assert_eq!(decoder.next(), None);
        for _ in 0..1000 {
            decoder.feed(Bytes::from_static(&[b'x'; 1000]));
            assert_eq!(decoder.next(), None);
        }
        assert!(decoder.line.capacity() < 100, "{}", decoder.line.capacity());
        decoder.feed(Bytes::from_static(b"\n"));
        assert_eq!(decoder.next(), None);
    }
    decoder.feed(Bytes::from_static(b"data: after\n\n"));
    assert_eq!(decoder.next(), Some(frame("", "after", "")));
}

#[test]
fn a_line_within_one_chunk_is_a_view_of_it() {
    let chunk = Bytes::from_static(b"data: payload\n\n");
    let mut decoder = Decoder::new(1024);
    decoder.feed(chunk.clone());
    let Some(Decoded::Frame(frame)) = decoder.next() else { panic!("no frame") };
    assert!(chunk.as_ptr_range().contains(&frame.data.as_ptr()));
}

#[test]
fn a_payload_is_written_byte_for_byte_and_its_lines_as_lines() {
    let frame = |payload: &[u8]| {
        let EncodedEvent { chunk, frame, .. } = encode_event("7-42", payload);
        chunk.slice(frame)
    };
    assert_eq!(frame(br#" {"type":"x"} "#), "id: 7-42\ndata:  {\"type\":\"x\"} \n\n");
    assert_eq!(frame(b"{\n}"), "id: 7-42\ndata: {\ndata: }\n\n");
}

#[test]
fn a_chunk_has_its_length_and_an_empty_one_is_the_last() {
    assert_eq!(encode_event("7-42", b"{}").chunk, "13\r\nid: 7-42\ndata: {}\n\n\r\n");
    assert_eq!(encode_http1_chunk(b"retry: 1500\n"), "c\r\nretry: 1500\n\r\n");
    assert_eq!(encode_http1_chunk(b""), "0\r\n\r\n");
}

#[test]
fn heartbeats_and_notices_are_whole_blocks_and_a_retry_is_none() {
    assert_eq!(encode_heartbeat(None::<u8>), "event: heartbeat\ndata:\n\n");
    assert_eq!(encode_heartbeat(Some("7-3")), "id: 7-3\nevent: heartbeat\ndata:\n\n");
    assert_eq!(encode_gap("7-3", "{}"), "id: 7-3\nevent: gap\ndata: {}\n\n");
    assert_eq!(encode_retry(Duration::from_millis(1500)), "retry: 1500\n");
}

/// Generates text that likely has the characters that matter to the format.
fn stream_text() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        Just("\n".to_owned()),
        Just("\r".to_owned()),
        Just("\r\n".to_owned()),
        Just("data:".to_owned()),
        Just("data".to_owned()),
        Just("id: ".to_owned()),
        Just("event:".to_owned()),
        Just("retry: 10".to_owned()),
        Just(":".to_owned()),
        Just(" ".to_owned()),
        Just("\u{feff}".to_owned()),
        Just("\0".to_owned()),
        "[a-zä🔎]{0,12}",
    ];
    proptest::collection::vec(piece, 0..60).prop_map(|pieces| pieces.concat().into_bytes())
}

proptest! {
    #[test]
    fn decoding_is_the_same_for_every_chunking(
        stream in stream_text(),
        cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..12),
        max_event_bytes in 1_usize..40,
    ) {
        let whole = decode(&[&stream], max_event_bytes);
        for cut in 0..=stream.len() {
            prop_assert_eq!(&decode(&[&stream[..cut], &stream[cut..]], max_event_bytes), &whole);
        }
        let mut cuts: Vec<usize> =
            cuts.into_iter().map(|cut| cut.index(stream.len() + 1)).collect();
        cuts.sort_unstable();
        let mut pieces = Vec::new();
        let mut from = 0;
        for cut in cuts.into_iter().chain([stream.len()]) {
            pieces.push(&stream[from..cut]);
            from = cut;
        }
        prop_assert_eq!(&decode(&pieces, max_event_bytes), &whole);
    }

    #[test]
    fn a_chunk_begins_with_its_size_in_hexadecimal(bytes in prop_oneof![0_usize..70_000, any::<usize>()]) {
        let (line, begin) = chunk_size(bytes);
        let written = String::from_utf8_lossy(&line[begin..]);
        prop_assert_eq!(written, format!("{bytes:x}\r\n"));
    }

    #[test]
    fn an_encoded_payload_decodes_to_the_same_payload(payload in "[^\r]{0,200}", sequence: u64) {
        let id = format!("1-{sequence}");
        let EncodedEvent { chunk, frame: frame_range, payload: view } =
            encode_event(&id, payload.as_bytes());
        prop_assert_eq!(&view.bytes_in(&chunk), payload.as_bytes());
        let wire = chunk.slice(frame_range);
        prop_assert_eq!(&encode_http1_chunk(&wire), &chunk);
        prop_assert_eq!(decode(&[&wire], 1 << 20), vec![frame("", &payload, &id)]);
    }
}
