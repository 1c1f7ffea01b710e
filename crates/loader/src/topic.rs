//! Which topic: its identity, apart from how far it is loaded ([`crate::progress`]).

use kafkabase::Mode;

/// One partition of a topic that this instance loads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OwnedTopic {
    pub(crate) name: String,
    pub(crate) partition: i32,
    /// Empty for the retry topic that all destinations share.
    pub(crate) destination_id: String,
    /// What is done with it: loaded in batches, loaded as it comes, or moved back.
    pub(crate) mode: Mode,
    pub(crate) table: String,
}

impl OwnedTopic {
    pub(crate) fn new(name: &str, destination_id: &str, mode: Mode, table: &str) -> OwnedTopic {
        OwnedTopic {
            name: name.to_owned(),
            partition: 0,
            destination_id: destination_id.to_owned(),
            mode,
            table: table.to_owned(),
        }
    }
}
