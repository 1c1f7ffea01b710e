//! What kinds of events there are.

/// What an event tells about. Names are those in keys and tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventType {
    /// A request that a site sent. Its actor is the site.
    Incoming,
    /// One message of a stream. Its actor is the destination.
    BulkerStream,
    /// One batch, or one call of `/bulk`. Its actor is the destination.
    BulkerBatch,
}

impl EventType {
    pub const ALL: [EventType; 3] =
        [EventType::Incoming, EventType::BulkerStream, EventType::BulkerBatch];

    pub const fn as_str(self) -> &'static str {
        match self {
            EventType::Incoming => "incoming",
            EventType::BulkerStream => "bulker_stream",
            EventType::BulkerBatch => "bulker_batch",
        }
    }
}

/// How an event went. `Error` is what readers can ask for alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    Info,
    Warn,
    Error,
    Debug,
}

impl Level {
    pub const fn as_str(self) -> &'static str {
        match self {
            Level::Info => "info",
            Level::Warn => "warn",
            Level::Error => "error",
            Level::Debug => "debug",
        }
    }
}
