//! Limits of what a log keeps in memory and of what one read returns.
//!
//! May use: no other module.

/// Bounds on the entries that a log keeps in memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MemoryBounds {
    /// Maximum number of entries.
    pub(crate) events: usize,
    /// Maximum number of bytes; one entry is kept whatever its size.
    pub(crate) bytes: u64,
}

/// Bounds on the entries that one read returns.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ReadLimits {
    /// Maximum number of entries.
    pub(crate) entries: usize,
    /// Bytes after which no further entry is added; one is always returned.
    pub(crate) bytes: usize,
}
