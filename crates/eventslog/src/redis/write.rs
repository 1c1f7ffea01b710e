//! Everything that waits, in one transaction.

use ::redis::{Cmd, Value, cmd, pipe};

use super::{FIELD, RedisLog, stream_key};
use crate::{
    StoreError,
    buffer::{Event, Streams},
    flush::Refused,
};

impl RedisLog {
    /// Adds all events to their streams, or none: an error means that nothing is known to be
    /// stored. Entries that Redis took and did not add, because their key is something else, come
    /// back.
    pub(crate) async fn write(&self, streams: &Streams) -> Result<Vec<Refused>, StoreError> {
        let mut pipeline = pipe();
        pipeline.atomic().ignore_errors();
        let mut kinds = Vec::with_capacity(streams.len());
        for (errors, kind, actor, stream) in streams.iter() {
            let key = stream_key(kind.as_str(), errors, actor);
            let last = stream.events.len() - 1;
            for (index, event) in stream.events.iter().enumerate() {
                pipeline.add_command(add(&key, event, (index == last).then_some(self.max_size)));
                kinds.push(kind);
            }
        }
        let results = self.call(&pipeline).await?;
        let refused = kinds.into_iter().zip(results).filter_map(|(kind, result)| match result {
            Value::ServerError(error) => {
                Some((kind, StoreError::Redis(format!("answered {}", error.code()))))
            }
            _ => None,
        });
        Ok(refused.collect())
    }
}

/// One entry. The last one of a stream trims it, to about the size.
fn add(key: &str, event: &Event, trim_to: Option<usize>) -> Cmd {
    let mut command = cmd("XADD");
    command.arg(key);
    if let Some(size) = trim_to {
        command.arg("MAXLEN").arg("~").arg(size);
    }
    command.arg("*").arg(FIELD).arg(&event.body[..]);
    command
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::event::Level;

    #[test]
    fn the_last_entry_of_a_stream_trims_it() {
        let event = Event { at: 0, level: Level::Info, body: Bytes::from_static(b"{}") };
        let key = stream_key("bulker_batch", true, "d");
        let words = |command: Cmd| String::from_utf8(command.get_packed_command()).unwrap();
        let first = words(add(&key, &event, None));
        assert_eq!(
            first,
            "*5\r\n$4\r\nXADD\r\n$31\r\nevents_log:bulker_batch.error#d\r\n$1\r\n*\r\n$5\r\nevent\r\n$2\r\n{}\r\n"
        );
        let last = words(add(&key, &event, Some(1000)));
        assert!(
            last.contains("\r\n$6\r\nMAXLEN\r\n$1\r\n~\r\n$4\r\n1000\r\n$1\r\n*\r\n"),
            "{last}"
        );
    }
}
