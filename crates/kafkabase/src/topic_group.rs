//! A topic's partition together with the consumer group that has the topic's own name.
//!
//! The original gives each topic a group of the topic's name, and we go on with it: where the
//! loader stands, in the eyes of Kafka, is the offset that this group has committed.

use uuid::Uuid;

use crate::{Admin, AdminError, CommittedOffset, OffsetSpec};

/// The group of a topic, as [`Admin::topic_group`] names it. Cheap to clone; owns all it needs.
///
/// Answers are facts of the moment: a caller that needs two of them in an order asks for them in
/// that order. Each call is bounded by the time-out of its [`Admin`]. A dropped read leaves nothing
/// behind; a dropped [`TopicGroup::commit`] may still take effect.
#[derive(Clone)]
pub struct TopicGroup {
    admin: Admin,
    topic: String,
    partition: i32,
}

impl Admin {
    /// The topic's partition and the group that has the topic's name. Asks nothing yet.
    pub fn topic_group(&self, topic: &str, partition: i32) -> TopicGroup {
        TopicGroup::new(self.clone(), topic, partition)
    }
}

impl TopicGroup {
    fn new(admin: Admin, topic: &str, partition: i32) -> TopicGroup {
        TopicGroup { admin, topic: topic.to_owned(), partition }
    }

    /// The topic's name, which is the group's as well.
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// How many live members the group has; none where it does not exist.
    pub async fn members(&self) -> Result<usize, AdminError> {
        self.admin.group_members(&self.topic).await
    }

    /// What the group has committed for the partition; `None` where it has nothing.
    pub async fn committed(&self) -> Result<Option<CommittedOffset>, AdminError> {
        self.admin.group_offset(&self.topic, &self.topic, self.partition).await
    }

    /// Sets what the group has committed. Refused while it has live members
    /// ([`AdminError::is_live_members`]).
    pub async fn commit(&self, offset: CommittedOffset) -> Result<(), AdminError> {
        self.admin.set_group_offset(&self.topic, &self.topic, self.partition, offset).await
    }

    /// The low watermark: the first offset that is still there.
    pub async fn low(&self) -> Result<i64, AdminError> {
        self.admin.offset(&self.topic, self.partition, OffsetSpec::Earliest).await
    }

    /// The first offset that a read-committed client cannot read yet (last stable offset).
    pub async fn end(&self) -> Result<i64, AdminError> {
        self.admin.offset(&self.topic, self.partition, OffsetSpec::CommittedEnd).await
    }

    /// The topic's id; `None` on brokers that have none. A topic that is not there is an error
    /// ([`AdminError::is_unknown_topic`]).
    pub async fn topic_id(&self) -> Result<Option<Uuid>, AdminError> {
        self.admin.topic_id(&self.topic).await
    }
}
