//! What the ledger knows of refused events, for those who look at their copies in Kafka.
//!
//! A topic of refused events holds more than what is refused: copies whose refusal never committed,
//! copies that were retried since, the same event once for each attempt. A copy counts when its
//! event is in the state that the topic stands for, and when it is the one of the last attempt: so
//! each event is shown once.

use std::collections::HashMap;

use warehouse::{EventState, LoadError, Origin, OriginKey};

use crate::target::LoadTarget;

/// Where a refused event is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StateOfRefused {
    /// It waits to be tried again.
    Waiting,
    /// It is a dead letter.
    Dead,
}

/// The events of one destination that are in one state.
#[derive(Debug, Default)]
pub struct EventStates {
    /// By origin, how often they were refused. `None`: the destination keeps no states.
    refusals: Option<HashMap<OriginKey, u32>>,
}

impl EventStates {
    /// Nothing is known: every copy counts.
    pub fn unknown() -> EventStates {
        EventStates::default()
    }

    /// Asks the destination: all events that are in this state. Errors are the destination's; where
    /// the user may keep no ledger, every copy counts.
    pub async fn read(
        target: &LoadTarget,
        state: StateOfRefused,
    ) -> Result<EventStates, LoadError> {
        let Some(ledger) = target.ledger().await? else {
            return Ok(EventStates::unknown());
        };
        let state = match state {
            StateOfRefused::Waiting => EventState::Refused,
            StateOfRefused::Dead => EventState::Dead,
        };
        Ok(EventStates { refusals: Some(ledger.events_in(state).await?) })
    }

    /// Whether a copy with these headers counts. Asked once for each copy, in their order.
    pub fn counts(&mut self, origin: Option<&[u8]>, retries: Option<&[u8]>) -> bool {
        let (Some(refusals), Some(origin)) = (&mut self.refusals, origin) else {
            return true; // the original left it, or there is no ledger
        };
        let Ok(origin) = serde_json::from_slice::<Origin>(origin) else {
            return true;
        };
        let attempts = retries
            .and_then(|retries| std::str::from_utf8(retries).ok()?.parse::<u32>().ok())
            .unwrap_or(0);
        let key = (origin.cluster.clone(), origin.topic_key(), origin.partition, origin.offset);
        if refusals.get(&key) != Some(&(attempts + 1)) {
            return false;
        }
        refusals.remove(&key);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORIGIN: &[u8] = br#"{"cluster":"c","topic":"t","partition":0,"offset":7}"#;

    fn states(refusals: u32) -> EventStates {
        let key = ("c".to_owned(), "t".to_owned(), 0, 7);
        EventStates { refusals: Some(HashMap::from([(key, refusals)])) }
    }

    #[test]
    fn only_the_copy_of_the_last_attempt_counts_and_only_once() {
        let mut states = states(2);
        assert!(!states.counts(Some(ORIGIN), Some(b"0")), "it was retried since");
        assert!(states.counts(Some(ORIGIN), Some(b"1")));
        assert!(!states.counts(Some(ORIGIN), Some(b"1")), "a copy of the same refusal");
    }

    #[test]
    fn a_copy_whose_refusal_never_committed_does_not_count() {
        let mut states = EventStates { refusals: Some(HashMap::new()) };
        assert!(!states.counts(Some(ORIGIN), Some(b"0")));
    }

    #[test]
    fn what_has_no_origin_counts() {
        assert!(states(1).counts(None, Some(b"3")));
        assert!(EventStates::unknown().counts(Some(ORIGIN), None));
    }
}
