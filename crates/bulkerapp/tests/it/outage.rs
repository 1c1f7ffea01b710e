//! Kafka or PostgreSQL goes away, or the process is killed again and again: no answered event is
//! lost or doubled.

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use testkit::{
    Database,
    native::{KafkaCluster, OwnKafka, OwnPostgres},
    wait_until,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
};

use crate::app::{DESTINATION, PATIENCE, Setup, TOKEN, assert_exactly_once, events, loaded_to};

/// How long a part stays away.
const OUTAGE: Duration = Duration::from_secs(10);

/// Clients that post events without end, each attempt with a new id, and remember which were
/// answered with 200.
struct Posting {
    answered: Arc<Mutex<HashSet<u64>>>,
    stop: Arc<AtomicBool>,
    clients: JoinSet<()>,
}

impl Posting {
    fn start(port: u16, table: &'static str, clients: usize) -> Posting {
        let answered = Arc::new(Mutex::new(HashSet::new()));
        let (stop, next) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut tasks = JoinSet::new();
        for _ in 0..clients {
            let (answered, stop, next) = (answered.clone(), stop.clone(), next.clone());
            tasks.spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    if post_over_one_connection(port, table, &next, &answered, &stop).await.is_err()
                    {
                        tokio::time::sleep(Duration::from_millis(20)).await; // a client's pause before it tries again
                    }
                }
            });
        }
        Posting { answered, stop, clients: tasks }
    }

    fn answered(&self) -> usize {
        self.answered.lock().map(|ids| ids.len()).unwrap_or(0)
    }

    async fn finish(mut self) -> HashSet<u64> {
        self.stop.store(true, Ordering::Relaxed);
        while self.clients.join_next().await.is_some() {}
        self.answered.lock().map(|ids| ids.clone()).unwrap_or_default()
    }
}

/// Posts until the connection or an answer fails.
async fn post_over_one_connection(
    port: u16,
    table: &str,
    next: &AtomicU64,
    answered: &Mutex<HashSet<u64>>,
    stop: &AtomicBool,
) -> Result<()> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    let mut answer = vec![0; 4096];
    while !stop.load(Ordering::Relaxed) {
        let id = next.fetch_add(1, Ordering::Relaxed);
        let event = format!(r#"{{"id":{id},"name":"event {id}"}}"#);
        let request = format!(
            "POST /post/{DESTINATION}?tableName={table} HTTP/1.1\r\nhost: localhost\r\n\
             authorization: Bearer {TOKEN}\r\ncontent-length: {}\r\n\r\n{event}",
            event.len()
        );
        stream.write_all(request.as_bytes()).await?;
        let read = stream.read(&mut answer).await?;
        ensure!(read > 0, "connection closed");
        // answers are far shorter than a segment, so one read has all of it
        ensure!(answer.starts_with(b"HTTP/1.1 200"), "refused");
        answered.lock().map_err(|_| anyhow::anyhow!("poisoned"))?.insert(id);
    }
    Ok(())
}

/// Every answered event is in the table, and no event is there twice.
async fn assert_answered_once(
    database: &Database,
    table: &str,
    answered: &HashSet<u64>,
) -> Result<()> {
    let rows = database.query(&format!("select id::text from {table}")).await?;
    let mut found = HashSet::new();
    for row in &rows {
        let id: u64 = row.first().cloned().flatten().context("an id")?.parse()?;
        ensure!(found.insert(id), "event {id} is there twice");
    }
    let lost = answered.difference(&found).count();
    ensure!(lost == 0, "{lost} of {} answered events are lost", answered.len());
    Ok(())
}

