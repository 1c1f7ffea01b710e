//! How large an event may be: as librdkafka counts it, for both ways that an event can take.
//!
//! Invariant: an event that passes is taken by librdkafka, one that does not is not. So an event
//! gets the same answer whether Kafka is there or not, and the spool holds none that could only
//! end in quarantine for its size. A topic may still be narrower than the client: what it counts is
//! the batch after compression, which is known when it is sent.

use super::SendError;
use crate::spool::EventParts;

/// Bytes of a record beside its key, value and headers: `RD_KAFKAP_MESSAGE_V2_MAX_OVERHEAD`.
const OVERHEAD: usize = 36;

/// `KAFKA_MESSAGE_MAX_BYTES`, which is librdkafka's `message.max.bytes`.
#[derive(Debug, Clone, Copy)]
pub(super) struct SizeLimit(pub(super) usize);

impl SizeLimit {
    pub(super) fn check(self, event: EventParts<'_>) -> Result<(), SendError> {
        let headers = event.headers.iter();
        let headers = headers.map(|(name, value)| sized(name.len()) + sized(value.len()));
        let size = OVERHEAD + event.key.len() + event.value.len() + headers.sum::<usize>();
        if size > self.0 { Err(SendError::TooLarge) } else { Ok(()) }
    }
}

/// Bytes of a text of a header with its length, a variable-length number.
fn sized(length: usize) -> usize {
    let bits = usize::BITS - (length << 1).leading_zeros();
    length + bits.div_ceil(7).max(1) as usize
}

#[cfg(test)]
mod tests {
    use rdkafka::{
        ClientConfig,
        error::RDKafkaErrorCode,
        producer::{BaseProducer, BaseRecord},
    };

    use super::*;
    use crate::{error::code_of, producer::owned};

    const LIMIT: usize = 20_000;

    /// Whether librdkafka takes it; no broker is needed for that.
    fn is_taken(client: &BaseProducer, event: EventParts<'_>) -> bool {
        let record = BaseRecord::to(event.topic)
            .key(event.key)
            .payload(event.value)
            .headers(owned(event.headers));
        match client.send(record) {
            Ok(()) => true,
            Err((error, _)) => {
                assert_eq!(code_of(&error), RDKafkaErrorCode::MessageSizeTooLarge);
                false
            }
        }
    }

    #[test]
    fn an_event_is_too_large_exactly_where_librdkafka_says_so() {
        let client: BaseProducer = ClientConfig::new()
            .set("bootstrap.servers", "127.0.0.1:1")
            .set("message.max.bytes", LIMIT.to_string())
            .create()
            .unwrap();
        let (short, middle, long) = (vec![b'h'; 63], vec![b'h'; 64], vec![b'h'; 8_192]);
        let headers: [&[(&str, &[u8])]; 5] = [
            &[],
            &[("metrics_meta", b"")],
            &[("metrics_meta", &short), ("stream_options", &middle)],
            &[("metrics_meta", &long)],
            &[("metrics_meta", &long[..8_191]), ("stream_options", &long[..127])],
        ];
        for headers in headers {
            for key in [&b""[..], &[b'k'; 36]] {
                // around the border as a reader would count it
                let texts = headers.iter().map(|(name, value)| name.len() + value.len());
                let border = LIMIT - OVERHEAD - key.len() - texts.sum::<usize>();
                let lengths = border - 20..border + 20;
                let answers: Vec<bool> = lengths
                    .map(|length| {
                        let value = vec![b'v'; length];
                        let event = EventParts { topic: "t", key, headers, value: &value };
                        let is_taken = is_taken(&client, event);
                        assert_eq!(SizeLimit(LIMIT).check(event).is_ok(), is_taken, "{length}");
                        is_taken
                    })
                    .collect();
                assert!(answers[0] && !answers[answers.len() - 1], "{answers:?}");
            }
        }
    }
}
