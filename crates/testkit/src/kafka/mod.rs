//! A Kafka broker as tests use it: topics, records, groups.

mod groups;
mod record;

use std::time::Duration;

use anyhow::{Context, Result};
use rdkafka::{
    ClientConfig, Offset, TopicPartitionList,
    admin::{
        AdminClient, AdminOptions, AlterConfig, NewPartitions, NewTopic, ResourceSpecifier,
        TopicReplication,
    },
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer},
    error::{KafkaError, RDKafkaErrorCode},
    message::{Header, OwnedHeaders},
    producer::{FutureProducer, FutureRecord, Producer},
};

pub use groups::{Committed, GroupMember};
pub use record::Record;
use record::read_to_end;

const LIMIT: Duration = Duration::from_secs(20);

/// A cluster, by its bootstrap address.
#[derive(Debug, Clone)]
pub struct Kafka {
    bootstrap: String,
    thrown_away: bool,
}

impl Kafka {
    pub fn at(bootstrap: impl Into<String>) -> Kafka {
        Kafka { bootstrap: bootstrap.into(), thrown_away: false }
    }

    /// For brokers that are thrown away, topics and all.
    pub(crate) fn thrown_away(bootstrap: impl Into<String>) -> Kafka {
        Kafka { bootstrap: bootstrap.into(), thrown_away: true }
    }

    pub fn bootstrap(&self) -> &str {
        &self.bootstrap
    }

    /// A new topic with a name of its own that begins with `prefix`; deleted with its handle.
    pub async fn topic(&self, prefix: &str, partitions: i32) -> Result<Topic> {
        self.topic_with(prefix, partitions, 1, &[]).await
    }

    /// The same with a replication factor and topic settings.
    pub async fn topic_with(
        &self,
        prefix: &str,
        partitions: i32,
        replication: i32,
        settings: &[(&str, &str)],
    ) -> Result<Topic> {
        let name = format!("{prefix}-{}", uuid::Uuid::new_v4().simple());
        self.create_topic(&name, partitions, replication, settings).await?;
        Ok(self.adopt(name))
    }

    /// Takes over a topic that the product makes or made: it is deleted with the handle.
    pub fn adopt(&self, name: impl Into<String>) -> Topic {
        Topic { name: name.into(), kafka: self.clone() }
    }

    /// Makes a topic that stays until it is deleted, and waits until the brokers know its leaders.
    pub async fn create_topic(
        &self,
        name: &str,
        partitions: i32,
        replication: i32,
        settings: &[(&str, &str)],
    ) -> Result<()> {
        let mut topic = NewTopic::new(name, partitions, TopicReplication::Fixed(replication));
        for (key, value) in settings {
            topic = topic.set(key, value);
        }
        for result in self.admin()?.create_topics([&topic], &admin_options()).await? {
            result.map_err(|(topic, code)| anyhow::anyhow!("create topic {topic}: {code}"))?;
        }
        crate::wait_until(LIMIT, || async {
            let leaders = self.leaders(name).await.unwrap_or_default();
            leaders.len() == partitions as usize && leaders.iter().all(|leader| *leader >= 0)
        })
        .await
        .with_context(|| format!("topic {name} got no leaders"))
    }

    /// Deletes a topic and waits until it is gone from the cluster's metadata.
    pub async fn delete_topic(&self, name: &str) -> Result<()> {
        for result in self.admin()?.delete_topics(&[name], &admin_options()).await? {
            result.map_err(|(topic, code)| anyhow::anyhow!("delete topic {topic}: {code}"))?;
        }
        crate::wait_until(LIMIT, || async {
            self.topics().await.is_ok_and(|topics| !topics.iter().any(|topic| topic == name))
        })
        .await
        .with_context(|| format!("topic {name} does not go away"))
    }

    /// Removes all records of a partition before `offset`, as retention does.
    pub async fn delete_records_before(
        &self,
        topic: &str,
        partition: i32,
        offset: i64,
    ) -> Result<()> {
        let mut until = TopicPartitionList::new();
        until.add_partition_offset(topic, partition, Offset::Offset(offset))?;
        let done = self.admin()?.delete_records(&until, &admin_options()).await?;
        for element in done.elements() {
            element.error()?;
        }
        Ok(())
    }

    /// The names of all topics.
    pub async fn topics(&self) -> Result<Vec<String>> {
        self.with_consumer("none", &[], |consumer| {
            let metadata = consumer.fetch_metadata(None, LIMIT)?;
            Ok(metadata.topics().iter().map(|topic| topic.name().to_owned()).collect())
        })
        .await
    }

