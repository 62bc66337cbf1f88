//! Kinds of events.
//!
//! May use: no other module.

use std::sync::Arc;

/// A payload's `type`. The connector's own kinds have variants and take no memory; any other type
/// passes through as its text.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) enum Kind {
    /// A batch of UI actions of one session.
    Actions,
    /// Prose that replaces many actions.
    Summary,
    /// The order to start a product tour in one browser session.
    UsertourTrigger,
    /// Any other type.
    Other(Arc<str>),
}

impl Kind {
    /// Returns the kind of a payload whose `type` is `text`.
    pub(crate) fn new(text: &str) -> Self {
        match text {
            "actions" => Self::Actions,
            "summary" => Self::Summary,
            "usertour_trigger" => Self::UsertourTrigger,
            other => Self::Other(other.into()),
        }
    }

    /// Returns the text that the kind was made from.
    pub(crate) fn as_str(&self) -> &str {
        match self {
            Self::Other(text) => text,
            known => known.label(),
        }
    }

    /// Returns the bytes that the kind keeps on the heap.
    pub(super) fn heap_bytes(&self) -> usize {
        match self {
            Self::Other(text) => text.len(),
            Self::Actions | Self::Summary | Self::UsertourTrigger => 0,
        }
    }

    /// Returns the metric label: one of four, so that traffic cannot create series.
    pub(crate) fn label(&self) -> &'static str {
        match self {
            Self::Actions => "actions",
            Self::Summary => "summary",
            Self::UsertourTrigger => "usertour_trigger",
            Self::Other(_) => "other",
        }
    }
}
