//! Which share of the work is ours: membership in a consumer group over an internal topic that is
//! never written to.
//!
//! Kafka hands each of the topic's partitions to one live member; a partition stands for a share. A
//! member that dies, or whose owner does not call [`Membership::poll`] any more, loses its shares
//! to the others. So the process that does the work has to poll, and a process that hangs gives its
//! work away.
//!
//! Two members may believe for a moment that a share is theirs: membership avoids waste, it
//! protects nothing.

use std::time::Duration;

use rdkafka::{
    config::FromClientConfigAndContext,
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
};
use tracing::{debug, warn};

use crate::{ClientSettings, ClientSetupError, client_log::LogContext};

/// How many shares there are.
pub const SHARES: u32 = 64;
/// Silence after which a member is taken for dead. Not below 6 s, the least that brokers allow
/// unless told otherwise.
const SESSION: Duration = Duration::from_secs(8);
/// How long the owner may not poll before its shares go to others.
const POLL_INTERVAL: Duration = Duration::from_secs(15);

/// A set of shares.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Shares(u64);

impl Shares {
    /// All of them.
    pub const ALL: Shares = Shares(u64::MAX);

    /// Whether this share, counted from 0, is among them.
    pub fn contains(self, share: u32) -> bool {
        share < SHARES && self.0 & (1 << share) != 0
    }

    /// How many they are, [`SHARES`] at most.
    pub fn count(self) -> u32 {
        self.0.count_ones()
    }

    /// These shares as partitions of a topic that has fewer partitions than there are shares: each
    /// share belongs to the partition with the number that is left when it is divided by theirs.
    pub fn spread(self, partitions: u32) -> Shares {
        if partitions == 0 || partitions >= SHARES {
            return self;
        }
        let owned = (0..SHARES).filter(|share| self.contains(share % partitions));
        owned.fold(Shares::default(), |shares, share| Shares(shares.0 | (1 << share)))
    }

    fn with(self, partition: i32) -> Shares {
        match u32::try_from(partition) {
            Ok(share) if share < SHARES => Shares(self.0 | (1 << share)),
            _ => self,
        }
    }
}

/// A member of the group. Leaves it when dropped, which may block for a moment.
pub struct Membership {
    consumer: BaseConsumer<LogContext>,
    shares: Shares,
}

impl Membership {
    /// Joins `group` over `topic`, which must have [`SHARES`] partitions. Shares come with
    /// [`Membership::poll`]; Kafka need not be there yet.
    pub fn join(
        client: &ClientSettings,
        topic: &str,
        group: &str,
    ) -> Result<Membership, ClientSetupError> {
        Membership::make(client, topic, group).map_err(ClientSetupError::of("member of a group"))
    }

    fn make(client: &ClientSettings, topic: &str, group: &str) -> Result<Membership, KafkaError> {
        let mut config = client.to_config();
        config
            .set("group.id", group)
            .set("enable.auto.commit", "false")
            .set("auto.offset.reset", "latest")
            .set("allow.auto.create.topics", "false")
            // the leader of the group shares out the partitions that it knows of
            .set("topic.metadata.refresh.interval.ms", "10000")
            .set("partition.assignment.strategy", "cooperative-sticky")
            .set("session.timeout.ms", SESSION.as_millis().to_string())
            .set("heartbeat.interval.ms", "2000")
            .set("max.poll.interval.ms", POLL_INTERVAL.as_millis().to_string());
        let consumer = BaseConsumer::from_config_and_context(&config, LogContext)?;
        consumer.subscribe(&[topic])?;
        Ok(Membership { consumer, shares: Shares::default() })
    }

    /// Serves the group without waiting, and answers which shares are ours now.
    pub fn poll(&mut self) -> Shares {
        while let Some(event) = self.consumer.poll(Duration::ZERO) {
            if let Err(error) = event {
                debug!(error = %error, "membership event");
            }
        }
        let Ok(assigned) = self.consumer.assignment() else {
            return self.shares;
        };
        let shares = assigned
            .elements()
            .iter()
            .fold(Shares::default(), |shares, element| shares.with(element.partition()));
        if shares != self.shares {
            // nothing is ever read: without this each partition takes part in every fetch
            if let Err(error) = self.consumer.pause(&assigned) {
                warn!(error = %error, "partitions of the internal topic are fetched in vain");
            }
            self.shares = shares;
        }
        shares
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_those_of_the_partitions() {
        let shares = Shares::default().with(0).with(63).with(64).with(-1);
        assert!(shares.contains(0) && shares.contains(63));
        assert!(!shares.contains(1) && !shares.contains(64));
        assert_eq!(shares.count(), 2);
        assert_eq!(Shares::ALL.count(), SHARES);
    }

    #[test]
    fn each_share_has_one_owner_however_many_partitions_the_topic_has() {
        for partitions in [1, 2, 3, 63, 64, 128] {
            let members = (0..partitions.min(SHARES))
                .map(|partition| Shares::default().with(i32::try_from(partition).unwrap()))
                .map(|shares| shares.spread(partitions));
            let owned: Vec<_> = members.collect();
            for share in 0..SHARES {
                let owners = owned.iter().filter(|shares| shares.contains(share)).count();
                assert_eq!(owners, 1, "share {share} of {partitions} partitions");
            }
        }
    }
}
