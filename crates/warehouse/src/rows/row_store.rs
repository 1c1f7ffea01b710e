//! The rows of a batch: in memory, and on disk beyond a limit.
//!
//! Rows lie one after another in chunks, so a batch costs a handful of allocations. Full chunks go
//! to an unnamed file once the batch holds more memory than it may; the system frees that file with
//! the batch, also when the process is killed. A disk that takes nothing leaves the rows where they
//! are, in memory: no row is lost, [`Rows::held_bytes`] tells the owner to stop filling, and
//! [`Rows::spill_error`] why.

use std::{fs::File, io, ops::Range, os::unix::fs::FileExt, path::PathBuf};

use tracing::warn;

use crate::rows::{
    disk_limit::{DiskLimit, DiskShare},
    row::{Cell, Row},
};

/// Bytes of one chunk; a larger row gets a chunk of its own.
const CHUNK: usize = 1 << 20;

/// How much memory the rows of a batch may take.
#[derive(Debug, Clone)]
pub struct MemoryLimit {
    /// Bytes of rows in memory, a few MB more or less.
    pub bytes: usize,
    /// Where rows beyond it are written.
    pub folder: PathBuf,
    /// How much of them.
    pub disk: DiskLimit,
}

/// Why rows beyond the memory limit are still in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SpillError {
    /// All batches together have as many bytes in files as they may.
    #[error("rows beyond the memory limit are at the limit of the disk, too")]
    DiskLimit,
    /// The folder, or the disk that it is on, takes nothing more.
    #[error("rows beyond the memory limit cannot be kept on disk: the temporary folder says {0}")]
    Folder(io::ErrorKind),
}

/// Rows in chunks.
#[derive(Debug, Default)]
pub(crate) struct Rows {
    chunks: Vec<Chunk>,
    row_count: usize,
    /// Bytes of heap.
    held: usize,
    limit: Option<MemoryLimit>,
    file: Option<File>,
    file_end: u64,
    /// Of the disk's limit.
    share: Option<DiskShare>,
    spill_error: Option<SpillError>,
}

#[derive(Debug)]
struct Chunk {
    place: Place,
    row_count: usize,
}

#[derive(Debug)]
enum Place {
    Memory(Vec<u8>),
    Disk { start: u64, length: usize },
}

impl Rows {
    pub(super) fn with_limit(limit: MemoryLimit) -> Rows {
        Rows { share: Some(limit.disk.share()), limit: Some(limit), ..Rows::default() }
    }

    pub(crate) fn len(&self) -> usize {
        self.row_count
    }

    /// Bytes of heap.
    pub(super) fn held_bytes(&self) -> usize {
        self.held
    }

    /// Why there is more in memory than there should be.
    pub(super) fn spill_error(&self) -> Option<SpillError> {
        self.spill_error
    }

    pub(super) fn push<'a>(&mut self, cells: impl Iterator<Item = Cell<'a>> + Clone) {
        let size = 4 + Row::max_size(cells.clone());
        let bytes = self.room_for(size);
        let start = bytes.len();
        bytes.extend_from_slice(&[0; 4]);
        Row::write(cells, bytes);
        let length = u32::try_from(bytes.len() - start - 4).unwrap_or(u32::MAX);
        bytes[start..start + 4].copy_from_slice(&length.to_le_bytes());
        if let Some(chunk) = self.chunks.last_mut() {
            chunk.row_count += 1;
        }
        self.row_count += 1;
    }

    /// Calls `visit` with the number and the row of every row in `range`, until it answers `false`.
    pub(crate) fn visit(
        &self,
        range: Range<usize>,
        mut visit: impl FnMut(usize, Row<'_>) -> bool,
    ) -> io::Result<()> {
        let mut from_disk = Vec::new();
        let mut first = 0;
        for chunk in &self.chunks {
            let end = first + chunk.row_count;
            if first >= range.end {
                break;
            }
            if end > range.start {
                let bytes = self.bytes_of(chunk, &mut from_disk)?;
                for (number, row) in (first..).zip(rows_in(bytes)) {
                    if range.contains(&number) && !visit(number, row) {
                        return Ok(());
                    }
                }
            }
            first = end;
        }
        Ok(())
    }

    fn bytes_of<'a>(&self, chunk: &'a Chunk, scratch: &'a mut Vec<u8>) -> io::Result<&'a [u8]> {
        match &chunk.place {
            Place::Memory(bytes) => Ok(bytes),
            Place::Disk { start, length } => {
                scratch.resize(*length, 0);
                let file = self.file.as_ref().ok_or(io::ErrorKind::NotFound)?;
                file.read_exact_at(scratch, *start)?;
                Ok(scratch)
            }
        }
    }

    /// The chunk that has room for so many bytes, a new one where the last is full.
    fn room_for(&mut self, size: usize) -> &mut Vec<u8> {
        let has_room = |chunk: &Chunk| match &chunk.place {
            Place::Memory(bytes) => bytes.capacity() - bytes.len() >= size,
            Place::Disk { .. } => false,
        };
        if !self.chunks.last().is_some_and(has_room) {
            let spare = self.spill_if_over_limit(size);
            let bytes = spare.unwrap_or_else(|| {
                let capacity = CHUNK.max(size);
                self.held += capacity;
                Vec::with_capacity(capacity)
            });
            self.chunks.push(Chunk { place: Place::Memory(bytes), row_count: 0 });
        }
        match self.chunks.last_mut() {
            Some(Chunk { place: Place::Memory(bytes), .. }) => bytes,
            _ => unreachable!("the last chunk is in memory: it was just pushed or had room"),
        }
    }

    /// Writes the chunks in memory to disk if they are more than the limit. The memory of one of
    /// them, emptied, is handed back for the next chunk.
    fn spill_if_over_limit(&mut self, size: usize) -> Option<Vec<u8>> {
        if self.held + size <= self.limit.as_ref()?.bytes {
            return None;
        }
        match self.spill(size) {
            Ok(spare) => spare,
            Err(error) => {
                self.limit = None; // nothing is lost; the owner sees the bytes that are held
                self.spill_error = Some(error);
                None
            }
        }
    }

    fn spill(&mut self, size: usize) -> Result<Option<Vec<u8>>, SpillError> {
        let Some(limit) = &self.limit else {
            return Ok(None);
        };
        let file = match &self.file {
            Some(file) => file,
            None => self.file.insert(tempfile::tempfile_in(&limit.folder).map_err(refused)?),
        };
        let mut spare = None;
        for chunk in &mut self.chunks {
            let Place::Memory(bytes) = &mut chunk.place else {
                continue;
            };
            let length = bytes.len();
            if self.share.as_mut().is_some_and(|share| !share.grow(length as u64)) {
                return Err(SpillError::DiskLimit);
            }
            file.write_all_at(bytes, self.file_end).map_err(refused)?;
            let mut emptied = std::mem::take(bytes);
            chunk.place = Place::Disk { start: self.file_end, length };
            self.file_end += length as u64;
            if spare.is_none() && emptied.capacity() >= size {
                emptied.clear();
                spare = Some(emptied);
            } else {
                self.held -= emptied.capacity();
            }
        }
        Ok(spare)
    }
}

