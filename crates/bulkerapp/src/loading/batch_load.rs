//! One batch on its way into its table: returning copies are judged, refused events are parked, the row moves.
//!
//! Invariant: every event of the batch ends in exactly one place, decided by one transaction: in the table, merged into
//! another event's row, waiting in the retry topic, on the dead letter topic, or dropped as a copy of an event whose
//! fate was decided before. Refused events are in Kafka before the transaction commits.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use appbase::telemetry::chain;
use kafkabase::{Message, TopicMode};
use tracing::warn;
use warehouse::{
    Checkpoint, LoadError, LoadOptions, LoadReport, Refusals, RefusedRow, RowsOf, SchemaChanges,
};

use super::{
    envelope::{Envelope, Origin},
    groups::{Group, GroupPlan, Groups, PushError, Unparsable},
    metrics,
    offsets::{Advance, Offsets, OffsetsRow, RowKey, Tally},
    origins::{OriginChange, OriginState, Verdict, judge},
    parking::{Fate, Parking, RefusedEvent},
    reader::ParsedBatch,
    reporter::{Fortune, Reporter},
    target::{LoadTarget, OwnedTopic},
};

/// What the refusal of an event is called that is no row.
const NO_ROW: &str = "not_an_event";

/// Where batches of one topic go.
pub(super) struct BatchLoad<'a> {
    pub(super) topic: &'a Arc<OwnedTopic>,
    pub(super) target: &'a LoadTarget,
    pub(super) parking: &'a Arc<Parking>,
    pub(super) reporter: &'a Reporter,
    pub(super) key: &'a RowKey,
}

/// What a load did to its batch.
#[derive(Debug, Default)]
pub(super) struct Loaded {
    pub(super) report: LoadReport,
    pub(super) counts: EventCounts,
}

/// Events of one batch by what became of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct EventCounts {
    /// Records read.
    pub(super) consumed: u64,
    /// Bytes of their values.
    pub(super) bytes: u64,
    /// Copies of events that had been refused.
    pub(super) retried: u64,
    /// Of those, the ones whose fate was decided before.
    pub(super) dropped: u64,
    pub(super) sent_to_retry: u64,
    pub(super) dead: u64,
}

