//! The spool against a simple truth in memory: random operations, disks that fail, and power cuts
//! after which only what was synced is sure to be there.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    sync::{Arc, Mutex, mpsc},
    time::SystemTime,
};

use prometheus::{IntCounter, IntCounterVec, Opts};
use proptest::prelude::*;

use super::{
    EventParts, Spool, SpoolError, SpoolMetrics, SpoolSettings, SpooledEvent, Stage,
    disk::{Disk, DiskFile},
};

const TOPICS: [&str; 3] = ["a", "b", "c"];

/// What a file holds: for sure, and as far as the power stays on.
#[derive(Clone, Default)]
struct Content {
    synced: Vec<u8>,
    written: Vec<u8>,
}

#[derive(Default)]
struct DiskState {
    files: BTreeMap<String, Arc<Mutex<Content>>>,
    /// Taken away, and there again if the power goes before the folder is synced.
    unlinked: BTreeMap<String, Arc<Mutex<Content>>>,
    /// Operations until the next failure.
    fails_after: Option<usize>,
    /// The next folder that is synced fails.
    fails_at_folder: bool,
    /// The failure is the end: nothing works from then on.
    is_power_cut: bool,
    is_off: bool,
    /// Bytes that all files have at most.
    capacity: Option<u64>,
}

/// A disk that forgets what was not synced.
#[derive(Clone, Default)]
pub(super) struct ForgetfulDisk(Arc<Mutex<DiskState>>);

impl ForgetfulDisk {
    /// With room for so many bytes.
    pub(super) fn of_size(capacity: u64) -> ForgetfulDisk {
        let state = DiskState { capacity: Some(capacity), ..DiskState::default() };
        ForgetfulDisk(Arc::new(Mutex::new(state)))
    }

    pub(super) fn fail_at_folder(&self) {
        self.0.lock().unwrap().fails_at_folder = true;
    }

    pub(super) fn has_failed_at_folder(&self) -> bool {
        !self.0.lock().unwrap().fails_at_folder
    }

    fn fail_after(&self, operations: usize, is_power_cut: bool) {
        let mut state = self.0.lock().unwrap();
        state.fails_after = Some(operations);
        state.is_power_cut = is_power_cut;
    }

    /// Whether this operation goes well.
    fn operate(&self) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        if state.is_off {
            return Err(io::Error::other("no power"));
        }
        match state.fails_after {
            Some(0) => {
                state.fails_after = None;
                state.is_off = state.is_power_cut;
                Err(io::Error::other("a failure"))
            }
            Some(left) => {
                state.fails_after = Some(left - 1);
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// What is there after a power cut: all that was synced, and some of the rest.
    fn after_power_cut(&self, luck: usize) -> ForgetfulDisk {
        let state = self.0.lock().unwrap();
        let back = state.unlinked.iter().filter(|_| luck.is_multiple_of(2));
        let files = state.files.iter().chain(back).map(|(name, content)| {
            let content = content.lock().unwrap();
            let mut kept = content.synced.clone();
            if content.written.len() > kept.len() {
                let more = luck % (content.written.len() - kept.len() + 1);
                kept.extend_from_slice(&content.written[kept.len()..][..more]);
            }
            let content = Content { synced: kept.clone(), written: kept };
            (name.clone(), Arc::new(Mutex::new(content)))
        });
        let state = DiskState { files: files.collect(), ..DiskState::default() };
        ForgetfulDisk(Arc::new(Mutex::new(state)))
    }

    fn bytes(&self) -> u64 {
        let state = self.0.lock().unwrap();
        state.files.values().map(|content| content.lock().unwrap().written.len() as u64).sum()
    }
}

impl Disk for ForgetfulDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.0.lock().unwrap().files.keys().cloned().collect())
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        self.operate()?;
        self.0.lock().unwrap().files.insert(name.to_owned(), Arc::default());
        self.open(name)
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let content = self.0.lock().unwrap().files.get(name).cloned();
        let content = content.ok_or(io::ErrorKind::NotFound)?;
        Ok(Arc::new(ForgetfulFile { disk: self.clone(), content }))
    }

    fn unlink(&self, name: &str) -> io::Result<()> {
        self.operate()?;
        let mut state = self.0.lock().unwrap();
        let content = state.files.remove(name).ok_or(io::ErrorKind::NotFound)?;
        state.unlinked.insert(name.to_owned(), content);
        Ok(())
    }

    fn sync_folder(&self) -> io::Result<()> {
        self.operate()?;
        let mut state = self.0.lock().unwrap();
        if std::mem::take(&mut state.fails_at_folder) {
            return Err(io::Error::other("a failure"));
        }
        state.unlinked.clear();
        Ok(())
    }
}

