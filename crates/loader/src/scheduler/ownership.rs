//! Which topics this instance loads.
//!
//! Instances share the topics through a consumer group on a small internal topic: a topic belongs
//! to the share `fnv1a(topic) % 64`. Add an instance and it gets its part; kill one and the others
//! take its shares over. The static rule of the original (`INSTANCE_INDEX`, `SHARDS`) wins where it
//! is set, and is what is left where the internal topic cannot be made.
//!
//! Ownership only avoids waste. Should two instances believe to own a topic, the offsets row keeps
//! the promise.

use std::sync::{Mutex, MutexGuard, PoisonError};

use appbase::telemetry::chain;
use kafkabase::{Admin, ClientSettings, Membership, SHARES, Shares, TopicSettings, fnv1a};
use tracing::{info, warn};

use crate::observe::metrics;

/// The static rule: `fnv1a(topic) % count == index`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    /// From 0.
    pub index: u32,
    /// At least 1.
    pub count: u32,
}

/// The internal topic and the group over it.
#[derive(Debug, Clone)]
pub struct SharesTopic {
    /// The topic's name.
    pub name: String,
    /// The group's name.
    pub group: String,
    /// For making the topic.
    pub settings: TopicSettings,
}

/// What is ours at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owned {
    Shard(Shard),
    Shares(Shares),
}

impl Owned {
    pub(crate) fn contains(self, topic: &str) -> bool {
        match self {
            Owned::Shard(Shard { index, count }) => fnv1a(topic) % count == index % count,
            Owned::Shares(shares) => shares.contains(fnv1a(topic) % SHARES),
        }
    }
}

/// How it is decided which topics are ours.
pub struct Ownership {
    topic: Option<SharesTopic>,
    rule: Mutex<Rule>,
}

enum Rule {
    Static(Shard),
    Member(Box<Membership>),
    /// Not joined yet, or left.
    Nothing,
}

impl Ownership {
    /// The static rule.
    pub fn by_shard(shard: Shard) -> Ownership {
        Ownership { topic: None, rule: Mutex::new(Rule::Static(shard)) }
    }

    /// Through the consumer group, once it is joined.
    pub fn by_group(topic: SharesTopic) -> Ownership {
        Ownership { topic: Some(topic), rule: Mutex::new(Rule::Nothing) }
    }

    /// Joins the others, once Kafka is there.
    pub(crate) async fn join(&self, admin: &Admin, client: &ClientSettings) {
        let Some(topic) = &self.topic else {
            return;
        };
        if let Err(error) = admin.create_topic(&topic.name, &topic.settings).await {
            // it may be there all the same, without the right to make it
            warn!(topic = topic.name, error = %error, "internal topic cannot be made");
            let is_there = admin.topics().await.is_ok_and(|topics| {
                topics
                    .iter()
                    .any(|known| known.name == topic.name && known.partitions == SHARES as usize)
            });
            if !is_there {
                return self.fall_back("no right to make the internal topic");
            }
        }
        match Membership::join(client, &topic.name, &topic.group) {
            Ok(membership) => *self.lock() = Rule::Member(Box::new(membership)),
            Err(error) => self.fall_back(&chain(&error).to_string()),
        }
    }

    /// Gives all shares to the other instances.
    pub(crate) async fn leave(&self) {
        let rule = std::mem::replace(&mut *self.lock(), Rule::Nothing);
        // says goodbye to the broker, which may take a moment
        let _ = tokio::task::spawn_blocking(move || drop(rule)).await;
    }

    /// Serves the group and answers what is ours now. The scheduler has to call it again and again:
    /// a loader that hangs loses its shares.
    pub(crate) fn poll(&self) -> Owned {
        match &mut *self.lock() {
            Rule::Static(shard) => Owned::Shard(*shard),
            Rule::Member(membership) => {
                let shares = membership.poll();
                metrics::OWNED_SHARES.set(i64::from(shares.count()));
                Owned::Shares(shares)
            }
            Rule::Nothing => Owned::Shares(Shares::default()),
        }
    }

    fn fall_back(&self, reason: &str) {
        warn!(
            reason,
            "topics are not shared with other instances: this one loads all of them. Set INSTANCE_INDEX and SHARDS, \
             or let the user make the internal topic"
        );
        *self.lock() = Rule::Static(Shard { index: 0, count: 1 });
        info!("loading by the static rule, instance 0 of 1");
    }

    fn lock(&self) -> MutexGuard<'_, Rule> {
        self.rule.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_topic_belongs_to_one_shard() {
        let owners = |topic: &str| {
            (0..3)
                .filter(|index| Owned::Shard(Shard { index: *index, count: 3 }).contains(topic))
                .count()
        };
        for topic in ["a", "in.id.pg.m.batch.t.events", "x"] {
            assert_eq!(owners(topic), 1, "{topic}");
        }
        assert!(
            Owned::Shard(Shard { index: 4, count: 3 }).contains("in.id.clyzlw-.m.batch.t.events")
                == (174_768_485 % 3 == 1)
        );
    }

    #[test]
    fn no_share_is_no_topic_and_all_shares_are_all() {
        assert!(!Owned::Shares(Shares::default()).contains("a"));
        assert!(Owned::Shares(Shares::ALL).contains("a"));
    }
}
