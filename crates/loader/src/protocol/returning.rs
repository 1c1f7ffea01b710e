//! What a load does with an event that returns from the retry topic, without any I/O.
//!
//! | state of its origin | a first reading of the event | the returning event |
//! | --- | --- | --- |
//! | none | loaded: nothing is written; refused: `refused`, or `dead` | dropped, unless our position never covered its origin |
//! | `refused` | loaded: `loaded` | loaded: `loaded`; refused again: stays, or `dead` |
//! | `loaded`, `dead` | - | dropped |
//!
//! A refusal whose transaction never committed leaves returning events without a state: the event
//! was read again, and loaded or refused anew. Dropping them is what keeps it in the table once.

use warehouse::{EventState, Origin, PartitionKey, Position};

/// What a load does with a returning event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Drop,
    /// `is_new`: nothing was known of it, so it counts as received here.
    Load {
        is_new: bool,
    },
}

/// Decides on a returning event, from the state of its origin.
pub(crate) fn judge(
    state: Option<EventState>,
    origin: &Origin,
    key: &PartitionKey,
    position: &Position,
) -> Verdict {
    match state {
        Some(EventState::Refused) => Verdict::Load { is_new: false },
        Some(EventState::Loaded | EventState::Dead) => Verdict::Drop,
        None if covers(key, position, origin) => Verdict::Drop,
        None => Verdict::Load { is_new: true },
    }
}

/// Whether the origin was read under this position: then the event was decided with it. Also under
/// what the position was for an earlier topic of the same name.
fn covers(key: &PartitionKey, position: &Position, origin: &Origin) -> bool {
    let is_same_name = origin.cluster == key.cluster_id
        && origin.topic == key.topic
        && origin.partition == key.partition;
    let is_of_earlier_topic =
        matches!((origin.topic_id, position.topic_id), (Some(then), Some(now)) if then != now);
    is_same_name && (is_of_earlier_topic || origin.offset >= position.began)
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    const TOPIC: Uuid = Uuid::from_u128(2);

    fn key() -> PartitionKey {
        PartitionKey { cluster_id: "c".to_owned(), topic: "t".to_owned(), partition: 0 }
    }

    fn position() -> Position {
        Position { next_offset: 50, epoch: 0, began: 10, topic_id: Some(TOPIC) }
    }

    fn origin(topic: &str, offset: i64) -> Origin {
        let (cluster, topic) = ("c".to_owned(), topic.to_owned());
        Origin { cluster, topic, topic_id: Some(TOPIC), partition: 0, offset }
    }

    #[test]
    fn an_event_is_loaded_while_it_is_refused_and_dropped_once_it_is_decided() {
        let judged = |state| judge(state, &origin("t", 20), &key(), &position());
        assert_eq!(judged(Some(EventState::Refused)), Verdict::Load { is_new: false });
        assert_eq!(judged(Some(EventState::Loaded)), Verdict::Drop);
        assert_eq!(judged(Some(EventState::Dead)), Verdict::Drop);
        assert_eq!(judged(None), Verdict::Drop, "its refusal never committed");
    }

    #[test]
    fn an_event_that_our_position_never_covered_is_loaded_as_new() {
        let elsewhere = [
            origin("t", 9),
            origin("retry", 20),
            Origin { partition: 1, ..origin("t", 20) },
            Origin { cluster: "other".to_owned(), ..origin("t", 20) },
        ];
        for origin in elsewhere {
            let verdict = judge(None, &origin, &key(), &position());
            assert_eq!(verdict, Verdict::Load { is_new: true }, "{origin:?}");
        }
        let unnamed = Origin { topic_id: None, ..origin("t", 20) };
        assert_eq!(judge(None, &unnamed, &key(), &position()), Verdict::Drop);
        let of_earlier_topic = Origin { topic_id: Some(Uuid::from_u128(3)), ..origin("t", 5) };
        assert_eq!(judge(None, &of_earlier_topic, &key(), &position()), Verdict::Drop);
    }
}
