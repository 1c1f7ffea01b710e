//! The last fault, the same for every seed: Kafka is frozen until both spools are full, and
//! meanwhile a disk takes nothing for a while. Chance alone would leave runs in which no spool ever
//! had to say no.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use testkit::wait_until;
use tokio::time::Instant;

use crate::{faults::Harm, traffic::Traffic, world::World};

/// Longer than a slow disk takes to fill a spool, by a few events at a time.
const LIMIT: Duration = Duration::from_secs(120);
/// Events in a spool that has room.
const FEW: u64 = 200;
/// The instance whose disk takes nothing.
const HURT: usize = 0;

/// Fills the spools; Kafka is back when this returns.
pub(crate) async fn fill_spools(world: &World, traffic: &Traffic, began: Instant) -> Result<()> {
    // a spool without room would say so, whatever its disk does
    let has_room =
        async || world.spool(HURT).await.is_ok_and(|spool| spool.takes && spool.waiting < FEW);
    wait_until(LIMIT, has_room).await.context("a spool gets no room again")?;
    let failed = traffic.disk_failed(HURT);
    world.disks[HURT].limit_files(Harm::Full.largest_file()).await?;
    println!("{:6.1} s  Kafka Frozen until the spools are full", began.elapsed().as_secs_f64());
    world.own_kafka.stop_process()?;
    let hurt = wait_until(LIMIT, || async { traffic.disk_failed(HURT) > failed }).await;
    if hurt.is_err() {
        // it has no disk to write to, and Kafka does not answer
        world.own_kafka.continue_process()?;
        let (full, health) = (traffic.spool_full(HURT), world.health().await);
        bail!(
            "a disk that takes nothing is no reason for a 503; {full} spools were full\n{health}"
        );
    }
    world.disks[HURT].limit_files(None).await?;

    let full = [0, 1].map(|number| traffic.spool_full(number));
    for number in [0, 1] {
        let takes = async || world.spool(number).await.is_ok_and(|spool| spool.waiting > 0);
        let taken = wait_until(LIMIT, takes).await;
        taken.with_context(|| format!("the spool of instance {number} takes nothing"))?;
        let filled = wait_until(LIMIT, || async { traffic.spool_full(number) > full[number] });
        filled.await.with_context(|| format!("the spool of instance {number} is never full"))?;
    }

    world.own_kafka.continue_process()?;
    println!("{:6.1} s  Kafka continues, spools are full", began.elapsed().as_secs_f64());
    Ok(())
}
