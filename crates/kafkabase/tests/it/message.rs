use std::{sync::Arc, time::Duration};

use anyhow::{Result, bail};
use kafkabase::{ClientSettings, Fetched, Fetcher, FetcherSettings, Message};
use testkit::Kafka;

const LIMIT: Duration = Duration::from_secs(20);

/// The first record of a topic.
async fn first(kafka: &Kafka, topic: &str) -> Result<Message> {
    let settings = ClientSettings::plaintext("it", kafka.bootstrap());
    let fetcher = Arc::new(Fetcher::new(&settings, &FetcherSettings::default())?);
    let mut reader = fetcher.open(topic, 0, 0).await?;
    tokio::task::block_in_place(|| match reader.next(LIMIT)? {
        Fetched::Message(message) => Ok(message),
        other => bail!("no message but {other:?}"),
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_holds_its_headers_as_they_came_and_as_they_were_parsed() -> Result<()> {
    // given a record that is nearly all header
    let kafka = testkit::kafka().await?;
    let topic = kafka.topic("t", 1).await?;
    let header = "x".repeat(100_000);
    kafka.produce(topic.name(), 0, "key", "value", &[("stream_options", &header)]).await?;
    // when it is read
    let message = first(&kafka, topic.name()).await?;
    // then both counts are in what it holds
    let held = message.held_bytes();
    assert!((200_000..202_000).contains(&held), "{held}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_without_headers_holds_key_value_and_a_little_more() -> Result<()> {
    let kafka = testkit::kafka().await?;
    let topic = kafka.topic("t", 1).await?;
    kafka.produce(topic.name(), 0, "k".repeat(1_000).as_str(), "v".repeat(9_000), &[]).await?;
    let held = first(&kafka, topic.name()).await?.held_bytes();
    assert!((10_200..10_600).contains(&held), "{held}");
    Ok(())
}
