//! Events that Kafka did not take in time, kept on disk until it has them.
//!
//! Invariants: an append that succeeded is on the medium (one fsync for all that wait at that
//! moment), and the event is there after any crash, in the order of its topic, until it is removed;
//! an append that failed promises nothing. That an event is handed to librdkafka is on the medium
//! before it is, so a restart knows which events may be in Kafka. A removal may be forgotten by a
//! crash: the event is then one that was handed over, and is looked for.
//!
//! What is replayed, and when, is the producer's business.

mod disk;
mod index;
mod log;
mod quarantine;
mod reading;
mod record;
mod reserve;
mod settings;
mod status;
mod writer;

#[cfg(test)]
mod full_disk;
#[cfg(test)]
mod handing;
#[cfg(test)]
mod model;

#[cfg(test)]
pub(crate) use self::model::metrics as unregistered_metrics;

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::oneshot,
};

use self::{
    disk::{Disk, Folder, LockError},
    index::Index,
    log::{Log, MIN_SEGMENT_BYTES, RESERVE_SHARE},
    record::{Facts, Mark, encode_event, set_seq},
};
pub(crate) use self::{
    index::Stage,
    record::{EventParts, SpooledEvent},
};
pub use self::{
    settings::{SpoolError, SpoolMetrics, SpoolOpenError, SpoolSettings},
    status::{QuarantinedTopic, SpoolStatus},
};

/// The largest segment; a small spool has smaller ones, so that its room comes back in small
/// pieces.
const MAX_SEGMENT_BYTES: u64 = 64 << 20;
/// Segments that a full spool has.
const SEGMENTS: u64 = 16;
/// Bytes that wait for the disk at most.
const MOST_PENDING_BYTES: u64 = 64 << 20;

/// Told when an event is on the medium, or will not be.
pub(crate) type Done = Box<dyn FnOnce(Result<(), SpoolError>) + Send>;

/// The spool of this process; cheap to clone. The folder is free once the last clone is gone.
#[derive(Clone)]
pub struct Spool {
    shared: Arc<Shared>,
    _writer: Arc<Writer>,
}

/// Ends the writing thread, after what is queued.
struct Writer {
    shared: Arc<Shared>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.shared.books().stopped = true;
        self.shared.wake.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // a panic of the writer was reported by its hook
        }
    }
}

struct Shared {
    books: Mutex<Books>,
    wake: Condvar,
    /// Held while files are written and synced. Taken before `books` where both are needed.
    log: Mutex<Log>,
    max_bytes: u64,
    topic_bytes: u64,
    segment_bytes: u64,
    metrics: SpoolMetrics,
}

/// What is there and what is to be written. Its lock is held for short, without I/O.
#[derive(Default)]
struct Books {
    index: Index,
    next_seq: u64,
    queue: Vec<Op>,
    /// Marks that are in effect, and that the disk has not taken yet.
    unwritten: Vec<Op>,
    /// Removed from the index, not yet from the files.
    removed: Vec<u64>,
    /// Events on their way to the medium, and what became of them meanwhile.
    pending: HashMap<u64, Option<Mark>>,
    /// By topic, and of all.
    pending_bytes: HashMap<Arc<str>, u64>,
    pending_total: u64,
    file_bytes: u64,
    /// What the disk said, until it takes something again.
    problem: Option<String>,
    /// The disk is so full that only marks may be written.
    is_low: bool,
    stopped: bool,
}

/// Something to be written.
enum Op {
    Event { entry: NewEvent, record: Vec<u8>, done: Done },
    Mark { topic: Arc<str>, mark: Mark, seqs: Vec<u64>, done: Done },
}

struct NewEvent {
    topic: Arc<str>,
    seq: u64,
    received_at: u64,
    handed_at: u64,
}

