//! Kinds of events.
//!
//! May use: no other module.

use std::sync::Arc;

/// What a payload's `type` says. The connector's own kinds are named; any other passes through
/// under its text.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) enum Kind {
    /// A batch of UI actions of one session.
    Actions,
    /// Prose that replaces many actions.
    Summary,
    /// The order to start a product tour in one browser session.
    UsertourTrigger,
    /// Anything else.
    Other(Arc<str>),
}

impl Kind {
    /// The kind of a payload whose `type` is `text`.
    pub(crate) fn new(text: &str) -> Self {
        match text {
            "actions" => Self::Actions,
            "summary" => Self::Summary,
            "usertour_trigger" => Self::UsertourTrigger,
            other => Self::Other(other.into()),
        }
    }

    /// The text it was made from.
    pub(crate) fn as_str(&self) -> &str {
        match self {
            Self::Other(text) => text,
            known => known.label(),
        }
    }

    /// Bytes it keeps beside itself.
    pub(super) fn heap_bytes(&self) -> usize {
        match self {
            Self::Other(text) => text.len(),
            Self::Actions | Self::Summary | Self::UsertourTrigger => 0,
        }
    }

    /// The metric label: one of four, whatever the traffic invents.
    pub(crate) fn label(&self) -> &'static str {
        match self {
            Self::Actions => "actions",
            Self::Summary => "summary",
            Self::UsertourTrigger => "usertour_trigger",
            Self::Other(_) => "other",
        }
    }
}
