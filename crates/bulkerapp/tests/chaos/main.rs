//! Everything breaks, again and again, while events are posted: each of them ends in one place.
//!
//! Two instances, each with a spool, share the topics of twenty tables (batch and stream, plain and
//! deduplicated) and of those that clients invent; one event in a hundred is bad, and some are
//! another program's, with headers of its own. Instances, Kafka, PostgreSQL and Redis are killed,
//! frozen and restarted, the spools' disks are full, a customer changes, locks and renames, rights
//! come and go, the topic of shares is deleted and clocks step, as a seed decides. The last fault
//! is the same for all seeds: Kafka is away until the spools are full. `CHAOS_SECONDS` (60) and
//! `CHAOS_SEED` (chosen) come from the environment; `make chaos` runs ten minutes.

#[allow(dead_code)] // the other test uses all of it
#[path = "../it/app.rs"]
mod app;

mod account;
mod clock;
mod customer;
mod disk;
mod event;
mod faults;
mod foreign;
mod instance;
mod last_fault;
mod ledger;
mod random;
mod settle;
mod tables;
mod traffic;
mod whole;
mod world;

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use tokio::time::Instant;

use crate::{
    account::Summary,
    settle::{STALL, settle},
    traffic::{Answers, Traffic},
    world::World,
};

#[tokio::test(flavor = "multi_thread")]
async fn whatever_breaks_each_answered_event_ends_in_one_place_once() -> Result<()> {
    let length = Duration::from_secs(variable("CHAOS_SECONDS")?.unwrap_or(60));
    let seed =
        variable("CHAOS_SEED")?.unwrap_or_else(|| u64::from(uuid::Uuid::new_v4().as_fields().0));
    println!("chaos: CHAOS_SEED={seed} CHAOS_SECONDS={}", length.as_secs());
    let world = Arc::new(World::start(seed).await?);
    let result = run(&world, seed, length).await;
    let folder = world.keep_logs(seed).await?;
    println!("chaos: logs are in {}", folder.display());
    result.with_context(|| format!("CHAOS_SEED={seed} CHAOS_SECONDS={}", length.as_secs()))
}

async fn run(world: &Arc<World>, seed: u64, length: Duration) -> Result<()> {
    let plan = faults::plan(seed, length);
    for fault in plan.iter().flatten() {
        println!("planned at {fault}");
    }
    let began = Instant::now();
    let mut traffic = Traffic::start(world.ports, began);
    foreign::join(&mut traffic, world, seed);
    let repairing = {
        let world = world.clone();
        tokio::spawn(async move { tables::repair(&world.database, began, length).await })
    };
    let faults = world.suffer(plan, began, length).await?;
    println!(
        "chaos: {faults} faults are over after {:.0} s and {} attempts to post",
        began.elapsed().as_secs_f64(),
        traffic.attempts()
    );

    world.is_ready(STALL).await?;
    last_fault::fill_spools(world, &traffic, began).await?;

    world.is_ready(STALL).await?;
    traffic.goes_on_everywhere(STALL).await?;
    let attempts = traffic.attempts();
    let answers = traffic.finish().await?;
    let calm = Instant::now();
    let (pause, topic) = match settle(world).await {
        Ok(settled) => settled,
        Err(error) => {
            // what is where tells more of why
            let account = account::check(world, &answers.answered).await.map(|_| ());
            return account.context(error);
        }
    };
    println!("chaos: all is loaded after {:.1?}; {topic} paused for {pause:.1?}", calm.elapsed());
    repairing.abort();
    let spooled = world.stop().await?;
    let Answers { answered, spool_full, disk_failed, intrusions } = answers;
    let summary = account::check(world, &answered).await?;
    println!(
        "chaos: {attempts} attempts; {spooled} events in the spools, {spool_full} refused by full spools, \
         {disk_failed} by their disks, {intrusions} because the table is the loader's; {summary:?}"
    );
    ensure_it_was_a_test(&summary)?;
    ensure!(intrusions > 0, "nobody tried to write to the loader's own tables");
    ensure!(spooled > 0 && spool_full > 0 && disk_failed > 0, "the spools were not tried");
    Ok(())
}

/// A run that refused nothing, or brought nothing back, proves less than it says.
fn ensure_it_was_a_test(summary: &Summary) -> Result<()> {
    let Summary { answered, came_back, odd, impossible, system_columns, invented, foreign, .. } =
        summary;
    let least = [came_back, odd, impossible, system_columns, invented, foreign].into_iter().min();
    ensure!(*answered > 1_000 && least > Some(&0), "too little happened: {summary:?}");
    Ok(())
}

fn variable(name: &str) -> Result<Option<u64>> {
    match std::env::var(name) {
        Ok(text) if !text.is_empty() => {
            Ok(Some(text.parse().with_context(|| format!("{name} is no number"))?))
        }
        _ => Ok(None),
    }
}
