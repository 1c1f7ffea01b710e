use std::time::Duration;

use anyhow::Result;
use kafkabase::{Admin, ClientSettings, OffsetSpec, TopicCreation, TopicSettings};
use rdkafka::{
    mocking::MockCluster,
    types::{RDKafkaApiKey, RDKafkaRespErr},
};
use testkit::{Topic, native::OwnKafka, wait_until};

/// Longer than anything here takes on a slow machine.
const PATIENCE: Duration = Duration::from_secs(60);

fn of_partitions(partitions: i32) -> TopicSettings {
    TopicSettings { partitions, replication_factor: 1, entries: Vec::new() }
}

/// An [`Admin`] of the shared cluster, and a topic's name that no other test has.
async fn admin(prefix: &str) -> Result<(Admin, Topic)> {
    let kafka = testkit::kafka().await?;
    let admin = Admin::new(&ClientSettings::plaintext("it", kafka.bootstrap()), PATIENCE)?;
    let name = format!("{prefix}{}", uuid::Uuid::new_v4().simple());
    Ok((admin, kafka.adopt(name)))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_is_there_is_told_with_the_partitions_that_it_has() -> Result<()> {
    let (admin, topic) = admin("t").await?;
    let made = admin.create_topic(&topic, &of_partitions(3)).await?;
    assert_eq!(made, TopicCreation::Created);
    let made = admin.create_topic(&topic, &of_partitions(1)).await?;
    assert_eq!(made, TopicCreation::Existed { partitions: 3 });
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_differs_in_dots_and_underscores_only_collides_and_names_the_other()
-> Result<()> {
    let (admin, topic) = admin("a.b").await?;
    admin.create_topic(&topic, &of_partitions(1)).await?;
    let refused = admin.create_topic(&topic.replace('.', "_"), &of_partitions(1)).await;
    let error = refused.unwrap_err();
    assert!(error.is_name_collision() && error.reason.contains(topic.name()), "{error}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_that_kafka_refuses_are_no_collision() -> Result<()> {
    let (admin, topic) = admin("t").await?;
    let settings =
        TopicSettings { entries: vec![("cleanup.policy", "shred".to_owned())], ..of_partitions(1) };
    let error = admin.create_topic(&topic, &settings).await.unwrap_err();
    assert!(error.is_refusal() && !error.is_name_collision(), "{error}");
    Ok(())
}

/// librdkafka aborts the process when a coordinator comes back whose requests have timed out in it.
#[tokio::test(flavor = "multi_thread")]
async fn questions_that_timed_out_while_kafka_was_away_leave_nothing_behind() -> Result<()> {
    let own = OwnKafka::start().await?;
    let kafka = own.kafka();
    let topic = kafka.topic("t", 1).await?;
    kafka.commit("group", &topic, 0, 7, "").await?;
    let settings = ClientSettings::plaintext("it", own.bootstrap());
    let admin = Admin::new(&settings, Duration::from_millis(500))?;
    let answers = || async {
        let committed = admin.group_offset("group", &topic, 0).await;
        committed.is_ok_and(|committed| committed.is_some_and(|committed| committed.offset == 7))
    };
    wait_until(PATIENCE, answers).await?;
    for _ in 0..3 {
        own.kill9().await?;
        for _ in 0..3 {
            assert!(admin.group_offset("group", &topic, 0).await.is_err());
            assert!(admin.group_members("group").await.is_err());
            assert!(admin.offset(&topic, 0, OffsetSpec::CommittedEnd).await.is_err());
        }
        own.restart().await?;
        wait_until(PATIENCE, answers).await?;
    }
    Ok(())
}

/// librdkafka's handler of that answer wants the client's own group, and ends the process when it
/// has none. A broker cannot be brought to give this answer at a known moment, so the one of
/// librdkafka's tests plays it.
#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_that_moved_away_is_an_error_and_not_the_end() -> Result<()> {
    let cluster = MockCluster::new(1)?;
    cluster.create_topic("t", 1, 1)?;
    let settings = ClientSettings::plaintext("it", &cluster.bootstrap_servers());
    let admin = Admin::new(&settings, Duration::from_secs(5))?;
    let moved = RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_COORDINATOR;
    cluster.request_errors(RDKafkaApiKey::OffsetFetch, &[moved; 3]);
    let answers = || async { admin.group_offset("group", "t", 0).await.is_ok() };
    wait_until(PATIENCE, answers).await
}
