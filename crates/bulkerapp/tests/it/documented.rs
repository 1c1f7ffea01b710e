//! DEPLOYMENT.md names everything that an operator can set or chart.

use anyhow::Result;
use testkit::wait_until;

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

#[tokio::test(flavor = "multi_thread")]
async fn every_metric_is_documented() -> Result<()> {
    let (kafka, database) = (testkit::kafka().await?, testkit::postgres().await?);
    let setup = Setup::new(&kafka, &database);
    let topic = kafka.adopt(setup.topic("t"));
    let app = setup.start().await?;
    assert_eq!(app.post("t", "{\"id\":1}").await?, 200);
    loaded_to(&database, &topic, 1).await?;
    // the loader looks at its topics now and then
    let shows = || async {
        let metrics = app.get("/metrics").await.unwrap_or_default();
        metrics.contains("bulkerapp_oldest_unloaded_age_seconds{")
    };
    wait_until(PATIENCE, shows).await?;
    let metrics = app.get("/metrics").await?;
    app.stop().await?;
    let families: Vec<_> = metrics
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next())
        .filter(|name| !name.starts_with("process_"))
        .collect();
    for expected in ["bulkerapp_loaded_rows_total", "bulkerapp_oldest_unloaded_age_seconds"] {
        assert!(families.contains(&expected), "{families:?}");
    }
    let missing: Vec<_> = families.into_iter().filter(|name| !is_documented(name)).collect();
    assert!(missing.is_empty(), "{missing:?}");
    Ok(())
}
