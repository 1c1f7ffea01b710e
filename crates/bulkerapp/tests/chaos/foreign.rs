//! Another program that writes to our topics, with its own ideas of headers, keys and times.
//!
//! Invariant: what it writes is an event all the same. Each lands in its table or on the dead
//! letter topic, once, and stops nobody. Some of its records lie in the retry topic, as if somebody
//! had put them back there.

use std::{sync::Arc, time::Duration};

use testkit::ForeignRecord;
use tokio::time::{sleep, timeout};

use crate::{
    event::event,
    random::Random,
    tables::Table,
    traffic::{Ids, Traffic},
    world::World,
};

/// Programs that write at a time: each record is written by a client of its own, which takes its
/// time.
const WRITERS: u64 = 4;
/// Between two records of one.
const PAUSE: Duration = Duration::from_millis(100);
const GIVE_UP_AFTER: Duration = Duration::from_secs(8);
/// One record in so many is put into the retry topic.
const INTO_RETRY_EVERY: u64 = 12;
/// The header that its records have, whoever copies them, and what it says.
pub(crate) const FOREIGN: &str = "x-foreign";
/// Into the topic of a table.
pub(crate) const FOR_A_TABLE: &str = "for a table";
/// Into the retry topic, on its way to a table.
pub(crate) const ON_ITS_WAY: &str = "on its way";
/// Into the retry topic, and nobody can say where it came from.
pub(crate) const UNDELIVERABLE: &str = "undeliverable";
/// A header that makes an event large.
const LARGE_HEADER: usize = 300 << 10;
/// An hour of the year 50,000,000 or so to whoever reads it as milliseconds.
const NANOSECONDS: i64 = 1_764_200_000_000_000_000;

type Headers = Vec<(&'static str, Vec<u8>)>;

/// Write until the traffic ends.
pub(crate) fn join(traffic: &mut Traffic, world: &Arc<World>, seed: u64) {
    for number in 0..WRITERS {
        let random = Random::new(seed, 100 + number);
        traffic.join(write(world.clone(), traffic.ids(), random));
    }
}

async fn write(world: Arc<World>, ids: Ids, mut random: Random) {
    let mut cluster = None;
    while !ids.is_stopped() {
        sleep(PAUSE).await;
        if cluster.is_none() {
            cluster = cluster_id(&world).await;
        }
        let id = ids.take();
        let value = event(id, ids.age());
        let table = Table::of(id);
        let topic = table.topic(&world.setup);
        let (into, mut headers) = match random.next() % INTO_RETRY_EVERY {
            0 => (world.setup.retry_topic(), on_its_way(&mut random, &topic)),
            _ => {
                let cluster = cluster.as_deref().unwrap_or("unknown");
                (topic.clone(), for_a_table(&mut random, id, &topic, cluster))
            }
        };
        if table.kind().is_deduplicated {
            // without these the key would go, and come back with the next event
            headers.retain(|(name, _)| *name != "stream_options");
            headers.push(("stream_options", crate::traffic::KEYED.into()));
        }
        let is_far_ahead = into == topic && random.next().is_multiple_of(20);
        // topics that are compacted have no records without a key
        let has_key = into != topic || random.next().is_multiple_of(2);
        let headers: Vec<_> = headers.iter().map(|(name, v)| (*name, v.as_slice())).collect();
        let record = ForeignRecord {
            key: has_key.then_some(b"shared".as_slice()),
            value: Some(value.as_bytes()),
            headers: &headers,
            timestamp_ms: is_far_ahead.then_some(NANOSECONDS),
        };
        let written = timeout(GIVE_UP_AFTER, world.kafka.produce_foreign(&into, 0, record));
        if matches!(written.await, Ok(Ok(_))) {
            ids.answered(id);
        }
    }
}

/// The cluster's id, as the loader calls it; `None`: PostgreSQL is away, or nothing is loaded yet.
async fn cluster_id(world: &World) -> Option<String> {
    let sql = "select max(cluster_id) from bulker_offsets";
    let asked = timeout(GIVE_UP_AFTER, world.database.value(sql)).await;
    asked.ok()?.ok().filter(|id| !id.is_empty())
}

/// Headers of ours, as somebody else may set them.
fn for_a_table(random: &mut Random, id: u64, topic: &str, cluster: &str) -> Headers {
    let place = |cluster: &str, topic: &str, offset: i128| {
        format!(r#"{{"cluster":"{cluster}","topic":"{topic}","partition":0,"offset":{offset}}}"#)
            .into_bytes()
    };
    let origin = "bulker_origin";
    let hostile: Headers = match random.next() % 20 {
        0 => vec![("retries", b"2147483647".to_vec())],
        1 => vec![("retries", b"99999999999999999999".to_vec())],
        2 => vec![("retries", b"0".to_vec()), ("retries", b"7".to_vec())],
        3 => vec![("retries", b"many".to_vec())],
        4 => vec![("retries", vec![0xff, 0xfe])],
        5 => vec![(origin, b"not even JSON".to_vec())],
        6 => vec![(origin, b"{}".to_vec())],
        7 => vec![(origin, place("elsewhere", &format!("theirs.{id}"), id.into()))],
        8 => vec![(origin, place(cluster, topic, i64::MAX.into()))],
        9 => vec![(origin, place(cluster, topic, i64::MIN.into()))],
        10 => vec![(origin, place(cluster, topic, i128::from(u64::MAX)))],
        11 => vec![(origin, place(cluster, &"t".repeat(3000), id.into()))],
        12 => vec![(origin, place(cluster, &"t".repeat(LARGE_HEADER), id.into()))],
        13 => vec![("large", vec![b'x'; LARGE_HEADER])],
        14 => vec![("retry_time", b"9999-12-31T23:59:59Z".to_vec()), ("retries", b"1".to_vec())],
        15 => vec![("original_topic", b"no/topic".to_vec()), ("error", vec![b'e'; 5000])],
        16 => vec![("bulker_key", b"a".to_vec()), ("bulker_key", b"b".to_vec())],
        17 => vec![("stream_options", b"{not json".to_vec())],
        18 => vec![("metrics_meta", b"{not json".to_vec())],
        _ => vec![("", b"a header without a name".to_vec())],
    };
    [vec![(FOREIGN, FOR_A_TABLE.into())], hostile].concat()
}

/// Headers of a record that lies in the retry topic, for this topic.
fn on_its_way(random: &mut Random, topic: &str) -> Headers {
    let original = ("original_topic", topic.as_bytes().to_vec());
    let (says, headers) = match random.next() % 10 {
        0 => (UNDELIVERABLE, vec![]),
        1 => (UNDELIVERABLE, vec![original, ("retries", b"many".to_vec())]),
        2 => (ON_ITS_WAY, vec![original, ("retries", b"2147483647".to_vec())]),
        3 => (ON_ITS_WAY, vec![original, ("retry_time", b"9999-12-31T23:59:59Z".to_vec())]),
        4 => (ON_ITS_WAY, vec![original, ("retry_time", b"soon".to_vec())]),
        5 => {
            let twice = |n: &str| ("retries", n.as_bytes().to_vec());
            (ON_ITS_WAY, vec![original, twice("0"), twice("1")])
        }
        _ => (ON_ITS_WAY, vec![original]),
    };
    [vec![(FOREIGN, says.into())], headers].concat()
}
