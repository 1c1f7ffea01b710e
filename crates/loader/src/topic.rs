//! Which topic: its identity, apart from how far it is loaded ([`crate::progress`]).

use kafkabase::TopicMode;

/// The partition of topics that have one, as those of tables, of retries and of pauses should.
pub(crate) const PARTITION: i32 = 0;

/// One partition of a topic that this instance loads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OwnedTopic {
    /// What it is called where partitions are told apart: the topic's name, for the first one.
    pub(crate) id: String,
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
            id: name.to_owned(),
            name: name.to_owned(),
            partition: PARTITION,
            destination_id: destination_id.to_owned(),
            mode,
            table: table.to_owned(),
        }
    }

    /// Another partition of the topic: somebody gave it more than one.
    pub(crate) fn with_partition(self, partition: i32) -> OwnedTopic {
        let id = match partition {
            PARTITION => self.name.clone(),
            partition => format!("{}[{partition}]", self.name),
        };
        OwnedTopic { id, partition, ..self }
    }
}