impl BatchLoad<'_> {
    /// Loads the batch in the transaction that moves the row. The error says what the row may be.
    pub(super) async fn load(
        &self,
        offsets: &Offsets,
        row: &OffsetsRow,
        batch: ParsedBatch,
    ) -> Result<Loaded, LoadError> {
        let copies: Vec<_> =
            batch.copies.iter().map(|message| self.copy_of(message, row)).collect();
        let origins: Vec<_> = copies.iter().map(|copy| copy.origin.clone()).collect();
        let states = offsets.origin_states(&origins).await?;
        let read: Vec<_> = origins.into_iter().zip(states.iter().copied()).collect();
        let mut seen = HashSet::new();
        let judged = copies.into_iter().zip(states).map(|(copy, state)| {
            if !seen.insert(copy.origin.clone()) {
                return None; // moved twice, by a mover that crashed: one of them is enough
            }
            match judge(state, &copy.origin, self.key, row) {
                Verdict::Drop => None,
                Verdict::Load { is_new } => Some(CopyOf { is_new, ..copy }),
            }
        });
        let judged = judged.collect();
        let (batches, settling) = self.prepare(batch, row, judged)?;
        let settling = Arc::new(settling);
        let checkpoint = {
            let (settling, parking, topic) =
                (settling.clone(), self.parking.clone(), self.topic.clone());
            offsets.checkpoint(self.key, row, &read, move |report| {
                let (settling, parking, topic) = (settling.clone(), parking.clone(), topic.clone());
                Box::pin(async move { settling.settle(report, &parking, &topic).await })
            })
        };
        let report = self.target.postgres.load(batches, Some(&checkpoint), self.options()).await?;
        Ok(self.account(report, &settling))
    }

    /// The same without offsets rows: nothing is known of copies, so all are loaded.
    pub(super) async fn load_at_least_once(&self, batch: ParsedBatch) -> Result<Loaded, LoadError> {
        let row = OffsetsRow::default();
        let copies = batch.copies.iter().map(|message| Some(self.copy_of(message, &row))).collect();
        let (batches, settling) = self.prepare(batch, &row, copies)?;
        let settling = Arc::new(settling);
        let (parked, parking, topic) = (settling.clone(), self.parking.clone(), self.topic.clone());
        let checkpoint = Checkpoint {
            lock: "select 1".to_owned(),
            advance: Box::new(move |report| {
                let (settling, parking, topic) = (parked.clone(), parking.clone(), topic.clone());
                Box::pin(async move {
                    settling.settle(report, &parking, &topic).await?;
                    Ok("select 1".to_owned())
                })
            }),
        };
        let report = self.target.postgres.load(batches, Some(&checkpoint), self.options()).await?;
        Ok(self.account(report, &settling))
    }

    fn tell(&self, loaded: &Loaded, settling: &Settling) {
        let pending = lock(&settling.groups);
        let (groups, unparsable) = &*pending;
        let took = settling.began.elapsed();
        let messages = fortunes(groups, unparsable, &loaded.report);
        self.reporter.loaded(self.topic, loaded, took, messages);
    }

    fn options(&self) -> LoadOptions {
        LoadOptions {
            refusals: Refusals::Isolate,
            schema_changes: SchemaChanges::BeforeLoad,
            rows: rows_of(self.topic),
        }
    }

    fn copy_of(&self, message: &Message, row: &OffsetsRow) -> CopyOf {
        // one whose origin nobody can read counts as read here for the first time
        let origin = Envelope::of(message).origin();
        let is_new = origin.is_none();
        CopyOf { origin: origin.unwrap_or_else(|| self.place(row, message.offset())), is_new }
    }

    fn place(&self, row: &OffsetsRow, offset: i64) -> Origin {
        Origin {
            cluster: self.key.cluster_id.clone(),
            topic: self.key.topic.clone(),
            topic_id: row.topic_id,
            partition: self.key.partition,
            offset,
        }
    }

    /// Copies are loaded first: their events are older than all others of the batch.
    fn prepare(
        &self,
        batch: ParsedBatch,
        row: &OffsetsRow,
        judged: Vec<Option<CopyOf>>,
    ) -> Result<(Vec<warehouse::Batch>, Settling), LoadError> {
        let ParsedBatch { groups, copies, unparsable, next_offset, received, bytes, .. } = batch;
        let plan = group_plan(self.topic, self.target);
        let mut consumed = EventCounts { consumed: received, bytes, ..EventCounts::default() };
        consumed.retried = copies.len() as u64;
        let mut copied = Groups::new(&plan);
        let mut refused: Vec<(Unparsable, Option<CopyOf>)> =
            unparsable.into_iter().map(|unparsable| (unparsable, None)).collect();
        for (message, copy) in copies.into_iter().zip(judged) {
            let Some(copy) = copy else {
                consumed.dropped += 1;
                continue;
            };
            match copied.push(message, copy) {
                Ok(()) => {}
                Err(PushError::Event(unparsable, copy)) => refused.push((unparsable, Some(copy))),
                Err(PushError::Destination(error)) => return Err(error.into()),
            }
        }
        let mut batches = Vec::new();
        let mut settled = Vec::new();
        for Group { batch, messages, notes } in copied.into_groups() {
            batches.push(batch);
            settled.push(SettledGroup { messages, copies: Some(notes) });
        }
        for Group { batch, messages, .. } in groups {
            batches.push(batch);
            settled.push(SettledGroup { messages, copies: None });
        }
        let settling = Settling {
            next_offset,
            last_timestamp_ms: batch.last_timestamp_ms,
            place: self.place(row, next_offset),
            consumed,
            groups: Mutex::new((settled, refused)),
            counts: Mutex::new(consumed),
            began: Instant::now(),
            _held: batch.held,
        };
        Ok((batches, settling))
    }

    fn account(&self, report: LoadReport, settling: &Settling) -> Loaded {
        let counts = *lock(&settling.counts);
        let loaded = Loaded { report, counts };
        metrics::count_batch(self.topic, &loaded);
        self.topic.count(counts.consumed);
        self.tell(&loaded, settling);
        if counts.sent_to_retry + counts.dead > 0 {
            let first = loaded.report.refused.first();
            warn!(
                topic = self.topic.name,
                sent_to_retry = counts.sent_to_retry,
                dead = counts.dead,
                first_reason = first.map_or_else(|| NO_ROW.to_owned(), |row| row.error.to_string()),
                "events refused; the others are loaded"
            );
        }
        loaded
    }
}

