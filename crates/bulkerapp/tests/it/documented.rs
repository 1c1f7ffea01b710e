//! DEPLOYMENT.md names everything that an operator can set or chart.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::app::{PATIENCE, Setup, loaded_to};

const DEPLOYMENT: &str = include_str!("../../../../DEPLOYMENT.md");

fn is_documented(name: &str) -> bool {
    DEPLOYMENT.contains(&format!("`{name}`"))
}

#[test]
fn every_variable_is_documented() {
    let missing: Vec<_> =
        bulkerapp::config::all_names().into_iter().filter(|name| !is_documented(name)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn what_has_no_effect_is_what_the_guide_says_has_none() {
    let (_, section) = DEPLOYMENT.split_once("without effect in this version").expect("a section");
    let (section, _) = section.split_once("\n## ").expect("another one");
    let mut documented: Vec<_> =
        section.split('`').skip(1).step_by(2).map(ToOwned::to_owned).collect();
    let mut ignored = bulkerapp::config::ignored_names();
    documented.sort();
    ignored.sort();
    assert_eq!(documented, ignored);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_metric_is_documented() -> Result<()> {
    let (kafka, database) = (testkit::kafka().await?, testkit::postgres().await?);
    let setup = Setup::new(&kafka, &database);
    let topic = kafka.adopt(setup.topic("t"));
    let app = setup.start().await?;
    assert_eq!(app.post("t", "{\"id\":1}").await?, 200);
    loaded_to(&database, &topic, 1).await?;
    // given that every family has a sample that gets one in a quiet service
    let mut metrics = String::new();
    let expected = ["bulkerapp_loaded_rows_total", "bulkerapp_oldest_unloaded_age_seconds"];
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !expected.iter().all(|family| metrics.contains(&format!("# TYPE {family} "))) {
        ensure!(tokio::time::Instant::now() < deadline, "{metrics}");
        tokio::time::sleep(Duration::from_millis(100)).await;
        metrics = app.get("/metrics").await?;
    }
    app.stop().await?;
    let families: Vec<_> = metrics
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next())
        .filter(|name| !name.starts_with("process_"))
        .collect();
    let missing: Vec<_> = families.into_iter().filter(|name| !is_documented(name)).collect();
    assert!(missing.is_empty(), "{missing:?}");
    Ok(())
}
