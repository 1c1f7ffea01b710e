//! Topics that somebody gave more than one partition: what is put into the others is loaded, too.

use anyhow::{Context, Result};
use testkit::wait_until;

use crate::app::{PATIENCE, Setup};

const THREE: usize = 3;

#[tokio::test(flavor = "multi_thread")]
async fn all_partitions_of_a_tables_topic_are_loaded() -> Result<()> {
    for mode in ["batch", "stream"] {
        let (kafka, database) = (testkit::kafka().await?, testkit::postgres().await?);
        let options = format!(r#"mode: "{mode}", frequency: 0.0167"#);
        let setup = Setup::new(&kafka, &database).with_options(&options);
        let topic = kafka.adopt(match mode {
            "batch" => setup.topic("t"),
            _ => setup.stream_topic("t"),
        });
        // given a topic that is being loaded
        kafka.create_topic(topic.name(), 1, 1, &[]).await?;
        kafka.produce(topic.name(), 0, "k", r#"{"id":0}"#, &[]).await?;
        let app = setup.start().await?;
        wait_until(PATIENCE, || async { database.count("t").await.is_ok_and(|n| n == 1) }).await?;
        // when it gets more partitions, and events lie in each of them
        kafka.raise_partitions(topic.name(), THREE).await?;
        for partition in 0..3 {
            let event = format!(r#"{{"id":{}}}"#, partition + 1);
            let append =
                || async { kafka.produce(topic.name(), partition, "k", &event, &[]).await.is_ok() };
            wait_until(PATIENCE, append).await.context("the brokers do not know the partition")?;
        }
        // then all are loaded, each once
        let sql = "select string_agg(id::text, ' ' order by id) from t";
        let are_there = || async { database.value(sql).await.is_ok_and(|ids| ids == "0 1 2 3") };
        wait_until(PATIENCE, are_there).await.with_context(|| format!("mode {mode}"))?;
        app.stop().await?;
        let positions = "select count(*) from bulker_offsets where topic like '%.t.t'";
        assert_eq!(database.value(positions).await?, "3", "mode {mode}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn all_partitions_of_the_retry_topics_are_served() -> Result<()> {
    let (kafka, database) = (testkit::kafka().await?, testkit::postgres().await?);
    let setup = Setup::new(&kafka, &database)
        .with_options(r#"mode: "batch", frequency: 0.0167, retryFrequency: 0.0167"#)
        .with("BULKER_BATCH_RUNNER_DEFAULT_RETRY_PERIOD_SEC", "1");
    // given the retry topics with three partitions each, and an event in each of them
    let topic = kafka.adopt(setup.topic("t"));
    let own = kafka.adopt(setup.retry_topic());
    let shared = setup.shared_retry_topic();
    kafka.create_topic(topic.name(), 1, 1, &[]).await?;
    let headers = [("original_topic", topic.name()), ("retries", "0")];
    let mut id = 0;
    for retry in [own.name(), &shared] {
        kafka.create_topic(retry, 3, 1, &[]).await?;
        for partition in 0..3 {
            id += 1;
            let (key, event) = (format!("key-{id}"), format!(r#"{{"id":{id}}}"#));
            kafka.produce(retry, partition, &key, event, &headers).await?;
        }
    }
    // when they are due, then all are back
    let app = setup.start().await?;
    let sql = "select string_agg(id::text, ' ' order by id) from t";
    let are_there = || async { database.value(sql).await.is_ok_and(|ids| ids == "1 2 3 4 5 6") };
    wait_until(PATIENCE, are_there).await?;
    app.stop().await
}
