//! What operators see of a repository: where its document came from, or why there is none.

use std::{
    fmt,
    time::{Duration, SystemTime},
};

/// Why there is no document to start with: the source cannot be read, and no copy stands in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the {source_name} source cannot be read: {reason}; {copies}")]
pub struct StartError {
    /// The source's [`Source::name`](super::Source::name).
    pub source_name: &'static str,
    /// Why it cannot be read. Holds no secret.
    pub reason: String,
    /// Why no copy stands in.
    pub copies: NoCopy,
}

/// Why no copy stands in for a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoCopy {
    /// The repository has no place for copies.
    NotKept,
    /// No place has one, or what it has is damaged.
    NotUsable,
}

impl fmt::Display for NoCopy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            NoCopy::NotKept => "no copy of it is kept",
            NoCopy::NotUsable => "there is no usable copy of it",
        })
    }
}

/// Where the document in force came from.
#[derive(Debug, Clone)]
pub struct RepositoryStatus {
    /// The source's [`Source::name`](super::Source::name).
    pub source: &'static str,
    /// The place of the copy that stands in for the source since the start.
    pub copy: Option<&'static str>,
    /// When the source said so for the last time; `None` for a source that cannot change, and while
    /// there is nothing.
    pub confirmed_at: Option<SystemTime>,
    /// Why the source cannot be read at present. Holds no secret.
    pub error: Option<String>,
}

impl RepositoryStatus {
    /// How old what is in force may be. `None` for a source that cannot change, and while there is
    /// nothing.
    pub fn age(&self) -> Option<Duration> {
        let at = self.confirmed_at?;
        Some(SystemTime::now().duration_since(at).unwrap_or_default())
    }

    /// Whether nothing was found yet, neither in the source nor in a copy.
    pub fn is_missing(&self) -> bool {
        self.error.is_some() && self.confirmed_at.is_none()
    }
}
