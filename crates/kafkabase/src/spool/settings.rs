//! What the spool is told, what it counts, and how it fails.

use std::{io, path::PathBuf};

use prometheus::{IntCounter, IntCounterVec};

/// Where the spool is and how much it takes; fields, so that a test can make them small.
#[derive(Debug, Clone)]
pub struct SpoolSettings {
    /// Belongs to one process at a time.
    pub folder: PathBuf,
    /// Bytes that its files have at most.
    pub max_bytes: u64,
    /// Share of it that one topic has at most, its quarantine included; between 0 and 1.
    pub topic_share: f64,
}

/// What the spool counts; registered by the binary under its own names.
#[derive(Debug, Clone)]
pub struct SpoolMetrics {
    /// Label `status`: `spooled`, `delivered`, `found`, `quarantined`, `released`, `discarded`.
    pub events: IntCounterVec,
    /// Appends that failed. Label `reason`: `full`, `topic_full`, `disk`.
    pub refused: IntCounterVec,
    /// Bytes of files that were no whole record.
    pub damaged_bytes: IntCounter,
}

/// Why an event is not taken into the spool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SpoolError {
    /// Its files have as many bytes as they may.
    #[error("the spool is full")]
    Full,
    /// The topic has as many bytes there as one may.
    #[error("the topic's share of the spool is full")]
    TopicFull,
    /// The disk is full, hangs, or failed.
    #[error("the spool's disk failed")]
    Disk,
}

impl SpoolError {
    pub(super) fn reason(self) -> &'static str {
        match self {
            SpoolError::Full => "full",
            SpoolError::TopicFull => "topic_full",
            SpoolError::Disk => "disk",
        }
    }
}

/// Why a folder cannot be a spool.
#[derive(Debug, thiserror::Error)]
pub enum SpoolOpenError {
    /// A folder belongs to one process at a time.
    #[error("another process uses the spool folder {}", folder.display())]
    Taken {
        /// As the settings name it.
        folder: PathBuf,
    },
    /// It cannot be made, read or written, or has no file of the spool's kind.
    #[error("the spool folder {} cannot be used", folder.display())]
    Io {
        /// As the settings name it.
        folder: PathBuf,
        /// What the disk said.
        #[source]
        source: io::Error,
    },
}
