//! Which topic: its identity, apart from how far it is loaded ([`crate::progress`]).

use kafkabase::TopicMode;

/// Topics of tables, of retries and of pauses have one partition.
pub(crate) const PARTITION: i32 = 0;

/// One partition of a topic that this instance loads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OwnedTopic {
    pub(crate) name: String,
    pub(crate) partition: i32,
    /// Empty for the retry topic that all destinations share.
    pub(crate) destination_id: String,
    /// What is done with it: loaded in batches, loaded as it comes, or moved back.
    pub(crate) mode: TopicMode,
    pub(crate) table: String,
}

impl OwnedTopic {
    pub(crate) fn new(
        name: &str,
        destination_id: &str,
        mode: TopicMode,
        table: &str,
    ) -> OwnedTopic {
        OwnedTopic {
            name: name.to_owned(),
            partition: PARTITION,
            destination_id: destination_id.to_owned(),
            mode,
            table: table.to_owned(),
        }
    }
}
