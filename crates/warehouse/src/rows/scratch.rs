//! The row that is being made: the values of one event, before it is known that all of it can be
//! taken.

use std::hash::{DefaultHasher, Hash, Hasher};

use crate::rows::{row::Flags, sql_type::SqlType};

/// Not the slot of any column.
pub(super) const NO_SLOT: u32 = u32::MAX;

/// More working space than this is given back after an event.
const MAX_KEPT_BYTES: usize = 256 << 10;

/// Working space of one event, kept between events for its allocations.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    pub(super) values: Vec<PendingValue>,
    /// What the event or `columnTypes` says of columns' types, by index into `values`.
    pub(super) hints: Vec<(usize, SqlType)>,
    /// Texts that are not slices of the event.
    pub(super) texts: String,
    /// By slot: index into `values` plus one, of the row that is being made.
    value_of_slot: Vec<usize>,
    /// Whether the first of `values` is the partition that the options name.
    pub(super) has_partition: bool,
}

#[derive(Debug)]
pub(super) struct PendingValue {
    pub(super) slot: u32,
    pub(super) flags: Flags,
    pub(super) text: TextAt,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum TextAt {
    /// Byte range of the event.
    Event(usize, usize),
    /// Byte range of the scratch texts.
    Scratch(usize, usize),
}

impl TextAt {
    #[inline]
    pub(super) fn bytes_of<'a>(self, event: &'a str, texts: &'a str) -> &'a [u8] {
        match self {
            TextAt::Event(start, end) => &event.as_bytes()[start..end],
            TextAt::Scratch(start, end) => &texts.as_bytes()[start..end],
        }
    }

    pub(super) fn of<'a>(self, event: &'a str, texts: &'a str) -> &'a str {
        match self {
            TextAt::Event(start, end) => &event[start..end],
            TextAt::Scratch(start, end) => &texts[start..end],
        }
    }
}

impl Scratch {
    pub(super) fn clear(&mut self) {
        for value in self.values.drain(..) {
            if let Some(at) = self.value_of_slot.get_mut(value.slot as usize) {
                *at = 0;
            }
        }
        self.hints.clear();
        self.texts.clear();
        self.has_partition = false;
    }

    /// Gives its memory back if it is more than usual events want.
    pub(super) fn forget_if_too_large(&mut self) {
        if self.byte_size() > MAX_KEPT_BYTES {
            *self = Scratch::default();
        }
    }

    /// Bytes of heap, roughly; as many as the largest event so far wanted.
    pub(super) fn byte_size(&self) -> usize {
        self.values.capacity() * size_of::<PendingValue>()
            + self.value_of_slot.capacity() * size_of::<usize>()
            + self.texts.capacity()
    }

    pub(super) fn keep(&mut self, text: &str) -> TextAt {
        let start = self.texts.len();
        self.texts.push_str(text);
        TextAt::Scratch(start, self.texts.len())
    }

    /// Adds a value to the row that is being made. Of two values of one column the later one stays.
    #[inline]
    pub(super) fn add(&mut self, slot: u32, flags: Flags, text: TextAt, sql_type: Option<SqlType>) {
        let value = PendingValue { slot, flags, text };
        if self.value_of_slot.len() <= slot as usize {
            self.value_of_slot.resize(slot as usize + 1, 0);
        }
        let index = match self.value_of_slot[slot as usize] {
            0 => {
                self.values.push(value);
                self.value_of_slot[slot as usize] = self.values.len();
                self.values.len() - 1
            }
            earlier => {
                self.values[earlier - 1] = value;
                self.hints.retain(|(index, _)| *index != earlier - 1);
                earlier - 1
            }
        };
        self.hints.extend(sql_type.map(|sql_type| (index, sql_type)));
    }

    /// Stands for the columns of the row that is being made and for what their values are, in any
    /// order. `None`: it has no value.
    pub(super) fn shape(&self) -> Option<u64> {
        let mut shape = None::<u64>;
        for value in &self.values {
            if value.slot == NO_SLOT {
                continue;
            }
            // how a text was spelled in its event makes no difference to the row
            let seed = (u64::from(value.slot) << 8) | value.flags.kind() as u64;
            shape = Some(shape.unwrap_or(0).wrapping_add(mixed(seed)));
        }
        for (index, sql_type) in &self.hints {
            let mut hasher = DefaultHasher::new(); // of one batch with itself: not across processes
            (self.values[*index].slot, sql_type).hash(&mut hasher);
            shape = Some(shape.unwrap_or(0).wrapping_add(hasher.finish()));
        }
        shape
    }

    /// The event has a partition of its own, which is no value.
    pub(super) fn forget_partition(&mut self) {
        if std::mem::take(&mut self.has_partition) {
            let partition = &mut self.values[0];
            self.value_of_slot[partition.slot as usize] = 0;
            partition.slot = NO_SLOT;
            self.hints.retain(|(index, _)| *index != 0);
        }
    }
}

/// Spreads a number over all bits (the finalizer of SplitMix64), so that sums of different sets
/// differ.
fn mixed(seed: u64) -> u64 {
    let mut bits = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}
