//! The parts that the benchmarks run on, and bulkerapp as a child process.

use std::{
    collections::HashSet,
    path::PathBuf,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use rdkafka::{
    ClientConfig, ClientContext, TopicPartitionList,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer},
    metadata::MetadataTopic,
    producer::{BaseRecord, DeliveryResult, Producer, ProducerContext, ThreadedProducer},
};
use sqlx::{Connection, PgConnection, Row, postgres::PgConnectOptions};

use crate::{events::write_event, process::Process};

pub(crate) const TOKEN: &str = "bench-token";
/// Topics that the brokers are asked to make at a time.
const TOPICS_AT_ONCE: usize = 200;
const TIMEOUT: Duration = Duration::from_secs(10);
/// Until all topics are known and written to.
const DEADLINE: Duration = Duration::from_secs(300);

/// Addresses of the parts and the program under test.
pub(crate) struct Parts {
    pub(crate) kafka: String,
    pub(crate) postgres_url: String,
    bulkerapp: PathBuf,
}

impl Parts {
    pub(crate) fn from_environment(bulkerapp: PathBuf) -> Result<Parts> {
        let variable = |name: &str| {
            std::env::var(name).with_context(|| format!("{name} is not set; run `make bench`"))
        };
        ensure!(bulkerapp.exists(), "{} is missing; run `make bench`", bulkerapp.display());
        Ok(Parts {
            kafka: variable("TESTKIT_KAFKA")?,
            postgres_url: variable("TESTKIT_POSTGRES_URL")?,
            bulkerapp,
        })
    }

    pub(crate) async fn database(&self) -> Result<PgConnection> {
        PgConnection::connect(&self.postgres_url).await.context("connect to PostgreSQL")
    }

    /// The `credentials` of a destination that loads into schema `public`.
    pub(crate) fn credentials(&self) -> Result<serde_json::Value> {
        let url: PgConnectOptions = self.postgres_url.parse()?;
        // the URL's password is not readable from the parsed options
        let password = self.postgres_url.split_once("://").map_or("", |(_, rest)| rest);
        let password = password.split_once('@').map_or("", |(user, _)| user);
        let password = password.split_once(':').map_or("", |(_, password)| password);
        Ok(serde_json::json!({
            "host": url.get_host(),
            "port": url.get_port(),
            "database": url.get_database().unwrap_or("postgres"),
            "username": url.get_username(),
            "password": password,
            "defaultSchema": "public",
            "sslMode": "disable",
        }))
    }

