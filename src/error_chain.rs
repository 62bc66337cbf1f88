//! An error with its causes, in one line.
//!
//! Errors print their own level only; whoever shows one to a person prints the chain, once.
//!
//! May use: no other module.

use std::error::Error;

/// The error, and what caused it, and what caused that.
pub(crate) fn error_chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
