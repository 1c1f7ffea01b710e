//! Servers of the run's own and two bulkerapps that share the topics, each of which can be broken.

use std::{
    collections::HashSet,
    path::PathBuf,
    sync::{Arc, Mutex as Lock},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;
use testkit::{
    Database, Kafka,
    native::{self, OwnKafka, OwnPostgres, OwnRedis},
};
use tokio::{sync::Mutex, task::JoinSet, time::Instant};

use crate::{
    app::Setup,
    clock::{self, Clock},
    customer::{self, Deed},
    disk::Disk,
    faults::{Fault, Harm, Part},
    instance::{Instance, SpoolHealth},
    tables::{self, PASSWORD, ROLE, Table},
};

/// As often as an event comes back before it is a dead letter.
const RETRY_COUNT: &str = "3";
/// Its shortest pause, in seconds, and how many longer ones there are; the seed decides.
const RETRY_PAUSE_SEC: u64 = 2;
const RETRY_PAUSES: u64 = 4;
/// Times that are far ahead reach the loader.
const KAFKA_PROPERTIES: &str = "log.message.timestamp.after.max.ms=9223372036854775807\n";
/// So that a spool is full after seconds without Kafka.
const SPOOL_MAX_MB: &str = "1";
/// The one broker has no replicas to wait for, only requests in its sockets.
const LOOKUP_WAIT_MS: &str = "3000";
const WAIT_FOR_DELIVERY_MS: &str = "300";
/// How long the deletion of a topic may take. An instance may make it anew at once.
const DELETED_WITHIN: Duration = Duration::from_secs(5);
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
    clocks: [Clock; 2],
    /// Tables that lost the values of their spare column.
    dropped: Lock<HashSet<Table>>,
    _folders: TempDir,
}

impl World {
    pub(crate) async fn start(seed: u64) -> Result<World> {
        let (own_kafka, own_postgres, own_redis) = tokio::try_join!(
            OwnKafka::start_with(KAFKA_PROPERTIES),
            OwnPostgres::start(),
            OwnRedis::start()
        )?;
        let (kafka, database) = (own_kafka.kafka(), own_postgres.database().await?);
        tables::create(&database).await?;
        let pause = RETRY_PAUSE_SEC + seed % RETRY_PAUSES;
        println!("chaos: refused events wait for {pause} s");
        let mut setup = Setup::new(&kafka, &database)
            .sharing_topics()
            .with_options(OPTIONS)
            .with("BULKER_MESSAGES_RETRY_COUNT", RETRY_COUNT)
            .with("BULKER_MESSAGES_RETRY_PAUSE_SEC", &pause.to_string())
            .with("BULKER_PRODUCER_WAIT_FOR_DELIVERY_MS", WAIT_FOR_DELIVERY_MS)
            .with("BULKER_SPOOL_MAX_MB", SPOOL_MAX_MB)
            .with("BULKER_SPOOL_LOOKUP_WAIT_MS", LOOKUP_WAIT_MS)
            .with("BULKER_REDIS_URL", own_redis.url());
        setup.user = ROLE.to_owned();
        setup.password = PASSWORD.to_owned();
        let folders = tempfile::tempdir()?;
        let clocks = [0, 1].map(|number| Clock::new(folders.path(), number));
        let disks = [Arc::new(Disk::default()), Arc::new(Disk::default())];
        let start = async |number: usize| {
            let folder = folders.path().join(number.to_string());
            let setup = setup.clone().with(clock::VARIABLE, &clocks[number].file());
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
            clocks,
            dropped: Lock::default(),
            _folders: folders,
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
                    // on a slow machine recovery takes its time, and must be good for something
                    let rested = well_since + fault.healthy / 2;
                    tokio::time::sleep_until((began + fault.at).max(rested)).await;
                    if began.elapsed() > length {
                        break; // the one before took long to recover from
                    }
                    let at = began.elapsed().as_secs_f64();
                    let is_done = world.inflict(&fault).await;
                    let is_done = is_done.with_context(|| format!("{fault}"))?;
                    count += usize::from(is_done);
                    let Fault { part, harm, .. } = fault;
                    let took = began.elapsed().as_secs_f64() - at;
                    let how = if is_done { "well again" } else { "in vain, over" };
                    println!("{at:6.1} s  {part:?} {harm:?}, {how} after {took:.1} s");
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

    /// Answers when it is over, and whether it happened: for some of it the parts must be there.
    async fn inflict(&self, fault: &Fault) -> Result<bool> {
        match fault.part {
            Part::FirstInstance => self.instances[0].lock().await.suffer(fault).await?,
            Part::SecondInstance => self.instances[1].lock().await.suffer(fault).await?,
            Part::Kafka => break_part(&self.own_kafka, fault).await?,
            Part::Postgres => break_part(&self.own_postgres, fault).await?,
            Part::Redis => break_part(&self.own_redis, fault).await?,
            Part::FirstDisk => fill_disk(&self.disks[0], fault).await?,
            Part::SecondDisk => fill_disk(&self.disks[1], fault).await?,
            Part::FirstClock => self.clocks[0].step(fault.clock_ahead())?,
            Part::SecondClock => self.clocks[1].step(fault.clock_ahead())?,
            Part::Shares => return Ok(self.delete_shares().await),
            Part::Table | Part::Rights => return self.act(fault).await,
        }
        Ok(true)
    }

    async fn act(&self, fault: &Fault) -> Result<bool> {
        let Harm::Done(deed) = fault.harm else {
            bail!("nothing that somebody does in the database");
        };
        if deed == Deed::Drop {
            let table = Table::pick(fault.chance);
            self.dropped.lock().expect("nobody panics while holding it").insert(table);
        }
        customer::act(&self.database, deed, fault.chance, fault.lasts).await
    }

    async fn delete_shares(&self) -> bool {
        let topic = format!("{}bulker-shares", self.setup.prefix);
        let deleted = tokio::time::timeout(DELETED_WITHIN, self.kafka.delete_topic(&topic));
        matches!(deleted.await, Ok(Ok(())))
    }

    /// Tables that lost the values of their spare column.
    pub(crate) fn dropped(&self) -> HashSet<Table> {
        self.dropped.lock().expect("nobody panics while holding it").clone()
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

    /// Keeps what the instances, Kafka and PostgreSQL wrote, and answers where it is.
    pub(crate) async fn keep_logs(&self, seed: u64) -> Result<PathBuf> {
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("chaos-{seed}"));
        std::fs::create_dir_all(&folder)?;
        for (number, instance) in self.instances.iter().enumerate() {
            let instance = instance.lock().await;
            let file = folder.join(format!("instance-{number}.log"));
            std::fs::write(file, instance.lines().join("\n"))?;
        }
        for (part, name) in [(&*self.own_kafka, "kafka.log"), (&*self.own_postgres, "postgres.log")]
        {
            std::fs::copy(part.log(), folder.join(name)).context("keep a server's log")?;
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
        _ => bail!("not for a server"),
    }
    tokio::time::sleep(fault.lasts).await;
    part.restart().await
}

async fn fill_disk(disk: &Disk, fault: &Fault) -> Result<()> {
    disk.limit_files(Some(fault.harm.largest_file().context("not for a disk")?)).await?;
    tokio::time::sleep(fault.lasts).await;
    disk.limit_files(None).await
}
