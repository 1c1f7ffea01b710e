//! The thread that writes: everything that waits at a moment goes to the disk with one sync (group
//! commit).

use std::{io, mem, sync::PoisonError, time::Duration};

use tracing::{error, info, warn};

use super::{
    Books, Done, Op, Shared, SpoolError,
    index::{Entry, Place, Stage},
    log::{Appended, Log, RESERVE_SHARE},
    record::{EventParts, Facts, Mark, encode_event, encode_mark, seal, set_seq},
};

/// Removals wait so long for more of them: no caller waits for a removal.
const GATHER_REMOVALS: Duration = Duration::from_millis(100);
/// How often a disk that failed is tried again.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// Part of a segment that is copied on a full disk: what marks leave of the reserve.
const COPY_SHARE: u64 = 5 * RESERVE_SHARE;

/// Writes until the spool is dropped.
pub(super) fn run(shared: &Shared) {
    loop {
        let batch = Batch::take(shared);
        if batch.is_last {
            break;
        }
        batch.write(shared);
        tidy(shared);
    }
    if let Some(batch) = Batch::rest(shared) {
        batch.write(shared);
    }
}

/// What is written together.
struct Batch {
    ops: Vec<Op>,
    removed: Vec<u64>,
    is_last: bool,
}

impl Batch {
    /// Waits for something to write.
    fn take(shared: &Shared) -> Batch {
        let mut books = shared.books();
        loop {
            if books.stopped {
                return Batch { ops: Vec::new(), removed: Vec::new(), is_last: true };
            }
            if !books.queue.is_empty() {
                break;
            }
            let is_hurt = books.problem.is_some() || books.is_low;
            let limit = match (is_hurt, books.removed.is_empty()) {
                (true, _) => TRY_AGAIN,
                (false, false) => GATHER_REMOVALS,
                (false, true) => {
                    books = shared.wake.wait(books).unwrap_or_else(PoisonError::into_inner);
                    continue;
                }
            };
            let deadline = std::time::Instant::now() + limit;
            while books.queue.is_empty() && !books.stopped {
                let left = deadline.saturating_duration_since(std::time::Instant::now());
                if left.is_zero() {
                    break;
                }
                let waited = shared.wake.wait_timeout(books, left);
                books = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
            break;
        }
        Batch::all(&mut books)
    }

    fn all(books: &mut Books) -> Batch {
        let mut ops = mem::take(&mut books.unwritten);
        ops.append(&mut books.queue);
        Batch { ops, removed: mem::take(&mut books.removed), is_last: false }
    }

    /// What is left when nothing is queued any more.
    fn rest(shared: &Shared) -> Option<Batch> {
        let rest = Batch::all(&mut shared.books());
        let is_empty = rest.ops.is_empty() && rest.removed.is_empty();
        (!is_empty).then_some(rest)
    }

    fn write(mut self, shared: &Shared) {
        let mut records: Vec<Vec<u8>> = Vec::with_capacity(self.ops.len() + 1);
        for op in &mut self.ops {
            records.push(match op {
                Op::Event { record, .. } => {
                    seal(record);
                    mem::take(record)
                }
                Op::Mark { mark, seqs, .. } => encode_mark(mark, seqs),
            });
        }
        let mut log = shared.log();
        let is_hurt = shared.books().problem.is_some();
        // a full disk has no room for what may be forgotten
        let notes_removals = !self.removed.is_empty() && !log.is_low();
        if notes_removals {
            records.push(encode_mark(&Mark::Removed, &self.removed));
        } else if records.is_empty() && is_hurt {
            records.push(encode_mark(&Mark::Removed, &[])); // to try a disk that failed
        }
        let slices: Vec<&[u8]> = records.iter().map(Vec::as_slice).collect();
        let Appended { places, mut error } = log.append(&slices);
        let mut places: Vec<Option<Place>> = places.into_iter().map(Some).collect();
        places.resize(records.len(), None);
        if error.as_ref().is_some_and(|error| log.make_room(error)) {
            error = None; // what was not written is refused, and comes again if it may
        }
        let answers = self.settle(shared, &mut log, &records, &places, notes_removals, error);
        drop(log);
        for (done, result) in answers {
            done(result);
        }
    }

    /// Takes what was written into the books.
    fn settle(
        self,
        shared: &Shared,
        log: &mut Log,
        records: &[Vec<u8>],
        places: &[Option<Place>],
        notes_removals: bool,
        error: Option<io::Error>,
    ) -> Vec<(Done, Result<(), SpoolError>)> {
        let mut books = shared.books();
        let mut answers = Vec::with_capacity(self.ops.len());
        for (number, op) in self.ops.into_iter().enumerate() {
            let place = places[number];
            match op {
                Op::Event { entry: event, done, .. } => {
                    let bytes = records[number].len() as u64;
                    books.settle_pending(&event.topic, bytes);
                    let meanwhile = books.pending.remove(&event.seq).flatten();
                    let Some(place) = place else {
                        shared.metrics.refused.with_label_values(&["disk"]).inc();
                        answers.push((done, Err(SpoolError::Disk)));
                        continue;
                    };
                    let is_handed = event.handed_at != 0;
                    let entry = Entry {
                        seq: event.seq,
                        place,
                        stage: if is_handed { Stage::Handed } else { Stage::Fresh },
                        received_at: event.received_at,
                        handed_at: event.handed_at,
                    };
                    books.index.insert(&event.topic, entry, None);
                    shared.metrics.events.with_label_values(&["spooled"]).inc();
                    if let Some(mark) = meanwhile {
                        books.index.apply(&event.topic, event.seq, &mark);
                        match mark {
                            Mark::Removed => books.removed.push(event.seq),
                            mark => {
                                shared.metrics.events.with_label_values(&["quarantined"]).inc();
                                let (topic, seqs) = (event.topic.clone(), vec![event.seq]);
                                let done: Done = Box::new(|_| {});
                                books.queue.push(Op::Mark { topic, mark, seqs, done });
                            }
                        }
                    }
                    answers.push((done, Ok(())));
                }
                Op::Mark { topic, mark, seqs, done } if place.is_some() => {
                    for seq in seqs {
                        books.index.apply(&topic, seq, &mark);
                    }
                    answers.push((done, Ok(())));
                }
                // in effect already: written with whatever comes next
                Op::Mark { mark: Mark::Quarantined(_), .. } => books.unwritten.push(op),
                Op::Mark { done, .. } => answers.push((done, Err(SpoolError::Disk))),
            }
        }
        // theirs is the last record
        if !notes_removals || places.last().is_some_and(Option::is_none) {
            books.removed.extend(self.removed);
        }
        books.file_bytes = log.bytes();
        books.is_low = log.is_low();
        match error {
            None => {
                if books.problem.take().is_some() {
                    info!("the spool's disk works again");
                }
            }
            Some(error) => {
                let text = error.to_string();
                if books.problem.replace(text).is_none() {
                    error!(error = %error, "the spool's disk failed; events that need it are refused");
                }
            }
        }
        answers
    }
}

/// Gives room back: deletes what holds no event, and copies the few that keep a file of dead
/// records.
fn tidy(shared: &Shared) {
    let mut log = shared.log();
    while tidy_once(shared, &mut log) {}
    if log.is_low() {
        log.restore_reserve();
        shared.books().is_low = log.is_low();
    }
}

/// True while there may be more to do.
fn tidy_once(shared: &Shared, log: &mut Log) -> bool {
    {
        let books = shared.books();
        let totals = books.index.totals();
        let is_idle = books.queue.is_empty() && books.problem.is_none();
        if totals.waiting + totals.quarantined == 0 && is_idle && log.bytes() > 0 {
            log.seal(); // nothing is there: nothing has to be kept of what was
        }
    }
    let Some(oldest) = log.oldest() else { return false };
    let live = shared.books().index.live_bytes(oldest);
    match live {
        0 => delete(shared, log, oldest),
        // on a full disk, copies take from what is kept for marks
        _ if log.is_low() && live > log.segment_bytes() / COPY_SHARE => false,
        _ if is_mostly_dead(shared, log) => copy(shared, log, oldest),
        _ => false,
    }
}

fn is_mostly_dead(shared: &Shared, log: &Log) -> bool {
    let (files, live) = (log.bytes(), shared.books().index.totals().bytes);
    let dead = files.saturating_sub(live);
    let segment = log.segment_bytes();
    dead > 2 * segment && (dead > live || files + 2 * segment > shared.max_bytes)
}

fn delete(shared: &Shared, log: &mut Log, segment: u32) -> bool {
    if let Err(error) = log.delete_oldest() {
        warn!(error = %error, "spool file cannot be deleted");
        return false;
    }
    let mut books = shared.books();
    books.index.forget_segment(segment);
    books.file_bytes = log.bytes();
    if books.file_bytes == 0 {
        books.removed.clear(); // without a file there is nothing to note a removal of
    }
    true
}

/// Writes the events of the oldest segment again, at the end. Without this, an event that cannot be
/// sent would keep the file it is in, and all that came after it.
fn copy(shared: &Shared, log: &mut Log, segment: u32) -> bool {
    let events = shared.books().index.of_segment(segment);
    let mut records = Vec::with_capacity(events.len());
    for (topic, entry, reason) in &events {
        let event = match log.locate(entry.place).map(|located| located.read()) {
            Some(Ok(event)) => event,
            Some(Err(error)) if error.kind() == io::ErrorKind::InvalidData => {
                // it was whole when it was written: the medium lost it
                error!(topic = %topic, bytes = entry.place.length, "a spooled event is damaged and lost");
                shared.metrics.damaged_bytes.inc_by(u64::from(entry.place.length));
                shared.books().index.apply(topic, entry.seq, &Mark::Removed);
                return true; // the others in the next round
            }
            _ => {
                warn!(segment, "a spooled event cannot be read; its file is kept");
                return false;
            }
        };
        let headers: Vec<(&str, &[u8])> = event.headers();
        let parts = EventParts {
            topic: &event.topic,
            key: &event.key,
            headers: &headers,
            value: &event.value,
        };
        let facts = Facts {
            seq: entry.seq,
            received_at: entry.received_at,
            handed_at: entry.handed_at,
            reason: reason.as_deref().unwrap_or_default().to_owned(),
        };
        let Some(mut record) = encode_event(parts, &facts) else { return false };
        set_seq(&mut record, entry.seq);
        seal(&mut record);
        records.push(record);
    }
    let slices: Vec<&[u8]> = records.iter().map(Vec::as_slice).collect();
    let appended = log.append(&slices);
    let mut books = shared.books();
    for ((topic, entry, _), place) in events.iter().zip(&appended.places) {
        books.index.move_to(topic, entry.seq, *place);
    }
    books.file_bytes = log.bytes();
    appended.error.is_none()
}
