use std::{sync::Arc, time::Duration};

use anyhow::{Result, bail};
use kafkabase::{
    Admin, ClientSettings, Fetcher, FetcherSettings, RangeError, RangeItem, RangeReader,
};
use testkit::Kafka;

const POLL: Duration = Duration::from_millis(100);
const STALL_AFTER: Duration = Duration::from_secs(20);

/// Opens a reader at `start` and reads up to `end`, or up to the topic's end without one.
async fn range(
    kafka: &Kafka,
    topic: &str,
    start: i64,
    end: Option<i64>,
    stall_after: Duration,
) -> Result<RangeReader> {
    let settings = ClientSettings::plaintext("it", kafka.bootstrap());
    let end = match end {
        Some(end) => end,
        None => {
            let admin = Admin::new(&settings, Duration::from_secs(20))?;
            admin.topic_group(topic, 0).end().await?
        }
    };
    let fetcher = Arc::new(Fetcher::new(&settings, &FetcherSettings::default())?);
    Ok(RangeReader::new(fetcher.open(topic, 0, start).await?, end, stall_after))
}

fn next(range: &mut RangeReader) -> Result<RangeItem, RangeError> {
    loop {
        match range.next(POLL)? {
            RangeItem::Waiting => {}
            item => return Ok(item),
        }
    }
}

fn offsets(range: &mut RangeReader) -> Result<Vec<i64>> {
    let mut offsets = Vec::new();
    while let RangeItem::Message(message) = next(range)? {
        offsets.push(message.offset());
    }
    Ok(offsets)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_whose_last_record_is_a_marker_is_read_to_its_end() -> Result<()> {
    let kafka = testkit::kafka().await?;
    let topic = kafka.topic("t", 1).await?;
    kafka.produce_transaction(&topic, 0, &["a", "b"], true).await?; // 0, 1, a marker at 2
    kafka.produce_transaction(&topic, 0, &["c"], false).await?; // 3, given up; a marker at 4
    let mut range = range(&kafka, &topic, 0, None, STALL_AFTER).await?;
    assert_eq!(tokio::task::block_in_place(|| offsets(&mut range))?, [0, 1]);
    assert_eq!(range.next_offset(), 5);
    assert!(matches!(range.next(POLL)?, RangeItem::End), "an end stays the end");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_ends_before_what_was_appended_later() -> Result<()> {
    let kafka = testkit::kafka().await?;
    let topic = kafka.topic("t", 1).await?;
    kafka.produce_all(&topic, 0, vec!["x"; 20]).await?;
    let mut range = range(&kafka, &topic, 5, Some(10), STALL_AFTER).await?;
    assert_eq!(tokio::task::block_in_place(|| offsets(&mut range))?, [5, 6, 7, 8, 9]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_range_ends_without_asking_kafka() -> Result<()> {
    let kafka = testkit::kafka().await?;
    let topic = kafka.topic("t", 1).await?;
    let mut range = range(&kafka, &topic, 0, Some(0), STALL_AFTER).await?;
    assert!(matches!(range.next(Duration::ZERO)?, RangeItem::End));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_put_back_comes_again() -> Result<()> {
    let kafka = testkit::kafka().await?;
    let topic = kafka.topic("t", 1).await?;
    kafka.produce_all(&topic, 0, ["a", "b"]).await?;
    let mut range = range(&kafka, &topic, 0, None, STALL_AFTER).await?;
    tokio::task::block_in_place(|| {
        assert!(matches!(next(&mut range)?, RangeItem::Message(_)));
        let RangeItem::Message(last) = next(&mut range)? else { bail!("no message") };
        assert_eq!(range.next_offset(), 2);
        range.put_back(last);
        assert_eq!(range.next_offset(), 1);
        let RangeItem::Message(last) = next(&mut range)? else { bail!("no message") };
        assert_eq!((last.payload(), range.next_offset()), (&b"b"[..], 2));
        assert!(matches!(next(&mut range)?, RangeItem::End));
        Ok(())
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn records_that_never_come_are_a_stall() -> Result<()> {
    let kafka = testkit::kafka().await?;
    let topic = kafka.topic("t", 1).await?;
    kafka.produce_all(&topic, 0, ["a", "b"]).await?;
    let stall_after = Duration::from_secs(1);
    let mut range = range(&kafka, &topic, 0, Some(5), stall_after).await?;
    let read = tokio::task::block_in_place(|| offsets(&mut range));
    assert_eq!(read.unwrap_err().to_string(), "no record arrived for 1 s although there are some");
    assert_eq!(range.next_offset(), 2);
    Ok(())
}
