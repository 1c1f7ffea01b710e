//! One batch on its way into its table: returning events are judged, the rows are staged, each
//! event is decided on, the refused ones are produced, and rows, states and position are committed
//! together.
//!
//! Invariant: refused events are in Kafka, on all in-sync replicas, before the transaction commits.
//! A crash in between leaves copies whose refusal never committed; the states of their origins make
//! them harmless. With and without a ledger it is the same path; without one nothing is known of
//! returning events, so all are loaded, and what lies between a load and the commit of the group's
//! offset may be loaded twice.

use std::{
    collections::{HashMap, HashSet},
    time::Instant,
};

use appbase::telemetry::chain;
use kafkabase::{Message, TopicMode};
use tracing::warn;
use warehouse::{
    Batch, EventState, Fence, Ledger, LoadError, LoadOptions, Origin, PartitionKey, Position,
    Refusals, RowsOf, SchemaChanges,
};

use super::{
    decision::{BatchDecision, BatchEvents, Returning},
    groups::{GroupPlan, Groups, PushError, Unparsable},
    poison::Refusal,
    reader::ParsedBatch,
};
use crate::{
    observe::{metrics, reporter::Reporter},
    outcome::{EventCounts, Loaded},
    progress::TopicProgress,
    protocol::returning::{Verdict, judge},
    retry::{
        envelope::Envelope,
        refused_producer::{ProduceError, RefusedProducer},
    },
    target::LoadTarget,
    topic::OwnedTopic,
};

/// Partitions of a topic that returning events of one batch may have come from.
const MOST_PARTITIONS: usize = 64;

/// Why a batch is not loaded, split by who has to be waited for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BatchError {
    #[error("the warehouse did not take the batch")]
    Warehouse(#[from] LoadError),
    /// Kafka's failure: the warehouse had taken the rows, and rolled them back.
    #[error("refused events cannot be produced")]
    Produce(#[from] ProduceError),
}

impl BatchError {
    /// For the events log; holds no value of a row.
    pub(crate) fn reason(&self) -> String {
        match self {
            BatchError::Warehouse(error) => error.to_string(),
            BatchError::Produce(error) => chain(error).to_string(),
        }
    }
}

/// Where batches of one topic go.
pub(crate) struct BatchLoad<'a> {
    pub(crate) topic: &'a OwnedTopic,
    pub(crate) progress: &'a TopicProgress,
    pub(crate) target: &'a LoadTarget,
    pub(crate) refused: &'a RefusedProducer,
    pub(crate) reporter: &'a Reporter,
    pub(crate) key: &'a PartitionKey,
    /// `None`: the user has no right to keep one.
    pub(crate) ledger: Option<&'a Ledger>,
    /// Where the topic stands; without a ledger as Kafka's group has it.
    pub(crate) position: &'a Position,
}