/// Says so in the log, with the folder.
fn refused(error: io::Error) -> SpillError {
    warn!(%error, "rows beyond the memory limit cannot be written to disk; they stay in memory");
    SpillError::Folder(error.kind())
}

fn rows_in(bytes: &[u8]) -> impl Iterator<Item = Row<'_>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let (length, after) = rest.split_first_chunk::<4>()?;
        let (row, after) = after.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        rest = after;
        Some(Row(row))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::row::{Flags, Kind};

    fn limited(bytes: usize, folder: PathBuf, disk: DiskLimit) -> Rows {
        Rows::with_limit(MemoryLimit { bytes, folder, disk })
    }

    fn push(rows: &mut Rows, text: &str) {
        let flags = Flags::new(Kind::String);
        let bytes = text.as_bytes();
        let cells = [Cell { slot: 300, flags, bytes }, Cell { slot: 0, flags, bytes: b"1" }];
        rows.push(cells.into_iter());
    }

    fn lengths(rows: &Rows, range: Range<usize>) -> Vec<(usize, usize)> {
        let mut found = Vec::new();
        rows.visit(range, |number, row| {
            assert_eq!(row.cells().count(), 2);
            found.push((number, row.cell(300).map_or(0, |cell| cell.bytes.len())));
            true
        })
        .unwrap();
        found
    }

    #[test]
    fn rows_come_back_as_they_were_pushed() {
        let mut rows = Rows::default();
        for text in ["", "é", &"x".repeat(3 * CHUNK), "end"] {
            push(&mut rows, text);
        }
        assert_eq!(lengths(&rows, 0..4), [(0, 0), (1, 2), (2, 3 * CHUNK), (3, 3)]);
        assert_eq!(lengths(&rows, 1..3), [(1, 2), (2, 3 * CHUNK)]);
    }

    #[test]
    fn rows_beyond_the_limit_are_on_disk_and_come_back_in_order() {
        let bytes = 3 * CHUNK;
        let mut rows = limited(bytes, std::env::temp_dir(), DiskLimit::default());
        for number in 0..20 {
            push(&mut rows, &"x".repeat(CHUNK / 2 + number));
            assert!(rows.held_bytes() <= bytes + CHUNK, "{} bytes", rows.held_bytes());
        }
        push(&mut rows, &"x".repeat(2 * bytes));
        push(&mut rows, "end");
        assert!(rows.file.is_some());
        let expected = (0..20).map(|number| (number, CHUNK / 2 + number));
        let expected: Vec<_> = expected.chain([(20, 2 * bytes), (21, 3)]).collect();
        assert_eq!(lengths(&rows, 0..22), expected);
        assert_eq!(lengths(&rows, 7..9), expected[7..9]);
    }

    #[test]
    fn a_folder_that_takes_nothing_leaves_the_rows_in_memory() {
        let mut rows = limited(CHUNK, PathBuf::from("/nonexistent"), DiskLimit::default());
        for _ in 0..5 {
            push(&mut rows, &"x".repeat(CHUNK / 2));
        }
        assert_eq!(lengths(&rows, 0..5).len(), 5);
        assert!(rows.held_bytes() > CHUNK);
        assert_eq!(rows.spill_error(), Some(SpillError::Folder(io::ErrorKind::NotFound)));
    }

    #[test]
    fn a_disk_that_others_have_all_of_leaves_the_rows_in_memory_until_they_are_gone() {
        let disk = DiskLimit::new(4 * CHUNK as u64);
        let fill = |rows: &mut Rows| {
            for _ in 0..4 {
                push(rows, &"x".repeat(CHUNK / 2));
            }
        };
        let new = || limited(CHUNK, std::env::temp_dir(), disk.clone());
        let (mut first, mut second) = (new(), new());
        (0..2).for_each(|_| fill(&mut first));
        fill(&mut second);
        assert_eq!(first.spill_error(), None);
        assert_eq!(second.spill_error(), Some(SpillError::DiskLimit));
        assert_eq!(lengths(&second, 0..4).len(), 4, "no row is lost");
        drop(first);
        let mut third = new();
        fill(&mut third);
        assert_eq!(third.spill_error(), None);
    }
}
