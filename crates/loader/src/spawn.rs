//! Puts the loader together and keeps it apart from intake: Kafka may be away when the service
//! starts.

use std::{sync::Arc, time::Duration};

use kafkabase::{
    Admin, ClientSettings, ClientSetupError, ConfirmedProducer, Fetcher, FetcherSettings,
};
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::{
    batch::memory::MemoryBudget,
    clock::Clock,
    observe::reporter::Reporter,
    pauses::Pauses,
    retry::refused_producer::{RefusalConfig, RefusedProducer},
    run::context::RunContext,
    scheduler::{
        LoaderSettings, Scheduler, owned_topics::OwnedTopics, ownership::Ownership,
        status::LoaderStatus, tasks::Fetches,
    },
};

/// How long a broker may hold a request for what is appended to topics that are quiet.
const TAIL_WAIT: Duration = Duration::from_millis(500);
/// Pause between two questions for the cluster's id.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// What the loader needs of Kafka and of memory.
#[derive(Clone)]
pub struct LoadingConfig {
    /// Brokers and security.
    pub client: ClientSettings,
    /// How records are fetched.
    pub fetcher: FetcherSettings,
    /// Asks the cluster.
    pub admin: Admin,
    /// The time of day.
    pub clock: Clock,
    /// Bytes of parsed events, over all runs.
    pub memory_limit: usize,
    /// How often a long run repeats its claim of the group.
    pub claim_every: Duration,
    /// How long nothing may arrive before a read counts as stuck.
    pub stall_after: Duration,
    /// Records of a retry topic that are moved at a time.
    pub retry_batch_size: usize,
    /// When topics run, and when one counts as stuck.
    pub loader: LoaderSettings,
    /// Sends refused events away.
    pub producer: ConfirmedProducer,
    /// How often refused events are tried, and where they go.
    pub refusals: RefusalConfig,
    /// Which topics are ours.
    pub ownership: Arc<Ownership>,
    /// The service has to watch them ([`Pauses::watch`]).
    pub pauses: Arc<Pauses>,
    /// What loads are reported to.
    pub reporter: Arc<Reporter>,
}

/// A loader at work.
pub struct Loading {
    /// What it says of itself, at each sweep and at each change.
    pub status: watch::Receiver<LoaderStatus>,
    /// Ends some time after `stop`, once the batches in hand are done.
    pub task: JoinHandle<()>,
}

/// Starts the loader as a task. Clients are made here, so that bad settings end the start.
pub fn spawn(
    config: LoadingConfig,
    source: Arc<OwnedTopics>,
    stop: CancellationToken,
) -> Result<Loading, ClientSetupError> {
    let (sender, status) = watch::channel(LoaderStatus::default());
    let admin = config.admin.clone();
    let fetcher = Arc::new(Fetcher::new(&config.client, &config.fetcher)?);
    // brokers answer as soon as something is there; until then they may hold the request
    let tail_settings = config.fetcher.of_tails(TAIL_WAIT);
    let tail_fetcher = Arc::new(Fetcher::new(&config.client, &tail_settings)?);
    let refused = RefusedProducer::new(
        config.producer.clone(),
        admin.clone(),
        config.refusals.clone(),
        config.clock.clone(),
    );
    let task = tokio::spawn(async move {
        let Some(cluster_id) = cluster_id(&admin, &stop).await else {
            return;
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = config.pauses.known() => {}
        }
        let keeping = {
            let (ownership, admin) = (config.ownership.clone(), admin.clone());
            let (client, stop) = (config.client.clone(), stop.clone());
            tokio::spawn(async move { ownership.keep(&admin, &client, &stop).await })
        };
        let context = RunContext {
            admin,
            fetcher,
            tail_fetcher,
            cluster_id,
            clock: config.clock,
            memory: MemoryBudget::new(config.memory_limit),
            refused: Arc::new(refused),
            reporter: config.reporter,
            claim_every: config.claim_every,
            stall_after: config.stall_after,
            retry_batch_size: config.retry_batch_size.max(1),
            topic_prefix: config.refusals.topic_prefix.clone(),
            pauses: config.pauses,
            targets: source.targets(),
        };
        let rebuild = {
            let (client, runs, tails) =
                (config.client.clone(), config.fetcher.clone(), tail_settings);
            move |fetches| {
                let settings = if fetches == Fetches::Runs { &runs } else { &tails };
                Fetcher::new(&client, settings).ok()
            }
        };
        Scheduler::new(context, source, config.loader, sender, rebuild).run(stop).await;
        keeping.abort();
        config.ownership.leave().await;
    });
    Ok(Loading { status, task })
}

/// Asks until a broker tells. `None`: stopped before.
async fn cluster_id(admin: &Admin, stop: &CancellationToken) -> Option<String> {
    loop {
        match admin.cluster_id().await {
            Ok(cluster_id) => return Some(cluster_id),
            Err(error) => warn!(error = %error, "Kafka is away; loading starts once it is there"),
        }
        tokio::select! {
            () = stop.cancelled() => return None,
            () = tokio::time::sleep(ASK_AGAIN_AFTER) => {}
        }
    }
}
