//! What the parts of the service share, and what of it requests get to see.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result};
use appbase::auth::TokenAuth;
use eventslog::EventsLog;
use kafkabase::{AckMode, AckProducer, Admin, ConfirmedProducer, ProducerMetrics, TopicSettings};
use loader::{LoaderStatus, Pauses, PausesConfig, Stats};
use tokio::sync::{Semaphore, watch};
use tracing::warn;

use super::{CLIENT_ID, PRODUCE_TIMEOUT, targets::open_targets};
use crate::{
    config::Config,
    destinations::{Configuration, ConfigurationStatus, Destinations, Targets},
    failed_events::FailedEvents,
    intake::{
        bulk_permits::{BulkLimits, BulkPermits},
        spool,
        table_names::TableNames,
        table_topics::TableTopics,
    },
    metrics,
    state::{
        AdminState, AppState, BodiesFor, BulkState, IntakeState, ObserveState, Pieces, ProbesState,
        TestState,
    },
    topics::{Topics, pauses_topic},
};

/// The longest an administrative call may take; the original's second is too short for a
/// coordinator's move.
const ADMIN_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of a configuration that is tried: certificates are its largest part.
const LARGEST_CONFIGURATION: usize = 1 << 20;
/// The longest that another service may take to answer.
const HTTP_TIMEOUT: Duration = Duration::from_secs(30);
/// Requests that read the events log at a time; more wait.
const READERS_AT_A_TIME: usize = 2;
/// Destinations that `/test` tries at a time; more wait.
const TESTS_AT_A_TIME: usize = 16;
/// Looks at the cluster that may fail in a row before the service is not ready.
const MISSED_LOOKS: u32 = 10;

/// Handles of what is opened before anything starts.
pub(super) struct Shared {
    pub(super) auth: Arc<TokenAuth>,
    pub(super) admin: Admin,
    pub(super) destinations: Arc<Destinations>,
    pub(super) configuration: watch::Receiver<ConfigurationStatus>,
    pub(super) topics: Arc<Topics>,
    pub(super) producer: AckProducer,
    pub(super) targets: Arc<Targets>,
    pub(super) pauses: Arc<Pauses>,
    pub(super) stats: Arc<Stats>,
    pub(super) events_log: EventsLog,
}

impl Shared {
    /// Opens all of it. Only the spool's folder is touched: nothing is connected yet. Fails where
    /// a setting or the folder is not usable.
    pub(super) fn open(
        config: &Config,
        auth: Arc<TokenAuth>,
        configuration: &Configuration,
        events_log: EventsLog,
    ) -> Result<Shared> {
        let destinations = configuration.destinations();
        let client = config.kafka.client_settings(CLIENT_ID);
        let admin = Admin::new(&client, ADMIN_TIMEOUT).context("Kafka's settings")?;
        let topics = Arc::new(Topics::new(
            admin.clone(),
            &config.kafka,
            config.server.topics_per_destination as usize,
            destinations.clone(),
        ));
        let producer = open_producer(config, topics.clone())?;
        let pauses = Arc::new(open_pauses(config, admin.clone(), &topics));
        let targets = open_targets(config, destinations.clone());
        let prefix = &config.kafka.kafka_topic_prefix;
        let stats = Arc::new(Stats::new(admin.clone(), topics.view(), prefix, targets.clone()));
        let configuration = configuration.status();
        Ok(Shared {
            auth,
            admin,
            destinations,
            configuration,
            topics,
            producer,
            targets,
            pauses,
            stats,
            events_log,
        })
    }

