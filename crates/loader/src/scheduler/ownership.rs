//! Which topics this instance loads.
//!
//! Instances share the topics through a consumer group on a small internal topic: a topic belongs
//! to the share `fnv1a(topic) % 64`, and the share `n` to whom Kafka gave the partition `n`, or
//! `n % partitions` where somebody else made the internal topic with fewer of them. Add an instance
//! and it gets its part; kill one and the others take its shares over. The static rule of the
//! original (`INSTANCE_INDEX`, `SHARDS`) wins where it is set, and is what is left where there is no
//! right to make the internal topic.
//!
//! Invariant: each share has an owner as long as an instance lives, whatever becomes of the internal
//! topic; where that cannot be, the status says so. What Kafka cannot answer at the moment is asked
//! again and decides nothing. Ownership only avoids waste: should two instances believe to own a
//! topic, the offsets row keeps the promise.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use appbase::telemetry::chain;
use kafkabase::{
    Admin, AdminError, ClientSettings, Membership, SHARES, Shares, TopicCreation, TopicSettings,
    fnv1a,
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use uuid::Uuid;

use crate::observe::metrics;

/// Pause between two looks at the internal topic, which somebody may delete.
const LOOK_EVERY: Duration = Duration::from_secs(5);

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
    state: Mutex<State>,
}

struct State {
    rule: Rule,
    /// Why nobody, or not everybody, has shares.
    trouble: Option<String>,
}

enum Rule {
    Static(Shard),
    Member {
        membership: Box<Membership>,
        /// Of the internal topic.
        partitions: u32,
        /// Of the internal topic, when it was joined; `None` on brokers before 2.8.
        topic_id: Option<Uuid>,
    },
    /// Not joined yet, or left.
    Nothing,
}

impl Ownership {
    /// The static rule.
    pub fn by_shard(shard: Shard) -> Ownership {
        Ownership::new(None, Rule::Static(shard))
    }

    /// Through the consumer group, once it is joined.
    pub fn by_group(topic: SharesTopic) -> Ownership {
        Ownership::new(Some(topic), Rule::Nothing)
    }

    fn new(topic: Option<SharesTopic>, rule: Rule) -> Ownership {
        Ownership { topic, state: Mutex::new(State { rule, trouble: None }) }
    }

