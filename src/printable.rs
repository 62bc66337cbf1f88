//! Text of others, in a form that a terminal shows and does not obey.
//!
//! In: text that a peer wrote. Out: the same text with escapes in the place of characters that move
//! the cursor, begin an escape sequence, end the line, or change the order in which the rest of the
//! line is shown (CVE-2021-42574).
//!
//! May use: no other module.

use std::{borrow::Cow, fmt::Write};

/// Returns one line of readable text, in which every control character is escaped.
pub(crate) fn printable_line(text: &str) -> Cow<'_, str> {
    escape(text, |character| character.is_control() || matches_hidden(character))
}

/// Returns text that has its line ends and its terminal's own sequences already, such as a line of
/// JSON or of the log, with all other control characters escaped.
///
/// The escapes are those of JSON strings. JSON has these characters inside of strings only, so a
/// line of JSON keeps its value.
pub(crate) fn without_hidden(text: &str) -> Cow<'_, str> {
    escape(text, matches_hidden)
}

fn escape(text: &str, is_escaped: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.contains(&is_escaped) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        match character {
            // Above 0xFFFF there is none of them, so four digits are enough.
            _ if is_escaped(character) => {
                let _ = write!(escaped, "\\u{:04x}", u32::from(character)); // cannot fail
            }
            _ => escaped.push(character),
        }
    }
    Cow::Owned(escaped)
}

/// Returns whether a terminal obeys the character although it is above ASCII's control characters:
/// DEL, C1 (ECMA-48, section 8.3), the separators of lines and paragraphs, and what UAX #9 uses to
/// set the direction of text.
fn matches_hidden(character: char) -> bool {
    matches!(
        character,
        '\u{7f}'..='\u{9f}'
            | '\u{61c}'
            | '\u{200e}'
            | '\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2066}'..='\u{2069}'
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const BIDI: [char; 12] = [
        '\u{61c}', '\u{200e}', '\u{200f}', '\u{202a}', '\u{202b}', '\u{202c}', '\u{202d}',
        '\u{202e}', '\u{2066}', '\u{2067}', '\u{2068}', '\u{2069}',
    ];

    #[test]
    fn a_readable_line_has_every_control_character_escaped() {
        for character in ('\0'..' ').chain('\u{7f}'..'\u{a0}').chain(BIDI) {
            let line = printable_line(&format!("a{character}b")).into_owned();
            assert_eq!(line, format!("a\\u{:04x}b", u32::from(character)));
        }
    }

    #[test]
    fn a_line_of_json_keeps_its_value() {
        let hidden: String = ('\u{7f}'..'\u{a0}').chain(BIDI).collect();
        let json = serde_json::json!({ "a": hidden, "\u{202e}": 1 }).to_string();
        let escaped = without_hidden(&json);
        assert!(escaped.is_ascii(), "{escaped}");
        let (before, after): (serde_json::Value, serde_json::Value) =
            (serde_json::from_str(&json).unwrap(), serde_json::from_str(&escaped).unwrap());
        assert_eq!(before, after);
    }

    #[test]
    fn other_text_stays_as_it_is() {
        for text in ["", "plain", "Grüße, 世界 👩‍👩‍👧 é \u{a0}", "עברית العربية", r"\u202e \n"]
        {
            assert!(matches!(printable_line(text), Cow::Borrowed(same) if same == text), "{text}");
        }
        let formatted = "{\t\"a\": 1}\r\n\u{1b}[31m";
        assert!(matches!(without_hidden(formatted), Cow::Borrowed(same) if same == formatted));
    }
}