impl BatchLoad<'_> {
    /// Loads the batch. The error says what the position may be. Dropped half way, nothing of it is
    /// visible, or, while the commit is under way, the ledger says how it went; refused events may
    /// have been produced.
    pub(crate) async fn load(&self, mut batch: ParsedBatch) -> Result<Loaded, BatchError> {
        let began = Instant::now();
        let returning = std::mem::take(&mut batch.returning);
        let (returning, states) = self.judge_returning(returning).await?;
        let (rows, mut events) = self.prepare(batch, returning)?;
        let fence = self.ledger.map(|_| Fence {
            key: self.key.clone(),
            position: self.position.clone(),
            states,
        });
        let warehouse = self.target.warehouse.watched_by(self.progress.load());
        let staged = warehouse.stage(rows, fence, self.options()).await?;
        let mut decision = events.decide(staged.report(), |attempts| self.refused.route(attempts));
        if !decision.refused.is_empty() {
            let whole = &mut events; // shared, it could not wait on another thread
            let copy = move |place| BatchEvents::message(&*whole, place).map(Envelope::of);
            let unfit = self.refused.produce(self.topic, &decision.refused, copy).await?;
            decision.have_no_attempt(&unfit);
        }
        let BatchDecision { changes, counts, first_reason, .. } = decision;
        let report = staged.commit(&changes).await?;
        let loaded = Loaded { report, counts };
        self.report(&loaded, &events, first_reason, began);
        Ok(loaded)
    }

    /// Returning events, each with what it is loaded as (`None`: it is dropped), and the states
    /// that say so.
    async fn judge_returning(
        &self,
        messages: Vec<Message>,
    ) -> Result<(Vec<Judged>, Vec<(Origin, Option<EventState>)>), LoadError> {
        let found: Vec<_> = messages.iter().map(|message| self.returning(message)).collect();
        let Some(ledger) = self.ledger else {
            return Ok((
                messages.into_iter().zip(found.into_iter().map(Some)).collect(),
                Vec::new(),
            ));
        };
        let origins: Vec<_> = found.iter().map(|returning| returning.origin.clone()).collect();
        let states = ledger.event_states(&origins).await?;
        let others = self.other_partitions(ledger, &origins).await?;
        let mut seen = HashSet::new();
        let mut judged = Vec::with_capacity(messages.len());
        for ((message, returning), state) in messages.into_iter().zip(found).zip(&states) {
            // moved twice, by a mover that crashed: one of them is enough
            let is_first = seen.insert(returning.origin.key());
            let verdict = match returning.is_new {
                true => Verdict::Load { is_new: true }, // nothing says where it came from
                // read for the first time in this very batch, or in one that follows
                false if self.is_ahead(&returning.origin) => Verdict::Drop,
                false => {
                    let (key, position) = others
                        .get(&returning.origin.partition)
                        .map_or((self.key, self.position), |(key, position)| (key, position));
                    judge(*state, &returning.origin, key, position)
                }
            };
            let loaded = match verdict {
                Verdict::Load { is_new } if is_first => Some(Returning { is_new, ..returning }),
                Verdict::Load { .. } | Verdict::Drop => None,
            };
            judged.push((message, loaded));
        }
        Ok((judged, origins.into_iter().zip(states).collect()))
    }

    /// Where the partitions stand that these events were read from, if somebody gave the topic more
    /// than one: a copy need not return to the partition of its origin.
    async fn other_partitions(
        &self,
        ledger: &Ledger,
        origins: &[Origin],
    ) -> Result<HashMap<i32, (PartitionKey, Position)>, LoadError> {
        let mut found = HashMap::new();
        let is_other = |origin: &&Origin| {
            origin.topic == self.key.topic && origin.partition != self.key.partition
        };
        let mut asked = HashSet::new();
        for origin in origins.iter().filter(is_other) {
            // others write origins, too: no topic has that many partitions by mistake
            if asked.len() >= MOST_PARTITIONS || !asked.insert(origin.partition) {
                continue;
            }
            let key = PartitionKey { partition: origin.partition, ..self.key.clone() };
            if let Some(position) = ledger.read(&key).await? {
                found.insert(origin.partition, (key, position));
            }
        }
        Ok(found)
    }

    fn returning(&self, message: &Message) -> Returning {
        let here = self.origin(message.offset());
        // an event without a readable origin, or with one that it cannot have, counts as read here
        // for the first time: a copy lies behind what it is a copy of
        let origin = Envelope::origin_of(message)
            .filter(|origin| !self.is_of_this_topic(origin) || origin.offset < here.offset);
        let is_new = origin.is_none();
        Returning { origin: origin.unwrap_or(here), is_new }
    }

    /// Whether the origin is a place of this topic that the position has not reached: whoever wrote
    /// it, the event there is loaded from there.
    fn is_ahead(&self, origin: &Origin) -> bool {
        origin.offset >= self.position.next_offset && self.is_of_this_topic(origin)
    }

    /// Also one that does not say which of the topics of this name it means.
    fn is_of_this_topic(&self, origin: &Origin) -> bool {
        let here = self.origin(origin.offset);
        let is_of_some_topic = origin.topic_id.is_none() || here.topic_id.is_none();
        let without_id = |origin: &Origin| Origin { topic_id: None, ..origin.clone() };
        origin.key() == here.key() || (is_of_some_topic && without_id(origin) == without_id(&here))
    }

    /// The origin of what lies at this offset of the topic.
    fn origin(&self, offset: i64) -> Origin {
        Origin {
            cluster: self.key.cluster_id.clone(),
            topic: self.key.topic.clone(),
            topic_id: self.position.topic_id,
            partition: self.key.partition,
            offset,
        }
    }

    /// Returning events are loaded first: they are older than all others of the batch.
    fn prepare(
        &self,
        batch: ParsedBatch,
        returning: Vec<Judged>,
    ) -> Result<(Vec<Batch>, BatchEvents), LoadError> {
        let ParsedBatch { groups, unparsable, next_offset, received, bytes, refusal, held, .. } =
            batch;
        let plan = group_plan(self.topic, self.target);
        let counts = EventCounts {
            consumed: received,
            bytes,
            retried: returning.len() as u64,
            dropped: returning.iter().filter(|(_, loaded)| loaded.is_none()).count() as u64,
            ..EventCounts::default()
        };
        let mut events = BatchEvents {
            next_offset,
            last_timestamp_ms: batch.last_timestamp_ms,
            table: self.topic.table.clone(),
            origin: self.origin(next_offset),
            has_ledger: self.ledger.is_some(),
            counts,
            groups: Vec::new(),
            unparsable: Vec::new(),
            _held: held,
        };
        for unparsable in unparsable {
            events.add_unparsable(unparsable, None);
        }
        let mut returned = Groups::new(&plan);
        let mut refused = Vec::new();
        for (message, loaded) in returning {
            let Some(loaded) = loaded else {
                continue;
            };
            if refusal.is_some() {
                refused.push((message, Some(loaded)));
                continue;
            }
            match returned.push(message, loaded) {
                Ok(()) => {}
                Err(PushError::Event(unparsable, loaded)) => {
                    events.add_unparsable(unparsable, Some(loaded));
                }
                Err(PushError::Destination(error)) => return Err(error.into()),
            }
        }
        if let Some(Refusal { code, reason }) = refusal {
            let first_readings = groups.into_iter().flat_map(|group| group.messages);
            refused.extend(first_readings.map(|message| (message, None)));
            for (message, loaded) in refused {
                let (code, reason) = (code.clone(), reason.clone());
                events.add_unparsable(Unparsable { message, code, reason }, loaded);
            }
            return Ok((Vec::new(), events));
        }
        let mut rows = Vec::new();
        for group in returned.into_groups() {
            rows.push(events.add_returning(group));
        }
        for group in groups {
            rows.push(events.add(group));
        }
        Ok((rows, events))
    }

    fn options(&self) -> LoadOptions {
        LoadOptions {
            refusals: Refusals::Isolate,
            schema_changes: SchemaChanges::BeforeLoad,
            rows: rows_of(self.topic),
        }
    }

    fn report(
        &self,
        loaded: &Loaded,
        events: &BatchEvents,
        first_reason: Option<String>,
        began: Instant,
    ) {
        let counts = loaded.counts;
        metrics::count_batch(self.topic, loaded);
        self.progress.count(counts.consumed);
        let outcomes = events.outcomes(&loaded.report);
        self.reporter.loaded(self.topic, self.progress, loaded, began.elapsed(), outcomes);
        if counts.sent_to_retry + counts.dead > 0 {
            warn!(
                topic = self.topic.name,
                sent_to_retry = counts.sent_to_retry,
                dead = counts.dead,
                first_reason,
                "events refused; the others are loaded"
            );
        }
    }
}

/// A returning event with what it is loaded as; `None`: it is dropped.
type Judged = (Message, Option<Returning>);

/// How events of this topic become rows.
pub(crate) fn group_plan(topic: &OwnedTopic, target: &LoadTarget) -> GroupPlan {
    GroupPlan {
        topic: topic.name.clone(),
        table: topic.table.clone(),
        options: target.options.clone(),
        rows: rows_of(topic),
    }
}

fn rows_of(topic: &OwnedTopic) -> RowsOf {
    match topic.mode {
        TopicMode::Stream => RowsOf::Events,
        _ => RowsOf::Batch,
    }
}
