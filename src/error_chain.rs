//! An error with its causes, in one line.
//!
//! Errors print their own level only. The caller that shows one to a person prints the chain, once.
//!
//! May use: no other module.

use std::{error::Error, io};

/// Returns the error and its causes, each after a colon.
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

/// Returns the outermost error of this type among the error and its causes.
pub(crate) fn find_in_chain<'a, T: Error + 'static>(
    error: &'a (dyn Error + 'static),
) -> Option<&'a T> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        // `io::Error::source` is the source of its inner error: the inner error itself, which may
        // be the one looked for, is reached only by `get_ref`.
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = match inner {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}