    /// Joins the others, and makes the internal topic anew where somebody deleted it, until `stop`.
    pub(crate) async fn keep(
        &self,
        admin: &Admin,
        client: &ClientSettings,
        stop: &CancellationToken,
    ) {
        let Some(topic) = &self.topic else {
            return;
        };
        loop {
            match self.look(topic, admin, client).await {
                Ok(()) => self.lock().trouble = None,
                Err(Trouble::NoRight(error)) => {
                    return self
                        .fall_back(&format!("no right to make the internal topic: {error}"));
                }
                Err(Trouble::NotNow(reason)) => {
                    let text = format!("topic {}: {reason}; it is tried again", topic.name);
                    let mut state = self.lock();
                    // a member keeps its shares meanwhile
                    let is_new = matches!(state.rule, Rule::Nothing)
                        && state.trouble.replace(text).is_none();
                    drop(state);
                    if is_new {
                        warn!(topic = topic.name, reason, "topics are not shared out now");
                    }
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
    }

    /// Brings the internal topic and the membership to what they should be.
    async fn look(
        &self,
        topic: &SharesTopic,
        admin: &Admin,
        client: &ClientSettings,
    ) -> Result<(), Trouble> {
        let (partitions, is_new) = match admin.create_topic(&topic.name, &topic.settings).await {
            Ok(TopicCreation::Created) => (SHARES, true),
            Ok(TopicCreation::Existed { partitions }) => (number(partitions), false),
            Err(error) if error.is_refusal() => {
                // it may be there all the same, without the right to make it
                let topics = admin.topics().await.map_err(Trouble::of)?;
                let known = topics.iter().find(|known| known.name == topic.name);
                (number(known.ok_or(Trouble::NoRight(error))?.partitions), false)
            }
            Err(error) => return Err(Trouble::of(error)),
        };
        let partitions = match partitions {
            few if few < SHARES => self.raise(topic, admin, few).await,
            enough => enough,
        };
        let topic_id = admin.topic_id(&topic.name).await.map_err(Trouble::of)?;
        let Some(before) = self.take_unless_member(partitions, topic_id, is_new) else {
            return Ok(());
        };
        // says goodbye to the broker, which may take a moment
        let _ = tokio::task::spawn_blocking(move || drop(before)).await;
        let membership = Membership::join(client, &topic.name, &topic.group)
            .map_err(|error| Trouble::NotNow(chain(&error).to_string()))?;
        let membership = Box::new(membership);
        self.lock().rule = Rule::Member { membership, partitions, topic_id };
        Ok(())
    }

    /// The rule that is to be replaced by a new membership; `None`: it is right as it is.
    fn take_unless_member(
        &self,
        partitions: u32,
        topic_id: Option<Uuid>,
        is_new: bool,
    ) -> Option<Rule> {
        let mut state = self.lock();
        match &mut state.rule {
            Rule::Static(_) => None,
            Rule::Member { partitions: known, topic_id: joined, .. }
                if !is_new && *joined == topic_id =>
            {
                *known = partitions;
                None
            }
            // a member of a topic that was deleted does not hear of the new one for long, whoever
            // made it; as the leader of the group it would share out nothing
            Rule::Member { .. } | Rule::Nothing => {
                Some(std::mem::replace(&mut state.rule, Rule::Nothing))
            }
        }
    }

    /// Somebody else made the topic, or a broker that makes topics by itself: it gets the
    /// partitions that it lacks. Answers how many it has.
    async fn raise(&self, topic: &SharesTopic, admin: &Admin, partitions: u32) -> u32 {
        match admin.raise_partitions(&topic.name, SHARES as usize).await {
            Ok(()) => {
                info!(
                    topic = topic.name,
                    partitions, "internal topic got the partitions it lacked"
                );
                SHARES
            }
            Err(error) => {
                warn!(
                    topic = topic.name,
                    partitions,
                    error = %error,
                    "internal topic has too few partitions: no more instances than that get topics"
                );
                partitions
            }
        }
    }

    /// Gives all shares to the other instances.
    pub(crate) async fn leave(&self) {
        let rule = std::mem::replace(&mut self.lock().rule, Rule::Nothing);
        // says goodbye to the broker, which may take a moment
        let _ = tokio::task::spawn_blocking(move || drop(rule)).await;
    }

    /// Serves the group and answers what is ours now. The scheduler has to call it again and again:
    /// a loader that hangs loses its shares.
    pub(crate) fn poll(&self) -> Owned {
        match &mut self.lock().rule {
            Rule::Static(shard) => Owned::Shard(*shard),
            Rule::Member { membership, partitions, .. } => {
                let shares = membership.poll().spread(*partitions);
                metrics::OWNED_SHARES.set(i64::from(shares.count()));
                Owned::Shares(shares)
            }
            Rule::Nothing => Owned::Shares(Shares::default()),
        }
    }

    /// Why topics are nobody's, for the status.
    pub(crate) fn trouble(&self) -> Option<String> {
        self.lock().trouble.clone()
    }

    fn fall_back(&self, reason: &str) {
        warn!(
            reason,
            "topics are not shared with other instances: this one loads all of them. Set INSTANCE_INDEX and SHARDS, \
             or let the user make the internal topic"
        );
        let rule = Rule::Static(Shard { index: 0, count: 1 });
        *self.lock() = State { rule, trouble: None };
        info!("loading by the static rule, instance 0 of 1");
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why topics cannot be shared out.
enum Trouble {
    /// Kafka said no, and will say no again.
    NoRight(AdminError),
    NotNow(String),
}

impl Trouble {
    fn of(error: AdminError) -> Trouble {
        Trouble::NotNow(error.to_string())
    }
}

fn number(partitions: usize) -> u32 {
    u32::try_from(partitions).unwrap_or(u32::MAX)
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
