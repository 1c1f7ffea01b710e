//! The names of all topics of the cluster, asked for once for all who want to know at a moment.
//!
//! Invariant: an answer is of a question that was asked after its caller wanted to know, so that a
//! topic that was there then is in it.

use std::{collections::HashSet, time::Instant};

use kafkabase::{Admin, AdminError};
use tokio::sync::Mutex;

/// Asks for all names.
pub(super) struct AllNames {
    admin: Admin,
    /// The last answer, and when it was asked for.
    last: Mutex<Option<(Instant, HashSet<String>)>>,
}

impl AllNames {
    pub(super) fn new(admin: Admin) -> AllNames {
        AllNames { admin, last: Mutex::default() }
    }

    /// Whether there is such a topic. Those who ask while the cluster is being asked share the next
    /// answer. Dropped, it has asked or not.
    pub(super) async fn has(&self, name: &str) -> Result<bool, AdminError> {
        let wanted_at = Instant::now();
        let mut last = self.last.lock().await;
        if let Some((asked_at, names)) = &*last
            && *asked_at >= wanted_at
        {
            return Ok(names.contains(name));
        }
        let asked_at = Instant::now();
        let all = self.admin.topics().await?;
        let names: HashSet<_> = all.into_iter().map(|topic| topic.name).collect();
        let has = names.contains(name);
        *last = Some((asked_at, names));
        Ok(has)
    }

    /// Gives the memory of the last answer back, unless there is a question at the moment.
    pub(super) fn forget(&self) {
        if let Ok(mut last) = self.last.try_lock() {
            *last = None;
        }
    }
}