impl Shared {
    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Books {
    fn add_pending(&mut self, topic: &Arc<str>, bytes: u64) {
        *self.pending_bytes.entry(topic.clone()).or_default() += bytes;
        self.pending_total += bytes;
    }

    fn settle_pending(&mut self, topic: &Arc<str>, bytes: u64) {
        self.pending_total -= bytes;
        if let Some(pending) = self.pending_bytes.get_mut(topic) {
            *pending -= bytes;
            if *pending == 0 {
                self.pending_bytes.remove(topic);
            }
        }
    }
}

impl Spool {
    /// Opens the folder and reads what is there. Needs a runtime with signals: a file that outgrows
    /// the limit of the process (`ulimit -f`) is an error from then on, and not its death.
    pub fn open(settings: &SpoolSettings, metrics: SpoolMetrics) -> Result<Spool, SpoolOpenError> {
        let folder = || settings.folder.clone();
        survive_file_size_limits()
            .map_err(|source| SpoolOpenError::Io { folder: folder(), source })?;
        let disk = Folder::lock(&settings.folder).map_err(|error| match error {
            LockError::Taken => SpoolOpenError::Taken { folder: folder() },
            LockError::Io(source) => SpoolOpenError::Io { folder: folder(), source },
        })?;
        Spool::open_on(Box::new(disk), settings, metrics)
            .map_err(|source| SpoolOpenError::Io { folder: folder(), source })
    }

    fn open_on(
        disk: Box<dyn Disk>,
        settings: &SpoolSettings,
        metrics: SpoolMetrics,
    ) -> io::Result<Spool> {
        let segment_bytes =
            (settings.max_bytes / SEGMENTS).clamp(MIN_SEGMENT_BYTES, MAX_SEGMENT_BYTES);
        let (log, found) = Log::open(disk, segment_bytes)?;
        metrics.damaged_bytes.inc_by(found.damaged_bytes);
        let books = Books {
            index: found.index,
            next_seq: found.next_seq,
            file_bytes: log.bytes(),
            is_low: log.is_low(),
            ..Books::default()
        };
        let shared = Arc::new(Shared {
            books: Mutex::new(books),
            wake: Condvar::new(),
            log: Mutex::new(log),
            max_bytes: settings.max_bytes,
            // a share of a size that fits into 52 bits
            topic_bytes: (settings.max_bytes as f64 * settings.topic_share) as u64,
            segment_bytes,
            metrics,
        });
        let writing = shared.clone();
        let thread = thread::Builder::new()
            .name("spool-writer".to_owned())
            .spawn(move || writer::run(&writing))?;
        let writer = Arc::new(Writer { shared: shared.clone(), thread: Some(thread) });
        Ok(Spool { shared, _writer: writer })
    }

    /// Queues an event to be written, and returns its number. `handed_at`: when it was handed to
    /// librdkafka, if it was. `done` is called from the writing thread.
    pub(crate) fn append(
        &self,
        event: EventParts<'_>,
        handed_at: Option<SystemTime>,
        done: Done,
    ) -> Result<u64, SpoolError> {
        let appended = self.queue(event, handed_at, done);
        if let Err(error) = &appended {
            self.count_refused(*error);
        }
        appended
    }

    fn queue(
        &self,
        event: EventParts<'_>,
        handed_at: Option<SystemTime>,
        done: Done,
    ) -> Result<u64, SpoolError> {
        let handed_at = handed_at.map_or(0, millis);
        let received_at = millis(SystemTime::now());
        let facts = Facts { received_at, handed_at, ..Facts::default() };
        let mut record = encode_event(event, &facts).ok_or(SpoolError::Disk)?;
        let bytes = record.len() as u64;
        let mut books = self.shared.books();
        if books.file_bytes + books.pending_total + bytes > self.room() {
            return Err(SpoolError::Full);
        }
        // full, or it hangs: what waits for it is memory
        if books.is_low || books.pending_total > MOST_PENDING_BYTES {
            return Err(SpoolError::Disk);
        }
        let known = books.index.name(event.topic).cloned();
        let topic = known.unwrap_or_else(|| event.topic.into());
        let held = books.index.topic(&topic).map_or(0, |topic| topic.bytes);
        let pending = books.pending_bytes.get(&topic).copied().unwrap_or_default();
        if held + pending + bytes > self.shared.topic_bytes {
            return Err(SpoolError::TopicFull);
        }
        let seq = books.next_seq;
        books.next_seq += 1;
        set_seq(&mut record, seq);
        books.pending.insert(seq, None);
        books.add_pending(&topic, bytes);
        let entry = NewEvent { topic, seq, received_at, handed_at };
        books.queue.push(Op::Event { entry, record, done });
        drop(books);
        self.shared.wake.notify_one();
        Ok(seq)
    }

