//! A disk that is smaller than the spool may be, and full, or that fails once: it has to get empty
//! again by sending what is on it.

use std::{sync::mpsc, time::Duration};

use super::{
    EventParts, Spool, SpoolError, SpoolSettings, SpooledEvent,
    model::{ForgetfulDisk, metrics, settings},
};

const CAPACITY: u64 = 10_000;
const PATIENCE: Duration = Duration::from_secs(30);

fn spool_on(disk: &ForgetfulDisk) -> Spool {
    let settings = SpoolSettings { topic_share: 1.0, ..settings() };
    Spool::open_on(Box::new(disk.clone()), &settings, metrics()).unwrap()
}

fn append(spool: &Spool, topic: &str) -> Result<u64, SpoolError> {
    let event = EventParts { topic, key: b"k", headers: &[], value: &[b'v'; 100] };
    let (done, written) = mpsc::channel();
    let done = Box::new(move |result| done.send(result).unwrap());
    let seq = spool.append(event, None, done)?;
    written.recv().unwrap().map(|()| seq)
}

/// One step of a replay that Kafka takes; how many events it was.
async fn send(spool: &Spool, topic: &str, events: usize) -> Result<usize, SpoolError> {
    let events = spool.first(topic, events, usize::MAX).await?;
    let seqs: Vec<u64> = events.iter().map(SpooledEvent::seq).collect();
    if !seqs.is_empty() {
        spool.mark_handed(topic, seqs.clone()).await?;
        spool.remove(topic, seqs);
    }
    Ok(events.len())
}

/// Sends everything, as replays do that Kafka lets: a topic after the other, as much as it may, and
/// again after a failure.
async fn send_all(spool: &Spool, topics: &[String]) {
    let is_empty = || async {
        for topic in topics {
            while send(spool, topic, 1_000).await.is_ok_and(|sent| sent > 0) {}
        }
        spool.status().waiting == 0
    };
    testkit::wait_until(PATIENCE, is_empty).await.unwrap();
}

async fn until_it_takes(spool: &Spool) {
    testkit::wait_until(PATIENCE, || async { spool.status().takes }).await.unwrap();
}

#[tokio::test]
async fn a_full_disk_still_takes_the_marks_that_make_room_on_it() {
    let disk = ForgetfulDisk::of_size(CAPACITY);
    let spool = spool_on(&disk);
    let mut count = 0;
    while append(&spool, "t").is_ok() {
        count += 1;
    }
    assert!(count > 20, "{count}");
    for _ in 0..3 {
        assert_eq!(append(&spool, "t"), Err(SpoolError::Disk));
    }
    let status = spool.status();
    assert_eq!((status.takes, status.problem.as_deref()), (false, Some("the disk is full")));
    // when they are sent, then there is room again
    send_all(&spool, &["t".to_owned()]).await;
    until_it_takes(&spool).await;
    append(&spool, "t").unwrap();
}

#[tokio::test]
async fn a_full_disk_gets_empty_also_when_each_file_holds_events_of_many_topics() {
    // given events of many topics in turn
    let disk = ForgetfulDisk::of_size(CAPACITY);
    let spool = spool_on(&disk);
    let topics: Vec<String> = (0..12).map(|number| format!("topic-{number}")).collect();
    let mut turns = topics.iter().cycle();
    while append(&spool, turns.next().unwrap()).is_ok() {}
    assert!(spool.status().waiting > 40, "{:?}", spool.status());

    // when they are sent, then there is room again
    send_all(&spool, &topics).await;
    until_it_takes(&spool).await;
    append(&spool, "topic-0").unwrap();
}

#[tokio::test]
async fn a_kafka_that_fails_again_and_again_does_not_use_up_what_a_full_disk_keeps_for_marks() {
    let disk = ForgetfulDisk::of_size(CAPACITY);
    let spool = spool_on(&disk);
    while append(&spool, "t").is_ok() {}
    // given events that are handed over, looked for, not found, and handed over again
    for _ in 0..100 {
        let [event] = &spool.first("t", 1, 1).await.unwrap()[..] else { panic!("no event") };
        spool.mark_handed("t", vec![event.seq()]).await.unwrap();
        assert!(spool.has_handed("t"), "it may be in kafka");
        spool.set_missing("t", [event.seq()]);
    }
    // when Kafka takes them, then there is room again
    send_all(&spool, &["t".to_owned()]).await;
    until_it_takes(&spool).await;
}

#[tokio::test]
async fn a_folder_that_could_not_be_synced_once_still_gets_rid_of_its_files() {
    // given an event whose file is taken away, while the folder's sync fails
    let disk = ForgetfulDisk::default();
    let spool = spool_on(&disk);
    append(&spool, "t").unwrap();
    disk.fail_at_folder();
    send_all(&spool, &["t".to_owned()]).await;
    testkit::wait_until(PATIENCE, || async { disk.has_failed_at_folder() }).await.unwrap();
    // when other events come and go, then no file is left
    append(&spool, "t").unwrap();
    send_all(&spool, &["t".to_owned()]).await;
    testkit::wait_until(PATIENCE, || async { spool.status().bytes == 0 }).await.unwrap();
}
