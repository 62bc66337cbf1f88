//! The events: batches of actions as the connector sends them, 1 KiB each, with a number and a time
//! at fixed offsets.

use std::{
    ops::Range,
    sync::LazyLock,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

/// The product of all events.
pub(crate) const PRODUCT: &str = "bench";

/// Size of every payload in bytes.
pub(crate) const PAYLOAD_BYTES: usize = 1024;

/// Returns the microseconds since the first call, on the monotonic clock.
pub(crate) fn now_us() -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    u64::try_from(START.elapsed().as_micros()).unwrap_or(u64::MAX)
}

/// Returns the id of a session, and of the user whose session it is, always of the same length.
pub(crate) fn session_name(session: usize) -> String {
    format!("s{session:05}")
}

/// The events of one run: numbers from 1 on, each of a session that its number determines.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Series {
    /// Number of sessions.
    pub(crate) sessions: usize,
    /// Number of events.
    pub(crate) events: u64,
}

impl Series {
    /// Returns the session of an event: pseudo-random, the same in every run.
    pub(crate) fn session(&self, sequence: u64) -> usize {
        (mix(sequence) % self.sessions as u64) as usize
    }

    /// Returns the number of events after this one for each session.
    pub(crate) fn per_session(&self, after: u64) -> Vec<u64> {
        let mut counts = vec![0; self.sessions];
        for sequence in after + 1..=self.events {
            counts[self.session(sequence)] += 1;
        }
        counts
    }
}

/// Applies the finalizer of SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number
/// generators, 2014).
fn mix(value: u64) -> u64 {
    let value = value.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// A payload whose variable fields can be written and read without parsing.
#[derive(Clone, Debug)]
pub(crate) struct Template {
    bytes: Vec<u8>,
    session: Range<usize>,
    forwarded_at: Range<usize>,
    sequence: Range<usize>,
    sent: Range<usize>,
    user: Range<usize>,
}

impl Template {
    /// Returns the template.
    pub(crate) fn new() -> Self {
        let mut text =
            format!(r#"{{"type": "actions", "product_id": "{PRODUCT}", "session_id": ""#);
        let field = |text: &mut String, filling: &str, then: &str| {
            let start = text.len();
            text.push_str(filling);
            let range = start..text.len();
            text.push_str(then);
            range
        };
        let session = field(&mut text, "s00000", r#"", "forwarded_at": "#);
        let forwarded_at = field(&mut text, "1700000000.000000", r#", "sequence": ""#);
        let sequence = field(&mut text, "000000000000", r#"", "sent_us": ""#);
        let sent = field(&mut text, "000000000000", r#"", "user_id": ""#);
        let user = field(&mut text, "s00000", r#"", "count": 2, "actions": ["#);
        text.push_str(ACTION);
        text.push_str(", ");
        text.push_str(ACTION);
        text.push_str(r#"], "note": ""#);
        let filling = PAYLOAD_BYTES - text.len() - 2;
        text.push_str(&"x".repeat(filling));
        text.push_str(r#""}"#);
        Self { bytes: text.into_bytes(), session, forwarded_at, sequence, sent, user }
    }

    /// Writes the frame of one event, sent now, into `frame`. Every session has a user of its own.
    pub(crate) fn write(&mut self, sequence: u64, session: usize, frame: &mut Vec<u8>) {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let forwarded_at =
            format!("{:010}.{:06}", since_1970.as_secs(), since_1970.subsec_micros());
        for name in [&self.session, &self.user] {
            self.bytes[name.clone()].copy_from_slice(session_name(session).as_bytes());
        }
        self.bytes[self.forwarded_at.clone()].copy_from_slice(forwarded_at.as_bytes());
        self.bytes[self.sequence.clone()].copy_from_slice(format!("{sequence:012}").as_bytes());
        self.bytes[self.sent.clone()].copy_from_slice(format!("{:012}", now_us()).as_bytes());
        frame.clear();
        frame.extend_from_slice(b"data: ");
        frame.extend_from_slice(&self.bytes);
        frame.extend_from_slice(b"\n\n");
    }

    /// Reads an event; `None` if any fixed byte differs.
    pub(crate) fn read<'a>(&self, payload: &'a [u8]) -> Option<Event<'a>> {
        let is_intact = payload.len() == PAYLOAD_BYTES
            && payload[..self.session.start] == self.bytes[..self.session.start]
            && payload[self.sent.end..self.user.start]
                == self.bytes[self.sent.end..self.user.start]
            && payload[self.user.clone()] == payload[self.session.clone()]
            && payload[self.user.end..] == self.bytes[self.user.end..];
        if !is_intact {
            return None;
        }
        Some(Event {
            session: &payload[self.session.clone()],
            sequence: number(&payload[self.sequence.clone()])?,
            sent_us: number(&payload[self.sent.clone()])?,
        })
    }

    /// Returns the session of a payload that is known to be an event.
    pub(crate) fn session<'a>(&self, payload: &'a [u8]) -> &'a [u8] {
        &payload[self.session.clone()]
    }
}

/// The variable fields of an event.
#[derive(Debug)]
pub(crate) struct Event<'a> {
    /// Id of its session.
    pub(crate) session: &'a [u8],
    /// Its number in the series.
    pub(crate) sequence: u64,
    /// Time of sending in microseconds.
    pub(crate) sent_us: u64,
}

/// Parses decimal digits and nothing else.
pub(crate) fn number(digits: &[u8]) -> Option<u64> {
    digits.iter().try_fold(0_u64, |value, digit| {
        let digit = digit.is_ascii_digit().then(|| u64::from(digit - b'0'))?;
        value.checked_mul(10)?.checked_add(digit)
    })
}

const ACTION: &str = r#"{"index": 41, "type": "click", "title": "Clicked Add member", "description": "User clicked the button \"Add member\" in the team settings", "timestamp_start": 1700000000.1, "timestamp_end": 1700000000.4, "raw_url": "https://app.example.com/settings/team?tab=members", "canonical_url": "https://app.example.com/settings/team"}"#;
