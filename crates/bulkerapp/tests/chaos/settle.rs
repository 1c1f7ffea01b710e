//! After the last fault everything is sent and loaded, and no spool and no topic stands still
//! meanwhile.

use std::{collections::HashMap, time::Duration};

use anyhow::{Result, bail, ensure};
use tokio::time::Instant;

use crate::{tables::Table, world::World};

/// How long a topic with something to do may stand still.
pub(crate) const STALL: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// How far a topic is, or a spool.
struct Standing {
    topic: String,
    position: String,
    is_done: bool,
}

/// Waits until the spools are empty, all topics are loaded to their ends and no refused event
/// waits; answers the longest time for which one of them stood still.
pub(crate) async fn settle(world: &World) -> Result<(Duration, String)> {
    let mut longest = (Duration::ZERO, String::new());
    let mut seen: HashMap<String, (String, Instant)> = HashMap::new();
    loop {
        let standings = look(world).await?;
        let mut is_done = true;
        for Standing { topic, position, is_done: is_topic_done } in standings {
            is_done &= is_topic_done;
            let (last, moved) =
                seen.entry(topic.clone()).or_insert_with(|| (position.clone(), Instant::now()));
            if *last != position || is_topic_done {
                (*last, *moved) = (position, Instant::now());
                continue;
            }
            longest = longest.max((moved.elapsed(), topic.clone()));
            if moved.elapsed() > STALL {
                let health = world.health().await;
                bail!("{topic} stands still for {STALL:?}: {position}\n{health}");
            }
        }
        if is_done {
            return Ok(longest);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// How far the spools are. In quarantine there is nothing: Kafka refuses no event for good here.
async fn spools(world: &World) -> Result<Vec<Standing>> {
    let mut standings = Vec::new();
    for number in 0..world.ports.len() {
        let spool = world.spool(number).await?;
        ensure!(spool.quarantined == 0, "events in quarantine:\n{}", world.health().await);
        standings.push(Standing {
            topic: format!("the spool of instance {number}"),
            position: format!("{} events wait", spool.waiting),
            is_done: spool.waiting == 0,
        });
    }
    Ok(standings)
}

async fn look(world: &World) -> Result<Vec<Standing>> {
    // the spools first: what leaves them is behind the ends that are asked for next
    let mut standings = spools(world).await?;
    let retry = world.setup.retry_topic();
    let topics = world.kafka.topics().await?;
    if topics.contains(&retry) {
        let end = world.kafka.end_offset(&retry, 0).await?;
        let moved = world.kafka.committed(&retry, &retry, 0).await?.map_or(0, |c| c.offset);
        standings.push(Standing {
            topic: retry,
            position: format!("moved to {moved} of {end}"),
            is_done: moved == end,
        });
    }
    let sql = "select topic, next_offset, waiting from bulker_offsets where topic <> ''";
    let mut rows = HashMap::new();
    for row in world.database.query(sql).await? {
        let mut row = row.into_iter().flatten();
        let (Some(topic), Some(next), Some(waiting)) = (row.next(), row.next(), row.next()) else {
            bail!("bulker_offsets has a NULL");
        };
        rows.insert(topic, (next.parse::<i64>()?, waiting.parse::<i64>()?));
    }
    for table in Table::all() {
        let topic = table.topic(&world.setup);
        if !topics.contains(&topic) {
            let position = "not made yet".to_owned();
            standings.push(Standing { topic, position, is_done: false });
            continue;
        }
        let end = world.kafka.end_offset(&topic, 0).await?;
        let (next, waiting) = rows.get(&topic).copied().unwrap_or_default();
        standings.push(Standing {
            topic,
            position: format!("loaded to {next} of {end}, {waiting} wait to be tried again"),
            is_done: next == end && waiting == 0,
        });
    }
    Ok(standings)
}