/// Every message of a load with what became of it. Refused ones come in the order of the report.
fn fortunes<'a>(
    groups: &'a [SettledGroup],
    unparsable: &'a [(Unparsable, Option<CopyOf>)],
    report: &'a LoadReport,
) -> impl Iterator<Item = (&'a Message, Fortune<'a>)> + Clone {
    let reasons: HashMap<(usize, usize), &str> = report
        .refused
        .iter()
        .map(|refused| ((refused.batch, refused.row), refused.error.full_text.as_str()))
        .collect();
    let reasons = Arc::new(reasons);
    let rows = groups.iter().enumerate().flat_map(move |(batch, group)| {
        let reasons = reasons.clone();
        group.messages.iter().enumerate().map(move |(row, message)| {
            let reason = reasons.get(&(batch, row)).copied();
            (message, reason.map_or(Fortune::Loaded, Fortune::Refused))
        })
    });
    let others = unparsable
        .iter()
        .map(|(unparsable, _)| (&unparsable.message, Fortune::Refused(unparsable.reason.as_str())));
    rows.chain(others)
}

/// How events of this topic become rows.
pub(super) fn group_plan(topic: &OwnedTopic, target: &LoadTarget) -> GroupPlan {
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

/// A returning copy that is loaded.
#[derive(Debug, Clone)]
struct CopyOf {
    origin: Origin,
    /// Nothing was known of it: it counts as received here.
    is_new: bool,
}

/// The messages of one batch of a load.
struct SettledGroup {
    messages: Vec<Message>,
    /// One for each message, in a batch of copies.
    copies: Option<Vec<CopyOf>>,
}

type Pending = (Vec<SettledGroup>, Vec<(Unparsable, Option<CopyOf>)>);

/// What a load has to know about its events when all rows are sent.
struct Settling {
    next_offset: i64,
    last_timestamp_ms: Option<i64>,
    /// The place of first readings, but for the offset.
    place: Origin,
    /// What is known before anything is refused.
    consumed: EventCounts,
    /// Behind a lock because librdkafka parses a message's headers when they are first asked for.
    groups: Mutex<Pending>,
    /// As the last attempt of the load left them.
    counts: Mutex<EventCounts>,
    began: Instant,
    _held: super::memory::HeldMemory,
}

impl Settling {
    /// Parks what was refused and says how the row moves. May run several times: the load is tried in several ways.
    async fn settle(
        &self,
        report: &LoadReport,
        parking: &Parking,
        topic: &OwnedTopic,
    ) -> Result<Advance, LoadError> {
        let (refused, advance) = self.decide(report, parking, topic);
        if !refused.is_empty() {
            let parked = parking.park(topic, refused).await;
            parked.map_err(|error| LoadError::CheckpointFailed(chain(&error).to_string()))?;
        }
        Ok(advance)
    }

    fn decide(
        &self,
        report: &LoadReport,
        parking: &Parking,
        topic: &OwnedTopic,
    ) -> (Vec<RefusedEvent>, Advance) {
        let pending = lock(&self.groups);
        let (groups, unparsable) = &*pending;
        let mut counts = self.consumed;
        let mut ledger = Ledger {
            tally: Tally {
                received: i64::try_from(counts.consumed - counts.retried).unwrap_or(i64::MAX),
                loaded: i64::try_from(report.counts.loaded).unwrap_or(i64::MAX),
                merged: i64::try_from(report.counts.merged).unwrap_or(i64::MAX),
                ..Tally::default()
            },
            ..Ledger::default()
        };
        let mut is_refused: Vec<Vec<bool>> = groups
            .iter()
            .map(|group| vec![false; group.copies.as_ref().map_or(0, Vec::len)])
            .collect();
        for RefusedRow { batch, row, error } in &report.refused {
            let Some(message) = groups.get(*batch).and_then(|group| group.messages.get(*row))
            else {
                continue; // rows and messages are pushed together
            };
            let copy = groups[*batch].copies.as_ref().and_then(|copies| copies.get(*row));
            if let Some(refused) = is_refused[*batch].get_mut(*row) {
                *refused = true;
            }
            let reasons = (error.sqlstate.clone(), error.full_text.clone());
            self.refuse(message, copy, reasons, parking, &mut ledger, &mut counts);
        }
        for (Unparsable { message, reason }, copy) in unparsable {
            let reasons = (NO_ROW.to_owned(), reason.clone());
            self.refuse(message, copy.as_ref(), reasons, parking, &mut ledger, &mut counts);
        }
        for (group, is_refused) in groups.iter().zip(is_refused) {
            for (copy, is_refused) in group.copies.iter().flatten().zip(is_refused) {
                if !is_refused {
                    ledger.loaded(copy);
                }
            }
        }
        *lock(&self.counts) = counts;
        let advance = Advance {
            next_offset: self.next_offset,
            last_timestamp_ms: self.last_timestamp_ms,
            tally: ledger.tally,
            table: topic.table.clone(),
            origins: ledger.changes,
        };
        (ledger.refused, advance)
    }

    fn refuse(
        &self,
        message: &Message,
        copy: Option<&CopyOf>,
        (reason, error): (String, String),
        parking: &Parking,
        ledger: &mut Ledger,
        counts: &mut EventCounts,
    ) {
        let envelope = Envelope::of(message);
        let attempts = envelope.attempt().unwrap_or(0);
        let fate = parking.fate(attempts);
        match fate {
            Fate::Retry => counts.sent_to_retry += 1,
            Fate::Dead => counts.dead += 1,
        }
        let origin = copy.map_or_else(
            || Origin { offset: message.offset(), ..self.place.clone() },
            |copy| copy.origin.clone(),
        );
        ledger.refused(copy, &origin, fate, attempts + 1, &reason);
        ledger.refused.push(RefusedEvent { envelope, origin, error });
    }
}

/// What a load writes beside the rows.
#[derive(Default)]
struct Ledger {
    tally: Tally,
    changes: Vec<OriginChange>,
    refused: Vec<RefusedEvent>,
}

impl Ledger {
    fn loaded(&mut self, copy: &CopyOf) {
        if copy.is_new {
            self.tally.received += 1;
        } else {
            self.tally.waiting -= 1;
        }
        self.changes.push(OriginChange {
            origin: copy.origin.clone(),
            state: OriginState::Loaded,
            refusals: 0,
            reason: String::new(),
        });
    }

    fn refused(
        &mut self,
        copy: Option<&CopyOf>,
        origin: &Origin,
        fate: Fate,
        refusals: u32,
        reason: &str,
    ) {
        match copy {
            Some(copy) if copy.is_new => self.tally.received += 1,
            Some(_) => self.tally.waiting -= 1,
            None => {}
        }
        let state = match fate {
            Fate::Retry => {
                self.tally.waiting += 1;
                OriginState::Refused
            }
            Fate::Dead => {
                self.tally.dead += 1;
                OriginState::Dead
            }
        };
        let (origin, reason) = (origin.clone(), reason.to_owned());
        self.changes.push(OriginChange { origin, state, refusals, reason });
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