struct ForgetfulFile {
    disk: ForgetfulDisk,
    content: Arc<Mutex<Content>>,
}

impl DiskFile for ForgetfulFile {
    fn write(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        let mut result = self.disk.operate();
        let capacity = self.disk.0.lock().unwrap().capacity.unwrap_or(u64::MAX);
        if self.disk.bytes() + bytes.len() as u64 > capacity {
            result = Err(io::ErrorKind::StorageFull.into());
        }
        // a write that fails may have written a part
        let part = if result.is_ok() { bytes.len() } else { bytes.len() / 2 };
        let mut content = self.content.lock().unwrap();
        content.written.truncate(usize::try_from(at).unwrap());
        content.written.extend_from_slice(&bytes[..part]);
        result
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.operate()?;
        let mut content = self.content.lock().unwrap();
        content.synced = content.written.clone();
        Ok(())
    }

    fn read(&self, at: u64, length: usize) -> io::Result<Vec<u8>> {
        let content = self.content.lock().unwrap();
        let at = usize::try_from(at).unwrap();
        let bytes = content.written.get(at..at + length);
        Ok(bytes.ok_or(io::ErrorKind::UnexpectedEof)?.to_vec())
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.content.lock().unwrap().written.len() as u64)
    }

    fn cut(&self, length: u64) -> io::Result<()> {
        self.disk.operate()?;
        let mut content = self.content.lock().unwrap();
        content.written.truncate(usize::try_from(length).unwrap());
        content.synced = content.written.clone();
        Ok(())
    }
}

#[derive(Debug, Clone)]
enum Action {
    Append { topic: usize, sizes: Vec<usize>, is_handed: bool, remove_first: bool },
    Hand { topic: usize, count: usize },
    Remove { topic: usize, which: usize },
    Quarantine { topic: usize, which: usize },
    Release { topic: usize },
    Discard { topic: usize },
    FailAfter { operations: usize, is_power_cut: bool },
    Reopen,
    PowerCut { luck: usize },
}

fn action() -> impl Strategy<Value = Action> {
    let topic = 0..TOPICS.len();
    let sizes = proptest::collection::vec(0..400_usize, 1..5);
    prop_oneof![
        8 => (topic.clone(), sizes, any::<bool>(), any::<bool>()).prop_map(
            |(topic, sizes, is_handed, remove_first)| {
                Action::Append { topic, sizes, is_handed, remove_first }
            }
        ),
        3 => (topic.clone(), 1..4_usize).prop_map(|(topic, count)| Action::Hand { topic, count }),
        5 => (topic.clone(), 0..5_usize).prop_map(|(topic, which)| Action::Remove { topic, which }),
        1 => (topic.clone(), 0..5_usize)
            .prop_map(|(topic, which)| Action::Quarantine { topic, which }),
        1 => topic.clone().prop_map(|topic| Action::Release { topic }),
        1 => topic.prop_map(|topic| Action::Discard { topic }),
        1 => (0..6_usize, any::<bool>())
            .prop_map(|(operations, is_power_cut)| Action::FailAfter { operations, is_power_cut }),
        1 => Just(Action::Reopen),
        2 => (0..1_000_usize).prop_map(|luck| Action::PowerCut { luck }),
    ]
}