    /// What handlers extract; `loader` says how the loader does.
    pub(super) fn state(
        &self,
        config: &Config,
        loader: watch::Receiver<LoaderStatus>,
    ) -> Result<AppState> {
        let topic_prefix = &config.kafka.kafka_topic_prefix;
        let intake = IntakeState {
            destinations: self.destinations.clone(),
            topics: self.topics.clone(),
            tables: TableTopics::default(),
            producer: self.producer.clone(),
            topic_prefix: topic_prefix.clone(),
            body_limits: config.app.body_limits(config.kafka.producer_message_max_bytes()),
            topic_wait: config.kafka.producer_wait_for_delivery_ms,
        };
        let bulk = BulkState {
            destinations: self.destinations.clone(),
            targets: self.targets.clone(),
            pauses: self.pauses.clone(),
            permits: BulkPermits::new(BulkLimits {
                calls: config.server.bulk_max_requests as usize,
                waiting: config.server.bulk_max_waiting as usize,
                memory: (config.server.bulk_memory_limit_mb as usize) << 20,
                disk: u64::from(config.server.bulk_disk_limit_mb) << 20,
                folder: std::env::temp_dir(),
                least_pace: u64::from(config.server.bulk_min_bytes_per_sec),
            }),
            table_names: TableNames::new(config.server.topics_per_destination as usize),
            events_log: self.events_log.clone(),
        };
        let failed_events = FailedEvents::new(
            config.kafka.client_settings(CLIENT_ID),
            self.admin.clone(),
            config.kafka.kafka_destinations_dead_letter_topic_name.clone(),
            config.loader.loader_stall_timeout_sec,
        );
        let admin = AdminState {
            destinations: self.destinations.clone(),
            targets: self.targets.clone(),
            pauses: self.pauses.clone(),
            failed_events,
            topic_prefix: topic_prefix.clone(),
        };
        let probes = ProbesState {
            destinations: self.destinations.clone(),
            configuration: self.configuration.clone(),
            topics: self.topics.clone(),
            producer: self.producer.clone(),
            loader,
            pauses: self.pauses.clone(),
            stats: self.stats.clone(),
            topics_age_limit: config.server.topic_manager_refresh_period_sec * MISSED_LOOKS,
            producer_queue_limit: config.kafka.producer_queue_threshold(),
        };
        let http = reqwest::Client::builder().timeout(HTTP_TIMEOUT).build();
        let observe = ObserveState {
            destinations: self.destinations.clone(),
            stats: self.stats.clone(),
            pauses: self.pauses.clone(),
            events_log: self.events_log.clone(),
            readers: Semaphore::new(READERS_AT_A_TIME),
            http: http.context("HTTP client")?,
            prometheus_url: config.server.prometheus_url.clone(),
        };
        Ok(AppState::new(Pieces {
            auth: self.auth.clone(),
            bodies_for: BodiesFor(config.server.event_bodies_for),
            intake: Arc::new(intake),
            bulk: Arc::new(bulk),
            test: Arc::new(TestState {
                body_limits: config.app.body_limits(LARGEST_CONFIGURATION),
                permits: Semaphore::new(TESTS_AT_A_TIME),
            }),
            admin: Arc::new(admin),
            probes: Arc::new(probes),
            observe: Arc::new(observe),
        }))
    }
}

/// The producer of intake, with the spool that the settings name.
fn open_producer(config: &Config, topics: Arc<Topics>) -> Result<AckProducer> {
    let counters = ProducerMetrics {
        messages: metrics::PRODUCER_MESSAGES.clone(),
        rebuilt: metrics::PRODUCER_REBUILDS.clone(),
    };
    let spool = spool::open(&config.kafka, topics)?;
    let producer =
        AckProducer::new(&config.kafka, CLIENT_ID, counters, spool).context("Kafka's settings")?;
    if producer.mode() == AckMode::Async {
        warn!("ACK_MODE=async: an event is answered before Kafka has it, and a crash loses it");
    }
    Ok(producer)
}

fn open_pauses(config: &Config, admin: Admin, topics: &Arc<Topics>) -> Pauses {
    let kafka = config.kafka.clone();
    let pauses = PausesConfig {
        topic: pauses_topic(&config.kafka.kafka_topic_prefix),
        settings: TopicSettings {
            partitions: 1,
            replication_factor: config.kafka.kafka_topic_replication_factor,
            entries: vec![("cleanup.policy", "compact".to_owned())],
        },
        client: config.kafka.client_settings(CLIENT_ID),
        producer: Box::new(move || ConfirmedProducer::new(&kafka, CLIENT_ID, PRODUCE_TIMEOUT)),
    };
    Pauses::new(pauses, admin, topics.view())
}
