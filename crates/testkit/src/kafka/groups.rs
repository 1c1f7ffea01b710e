//! Consumer groups: what they have committed, and members that sit in them.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rdkafka::{
    Offset, TopicPartitionList,
    consumer::{BaseConsumer, CommitMode, Consumer},
    error::{KafkaError, RDKafkaErrorCode},
};
use tokio::sync::oneshot;

use super::{Kafka, LIMIT};

/// What a group committed for a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    /// The next offset to read.
    pub offset: i64,
    pub metadata: String,
}

impl Kafka {
    /// What `group` committed for a partition; `None` when it never did.
    pub async fn committed(
        &self,
        group: &str,
        topic: &str,
        partition: i32,
    ) -> Result<Option<Committed>> {
        let topic = topic.to_owned();
        self.with_consumer(group, &[], move |consumer| {
            let mut wanted = TopicPartitionList::new();
            wanted.add_partition(&topic, partition);
            let found = consumer.committed_offsets(wanted, LIMIT)?;
            let element = found.find_partition(&topic, partition).context("no answer")?;
            element.error()?;
            Ok(match element.offset() {
                Offset::Offset(offset) => {
                    Some(Committed { offset, metadata: element.metadata().to_owned() })
                }
                _ => None,
            })
        })
        .await
    }

    /// Commits for a group without members, as Kafka's own reset tool does; refused while it has
    /// some.
    pub async fn commit(
        &self,
        group: &str,
        topic: &str,
        partition: i32,
        offset: i64,
        metadata: &str,
    ) -> Result<()> {
        let (topic, metadata) = (topic.to_owned(), metadata.to_owned());
        self.with_consumer(group, &[], move |consumer| {
            let mut offsets = TopicPartitionList::new();
            let mut element = offsets.add_partition(&topic, partition);
            element.set_offset(Offset::Offset(offset))?;
            element.set_metadata(metadata);
            let began = Instant::now();
            loop {
                match consumer.commit(&offsets, CommitMode::Sync) {
                    // on a fresh broker a group's coordinator may still be on its way
                    Err(error) if is_settling(&error) && began.elapsed() < LIMIT => {
                        std::thread::sleep(Duration::from_millis(100));
                    }
                    committed => return Ok(committed?),
                }
            }
        })
        .await
    }

    /// A live member of `group`, reading `topic`; it has its partitions when this returns.
    pub async fn join(&self, group: &str, topic: &str) -> Result<GroupMember> {
        let consumer: BaseConsumer =
            self.consumer(group).set("session.timeout.ms", "6000").create()?;
        consumer.subscribe(&[topic])?;
        let (joined, wait) = oneshot::channel();
        let (leave, left) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            let mut joined = Some(joined);
            while left.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
                let _ = consumer.poll(Duration::from_millis(50));
                if consumer.assignment().is_ok_and(|partitions| partitions.count() > 0)
                    && let Some(joined) = joined.take()
                {
                    let _ = joined.send(());
                }
            }
            consumer.unsubscribe(); // leaves the group; dropping waits until the broker knows
        });
        let member = GroupMember { leave, thread: Some(thread) };
        tokio::time::timeout(LIMIT, wait).await.context("the group gave us no partition")??;
        Ok(member)
    }
}

/// A consumer that sits in a group until it is dropped.
#[derive(Debug)]
pub struct GroupMember {
    leave: std::sync::mpsc::Sender<()>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Drop for GroupMember {
    fn drop(&mut self) {
        let _ = self.leave.send(());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn is_settling(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::NotCoordinator
                | RDKafkaErrorCode::CoordinatorNotAvailable
                | RDKafkaErrorCode::CoordinatorLoadInProgress
        )
    )
}
