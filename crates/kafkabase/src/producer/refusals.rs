//! Events that Kafka does not take although it is there, and whose fault that is.

use std::{sync::atomic::Ordering::SeqCst, time::Duration};

use anyhow::Result;
use rdkafka::{
    ClientConfig,
    admin::{AdminClient, AdminOptions, AlterConfig, ResourceSpecifier},
    client::DefaultClientContext,
};
use testkit::{Kafka, wait_until};

use super::{
    SendError, Spool,
    outages::{PATIENCE, Parts, numbers, producer_at},
};
use crate::spool::EventParts;

/// How far back the times of a topic's records may lie.
async fn set_oldest_time(kafka: &Kafka, topic: &str, millis: &str) -> Result<()> {
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", kafka.bootstrap()).create()?;
    let altered = AlterConfig::new(ResourceSpecifier::Topic(topic))
        .set("message.timestamp.before.max.ms", millis);
    for result in admin.alter_configs([&altered], &AdminOptions::new()).await? {
        result.map_err(|(_, code)| anyhow::anyhow!(code))?;
    }
    Ok(())
}

/// How often the client was told this error.
fn count_of(parts: &Parts, error: &str) -> u64 {
    use prometheus::core::Collector;
    let families = parts.producer.shared.metrics.messages.collect();
    let metrics = families.iter().flat_map(|family| family.get_metric());
    let told =
        metrics.filter(|metric| metric.get_label().iter().any(|l| l.value().contains(error)));
    told.map(|metric| metric.get_counter().get_value() as u64).sum()
}

fn spool(parts: &Parts) -> Spool {
    parts.producer.spool().cloned().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn times_that_a_topic_refuses_put_no_event_away_and_all_arrive_later() -> Result<()> {
    // given a topic that takes no record whose time is not in the future
    let kafka = testkit::kafka().await?;
    let topic = kafka.topic("t", 1).await?;
    let parts = producer_at(kafka.bootstrap(), Duration::from_millis(500))?;
    parts.send(&topic, 0).await?;
    set_oldest_time(&kafka, &topic, "0").await?;
    // when events come, and are tried again
    let refused = || async {
        parts.send(&topic, 1_000).await.is_ok_and(|()| count_of(&parts, "InvalidTimestamp") > 0)
    };
    wait_until(PATIENCE, refused).await?;
    for number in 1..10 {
        parts.send(&topic, number).await?;
    }
    let told = count_of(&parts, "InvalidTimestamp");
    wait_until(PATIENCE, || async { count_of(&parts, "InvalidTimestamp") > told + 1 }).await?;
    // then all of them wait, and follow when the topic is as before
    assert_eq!(spool(&parts).status().quarantined, 0);
    set_oldest_time(&kafka, &topic, "9223372036854775807").await?;
    parts.until_replayed().await?;
    let mut arrived = numbers(&kafka.read_all(&topic).await?);
    arrived.retain(|number| *number < 1_000);
    assert_eq!(arrived, (0..10).collect::<Vec<_>>());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_kafka_can_never_take_is_refused_also_while_others_are_spooled() -> Result<()>
{
    // given a Kafka that is away, and events that go to the spool
    let parts = producer_at("127.0.0.1:1", Duration::from_millis(50))?;
    let topic = parts.producer.topic("t");
    parts.send("t", 0).await?;
    // when one is too large with its key or its headers only, then neither way takes it
    let (value, header) = (vec![b'v'; 999_960], vec![b'h'; 500_000]);
    let large = EventParts { topic: "t", key: &[b'k'; 36], headers: &[], value: &value };
    let headers = [("metrics_meta", header.as_slice())];
    let wide = EventParts { topic: "t", key: b"", headers: &headers, value: &value[..499_960] };
    for EventParts { key, value, headers, .. } in [large, wide] {
        let sent = parts.producer.send(&topic, key, value, headers).await;
        assert_eq!(sent, Err(SendError::TooLarge));
        let sent_later = parts.producer.send_later(&topic, key, value, headers).await;
        assert_eq!(sent_later, Err(SendError::TooLarge));
    }
    // and a smaller one is taken
    parts.producer.send(&topic, b"k", &value[..999_900], &[]).await?;
    assert_eq!(spool(&parts).status().waiting, 2);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_another_topic_has_puts_no_event_away() -> Result<()> {
    // given spooled events whose topic cannot be made beside another one
    let kafka = testkit::kafka().await?;
    let topic = kafka.topic("t", 1).await?;
    let parts = producer_at(kafka.bootstrap(), Duration::from_millis(500))?;
    parts.gate.collides.store(true, SeqCst);
    let handle = parts.producer.topic(&topic);
    parts.producer.send_later(&handle, b"0", b"0", &[]).await?;
    wait_until(PATIENCE, || async { parts.gate.asked.load(SeqCst) > 1 }).await?;
    let status = spool(&parts).status();
    assert_eq!((status.waiting, status.quarantined), (1, 0));
    // when the other is gone, then they arrive
    parts.gate.collides.store(false, SeqCst);
    parts.until_replayed().await?;
    assert_eq!(numbers(&kafka.read_all(&topic).await?), [0]);
    Ok(())
}
