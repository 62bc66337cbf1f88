//! The effective configuration as TOML with masked secrets, as `check` prints it.
//!
//! In: headings, and keys with their values, in the layout of the documentation. Out: a document
//! that can be read back once the masks are replaced.
//!
//! May use: no other module.

use toml::Value;

/// The part of the document that is already written.
#[derive(Default)]
pub(super) struct MaskedToml {
    /// The text so far.
    pub(super) text: String,
}

impl MaskedToml {
    /// Writes the heading of a section or a table.
    pub(super) fn heading(&mut self, heading: &str) {
        let blank = if self.text.is_empty() { "" } else { "\n" };
        self.text += &format!("{blank}{heading}\n");
    }

    /// Writes a key.
    pub(super) fn line(&mut self, key: &str, value: impl Into<Value>) {
        self.text += &format!("{key} = {}\n", value.into());
    }
}