    /// Kafka has these events. Takes effect at once; the files follow.
    pub(crate) fn remove(&self, topic: &str, seqs: impl IntoIterator<Item = u64>) {
        let mut books = self.shared.books();
        for seq in seqs {
            if books.index.apply(topic, seq, &Mark::Removed) {
                books.removed.push(seq);
            } else if let Some(pending) = books.pending.get_mut(&seq) {
                *pending = Some(Mark::Removed);
            }
        }
        drop(books);
        self.shared.wake.notify_one();
    }

    /// Notes that these events are handed to librdkafka now; `Ok` once that is on the medium.
    pub(crate) async fn mark_handed(&self, topic: &str, seqs: Vec<u64>) -> Result<(), SpoolError> {
        self.mark_handed_at(topic, seqs, SystemTime::now()).await
    }

    async fn mark_handed_at(
        &self,
        topic: &str,
        seqs: Vec<u64>,
        now: SystemTime,
    ) -> Result<(), SpoolError> {
        let now = millis(now);
        let (again, first): (Vec<u64>, Vec<u64>) = {
            let books = self.shared.books();
            let was_handed =
                |seq: &u64| books.index.topic(topic).is_some_and(|t| t.was_handed(*seq, now));
            seqs.into_iter().partition(was_handed)
        };
        if !first.is_empty() {
            self.mark(topic, Mark::Handed(now), first).await?;
        }
        // a mark is there from the first time, and it is the earliest of all that counts, even when
        // the clock was set back: a Kafka that fails for long must not fill the disk with more
        let mut books = self.shared.books();
        for seq in again {
            books.index.apply(topic, seq, &Mark::Handed(now));
        }
        Ok(())
    }

    /// `Ok` once everything that was asked for so far is on the medium. Dropped, it changes
    /// nothing.
    pub async fn sync(&self) -> Result<(), SpoolError> {
        self.mark("", Mark::Removed, Vec::new()).await
    }

    /// Events that were looked for and are not in Kafka.
    pub(crate) fn set_missing(&self, topic: &str, seqs: impl IntoIterator<Item = u64>) {
        let mut books = self.shared.books();
        seqs.into_iter().for_each(|seq| books.index.set_missing(topic, seq));
    }

    pub(crate) fn count(&self, status: &str, events: usize) {
        self.shared.metrics.events.with_label_values(&[status]).inc_by(events as u64);
    }

    fn count_refused(&self, error: SpoolError) {
        self.shared.metrics.refused.with_label_values(&[error.reason()]).inc();
    }

    /// Bytes up to which events are taken: a segment's worth is kept for copies of what the oldest
    /// segment holds, and the reserve is there, too.
    fn room(&self) -> u64 {
        let kept = self.shared.segment_bytes + self.shared.segment_bytes / RESERVE_SHARE;
        self.shared.max_bytes.saturating_sub(kept)
    }

    async fn mark(&self, topic: &str, mark: Mark, seqs: Vec<u64>) -> Result<(), SpoolError> {
        let (done, written) = oneshot::channel();
        let tell = move |result| {
            let _ = done.send(result); // the caller may be gone: the mark is written all the same
        };
        self.queue_mark(topic, mark, seqs, Box::new(tell));
        written.await.unwrap_or(Err(SpoolError::Disk))
    }

    fn queue_mark(&self, topic: &str, mark: Mark, seqs: Vec<u64>, done: Done) {
        self.shared.books().queue.push(Op::Mark { topic: topic.into(), mark, seqs, done });
        self.shared.wake.notify_one();
    }
}

/// The signal that comes with the error is handled, and not listened to.
fn survive_file_size_limits() -> io::Result<()> {
    signal(SignalKind::from_raw(libc::SIGXFSZ)).map(drop)
}

/// Milliseconds since 1970.
fn millis(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