    /// The broker id of each partition's leader; -1 where there is none.
    pub async fn leaders(&self, topic: &str) -> Result<Vec<i32>> {
        let topic = topic.to_owned();
        self.with_consumer("none", &[], move |consumer| {
            let metadata = consumer.fetch_metadata(Some(&topic), LIMIT)?;
            let found = metadata.topics().first().context("no metadata")?;
            Ok(found.partitions().iter().map(|partition| partition.leader()).collect())
        })
        .await
    }

    /// Appends a record, waits for all replicas, and returns its offset.
    pub async fn produce(
        &self,
        topic: &str,
        partition: i32,
        key: &str,
        value: impl AsRef<[u8]>,
        headers: &[(&str, &str)],
    ) -> Result<i64> {
        let producer: FutureProducer = self.producer().create()?;
        let mut owned = OwnedHeaders::new();
        for (key, value) in headers {
            owned = owned.insert(Header { key, value: Some(*value) });
        }
        let record = FutureRecord::to(topic)
            .partition(partition)
            .key(key)
            .payload(value.as_ref())
            .headers(owned);
        let sent = producer.send(record, LIMIT).await.map_err(|(error, _)| error);
        Ok(sent.with_context(|| format!("produce to {topic}"))?.offset)
    }

    /// Appends a record as another program may make one, and returns its offset.
    pub async fn produce_foreign(
        &self,
        topic: &str,
        partition: i32,
        record: ForeignRecord<'_>,
    ) -> Result<i64> {
        let producer: FutureProducer =
            self.producer().set("message.max.bytes", "4000000").create()?;
        let headers = record.headers.iter().fold(OwnedHeaders::new(), |headers, (key, value)| {
            headers.insert(Header { key, value: Some(*value) })
        });
        let mut sent = FutureRecord::<[u8], [u8]>::to(topic).partition(partition).headers(headers);
        sent.payload = record.value;
        sent.key = record.key;
        sent.timestamp = record.timestamp_ms;
        let sent = producer.send(sent, LIMIT).await.map_err(|(error, _)| error);
        Ok(sent.with_context(|| format!("produce to {topic}"))?.offset)
    }

    /// Sets what a topic's configuration says; all else of it becomes the broker's default.
    pub async fn configure_topic(&self, topic: &str, entries: &[(&str, &str)]) -> Result<()> {
        let mut config = AlterConfig::new(ResourceSpecifier::Topic(topic));
        for (name, value) in entries {
            config = config.set(name, value);
        }
        let altered = self.admin()?.alter_configs([&config], &admin_options()).await?;
        for result in altered {
            result.map_err(|(_, code)| code).with_context(|| format!("configure {topic}"))?;
        }
        Ok(())
    }

    /// Gives a topic more partitions.
    pub async fn raise_partitions(&self, topic: &str, total: usize) -> Result<()> {
        let partitions = NewPartitions::new(topic, total);
        let raised = self.admin()?.create_partitions([&partitions], &admin_options()).await?;
        for result in raised {
            result.map_err(|(_, code)| code).with_context(|| format!("partitions of {topic}"))?;
        }
        Ok(())
    }

    /// Appends many values, keyed by their number, through one producer.
    pub async fn produce_all<V: AsRef<[u8]>>(
        &self,
        topic: &str,
        partition: i32,
        values: impl IntoIterator<Item = V>,
    ) -> Result<()> {
        let producer: FutureProducer = self.producer().set("linger.ms", "5").create()?;
        let mut reports = Vec::new();
        for (number, value) in values.into_iter().enumerate() {
            let key = number.to_string();
            loop {
                let record =
                    FutureRecord::to(topic).partition(partition).key(&key).payload(value.as_ref());
                match producer.send_result(record) {
                    Ok(report) => break reports.push(report),
                    Err((error, _)) if is_full(&error) => {
                        tokio::time::sleep(Duration::from_millis(5)).await; // the queue drains meanwhile
                    }
                    Err((error, _)) => return Err(error).context("produce"),
                }
            }
        }
        for report in reports {
            report
                .await?
                .map_err(|(error, _)| error)
                .with_context(|| format!("produce to {topic}"))?;
        }
        Ok(())
    }

