//! The search for a poison event: one that asks for a change of the table that cannot be made, so
//! that no batch with it can be loaded. It is looked for by smaller and smaller batches, until it
//! is alone.

/// How far the search of one topic is.
#[derive(Debug, Default)]
pub(crate) struct PoisonSearch {
    /// Records per batch while it is looked for.
    batch_size: Option<u64>,
    /// It is the record at this offset, with the reason.
    found: Option<(i64, String)>,
}

impl PoisonSearch {
    /// Records per batch at the moment; `None`: nothing is looked for.
    pub(crate) fn batch_size(&self) -> Option<u64> {
        self.batch_size
    }

    /// A batch from this offset failed for what one of its events asks for.
    pub(crate) fn failed(&mut self, first_offset: i64, records: u64, reason: String) {
        if records > 1 {
            self.batch_size = Some((records / 10).max(1));
        } else {
            self.found = Some((first_offset, reason));
        }
    }

    /// The reason, if a batch that begins here is the event that was looked for.
    pub(crate) fn take(&mut self, first_offset: i64, records: u64) -> Option<String> {
        let is_it = self.found.as_ref().is_some_and(|(found, _)| *found == first_offset);
        if !is_it || records != 1 {
            return None;
        }
        self.batch_size = None;
        self.found.take().map(|(_, reason)| reason)
    }

    /// The topic is loaded to its end: whatever it was, it is gone.
    pub(crate) fn end(&mut self) {
        self.batch_size = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_get_smaller_until_the_event_is_alone() {
        let mut search = PoisonSearch::default();
        search.failed(0, 10_000, "no such type".to_owned());
        assert_eq!(search.batch_size(), Some(1000));
        search.failed(20, 15, "no such type".to_owned());
        assert_eq!(search.batch_size(), Some(1));
        search.failed(27, 1, "no such type".to_owned());
        assert_eq!(search.take(26, 1), None, "another event");
        assert_eq!(search.take(27, 3), None, "not alone");
        assert_eq!(search.take(27, 1).as_deref(), Some("no such type"));
        assert_eq!(search.batch_size(), None, "it is found");
        assert_eq!(search.take(27, 1), None, "only once");
    }
}
