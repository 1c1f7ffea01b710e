//! The spool's files: segments that are written at the end of the newest and deleted at the oldest.
//!
//! Invariants: what `append` returns a place for is synced. Nothing is written behind bytes whose
//! sync failed, since it is not known whether they are on the medium: that segment is cut and left,
//! and the next record starts a new one. A mark never stands in an older segment than the event it
//! is about, so the oldest segment can go as soon as its events are gone.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    sync::Arc,
};

use tracing::{error, warn};

use super::{
    disk::{self, Disk, DiskFile},
    index::{Entry, Index, Place, Stage},
    record::{self, HEADER, Mark, Record, SpooledEvent},
    reserve::Reserve,
};

const SUFFIX: &str = ".spool";
/// Part of a segment that is kept for marks on a full disk. That an event was handed over takes a
/// fifth of the smallest one, if it is marked alone.
pub(super) const RESERVE_SHARE: u64 = 4;

pub(super) struct Log {
    disk: Box<dyn Disk>,
    reserve: Reserve,
    segments: BTreeMap<u32, Segment>,
    /// The segment that is written; `None` before the first record and after a failure.
    active: Option<u32>,
    next_segment: u32,
    segment_bytes: u64,
}

struct Segment {
    file: Arc<dyn DiskFile>,
    /// Of what is synced.
    length: u64,
}

/// What was found in the folder.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) index: Index,
    pub(super) next_seq: u64,
    /// Bytes that are no whole record: a write that a crash cut off, or damage.
    pub(super) damaged_bytes: u64,
}

/// What became of a batch: the places of the records that are on the medium, and what stopped the
/// others.
pub(super) struct Appended {
    pub(super) places: Vec<Place>,
    pub(super) error: Option<io::Error>,
}

/// Reads an event without a lock on the log: the file stays readable even when it is deleted
/// meanwhile.
pub(super) struct Located {
    file: Arc<dyn DiskFile>,
    place: Place,
}

impl Located {
    pub(super) fn read(&self) -> io::Result<SpooledEvent> {
        let bytes = self.file.read(u64::from(self.place.offset), self.place.length as usize)?;
        match record::decode(&bytes) {
            Some((Record::Event(event), _)) => Ok(event),
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, "the spooled event is damaged")),
        }
    }
}

impl Log {
    /// Reads what is there. A torn end is cut off.
    pub(super) fn open(disk: Box<dyn Disk>, segment_bytes: u64) -> io::Result<(Log, Found)> {
        let mut ids: Vec<u32> = disk.list()?.iter().filter_map(|name| id_of(name)).collect();
        ids.sort_unstable();
        let mut found = Finding::default();
        let mut segments = BTreeMap::new();
        for id in &ids {
            let file = disk.open(&name_of(*id))?;
            let bytes = file.read(0, usize::try_from(file.length()?).unwrap_or(usize::MAX))?;
            let length = found.read_segment(*id, &bytes);
            if length < bytes.len() {
                file.cut(length as u64)?;
            }
            // what a killed process wrote and did not sync counts from now on
            file.sync()?;
            segments.insert(*id, Segment { file, length: length as u64 });
        }
        let next_segment = ids.last().map_or(1, |last| last + 1);
        let reserve = Reserve::open(disk.as_ref(), segment_bytes / RESERVE_SHARE)?;
        let log = Log { disk, reserve, segments, active: None, next_segment, segment_bytes };
        Ok((log, found.finish()))
    }

    /// Bytes of all segments.
    pub(super) fn bytes(&self) -> u64 {
        self.segments.values().map(|segment| segment.length).sum()
    }

    /// Whether the disk is so full that only marks may be written.
    pub(super) fn is_low(&self) -> bool {
        self.reserve.is_given_up()
    }

    /// After this failure: makes room for marks. True if it did.
    pub(super) fn make_room(&mut self, error: &io::Error) -> bool {
        self.reserve.give_up(self.disk.as_ref(), error)
    }

    pub(super) fn restore_reserve(&mut self) {
        self.reserve.restore(self.disk.as_ref());
    }

    /// Writes records and syncs them.
    pub(super) fn append(&mut self, records: &[&[u8]]) -> Appended {
        let mut appended = Appended { places: Vec::with_capacity(records.len()), error: None };
        let mut rest = records;
        while !rest.is_empty() && appended.error.is_none() {
            match self.append_to_one(rest) {
                Ok(places) => {
                    rest = &rest[places.len()..];
                    appended.places.extend(places);
                }
                Err(error) => {
                    self.abandon();
                    appended.error = Some(error);
                }
            }
        }
        appended
    }

    pub(super) fn locate(&self, place: Place) -> Option<Located> {
        let segment = self.segments.get(&place.segment)?;
        Some(Located { file: segment.file.clone(), place })
    }

    /// The oldest segment, unless it is still written.
    pub(super) fn oldest(&self) -> Option<u32> {
        let (id, _) = self.segments.first_key_value()?;
        (Some(*id) != self.active).then_some(*id)
    }

    pub(super) fn segment_bytes(&self) -> u64 {
        self.segment_bytes
    }

    /// Writes no further into the active segment, so that it can be deleted.
    pub(super) fn seal(&mut self) {
        self.active = None;
    }

    /// Deletes the oldest segment. The caller knows that no event of it is needed.
    pub(super) fn delete_oldest(&mut self) -> io::Result<()> {
        if let Some(id) = self.oldest() {
            disk::remove(self.disk.as_ref(), &name_of(id))?;
            self.segments.remove(&id);
        }
        Ok(())
    }

