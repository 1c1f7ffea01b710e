//! Servers of the run's own and two bulkerapps that share the topics, each of which can be broken.

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;
use testkit::{
    Database, Kafka,
    native::{self, OwnKafka, OwnPostgres, OwnRedis},
};
use tokio::{sync::Mutex, task::JoinSet, time::Instant};

use crate::{
    app::Setup,
    disk::Disk,
    faults::{Fault, Harm, Part},
    instance::{Instance, SpoolHealth},
};

/// As often as an event comes back, in a second or two each time, before it is a dead letter.
const RETRY_COUNT: &str = "3";
/// So that a spool is full after seconds without Kafka.
const SPOOL_MAX_MB: &str = "1";
/// The one broker has no replicas to wait for, only requests in its sockets.
const LOOKUP_WAIT_MS: &str = "3000";
const WAIT_FOR_DELIVERY_MS: &str = "300";
/// Between two faults of a part, however long the first took.
const WELL: Duration = Duration::from_secs(2);
const OPTIONS: &str = r#"mode: "batch", frequency: 0.0167, retryFrequency: 0.0167, batchSize: 500"#;

pub(crate) struct World {
    pub(crate) setup: Setup,
    pub(crate) kafka: Kafka,
    pub(crate) database: Database,
    pub(crate) ports: [u16; 2],
    pub(crate) instances: [Mutex<Instance>; 2],
    pub(crate) disks: [Arc<Disk>; 2],
    pub(crate) own_kafka: OwnKafka,
    own_postgres: OwnPostgres,
    own_redis: OwnRedis,
    _spools: TempDir,
}

impl World {
    pub(crate) async fn start() -> Result<World> {
        let (own_kafka, own_postgres, own_redis) =
            tokio::try_join!(OwnKafka::start(), OwnPostgres::start(), OwnRedis::start())?;
        let (kafka, database) = (own_kafka.kafka(), own_postgres.database().await?);
        let setup = Setup::new(&kafka, &database)
            .sharing_topics()
            .with_options(OPTIONS)
            .with("BULKER_MESSAGES_RETRY_COUNT", RETRY_COUNT)
            .with("BULKER_MESSAGES_RETRY_BACKOFF_BASE", "0")
            .with("BULKER_PRODUCER_WAIT_FOR_DELIVERY_MS", WAIT_FOR_DELIVERY_MS)
            .with("BULKER_SPOOL_MAX_MB", SPOOL_MAX_MB)
            .with("BULKER_SPOOL_LOOKUP_WAIT_MS", LOOKUP_WAIT_MS)
            .with("BULKER_REDIS_URL", own_redis.url());
        let spools = tempfile::tempdir()?;
        let disks = [Arc::new(Disk::default()), Arc::new(Disk::default())];
        let start = async |number: usize| {
            let folder = spools.path().join(number.to_string());
            Instance::start(&setup, &database, &folder, disks[number].clone()).await
        };
        let (first, second) = (start(0).await?, start(1).await?);
        let ports = [first.port(), second.port()];
        let instances = [Mutex::new(first), Mutex::new(second)];
        Ok(World {
            setup,
            kafka,
            database,
            ports,
            instances,
            disks,
            own_kafka,
            own_postgres,
            own_redis,
            _spools: spools,
        })
    }

    /// Breaks the parts as planned; answers when all faults are over.
    pub(crate) async fn suffer(
        self: &Arc<Self>,
        plan: Vec<Vec<Fault>>,
        began: Instant,
        length: Duration,
    ) -> Result<usize> {
        let mut parts = JoinSet::new();
        for faults in plan {
            let world = self.clone();
            parts.spawn(async move {
                let mut count = 0;
                let mut well_since = began;
                for fault in faults {
                    tokio::time::sleep_until((began + fault.at).max(well_since + WELL)).await;
                    if began.elapsed() > length {
                        break; // the one before took long to recover from
                    }
                    let at = began.elapsed().as_secs_f64();
                    world.inflict(&fault).await.with_context(|| format!("{fault}"))?;
                    count += 1;
                    let Fault { part, harm, .. } = fault;
                    let took = began.elapsed().as_secs_f64() - at;
                    println!("{at:6.1} s  {part:?} {harm:?}, well again after {took:.1} s");
                    well_since = Instant::now();
                }
                anyhow::Ok(count)
            });
        }
        let mut count = 0;
        while let Some(of_part) = parts.join_next().await {
            count += of_part??;
        }
        Ok(count)
    }

    async fn inflict(&self, fault: &Fault) -> Result<()> {
        match fault.part {
            Part::FirstInstance => self.instances[0].lock().await.suffer(fault).await,
            Part::SecondInstance => self.instances[1].lock().await.suffer(fault).await,
            Part::Kafka => break_part(&self.own_kafka, fault).await,
            Part::Postgres => break_part(&self.own_postgres, fault).await,
            Part::Redis => break_part(&self.own_redis, fault).await,
            Part::FirstDisk => fill_disk(&self.disks[0], fault).await,
            Part::SecondDisk => fill_disk(&self.disks[1], fault).await,
        }
    }

    /// Both instances take traffic.
    pub(crate) async fn is_ready(&self, limit: Duration) -> Result<()> {
        for (instance, port) in self.instances.iter().zip(self.ports) {
            let mut instance = instance.lock().await;
            instance.app.service.wait_for_ok(port, "/ready", limit).await?;
        }
        Ok(())
    }

    /// What both say of themselves.
    pub(crate) async fn health(&self) -> String {
        let mut health = String::new();
        for instance in &self.instances {
            let instance = instance.lock().await;
            let answer = instance.app.ask("/health").await;
            health += &format!("{}\n", answer.map_or_else(|error| error.to_string(), |a| a.body));
        }
        health
    }

    /// What an instance says of its spool.
    pub(crate) async fn spool(&self, number: usize) -> Result<SpoolHealth> {
        self.instances[number].lock().await.spool().await
    }

    /// Stops both, and answers how many events were in their spools.
    pub(crate) async fn stop(&self) -> Result<u64> {
        let mut spooled = 0;
        for instance in &self.instances {
            let mut instance = instance.lock().await;
            instance.stop().await?;
            spooled += instance.spooled();
        }
        Ok(spooled)
    }

    /// Writes what the instances wrote, and answers where it is.
    pub(crate) async fn keep_logs(&self, seed: u64) -> Result<PathBuf> {
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("chaos-{seed}"));
        std::fs::create_dir_all(&folder)?;
        for (number, instance) in self.instances.iter().enumerate() {
            let instance = instance.lock().await;
            let file = folder.join(format!("instance-{number}.log"));
            std::fs::write(file, instance.lines().join("\n"))?;
        }
        Ok(folder)
    }
}

async fn break_part(part: &native::Part, fault: &Fault) -> Result<()> {
    match fault.harm {
        Harm::Frozen => {
            part.stop_process()?;
            tokio::time::sleep(fault.lasts).await;
            return part.continue_process();
        }
        Harm::Killed => part.kill9().await?,
        Harm::Stopped => part.shut_down().await?,
        Harm::KilledAtCommit | Harm::Full | Harm::Torn => bail!("not for a server"),
    }
    tokio::time::sleep(fault.lasts).await;
    part.restart().await
}

async fn fill_disk(disk: &Disk, fault: &Fault) -> Result<()> {
    disk.limit_files(Some(fault.harm.largest_file().context("not for a disk")?)).await?;
    tokio::time::sleep(fault.lasts).await;
    disk.limit_files(None).await
}