    /// Appends values in one transaction, which is then committed or aborted; either way the topic
    /// ends on a marker that no consumer is ever given.
    pub async fn produce_transaction(
        &self,
        topic: &str,
        partition: i32,
        values: &[&str],
        commit: bool,
    ) -> Result<()> {
        let id = format!("testkit-{}", uuid::Uuid::new_v4());
        let producer: FutureProducer = self.producer().set("transactional.id", id).create()?;
        let (topic, values) =
            (topic.to_owned(), values.iter().map(|v| (*v).to_owned()).collect::<Vec<_>>());
        let runtime = tokio::runtime::Handle::current();
        tokio::task::spawn_blocking(move || {
            producer.init_transactions(LIMIT)?;
            producer.begin_transaction()?;
            for value in &values {
                let record =
                    FutureRecord::<str, str>::to(&topic).partition(partition).payload(value);
                runtime
                    .block_on(producer.send(record, LIMIT))
                    .map_err(|(error, _)| error)
                    .context("produce in a transaction")?;
            }
            if commit {
                producer.commit_transaction(LIMIT)?;
            } else {
                producer.abort_transaction(LIMIT)?;
            }
            Ok(())
        })
        .await?
    }

    /// All committed records of a topic, from the first to the end that it has now, by partition.
    pub async fn read_all(&self, topic: &str) -> Result<Vec<Record>> {
        let topic = topic.to_owned();
        let settings = [
            ("isolation.level", "read_committed"),
            ("enable.partition.eof", "true"),
            ("fetch.wait.max.ms", "10"),
        ];
        self.with_consumer("none", &settings, move |consumer| read_to_end(consumer, &topic)).await
    }

    /// The first offset that is still there, and the one that the next record gets.
    pub async fn watermarks(&self, topic: &str, partition: i32) -> Result<(i64, i64)> {
        let topic = topic.to_owned();
        self.with_consumer("none", &[], move |consumer| {
            Ok(consumer.fetch_watermarks(&topic, partition, LIMIT)?)
        })
        .await
    }

    /// The offset that the next record of the partition gets.
    pub async fn end_offset(&self, topic: &str, partition: i32) -> Result<i64> {
        Ok(self.watermarks(topic, partition).await?.1)
    }

    fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.bootstrap).set("client.id", "testkit");
        // brokers of tests come and go
        config.set("reconnect.backoff.ms", "20").set("reconnect.backoff.max.ms", "200");
        config.set_log_level(rdkafka::config::RDKafkaLogLevel::Critical);
        config
    }

    fn producer(&self) -> ClientConfig {
        let mut config = self.client();
        config.set("acks", "all").set("enable.idempotence", "true").set("linger.ms", "0");
        config
    }

    fn consumer(&self, group: &str) -> ClientConfig {
        let mut config = self.client();
        config
            .set("group.id", group)
            .set("enable.auto.commit", "false")
            .set("auto.offset.reset", "earliest");
        config
    }

    fn admin(&self) -> Result<AdminClient<DefaultClientContext>> {
        Ok(self.client().create()?)
    }

    /// librdkafka's consumer calls block: they run on a thread that may.
    async fn with_consumer<T: Send + 'static>(
        &self,
        group: &str,
        settings: &[(&str, &str)],
        work: impl FnOnce(&BaseConsumer) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let mut config = self.consumer(group);
        for (key, value) in settings {
            config.set(*key, *value);
        }
        tokio::task::spawn_blocking(move || work(&config.create()?)).await?
    }
}

/// What another program writes.
#[derive(Debug, Clone, Copy, Default)]
pub struct ForeignRecord<'a> {
    /// `None`: without a key.
    pub key: Option<&'a [u8]>,
    /// `None`: a tombstone.
    pub value: Option<&'a [u8]>,
    /// A name may stand several times.
    pub headers: &'a [(&'a str, &'a [u8])],
    /// Kafka's time; `None`: now.
    pub timestamp_ms: Option<i64>,
}

/// A topic of a test's own, deleted with its handle.
#[derive(Debug)]
pub struct Topic {
    name: String,
    kafka: Kafka,
}

impl Topic {
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl std::ops::Deref for Topic {
    type Target = str;

    fn deref(&self) -> &str {
        &self.name
    }
}

impl Drop for Topic {
    fn drop(&mut self) {
        if self.kafka.thrown_away {
            return;
        }
        let (kafka, name) = (self.kafka.clone(), self.name.clone());
        let deleted = crate::wait::on_own_thread(LIMIT, async move {
            kafka.admin()?.delete_topics(&[&name], &admin_options()).await?;
            Ok(())
        });
        if let Err(error) = deleted {
            eprintln!("testkit: cannot delete topic {}: {error:#}", self.name);
        }
    }
}

fn admin_options() -> AdminOptions {
    AdminOptions::new().request_timeout(Some(LIMIT)).operation_timeout(Some(LIMIT))
}

fn is_full(error: &KafkaError) -> bool {
    error.rdkafka_error_code() == Some(RDKafkaErrorCode::QueueFull)
}
