//! Every record header that the product reads or writes, spelled once.
//!
//! Names and formats that deployments of the original share are the original's; those that start
//! with `bulker_` are ours, and the original passes them on unread.

use std::{ffi::CStr, fmt};

/// The name of a record header. Holds the text both as Rust and as librdkafka want it, so that
/// looking a header up allocates nothing.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct HeaderName {
    text: &'static str,
    c_text: &'static CStr,
}

impl HeaderName {
    /// A name, at compile time: one that is no UTF-8 does not compile as a constant.
    pub const fn new(c_text: &'static CStr) -> HeaderName {
        match c_text.to_str() {
            Ok(text) => HeaderName { text, c_text },
            Err(_) => panic!("header names are UTF-8"),
        }
    }

    /// The name as it stands in a record, for what is written or compared.
    pub const fn as_str(self) -> &'static str {
        self.text
    }

    /// The name as librdkafka takes it.
    pub const fn as_c_str(self) -> &'static CStr {
        self.c_text
    }
}

impl fmt::Debug for HeaderName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text)
    }
}

/// Written by the intake from a request's `metricsMeta`: JSON that says whom the event is counted
/// for. The loader hands it on, unread, with its counts of events.
pub const METRICS_META: HeaderName = HeaderName::new(c"metrics_meta");

/// Written by the intake from a request's `streamOptions`, absent without them: a JSON object of
/// options that the loader lays over the destination's own for this event.
pub const STREAM_OPTIONS: HeaderName = HeaderName::new(c"stream_options");

/// Written by the loader with a refused event: why it was refused, the destination's words, cut to
/// 256 code points. Read where failed events are listed.
pub const ERROR: HeaderName = HeaderName::new(c"error");

/// Written by the loader with a refused event: the name of the topic that it came from and goes
/// back to. Read by the retry run and where failed events are listed.
pub const ORIGINAL_TOPIC: HeaderName = HeaderName::new(c"original_topic");

/// Written by the loader with a refused event, and raised by the retry run: how often the event was
/// sent back to its topic, in decimal digits. An event that has none was never refused.
pub const RETRIES: HeaderName = HeaderName::new(c"retries");

/// Written by the loader with a refused event: when it is due again, RFC 3339 with microseconds,
/// UTC. Dead letters have none that counts.
pub const RETRY_TIME: HeaderName = HeaderName::new(c"retry_time");

/// Ours. Written by the loader with a refused event: where the event was read first, as a JSON
/// object of cluster, topic, topic id, partition and offset; the same in every copy of the event.
/// A record that has it is a returning copy.
pub const ORIGIN: HeaderName = HeaderName::new(c"bulker_origin");

/// Ours. Written by the loader with a refused event whose key may be shared by others: the event's
/// own key, which comes back when the retry run returns it to its topic.
pub const KEY: HeaderName = HeaderName::new(c"bulker_key");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_deployed_topics_hold() {
        let names = [
            (METRICS_META, "metrics_meta"),
            (STREAM_OPTIONS, "stream_options"),
            (ERROR, "error"),
            (ORIGINAL_TOPIC, "original_topic"),
            (RETRIES, "retries"),
            (RETRY_TIME, "retry_time"),
            (ORIGIN, "bulker_origin"),
            (KEY, "bulker_key"),
        ];
        for (name, text) in names {
            assert_eq!(name.as_str(), text);
            assert_eq!(name.as_c_str().to_bytes(), text.as_bytes());
        }
    }
}
