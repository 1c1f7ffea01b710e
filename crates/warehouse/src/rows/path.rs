//! From the path of a value in its event to the slot of its column.
//!
//! Events of one table look alike, so paths are kept as a tree: a key is compared with the key that
//! followed the last one before, which is nearly always right, and the column's name is computed
//! once per path instead of once per value.
//!
//! Invariant: all paths may be forgotten between two events. So events with ever new keys, or with
//! very many, leave no more than a bound behind.

use std::collections::HashMap;

use crate::rows::identifier::JoinedName;

/// Index of a path.
pub(super) type PathId = u32;

/// The path of the event itself.
pub(super) const ROOT: PathId = 0;

/// Bytes that a path takes beside itself and its texts: its place in its parent's index and list,
/// and what the allocator adds, roughly.
const ENTRY_BYTES: usize = 128;
/// More is forgotten before the next event. A table with a thousand columns takes half of it.
const MAX_BYTES: usize = 1 << 20;

/// What stands at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Role {
    #[default]
    Value,
    /// A name for other destinations; it never becomes a column.
    TableName,
    /// The partition, which options may name too.
    Partition,
}

/// One key below another.
#[derive(Debug, Default)]
pub(super) struct Path {
    pub(super) key: Box<str>,
    /// Its place among the keys of its parent, by first appearance.
    position: usize,
    /// Of keys under the `toSameCase` option.
    pub(super) name: JoinedName,
    children: Vec<PathId>,
    by_key: HashMap<Box<str>, PathId>,
    /// The column of values at this path, once there was one.
    pub(super) slot: Option<u32>,
    /// Objects at this path are one value (`columnTypes`, `schema`).
    pub(super) is_whole: bool,
    pub(super) role: Role,
    /// Index into the `columnTypes` option.
    pub(super) column_type: Option<u32>,
    /// The object in which the key was seen last; a second time in one object is a repeated key.
    seen_in: u64,
}

/// All paths of a batch.
#[derive(Debug)]
pub(super) struct Paths {
    paths: Vec<Path>,
    bytes: usize,
}

impl Default for Paths {
    fn default() -> Paths {
        Paths { paths: vec![Path::default()], bytes: 0 }
    }
}

impl Paths {
    pub(super) fn get(&self, path: PathId) -> &Path {
        &self.paths[path as usize]
    }

    pub(super) fn get_mut(&mut self, path: PathId) -> &mut Path {
        &mut self.paths[path as usize]
    }

    /// Forgets them all, if they are too many to be those of a table's usual events.
    pub(super) fn forget_if_too_many(&mut self) {
        if self.bytes > MAX_BYTES {
            *self = Paths::default();
        }
    }

    /// Bytes of heap, roughly.
    pub(super) fn byte_size(&self) -> usize {
        self.bytes
    }

    /// The path of `key` below `parent`, if it was seen before. `cursor` says where in the object's
    /// usual order we are, and is moved on.
    pub(super) fn find(&self, parent: PathId, key: &str, cursor: &mut usize) -> Option<PathId> {
        let parent = self.get(parent);
        if let Some(expected) = parent.children.get(*cursor)
            && &*self.get(*expected).key == key
        {
            *cursor += 1;
            return Some(*expected);
        }
        let found = *parent.by_key.get(key)?;
        *cursor = self.get(found).position + 1;
        Some(found)
    }

    /// Adds a path that `find` did not find.
    pub(super) fn add(&mut self, parent: PathId, key: &str, name: JoinedName) -> PathId {
        let id = PathId::try_from(self.paths.len()).unwrap_or(PathId::MAX);
        self.bytes += size_of::<Path>() + 2 * key.len() + name.start().len() + ENTRY_BYTES;
        let position = self.get(parent).children.len();
        self.paths.push(Path { key: key.into(), name, position, ..Path::default() });
        let parent = self.get_mut(parent);
        parent.children.push(id);
        parent.by_key.insert(key.into(), id);
        id
    }

    /// Notes that the key was seen in this object. `false`: it was there already.
    pub(super) fn see(&mut self, path: PathId, object: u64) -> bool {
        let path = self.get_mut(path);
        std::mem::replace(&mut path.seen_in, object) != object
    }
}
