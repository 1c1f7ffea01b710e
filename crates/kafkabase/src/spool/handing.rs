//! When events were handed over, as the medium tells it after a crash.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::{
    EventParts, Spool,
    model::{ForgetfulDisk, metrics, settings},
};

fn open(disk: &ForgetfulDisk) -> Spool {
    Spool::open_on(Box::new(disk.clone()), &settings(), metrics()).unwrap()
}

/// When the only event of a topic was handed over.
async fn handed_at(spool: &Spool) -> SystemTime {
    let [event] = &spool.handed("t").await.unwrap()[..] else { panic!("not one event") };
    event.handed_at()
}

#[tokio::test]
async fn the_earliest_time_counts_also_after_a_clock_was_set_back() {
    // given an event that is handed over, and again after the clock was set back, and once more
    let (noon, hour) = (UNIX_EPOCH + Duration::from_secs(43_200), Duration::from_secs(3_600));
    let disk = ForgetfulDisk::default();
    let spool = open(&disk);
    let event = EventParts { topic: "t", key: b"k", headers: &[], value: b"v" };
    let (done, written) = tokio::sync::oneshot::channel();
    let done = Box::new(|result| done.send(result).unwrap());
    let seq = spool.append(event, None, done).unwrap();
    written.await.unwrap().unwrap();
    for at in [noon, noon - hour, noon + hour] {
        spool.mark_handed_at("t", vec![seq], at).await.unwrap();
    }
    // when it is looked for, now or after a crash, then no record of it is older than that
    assert_eq!(handed_at(&spool).await, noon - hour);
    drop(spool);
    assert_eq!(handed_at(&open(&disk)).await, noon - hour);
}
