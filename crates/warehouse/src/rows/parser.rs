//! What parsing the events of one batch needs, and learns from them.

use std::sync::Arc;

use crate::rows::{columns::Columns, options::StreamOptions, path::Paths, scratch::Scratch};

/// The state of a batch's parsing, from event to event.
#[derive(Debug)]
pub(crate) struct Parser {
    pub(crate) options: Arc<StreamOptions>,
    /// The value of each row's partition column, if the batch replaces a partition.
    pub(crate) partition: Option<String>,
    pub(crate) columns: Columns,
    pub(crate) paths: Paths,
    /// The values of the event that is being parsed.
    pub(crate) scratch: Scratch,
    /// Objects walked so far.
    pub(crate) objects: u64,
}

impl Parser {
    pub(crate) fn new(options: Arc<StreamOptions>, partition: Option<String>) -> Parser {
        Parser {
            options,
            partition,
            columns: Columns::default(),
            paths: Paths::default(),
            scratch: Scratch::default(),
            objects: 0,
        }
    }

    /// Bytes of heap that it takes, roughly, but for the one event in hand.
    pub(crate) fn byte_size(&self) -> usize {
        self.paths.byte_size() + self.columns.byte_size()
    }
}