/// What is known of an event that was appended.
#[derive(Debug, Clone)]
struct Truth {
    value: Vec<u8>,
    /// The append said `Ok`.
    is_promised: bool,
    is_handed: Known,
    is_quarantined: Known,
    is_removed: bool,
    /// For good: not even a power cut brings it back.
    is_discarded: bool,
}

/// Whether something is so on the medium.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    No,
    Yes,
    /// It failed, or was not waited for: after a power cut it may be so or not.
    Maybe,
}

impl Known {
    fn allows(self, found: bool) -> bool {
        self == Known::Maybe || (self == Known::Yes) == found
    }
}

struct Checked {
    disk: ForgetfulDisk,
    spool: Option<Spool>,
    runtime: tokio::runtime::Runtime,
    /// By topic, in the order of the appends.
    truth: HashMap<&'static str, BTreeMap<u64, Truth>>,
}

pub(super) fn settings() -> SpoolSettings {
    SpoolSettings { folder: "not used".into(), max_bytes: 20_000, topic_share: 0.5 }
}

pub(crate) fn metrics() -> SpoolMetrics {
    let counters = |name, label| IntCounterVec::new(Opts::new(name, name), &[label]).unwrap();
    SpoolMetrics {
        events: counters("events", "status"),
        refused: counters("refused", "reason"),
        damaged_bytes: IntCounter::new("damaged", "damaged").unwrap(),
    }
}

impl Checked {
    fn new() -> Checked {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let disk = ForgetfulDisk::default();
        let spool = Spool::open_on(Box::new(disk.clone()), &settings(), metrics()).unwrap();
        Checked { disk, spool: Some(spool), runtime, truth: HashMap::new() }
    }

    fn spool(&self) -> &Spool {
        self.spool.as_ref().unwrap()
    }

    fn act(&mut self, action: &Action) {
        match *action {
            Action::Append { topic, ref sizes, is_handed, remove_first } => {
                self.append(TOPICS[topic], sizes, is_handed, remove_first);
            }
            Action::Hand { topic, count } => self.hand(TOPICS[topic], count),
            Action::Remove { topic, which } => self.remove(TOPICS[topic], which),
            Action::Quarantine { topic, which } => self.quarantine(TOPICS[topic], which),
            Action::Release { topic } => self.release(TOPICS[topic]),
            Action::Discard { topic } => self.discard(TOPICS[topic]),
            Action::FailAfter { operations, is_power_cut } => {
                self.disk.fail_after(operations, is_power_cut);
            }
            Action::Reopen => {
                if self.disk.0.lock().unwrap().is_off {
                    return self.reopen(Some(0));
                }
                self.disk.0.lock().unwrap().fails_after = None;
                self.reopen(None);
            }
            Action::PowerCut { luck } => self.reopen(Some(luck)),
        }
    }

    /// Some events at once, as requests come; `remove_first`: Kafka has the first before it is
    /// written.
    fn append(
        &mut self,
        topic: &'static str,
        sizes: &[usize],
        is_handed: bool,
        remove_first: bool,
    ) {
        let (done, written) = mpsc::channel();
        let mut queued = Vec::new();
        for size in sizes {
            let value = vec![b'v'; *size];
            let event = EventParts { topic, key: b"k", headers: &[("h", b"1")], value: &value };
            let handed_at = is_handed.then(SystemTime::now);
            let (done, number) = (done.clone(), queued.len());
            let done = Box::new(move |result| done.send((number, result)).unwrap());
            match self.spool().append(event, handed_at, done) {
                Ok(seq) => queued.push((seq, value)),
                Err(error) => assert!(error != SpoolError::Disk, "room is checked before the disk"),
            }
        }
        let is_removed = remove_first && is_handed && !queued.is_empty();
        if is_removed {
            self.spool().remove(topic, [queued[0].0]);
        }
        for _ in 0..queued.len() {
            let (number, result) = written.recv().unwrap();
            let (seq, value) = queued[number].clone();
            let truth = Truth {
                value,
                is_promised: result.is_ok(),
                is_handed: if is_handed { Known::Yes } else { Known::No },
                is_quarantined: Known::No,
                is_removed: is_removed && number == 0,
                is_discarded: false,
            };
            self.truth.entry(topic).or_default().insert(seq, truth);
        }
    }

