//! What handlers share, in the pieces that they need: a handler extracts one of them.
//!
//! Invariant: a request copies handles on the whole and on its piece, and nothing else.

use std::{sync::Arc, time::Duration};

use appbase::{
    auth::{Access, TokenAuth},
    http::BodyLimits,
};
use axum::extract::FromRef;
use eventslog::EventsLog;
use kafkabase::AckProducer;
use loader::{LoaderStatus, Pauses, Stats};
use tokio::sync::{Semaphore, watch};

use crate::{
    destinations::{ConfigurationStatus, Destinations, Targets},
    failed_events::FailedEvents,
    intake::{bulk_permits::BulkPermits, table_names::TableNames, table_topics::TableTopics},
    topics::Topics,
};

/// The state of the API's router: a handle on all pieces.
#[derive(Clone)]
pub struct AppState(Arc<Pieces>);

impl AppState {
    /// Shares the pieces.
    pub fn new(pieces: Pieces) -> AppState {
        AppState(Arc::new(pieces))
    }
}

/// All that handlers extract.
pub struct Pieces {
    /// Who may ask.
    pub auth: Arc<TokenAuth>,
    /// Who sees the bodies of events.
    pub bodies_for: BodiesFor,
    /// `/post`, `/profiles`
    pub intake: Arc<IntakeState>,
    /// `/bulk`
    pub bulk: Arc<BulkState>,
    /// `/test`
    pub test: Arc<TestState>,
    /// `/failed`, `/destinations/…`
    pub admin: Arc<AdminState>,
    /// `/ready`, `/health`
    pub probes: Arc<ProbesState>,
    /// `/stats`, `/metrics`, `/log`, `/events`, `/connections-metrics`
    pub observe: Arc<ObserveState>,
}

/// Who sees the bodies of events, and what the database said of them: those with this access, or
/// more.
#[derive(Debug, Clone, Copy)]
pub struct BodiesFor(pub Access);

/// What takes events to Kafka.
pub struct IntakeState {
    pub destinations: Arc<Destinations>,
    pub topics: Arc<Topics>,
    pub tables: TableTopics,
    pub producer: AckProducer,
    pub topic_prefix: String,
    /// Of an event.
    pub body_limits: BodyLimits,
    /// How long a request waits until its topic is made, where its event can go to the spool
    /// instead.
    pub topic_wait: Duration,
}

/// What takes the lines of a body straight to a table.
pub struct BulkState {
    pub destinations: Arc<Destinations>,
    /// Open destinations. A target's connections stay open while it is held.
    pub targets: Arc<Targets>,
    pub pauses: Arc<Pauses>,
    pub permits: BulkPermits,
    pub table_names: TableNames,
    pub events_log: EventsLog,
}

/// What tries destinations that are not configured.
pub struct TestState {
    /// Of a configuration.
    pub body_limits: BodyLimits,
    /// Of those that are tried at a time.
    pub permits: Semaphore,
}

/// What an administrator works on.
pub struct AdminState {
    pub destinations: Arc<Destinations>,
    /// Open destinations.
    pub targets: Arc<Targets>,
    pub pauses: Arc<Pauses>,
    pub failed_events: FailedEvents,
    pub topic_prefix: String,
}

/// What probes look at.
pub struct ProbesState {
    pub destinations: Arc<Destinations>,
    pub configuration: watch::Receiver<ConfigurationStatus>,
    pub topics: Arc<Topics>,
    pub producer: AckProducer,
    pub loader: watch::Receiver<LoaderStatus>,
    pub pauses: Arc<Pauses>,
    pub stats: Arc<Stats>,
    /// Age of the last look at the cluster above which no traffic is wanted.
    pub topics_age_limit: Duration,
    /// Events in the producer's queue above which no traffic is wanted.
    pub producer_queue_limit: usize,
}

/// What shows the way of events.
pub struct ObserveState {
    pub destinations: Arc<Destinations>,
    pub stats: Arc<Stats>,
    pub pauses: Arc<Pauses>,
    pub events_log: EventsLog,
    /// Of requests that read it at a time: each holds some MB.
    pub readers: Semaphore,
    pub http: reqwest::Client,
    /// Empty: there is none.
    pub prometheus_url: String,
}

impl FromRef<AppState> for Arc<TokenAuth> {
    fn from_ref(state: &AppState) -> Arc<TokenAuth> {
        state.0.auth.clone()
    }
}

impl FromRef<AppState> for BodiesFor {
    fn from_ref(state: &AppState) -> BodiesFor {
        state.0.bodies_for
    }
}

impl FromRef<AppState> for Arc<IntakeState> {
    fn from_ref(state: &AppState) -> Arc<IntakeState> {
        state.0.intake.clone()
    }
}

impl FromRef<AppState> for Arc<BulkState> {
    fn from_ref(state: &AppState) -> Arc<BulkState> {
        state.0.bulk.clone()
    }
}

impl FromRef<AppState> for Arc<TestState> {
    fn from_ref(state: &AppState) -> Arc<TestState> {
        state.0.test.clone()
    }
}

impl FromRef<AppState> for Arc<AdminState> {
    fn from_ref(state: &AppState) -> Arc<AdminState> {
        state.0.admin.clone()
    }
}

impl FromRef<AppState> for Arc<ProbesState> {
    fn from_ref(state: &AppState) -> Arc<ProbesState> {
        state.0.probes.clone()
    }
}

impl FromRef<AppState> for Arc<ObserveState> {
    fn from_ref(state: &AppState) -> Arc<ObserveState> {
        state.0.observe.clone()
    }
}

impl FromRef<AppState> for Arc<Stats> {
    fn from_ref(state: &AppState) -> Arc<Stats> {
        state.0.observe.stats.clone()
    }
}
