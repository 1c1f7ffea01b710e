//! What people and other services get to know of loads: the events log, the counts of the `metrics`
//! destination, `/failed`.

use anyhow::{Context, Result};
use serde_json::Value;
use testkit::{Database, Kafka, wait_until};

use crate::app::{App, PATIENCE, Setup, loaded_to};

/// A bulkerapp with a destination of its own in the events log, which all tests share.
struct Reports {
    kafka: Kafka,
    database: Database,
    setup: Setup,
    id: String,
}

impl Reports {
    async fn new() -> Result<Reports> {
        let (kafka, database) = (testkit::kafka().await?, testkit::postgres().await?);
        let id = format!("reports{}", uuid::Uuid::new_v4().simple());
        let destination = |id: &str| {
            format!(
                r#"{{id: "{id}", type: "postgres", credentials: {}, options: {{mode: "batch", frequency: 0.0167}}}}"#,
                database.credentials()
            )
        };
        let setup = Setup::new(&kafka, &database)
            .with("BULKER_DESTINATION_REPORTS", &destination(&id))
            .with("BULKER_DESTINATION_METRICS", &destination("metrics"))
            .with("BULKER_EVENTS_LOG_REDIS_URL", &testkit::redis_url().await?)
            .with("BULKER_MESSAGES_RETRY_COUNT", "0");
        database
            .execute("create table t (id bigint constraint no_three check (id <> 3), a bigint)")
            .await?;
        Ok(Reports { kafka, database, setup, id })
    }

    fn topic(&self, mode: &str) -> String {
        format!("{}in.id.{}.m.{mode}.t.t", self.setup.prefix, self.id)
    }

    /// Five events, of which the fourth is refused.
    async fn five(&self, mode: &str) -> Result<()> {
        self.kafka.create_topic(&self.topic(mode), 1, 1, &[]).await?;
        for id in 0..5 {
            let event = format!(r#"{{"id":{id}}}"#);
            let headers = [("metrics_meta", r#"{"workspaceId":"w"}"#)];
            self.kafka.produce(&self.topic(mode), 0, "k", event, &headers).await?;
        }
        Ok(())
    }

    async fn loaded(&self, mode: &str) -> Result<()> {
        loaded_to(&self.database, &self.topic(mode), 5).await
    }
}

async fn records(app: &App, path: &str) -> Result<Vec<Value>> {
    let answer = app.ask(path).await?;
    let records: Value = serde_json::from_str(&answer.body).with_context(|| answer.body.clone())?;
    Ok(records.as_array().context("an array")?.iter().map(|r| r["content"].clone()).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_leaves_its_account_in_the_events_log_also_when_the_service_stops_right_after()
-> Result<()> {
    let reports = Reports::new().await?;
    reports.five("batch").await?;
    let app = reports.setup.start().await?;
    reports.loaded("batch").await?;
    app.stop().await?;
    let app = reports.setup.start().await?;
    let all = records(&app, &format!("/log/bulker_batch.all/{}", reports.id)).await?;
    let errors = records(&app, &format!("/log/bulker_batch.error/{}", reports.id)).await?;
    app.stop().await?;
    let processed: u64 = all.iter().filter_map(|state| state["processedRows"].as_u64()).sum();
    assert_eq!(processed, 5, "{all:?}");
    let [failed] = errors.as_slice() else { panic!("one error: {errors:?}") };
    assert_eq!(failed["status"], "COMPLETED");
    assert_eq!(failed["error"], "1 events were refused; the others are loaded");
    assert_eq!(failed["representation"]["name"], "t");
    assert_eq!(failed["representation"]["schema"]["a"], "bigint");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_message_of_a_stream_is_in_the_events_log_with_its_outcome() -> Result<()> {
    let reports = Reports::new().await?;
    reports.five("stream").await?;
    let app = reports.setup.start().await?;
    reports.loaded("stream").await?;
    app.stop().await?;
    let app = reports.setup.start().await?;
    let all = records(&app, &format!("/log/bulker_stream.all/{}", reports.id)).await?;
    app.stop().await?;
    let mut outcomes: Vec<_> = all
        .iter()
        .map(|message| (message["original"].as_str().unwrap_or_default(), &message["status"]))
        .collect();
    outcomes.sort_by_key(|(original, _)| *original);
    let (good, bad) = (&Value::from("SUCCESS"), &Value::from("FAILED"));
    let expected = [
        (r#"{"id":0}"#, good),
        (r#"{"id":1}"#, good),
        (r#"{"id":2}"#, good),
        (r#"{"id":3}"#, bad),
        (r#"{"id":4}"#, good),
    ];
    assert_eq!(outcomes, expected);
    let failed = all.iter().find(|message| message["status"] == "FAILED").context("failed")?;
    assert!(failed["error"].as_str().is_some_and(|error| error.contains("no_three")), "{failed}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn counts_of_a_load_go_to_the_metrics_destination() -> Result<()> {
    let reports = Reports::new().await?;
    let metrics =
        reports.kafka.adopt(format!("{}in.id.metrics.m.batch.t.metrics", reports.setup.prefix));
    reports.kafka.create_topic(metrics.name(), 1, 1, &[]).await?;
    reports.five("batch").await?;
    let app = reports.setup.start().await?;
    reports.loaded("batch").await?;
    let two =
        || async { reports.kafka.read_all(metrics.name()).await.is_ok_and(|all| all.len() >= 2) };
    wait_until(PATIENCE, two).await?;
    app.stop().await?;
    let mut counts = Vec::new();
    for record in reports.kafka.read_all(metrics.name()).await? {
        let count: Value = serde_json::from_str(&record.text())?;
        assert_eq!(count["workspaceId"], "w");
        assert!(count["timestamp"].as_str().is_some_and(|at| at.ends_with(":00.000000Z")));
        assert!(record.headers.is_empty());
        counts.push(format!("{} {}", count["status"], count["events"]));
    }
    counts.sort();
    assert_eq!(counts, [r#""error" 1"#, r#""success" 4"#]);
    Ok(())
}