    fn live(&self, topic: &str, wanted: impl Fn(&Truth) -> bool) -> Vec<u64> {
        let Some(events) = self.truth.get(topic) else { return Vec::new() };
        let live = |truth: &Truth| truth.is_promised && !truth.is_removed;
        let found = events.iter().filter(|(_, truth)| live(truth) && wanted(truth));
        found.map(|(seq, _)| *seq).collect()
    }

    fn truth(&mut self, topic: &str, seq: u64) -> &mut Truth {
        self.truth.get_mut(topic).unwrap().get_mut(&seq).unwrap()
    }

    fn hand(&mut self, topic: &'static str, count: usize) {
        let mut seqs = self.live(topic, |truth| truth.is_quarantined == Known::No);
        seqs.truncate(count);
        if seqs.is_empty() {
            return;
        }
        let handed = self.runtime.block_on(self.spool().mark_handed(topic, seqs.clone()));
        for seq in seqs {
            let known = &mut self.truth(topic, seq).is_handed;
            match handed {
                Ok(()) => *known = Known::Yes,
                Err(_) if *known == Known::No => *known = Known::Maybe,
                Err(_) => {}
            }
        }
    }

    fn remove(&mut self, topic: &'static str, which: usize) {
        // only what was handed over is ever removed
        let seqs = self.live(topic, |truth| {
            truth.is_handed == Known::Yes && truth.is_quarantined == Known::No
        });
        if let Some(seq) = seqs.get(which) {
            self.spool().remove(topic, [*seq]);
            self.truth(topic, *seq).is_removed = true;
        }
    }

    fn quarantine(&mut self, topic: &'static str, which: usize) {
        let seqs = self.live(topic, |truth| {
            truth.is_handed == Known::Yes && truth.is_quarantined == Known::No
        });
        if let Some(seq) = seqs.get(which) {
            self.spool().quarantine(topic, *seq, "refused");
            self.truth(topic, *seq).is_quarantined = Known::Maybe;
        }
    }

    fn release(&mut self, topic: &'static str) {
        let released = self.runtime.block_on(self.spool().release(Some(topic))).is_ok();
        for seq in self.live(topic, |truth| truth.is_quarantined != Known::No) {
            let known = if released { Known::No } else { Known::Maybe };
            self.truth(topic, seq).is_quarantined = known;
        }
    }

    /// What is not known to be gone afterwards is not promised any more.
    fn discard(&mut self, topic: &'static str) {
        let is_there = |index: &super::index::TopicIndex, seq| {
            index.quarantined().any(|(entry, _)| entry.seq == seq)
        };
        let quarantined: Vec<u64> = {
            let seqs = self.live(topic, |_| true);
            let books = self.spool().shared.books();
            let index = books.index.topic(topic);
            seqs.into_iter().filter(|seq| index.is_some_and(|i| is_there(i, *seq))).collect()
        };
        let discarded = self.runtime.block_on(self.spool().discard(Some(topic))).is_ok();
        for seq in quarantined {
            let truth = self.truth(topic, seq);
            truth.is_promised = false;
            truth.is_discarded = discarded;
        }
    }

