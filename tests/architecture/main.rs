//! Rules for the whole source: the direction of imports, names, and the width of lines.
#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test states its expectations by panicking, and its helpers do as well"
)]

mod imports;
mod names;
mod source;

use std::{fs, path::Path};

use crate::source::Crate;

/// Columns of a line. rustfmt checks code; this test checks comments.
const MAX_COLUMNS: usize = 100;

#[test]
fn comments_have_at_most_100_columns() {
    let source = Crate::read();
    let mut wrong = Vec::new();
    for (_, module) in source.modules() {
        let mut is_drawing = false;
        for (number, line) in (1..).zip(module.text.lines()) {
            is_drawing ^= line.trim_start_matches(['/', '!', ' ']).starts_with("```");
            let is_comment = line.trim_start().starts_with("//") && !is_drawing;
            if is_comment && line.chars().count() > MAX_COLUMNS {
                wrong.push(format!("{}:{number}", module.file));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Checks that no test on the security page was removed or renamed: its threat would be uncovered.
#[test]
fn every_test_named_in_docs_security_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("docs/security.md")).expect("the page can be read");
    let (mut file, mut text, mut named) = (String::new(), String::new(), 0);
    for word in page.split('`').skip(1).step_by(2) {
        if [".rs", ".py"].iter().any(|ending| word.ends_with(ending)) {
            file = word.to_owned();
            let read = fs::read_to_string(root.join(word));
            text = read.unwrap_or_else(|error| panic!("{word}: {error}"));
        } else if word.matches('_').count() > 2 && word == word.to_lowercase() {
            let is_there =
                ["fn", "def"].iter().any(|keyword| text.contains(&format!("{keyword} {word}(")));
            assert!(is_there, "{word} in {file}");
            named += 1;
        }
    }
    assert!(named > 60, "the test finds the names: {named}");
}
