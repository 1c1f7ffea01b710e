use std::{sync::Arc, time::Duration};

use anyhow::{Result, ensure};
use futures_util::future::try_join_all;
use kafkabase::{ClientSettings, Fetched, Fetcher, FetcherSettings, PartitionReader};
use testkit::{Kafka, Topic, wait_until};

const LIMIT: Duration = Duration::from_secs(20);
const RECORDS: i64 = 400;
const RECORD_BYTES: usize = 5_000;

/// A topic of [`RECORDS`], in batches that are smaller than what a tail gets at once.
async fn topic(kafka: &Kafka) -> Result<Topic> {
    let topic = kafka.topic("t", 1).await?;
    let batch = || vec!["x".repeat(RECORD_BYTES); RECORDS as usize / 20];
    try_join_all((0..20).map(|_| kafka.produce_all(&topic, 0, batch()))).await?;
    Ok(topic)
}

fn fetcher(kafka: &Kafka, settings: &FetcherSettings) -> Result<Arc<Fetcher>> {
    Ok(Arc::new(Fetcher::new(&ClientSettings::plaintext("it", kafka.bootstrap()), settings)?))
}

/// The offsets of the next `count` records.
fn offsets(reader: &mut PartitionReader, count: i64) -> Result<Vec<i64>> {
    let mut offsets = Vec::new();
    while offsets.len() < count as usize {
        match reader.next(LIMIT)? {
            Fetched::Message(message) => offsets.push(message.offset()),
            Fetched::End { .. } => {}
            Fetched::Nothing => anyhow::bail!("no record after {} s", LIMIT.as_secs()),
        }
    }
    Ok(offsets)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_is_paused_holds_nothing_and_goes_on_where_it_was() -> Result<()> {
    // given a reader that has fetched more than it handed out
    let kafka = testkit::kafka().await?;
    let topic = topic(&kafka).await?;
    let fetcher = fetcher(&kafka, &FetcherSettings::default())?;
    let mut reader = fetcher.open(&topic, 0, 0).await?;
    let mut read = Vec::new();
    for count in [1, 100, 7, 150] {
        read.extend(tokio::task::block_in_place(|| offsets(&mut reader, count))?);
        wait_until(LIMIT, || async { reader.records_ahead() > 0 }).await?;
        ensure!(fetcher.most_ahead() > 0);
        // when it is paused, then nothing is held, not even what was on its way
        let records_ahead = || {
            reader.pause();
            std::future::ready(reader.records_ahead() == 0)
        };
        wait_until(LIMIT, records_ahead).await?;
        assert_eq!(fetcher.most_ahead(), 0);
    }
    // and each record is read once, in its order
    let rest = RECORDS - read.len() as i64;
    read.extend(tokio::task::block_in_place(|| offsets(&mut reader, rest))?);
    assert_eq!(read, (0..RECORDS).collect::<Vec<_>>());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tail_that_is_not_read_holds_one_answer_of_a_broker() -> Result<()> {
    // given a topic with far more than a tail fetches ahead, and a tail that reads one record
    let kafka = testkit::kafka().await?;
    let topic = topic(&kafka).await?;
    let settings = FetcherSettings::default().of_tails(Duration::from_millis(100));
    ensure!(settings.most_ahead() * 2 < RECORDS as usize * RECORD_BYTES);
    let fetcher = fetcher(&kafka, &settings)?;
    let mut tail = fetcher.open(&topic, 0, 0).await?;
    tokio::task::block_in_place(|| offsets(&mut tail, 1))?;
    // when another partition is read to its end with the same client, which takes many answers
    let other = self::topic(&kafka).await?;
    let mut other = fetcher.open(&other, 0, 0).await?;
    tokio::task::block_in_place(|| offsets(&mut other, RECORDS))?;
    // then the tail holds no more than was said
    let held = tail.records_ahead() * RECORD_BYTES;
    assert!(held <= settings.most_ahead(), "{held}");
    Ok(())
}
