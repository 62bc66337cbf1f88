//! The rule about misspelt names: which known name a given one is close to.
//!
//! In: a name and the names that its reader knows. Out: the known name that is meant, if there is
//! one. The names of parameters in a query and of claims in a token follow the same rule, because
//! a limit spelt wrong must not turn into none.
//!
//! May use: no other module.

use std::ops::RangeInclusive;

/// Returns the name among `known` to which `given` is so close that a mistake is more likely than
/// another meaning. The caller has checked that `given` is none of `known`.
pub(crate) fn find_near(given: &str, known: &[&'static str]) -> Option<&'static str> {
    let given = fold(given);
    let is_alias_of = |name: &&&str| {
        ALIASES
            .iter()
            .any(|(alias, meant)| meant == *name && given.iter().copied().eq(alias.chars()))
    };
    let is_same = |name: &&&str| fold(name) == given;
    let is_near = |name: &&&str| {
        let name = fold(name);
        name.len() >= MIN_NEAR_CHARS && differ_by_one(&given, &name)
    };
    // What is equal after folding counts before what differs by a letter.
    let meant = known.iter().find(is_same).or_else(|| known.iter().find(is_alias_of));
    meant.or_else(|| known.iter().find(is_near)).copied()
}

/// Returns a name in the form in which names are compared: lower case, without `_`, `-`, `[…]`,
/// invisible characters and one final `s`, its full-width letters as ASCII.
fn fold(name: &str) -> Vec<char> {
    let mut is_in_brackets = false;
    let mut folded: Vec<char> = Vec::new();
    for letter in name.chars().map(narrow) {
        match letter {
            // A bracket that is never closed takes the rest of the name along.
            '[' => is_in_brackets = true,
            ']' => is_in_brackets = false,
            '_' | '-' => {}
            _ if is_in_brackets || INVISIBLE.iter().any(|range| range.contains(&letter)) => {}
            _ => folded.extend(letter.to_lowercase()),
        }
    }
    if folded.last() == Some(&'s') {
        folded.pop();
    }
    folded
}

/// Returns the ASCII character of a full-width form (U+FF01 to U+FF5E), which input methods for
/// East Asian scripts write, and any other character unchanged.
fn narrow(letter: char) -> char {
    let code = u32::from(letter);
    match code {
        0xFF01..=0xFF5E => char::from_u32(code - 0xFF01 + 0x21).unwrap_or(letter),
        _ => letter,
    }
}

/// Returns whether two names differ by one letter that is added, left out or changed, or by two
/// neighbours that are swapped.
fn differ_by_one(one: &[char], other: &[char]) -> bool {
    let prefix = one.iter().zip(other).take_while(|(a, b)| a == b).count();
    let (one, other) = (one.get(prefix..).unwrap_or(&[]), other.get(prefix..).unwrap_or(&[]));
    let suffix = one.iter().rev().zip(other.iter().rev()).take_while(|(a, b)| a == b).count();
    let cut = |rest: &[char]| rest.len() - suffix;
    match (one.split_at(cut(one)).0, other.split_at(cut(other)).0) {
        ([], [_]) | ([_], []) | ([_], [_]) => true,
        ([a, b], [c, d]) => a == d && b == c,
        _ => false,
    }
}

/// Names that are no misspellings and can still mean one thing only, after folding.
const ALIASES: [(&str, &str); 3] =
    [("session", "session_id"), ("user", "user_id"), ("event", "type")];

/// Characters that a copied text may hold unseen: soft hyphens, joiners, marks of direction, byte
/// order marks.
const INVISIBLE: [RangeInclusive<char>; 5] = [
    '\u{AD}'..='\u{AD}',
    '\u{200B}'..='\u{200F}',
    '\u{202A}'..='\u{202E}',
    '\u{2060}'..='\u{206F}',
    '\u{FEFF}'..='\u{FEFF}',
];

/// With fewer letters, half of all short names would be close.
const MIN_NEAR_CHARS: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: &[&str] = &["session_id", "type", "sub"];

    #[test]
    fn a_near_name_is_found_by_its_form_its_alias_or_one_letter() {
        for (given, meant) in [
            ("Session-IDs[]", "session_id"),
            ("session", "session_id"),
            ("sesion_id", "session_id"),
            ("session_di", "session_id"),
            ("session_id\u{0}", "session_id"),
            ("events", "type"),
            ("typ", "type"),
            ("SUB", "sub"),
            ("subs", "sub"),
            ("session\u{200B}\u{200D}_\u{FEFF}id", "session_id"),
            ("\u{FF33}\u{FF35}\u{FF22}\u{FF3F}", "sub"),
        ] {
            assert_eq!(find_near(given, KNOWN), Some(meant), "{given}");
        }
    }

    #[test]
    fn a_name_of_another_meaning_is_near_none() {
        for given in ["", "sid", "session_state", "sum", "su", "user", "name", "scope", "eventual"]
        {
            assert_eq!(find_near(given, KNOWN), None, "{given}");
        }
        assert_eq!(find_near("session", &["type"]), None, "an alias counts for a known name only");
    }
}