    /// As many of the records as fit into the active segment, or into a new one.
    fn append_to_one(&mut self, records: &[&[u8]]) -> io::Result<Vec<Place>> {
        let first = records.first().map_or(0, |record| record.len() as u64);
        let fits = |segment: &Segment| segment.length + first <= self.segment_bytes;
        let active = self.active.filter(|id| self.segments.get(id).is_some_and(fits));
        let id = match active {
            Some(id) => id,
            None => self.start_segment()?,
        };
        let segment_bytes = self.segment_bytes;
        let Some(segment) = self.segments.get_mut(&id) else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let mut buffer = Vec::new();
        let mut places = Vec::new();
        for record in records {
            let offset = segment.length + buffer.len() as u64;
            if !places.is_empty() && offset + record.len() as u64 > segment_bytes {
                break;
            }
            // a segment starts below `segment_bytes`, which is far below 4 GiB
            places.push(Place { segment: id, offset: offset as u32, length: record.len() as u32 });
            buffer.extend_from_slice(record);
        }
        segment.file.write(&buffer, segment.length)?;
        segment.file.sync()?;
        segment.length += buffer.len() as u64;
        Ok(places)
    }

    fn start_segment(&mut self) -> io::Result<u32> {
        let id = self.next_segment;
        // also when it fails: the file may be there half way
        self.next_segment += 1;
        let file = self.disk.create(&name_of(id))?;
        self.segments.insert(id, Segment { file, length: 0 });
        self.active = Some(id);
        Ok(id)
    }

    /// Leaves the active segment as far as it is synced.
    fn abandon(&mut self) {
        let Some(id) = self.active.take() else { return };
        let Some(segment) = self.segments.get(&id) else { return };
        let left = match segment.length {
            0 => disk::remove(self.disk.as_ref(), &name_of(id))
                .map(|()| drop(self.segments.remove(&id))),
            length => segment.file.cut(length),
        };
        if let Err(error) = left {
            warn!(error = %error, "what a failed write left in the spool cannot be removed");
        }
    }
}

fn name_of(id: u32) -> String {
    format!("{id:010}{SUFFIX}")
}

fn id_of(name: &str) -> Option<u32> {
    name.strip_suffix(SUFFIX)?.parse().ok()
}

/// An event while the folder is read.
struct FoundEvent {
    topic: Arc<str>,
    entry: Entry,
    reason: Option<Arc<str>>,
}

/// Applies records in the order in which they were written.
#[derive(Default)]
struct Finding {
    events: HashMap<u64, FoundEvent>,
    topics: HashMap<String, Arc<str>>,
    next_seq: u64,
    damaged_bytes: u64,
}

impl Finding {
    /// Reads a segment and returns how long it is without a torn end.
    fn read_segment(&mut self, segment: u32, bytes: &[u8]) -> usize {
        let mut at = 0;
        while at < bytes.len() {
            if let Some((record, length)) = record::decode(&bytes[at..]) {
                let place = Place { segment, offset: at as u32, length: length as u32 };
                self.apply(record, place);
                at += length;
                continue;
            }
            let next = record::find_next(bytes, at + 1);
            let damaged = next.unwrap_or(bytes.len()) - at;
            self.damaged_bytes += damaged as u64;
            match next {
                Some(next) => {
                    error!(
                        segment,
                        at,
                        bytes = damaged,
                        "spool file is damaged; reading on behind"
                    );
                    at = next;
                }
                None => {
                    warn!(segment, at, bytes = damaged, "torn end of a spool file cut off");
                    return at;
                }
            }
        }
        at
    }

    fn apply(&mut self, record: Record, place: Place) {
        match record {
            Record::Event(event) => self.add(event, place),
            Record::Mark(mark, seqs) => seqs.into_iter().for_each(|seq| self.mark(&mark, seq)),
        }
    }

    fn add(&mut self, event: SpooledEvent, place: Place) {
        let facts = event.facts;
        self.next_seq = self.next_seq.max(facts.seq + 1);
        let topic = match self.topics.get(&event.topic) {
            Some(known) => known.clone(),
            None => {
                let name: Arc<str> = event.topic.as_str().into();
                self.topics.entry(event.topic).or_insert(name).clone()
            }
        };
        let entry = Entry {
            seq: facts.seq,
            place,
            stage: if facts.handed_at == 0 { Stage::Fresh } else { Stage::Handed },
            received_at: facts.received_at,
            handed_at: facts.handed_at,
        };
        let reason = (!facts.reason.is_empty()).then(|| facts.reason.as_str().into());
        // a copy that was made shortly before a crash replaces the record it was made of
        self.events.insert(facts.seq, FoundEvent { topic, entry, reason });
    }

    fn mark(&mut self, mark: &Mark, seq: u64) {
        self.next_seq = self.next_seq.max(seq + 1);
        if *mark == Mark::Removed {
            self.events.remove(&seq);
            return;
        }
        let Some(event) = self.events.get_mut(&seq) else { return };
        if *mark == Mark::Discarded && event.reason.is_some() {
            self.events.remove(&seq);
            return;
        }
        match mark {
            Mark::Handed(at) => {
                event.entry.stage = Stage::Handed;
                event.entry.set_handed(*at);
            }
            Mark::Quarantined(reason) => event.reason = Some(reason.as_str().into()),
            Mark::Released => event.reason = None,
            Mark::Removed | Mark::Discarded => {}
        }
    }

    fn finish(self) -> Found {
        let mut events: Vec<_> = self.events.into_values().collect();
        events.sort_by_key(|event| event.entry.seq);
        let mut index = Index::default();
        for event in events {
            index.insert(&event.topic, event.entry, event.reason);
        }
        Found { index, next_seq: self.next_seq, damaged_bytes: self.damaged_bytes }
    }
}

/// The smallest segment that has room for a few records of any kind.
pub(super) const MIN_SEGMENT_BYTES: u64 = HEADER as u64 * 64;