    /// Runs a script with psql and returns how long it took.
    pub(crate) fn psql(&self, script: &str) -> Result<Duration> {
        let started = Instant::now();
        let output = Command::new("psql")
            .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", &self.postgres_url, "-c", script])
            .stdin(Stdio::null())
            .output()
            .context("start psql")?;
        if !output.status.success() {
            bail!("psql failed: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(started.elapsed())
    }

    /// Starts bulkerapp with one destination and the given options (hjson); `loads`: topics are
    /// loaded, too.
    pub(crate) fn bulkerapp(
        &self,
        destination: &str,
        options: &str,
        port: u16,
        loads: bool,
    ) -> Result<Process> {
        let credentials = self.credentials()?;
        let mut command = Command::new(&self.bulkerapp);
        command
            .env_remove("RUST_LOG")
            .env("BULKER_HTTP_PORT", port.to_string())
            .env("BULKER_METRICS_PORT", testkit::free_port()?.to_string())
            .env("BULKER_RAW_AUTH_TOKENS", TOKEN)
            .env("BULKER_INSTANCE_ID", "bench")
            .env("BULKER_KAFKA_BOOTSTRAP_SERVERS", &self.kafka)
            .env("BULKER_ENABLE_CONSUMERS", loads.to_string())
            .env("BULKER_BATCH_RUNNER_DEFAULT_PERIOD_SEC", "1")
            .env(
                format!("BULKER_DESTINATION_{}", destination.to_uppercase()),
                format!(
                    r#"{{id: "{destination}", type: "postgres", credentials: {credentials}, options: {{{options}}}}}"#
                ),
            )
            .stderr(Stdio::inherit());
        Process::start(command)
    }

    /// Makes a topic of one partition.
    pub(crate) async fn create_topic(&self, topic: &str) -> Result<()> {
        self.create_topics(&[topic.to_owned()]).await
    }

    /// Makes topics of one partition each.
    pub(crate) async fn create_topics(&self, topics: &[String]) -> Result<()> {
        let admin: AdminClient<DefaultClientContext> = self.client().create()?;
        for group in topics.chunks(TOPICS_AT_ONCE) {
            let new: Vec<_> = group
                .iter()
                .map(|topic| NewTopic::new(topic, 1, TopicReplication::Fixed(1)))
                .collect();
            for topic in admin.create_topics(&new, &AdminOptions::new()).await? {
                topic.map_err(|(topic, code)| anyhow::anyhow!("create {topic}: {code}"))?;
            }
        }
        Ok(())
    }

    /// Puts one event into each of the topics, once the brokers know them all.
    pub(crate) fn one_event_each(&self, topics: &[String]) -> Result<()> {
        let acknowledged = Arc::new(AtomicUsize::new(0));
        let context = Acknowledged(acknowledged.clone());
        let producer: ThreadedProducer<_> =
            self.client().set("acks", "all").create_with_context(context)?;
        let started = Instant::now();
        while known_topics(&producer, topics)? < topics.len() {
            ensure!(started.elapsed() < DEADLINE, "the brokers do not know all topics");
            std::thread::sleep(Duration::from_millis(500)); // polling: metadata has no event
        }
        let mut event = String::new();
        for (number, topic) in (0..).zip(topics) {
            write_event(&mut event, number);
            let record = BaseRecord::<str, str>::to(topic).key("k").payload(&event).partition(0);
            producer.send(record).map_err(|(error, _)| error).context("produce")?;
        }
        producer.flush(DEADLINE)?;
        let written = acknowledged.load(Ordering::Relaxed);
        ensure!(written == topics.len(), "{written} of {} events written", topics.len());
        Ok(())
    }

    /// Deletes a topic, so that the next benchmark finds room.
    pub(crate) async fn delete_topic(&self, topic: &str) -> Result<()> {
        self.delete_topics(&[topic.to_owned()]).await
    }

    pub(crate) async fn delete_topics(&self, topics: &[String]) -> Result<()> {
        let admin: AdminClient<DefaultClientContext> = self.client().create()?;
        for group in topics.chunks(TOPICS_AT_ONCE) {
            let names: Vec<_> = group.iter().map(String::as_str).collect();
            admin.delete_topics(&names, &AdminOptions::new()).await?;
        }
        Ok(())
    }

    /// Fills a topic with `count` events; `key_of` maps an event's number to the number it is
    /// written with. Returns the bytes of keys and values.
    pub(crate) fn fill_topic(
        &self,
        topic: &str,
        count: u64,
        compression: &str,
        key_of: impl Fn(u64) -> u64,
    ) -> Result<u64> {
        let producer: ThreadedProducer<_> = self
            .client()
            .set("acks", "all")
            .set("linger.ms", "50")
            .set("batch.num.messages", "10000")
            .set("queue.buffering.max.messages", "200000")
            .set("compression.type", compression)
            .create()?;
        let mut bytes = 0;
        let mut event = String::new();
        for number in 0..count {
            write_event(&mut event, key_of(number));
            let key = number.to_string();
            bytes += (key.len() + event.len()) as u64;
            let mut record =
                BaseRecord::<str, str>::to(topic).key(&key).payload(&event).partition(0);
            while let Err((error, returned)) = producer.send(record) {
                if error.rdkafka_error_code() != Some(rdkafka::types::RDKafkaErrorCode::QueueFull) {
                    return Err(error).context("produce");
                }
                std::thread::sleep(Duration::from_millis(5)); // the queue drains meanwhile
                record = returned;
            }
        }
        producer.flush(Duration::from_secs(120))?;
        Ok(bytes)
    }

    /// How many records a topic of one partition holds.
    pub(crate) fn count_records(&self, topic: &str) -> Result<i64> {
        let consumer: BaseConsumer = self.client().set("group.id", "bench").create()?;
        let mut wanted = TopicPartitionList::new();
        wanted.add_partition(topic, 0);
        let (low, high) = consumer.fetch_watermarks(topic, 0, TIMEOUT)?;
        Ok(high - low)
    }

    fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.kafka);
        config
    }
}

/// The first column of the first row, as a number; `None` when there is none (yet).
pub(crate) async fn number(database: &mut PgConnection, sql: &'static str) -> Option<i64> {
    let row = sqlx::query(sql).fetch_optional(database).await.ok()??;
    row.try_get(0).ok()
}

/// How many of `topics` have a leader.
fn known_topics(client: &ThreadedProducer<Acknowledged>, topics: &[String]) -> Result<usize> {
    let metadata = client.client().fetch_metadata(None, TIMEOUT)?;
    let wanted: HashSet<_> = topics.iter().map(String::as_str).collect();
    let has_leader = |topic: &&MetadataTopic| {
        topic.error().is_none() && topic.partitions().iter().all(|p| p.leader() >= 0)
    };
    let known = metadata.topics().iter().filter(has_leader);
    Ok(known.filter(|topic| wanted.contains(topic.name())).count())
}

/// Counts events that Kafka has.
struct Acknowledged(Arc<AtomicUsize>);

impl ClientContext for Acknowledged {}

impl ProducerContext for Acknowledged {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        self.0.fetch_add(usize::from(result.is_ok()), Ordering::Relaxed);
    }
}
