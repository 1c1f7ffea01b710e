//! Servers of the run's own and two bulkerapps that share the topics, each of which can be broken.

use std::{os::unix::process::ExitStatusExt, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use testkit::{
    Database, Kafka,
    native::{self, OwnKafka, OwnPostgres, OwnRedis},
    proxy::{Event, PostgresProxy, Then},
};
use tokio::{sync::Mutex, task::JoinSet, time::Instant};

use crate::{
    app::{App, PATIENCE, Setup},
    faults::{Fault, Harm, Part},
};

/// As often as an event comes back, in a second or two each time, before it is a dead letter.
const RETRY_COUNT: &str = "3";
/// Between two faults of a part, however long the first took.
const WELL: Duration = Duration::from_secs(2);
/// How long an instance may take to its next load.
const COMMIT_WITHIN: Duration = Duration::from_secs(3);
const SIGTERM: i32 = 15;
const OPTIONS: &str = r#"mode: "batch", frequency: 0.0167, retryFrequency: 0.0167, batchSize: 500"#;

pub(crate) struct World {
    pub(crate) setup: Setup,
    pub(crate) kafka: Kafka,
    pub(crate) database: Database,
    pub(crate) ports: [u16; 2],
    instances: [Mutex<Instance>; 2],
    own_kafka: OwnKafka,
    own_postgres: OwnPostgres,
    own_redis: OwnRedis,
}

struct Instance {
    setup: Setup,
    /// Between the instance and PostgreSQL.
    proxy: PostgresProxy,
    app: App,
    /// What its processes wrote that have ended.
    log: Vec<String>,
}

impl Instance {
    async fn start(setup: &Setup, database: &Database) -> Result<Instance> {
        let proxy = PostgresProxy::start(database.host(), database.port()).await?;
        let setup = setup.clone().through(&proxy.host(), proxy.port());
        let app = setup.start().await?;
        Ok(Instance { setup, proxy, app, log: Vec::new() })
    }

    /// Kills it when its next load has committed, or after a while without a load.
    async fn kill_at_commit(&mut self) -> Result<()> {
        let kill = self.app.service.killer();
        self.proxy.on(Event::BeforeCommitAnswer, move |moment| {
            if moment.copied_bytes == 0 {
                return Then::Forward;
            }
            kill();
            Then::Cut
        });
        let killed = self.app.service.wait(COMMIT_WITHIN).await;
        self.proxy.clear();
        if killed.is_err() {
            self.app.service.kill9().await?;
        }
        Ok(())
    }

    fn lines(&self) -> Vec<String> {
        [self.log.clone(), self.app.service.lines()].concat()
    }
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
            .with("BULKER_REDIS_URL", own_redis.url());
        let first = Instance::start(&setup, &database).await?;
        let second = Instance::start(&setup, &database).await?;
        let ports = [first.app.port, second.app.port];
        let instances = [Mutex::new(first), Mutex::new(second)];
        Ok(World { setup, kafka, database, ports, instances, own_kafka, own_postgres, own_redis })
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
            Part::FirstInstance => self.break_instance(0, fault).await,
            Part::SecondInstance => self.break_instance(1, fault).await,
            Part::Kafka => break_part(&self.own_kafka, fault).await,
            Part::Postgres => break_part(&self.own_postgres, fault).await,
            Part::Redis => break_part(&self.own_redis, fault).await,
        }
    }

    async fn break_instance(&self, number: usize, fault: &Fault) -> Result<()> {
        let mut instance = self.instances[number].lock().await;
        let service = &mut instance.app.service;
        if let Ok(status) = service.wait(Duration::ZERO).await {
            bail!("it had ended by itself, with {status}");
        }
        match fault.harm {
            Harm::Frozen => {
                service.stop_process()?;
                tokio::time::sleep(fault.lasts).await;
                return service.continue_process();
            }
            Harm::Killed => service.kill9().await?,
            Harm::KilledAtCommit => instance.kill_at_commit().await?,
            Harm::Stopped => {
                let status = service.terminate(PATIENCE).await?;
                // one that was only just started dies of the signal
                let is_new = status.signal() == Some(SIGTERM);
                ensure!(status.success() || is_new, "ended with {status}");
            }
        }
        let lines = instance.app.service.lines();
        instance.log.extend(lines);
        tokio::time::sleep(fault.lasts).await;
        instance.app = instance.setup.spawn_on(self.ports[number])?; // whatever is there of the other parts
        Ok(())
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

    /// Stops both, as an orchestrator does. No part of them may have panicked on the way.
    pub(crate) async fn stop(&self) -> Result<()> {
        for instance in &self.instances {
            let mut instance = instance.lock().await;
            let status = instance.app.service.terminate(PATIENCE).await?;
            ensure!(status.success(), "ended with {status}");
            let lines = instance.lines();
            let panic = lines.iter().find(|line| line.contains("panicked at"));
            ensure!(panic.is_none(), "{panic:?}");
        }
        Ok(())
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
        Harm::Killed | Harm::KilledAtCommit => part.kill9().await?,
        Harm::Stopped => part.shut_down().await?,
    }
    tokio::time::sleep(fault.lasts).await;
    part.restart().await
}
