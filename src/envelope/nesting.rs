//! Bound on the nesting of a payload.
//!
//! The relay reads JSON without recursion; most readers of its streams and pages do not, and fail
//! at a payload that nests too deep.
//!
//! May use: no other module.

use memchr::memchr2;

/// Returns whether objects and arrays of a JSON text nest over [`MAX_NESTING`] levels.
///
/// The outermost object is the first level. Of a text that is no JSON, the answer is of no use.
pub(super) fn exceeds_max_nesting(json: &[u8]) -> bool {
    // A text nests at most as deep as it has opening brackets, and these the processor counts many
    // bytes at a time. Hardly any event has so many that the second look is needed.
    count_opening_brackets(json) > MAX_NESTING && nests_over_max(json)
}

fn count_opening_brackets(json: &[u8]) -> usize {
    // `[` and `{` differ in the bit 0x20 alone. A chunk's count fits into a byte, so the compiler
    // adds whole vectors of bytes.
    let count = |chunk: &[u8]| chunk.iter().map(|byte| u8::from(byte | 0x20 == b'{')).sum::<u8>();
    json.chunks(usize::from(u8::MAX)).map(|chunk| usize::from(count(chunk))).sum()
}

fn nests_over_max(json: &[u8]) -> bool {
    let (mut rest, mut depth) = (json, 0_usize);
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        match byte {
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            b'"' => rest = skip_string(after),
            _ => {}
        }
        if depth > MAX_NESTING {
            return true;
        }
    }
    false
}

/// Returns what follows the end of a string.
fn skip_string(mut rest: &[u8]) -> &[u8] {
    while let Some(at) = memchr2(b'"', b'\\', rest) {
        // A backslash and the byte that it escapes are skipped together: the quote of `\"` does
        // not end the string.
        let is_end = rest.get(at) == Some(&b'"');
        rest = rest.get(at + if is_end { 1 } else { 2 }..).unwrap_or_default();
        if is_end {
            return rest;
        }
    }
    &[]
}

/// Maximum levels of nesting: Python's decoder fails at about a thousand, and real events have
/// under ten.
const MAX_NESTING: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;

    fn nested(depth: usize, open: &str, close: &str) -> Vec<u8> {
        [open.repeat(depth), close.repeat(depth)].concat().into_bytes()
    }

    #[test]
    fn the_outermost_level_is_the_first_and_the_128th_the_last() {
        for (open, close) in [("[", "]"), ("{\"a\":", "}"), (" [ 1, {\"]\": 2, \"b\" : ", "}]")] {
            let levels = open.matches(['[', '{']).count();
            let most = 128 / levels;
            assert!(!exceeds_max_nesting(&nested(most, open, close)), "{open}");
            assert!(exceeds_max_nesting(&nested(most + 1, open, close)), "{open}");
        }
    }

    #[test]
    fn brackets_in_strings_and_side_by_side_are_no_levels() {
        let brackets = "[{".repeat(500);
        for text in [
            format!(r#"{{"a":"{brackets}"}}"#),
            format!(r#"{{"{brackets}\\\"{brackets}":"\\"}}"#),
            format!("[{}0]", "[],{},".repeat(500)),
        ] {
            assert!(!exceeds_max_nesting(text.as_bytes()), "{text}");
        }
        let behind = [br#"{"a\\":"\"","b":"#.as_slice(), &nested(128, "[", "]"), b"}"].concat();
        assert!(exceeds_max_nesting(&behind), "a string ends at its quote");
        for unended in ["{\"a", "{\"a\\", "{\"a\\\""] {
            assert!(!exceeds_max_nesting(unended.as_bytes()));
        }
    }
}