    /// `luck`: by a power cut, and how much of what was not synced is there all the same.
    fn reopen(&mut self, luck: Option<usize>) {
        if let Some(luck) = luck {
            let survived = self.disk.after_power_cut(luck);
            self.spool = None;
            self.disk = survived;
        } else {
            self.spool = None;
        }
        let disk = Box::new(self.disk.clone());
        self.spool = Some(Spool::open_on(disk, &settings(), metrics()).unwrap());
        self.check(luck.is_some());
    }

    /// Compares what is there with the truth, then takes it for the truth.
    fn check(&mut self, was_cut: bool) {
        for topic in TOPICS {
            let found = self.found(topic);
            let truth = self.truth.entry(topic).or_default();
            for (seq, known) in truth.iter() {
                let Some((event, stage, is_quarantined)) = found.get(seq) else {
                    assert!(!known.is_promised || known.is_removed, "{topic} {seq} is lost");
                    continue;
                };
                assert!(!known.is_discarded, "{topic} {seq} came back");
                assert_eq!((&event.value, event.topic.as_str()), (&known.value, topic));
                assert_eq!(event.headers, [("h".to_owned(), b"1".to_vec())]);
                if known.is_removed {
                    assert!(was_cut, "{topic} {seq} came back without a crash");
                    assert_eq!(*stage, Stage::Handed, "{topic} {seq} would be sent again");
                }
                assert!(known.is_handed.allows(*stage == Stage::Handed), "{topic} {seq} {known:?}");
                assert!(known.is_quarantined.allows(*is_quarantined), "{topic} {seq} {known:?}");
                assert!(was_cut || *is_quarantined || known.is_quarantined != Known::Maybe);
            }
            let invented: Vec<_> = found.keys().filter(|seq| !truth.contains_key(seq)).collect();
            assert!(invented.is_empty(), "{topic}: {invented:?} were never appended");
            *truth = found
                .into_iter()
                .map(|(seq, (event, stage, is_quarantined))| {
                    let known = |is| if is { Known::Yes } else { Known::No };
                    let truth = Truth {
                        value: event.value,
                        is_promised: true,
                        is_handed: known(stage == Stage::Handed),
                        is_quarantined: known(is_quarantined),
                        is_removed: false,
                        is_discarded: false,
                    };
                    (seq, truth)
                })
                .collect();
        }
        assert!(self.disk.bytes() <= settings().max_bytes, "{} bytes", self.disk.bytes());
    }

    /// What the spool has of a topic; the order of the queue is that of the numbers.
    fn found(&self, topic: &str) -> BTreeMap<u64, (SpooledEvent, Stage, bool)> {
        let log = self.spool().shared.log();
        let books = self.spool().shared.books();
        let Some(index) = books.index.topic(topic) else { return BTreeMap::new() };
        let waiting: Vec<_> = index.waiting().map(|entry| (*entry, false)).collect();
        assert!(waiting.is_sorted_by_key(|(entry, _)| entry.seq));
        let quarantined = index.quarantined().map(|(entry, _)| (*entry, true));
        let all = waiting.into_iter().chain(quarantined).map(|(entry, is_quarantined)| {
            let event = log.locate(entry.place).unwrap().read().unwrap();
            (entry.seq, (event, entry.stage, is_quarantined))
        });
        all.collect()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_was_promised_is_there_after_any_crash_in_order_and_nothing_else(
        actions in proptest::collection::vec(action(), 1..80)
    ) {
        let mut checked = Checked::new();
        for action in &actions {
            checked.act(action);
        }
        checked.act(&Action::PowerCut { luck: 7 });
    }
}

#[test]
fn a_file_that_cannot_be_deleted_brings_no_removed_event_back_at_a_clean_start() {
    for _ in 0..200 {
        // given a disk that fails once the event is written, so that its file cannot be deleted
        let mut checked = Checked::new();
        checked.act(&Action::FailAfter { operations: 3, is_power_cut: false });
        checked.append(TOPICS[0], &[0], true, true);
        // when it works again and the spool is opened anew, then the event is not there
        checked.act(&Action::Reopen);
    }
}
