//! What parsing the events of one batch needs, and learns from them.

use std::sync::Arc;

use crate::rows::{columns::Columns, options::StreamOptions, path::Paths, scratch::Scratch};

/// The state of a batch's parsing, from event to event.
#[derive(Debug)]
pub(super) struct Parser {
    pub(super) options: Arc<StreamOptions>,
    /// The value of each row's partition column, if the batch replaces a partition.
    pub(super) partition: Option<String>,
    pub(super) columns: Columns,
    pub(super) paths: Paths,
    /// The values of the event that is being parsed.
    pub(super) scratch: Scratch,
    /// Objects walked so far.
    pub(super) objects: u64,
}

impl Parser {
    pub(super) fn new(options: Arc<StreamOptions>, partition: Option<String>) -> Parser {
        Parser {
            options,
            partition,
            columns: Columns::default(),
            paths: Paths::default(),
            scratch: Scratch::default(),
            objects: 0,
        }
    }

    /// Between two events: gives back what a large or an odd one took.
    pub(super) fn rest(&mut self) {
        self.paths.forget_if_too_many();
        self.scratch.forget_if_too_large();
    }

    /// Bytes of heap that it takes, roughly.
    pub(super) fn byte_size(&self) -> usize {
        self.paths.byte_size() + self.columns.byte_size() + self.scratch.byte_size()
    }
}