async fn loaded_to_the_end(kafka: &testkit::Kafka, database: &Database, topic: &str) -> Result<()> {
    let end = kafka.end_offset(topic, 0).await?;
    loaded_to(database, topic, end).await
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_twenty_times_while_posting_and_loading_nothing_is_lost_or_doubled() -> Result<()> {
    let (kafka, database) = (testkit::kafka().await?, testkit::postgres().await?);
    let setup = Setup::new(&kafka, &database);
    let topic = setup.topic("t");
    killed_twenty_times(&kafka, &database, setup, topic).await
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_twenty_times_while_streaming_nothing_is_lost_or_doubled() -> Result<()> {
    let (kafka, database) = (testkit::kafka().await?, testkit::postgres().await?);
    let setup = Setup::new(&kafka, &database).with_options(r#"mode: "stream""#);
    let topic = setup.stream_topic("t");
    killed_twenty_times(&kafka, &database, setup, topic).await
}

async fn killed_twenty_times(
    kafka: &testkit::Kafka,
    database: &Database,
    setup: Setup,
    topic: String,
) -> Result<()> {
    const KILLS: u64 = 20;
    const EVENTS: usize = 100_000;
    let events = std::env::var("KILL_EVENTS").map_or(Ok(EVENTS), |events| events.parse())?;
    let topic = kafka.adopt(topic);
    let port = testkit::free_port()?;
    let posting = Posting::start(port, "t", 16);
    let mut kills = 0;
    loop {
        let mut app = setup.spawn_on(port)?;
        app.service.wait_for_ok(port, "/ready", PATIENCE).await?;
        if kills >= KILLS && posting.answered() >= events {
            let answered = posting.finish().await;
            loaded_to_the_end(kafka, database, topic.name()).await?;
            app.stop().await?;
            println!("{kills} kills, {} events answered", answered.len());
            return assert_answered_once(database, "t", &answered).await;
        }
        // the moment of the kill is random within the time that a few batches take
        let moment = Duration::from_millis(u64::from(uuid::Uuid::new_v4().as_bytes()[0]) * 6);
        tokio::time::sleep(moment).await;
        app.service.kill9().await?;
        kills += 1;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kafka_that_dies_while_posting_loses_no_answered_event() -> Result<()> {
    let own = OwnKafka::start().await?;
    let (kafka, database) = (own.kafka(), testkit::postgres().await?);
    let setup = Setup::new(&kafka, &database);
    let app = setup.start().await?;
    let posting = Posting::start(app.port, "t", 8);
    wait_until(PATIENCE, || async { posting.answered() >= 500 }).await?;
    own.kill9().await?;
    tokio::time::sleep(OUTAGE).await;
    own.restart().await?;
    let after = posting.answered();
    wait_until(PATIENCE, || async { posting.answered() >= after + 500 }).await?;
    let answered = posting.finish().await;
    loaded_to_the_end(&kafka, &database, &setup.topic("t")).await?;
    app.stop().await?;
    assert_answered_once(&database, "t", &answered).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postgresql_that_goes_away_is_loaded_again_without_a_restart() -> Result<()> {
    let own = OwnPostgres::start().await?;
    let (kafka, database) = (testkit::kafka().await?, own.database().await?);
    let setup = Setup::new(&kafka, &database)
        .with_options(r#"mode: "batch", frequency: 0.0167, batchSize: 500"#);
    let topic = kafka.adopt(setup.topic("t"));
    kafka.create_topic(topic.name(), 1, 1, &[]).await?;
    kafka.produce_all(topic.name(), 0, events(0..5_000)).await?;
    let app = setup.start().await?;
    let some = || async { database.count("t").await.is_ok_and(|count| count > 0) };
    wait_until(PATIENCE, some).await?;
    own.kill9().await?;
    kafka.produce_all(topic.name(), 0, events(5_000..10_000)).await?;
    tokio::time::sleep(OUTAGE).await;
    own.restart().await?;
    loaded_to(&database, topic.name(), 10_000).await?;
    app.stop().await?;
    assert_exactly_once(&database, "t", 10_000).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answered_event_survives_the_death_of_its_leader() -> Result<()> {
    let cluster = KafkaCluster::start().await?;
    let (kafka, database) = (cluster.kafka(), testkit::postgres().await?);
    let setup = Setup::new(&kafka, &database)
        .with("BULKER_KAFKA_TOPIC_REPLICATION_FACTOR", "3")
        .with("BULKER_KAFKA_TOPIC_MIN_INSYNC_REPLICAS", "2")
        // three brokers on a slow machine may take their time
        .with("BULKER_PRODUCER_WAIT_FOR_DELIVERY_MS", "60000")
        // nothing is loaded: the event is looked for in Kafka
        .with_options(r#"mode: "batch", frequency: 1440"#);
    let app = setup.start().await?;
    let topic = setup.topic("t");
    for event in events(0..50) {
        ensure!(app.post("t", &event).await? == 200);
    }
    cluster.leader(&topic, 0).await?.kill9().await?;
    let found = kafka.read_all(&topic).await?;
    let keys: HashSet<String> = found.iter().map(testkit::Record::text).collect();
    ensure!(events(0..50).iter().all(|event| keys.contains(event)), "{} of 50 found", keys.len());
    app.stop().await
}
