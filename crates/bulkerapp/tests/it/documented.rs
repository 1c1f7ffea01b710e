//! DEPLOYMENT.md names everything that an operator can set or chart.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Result, ensure};
use bulkerapp::routes::{Access, ROUTES};

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

/// A path with its parameters' names left out: the guide and the table may name them differently.
fn without_names(path: &str) -> String {
    let is_parameter = |segment: &str| segment.starts_with(':') || segment.starts_with('{');
    let segments = path.split('/').map(|s| if is_parameter(s) { "*" } else { s });
    segments.collect::<Vec<_>>().join("/")
}

#[test]
fn the_endpoints_of_the_guide_are_the_routes_that_there_are() {
    let (_, section) = DEPLOYMENT.split_once("\n## Endpoints\n").expect("a section");
    let rows = section.lines().skip_while(|line| !line.starts_with("| `"));
    let mut documented = BTreeSet::new();
    for row in rows.take_while(|line| line.starts_with('|')) {
        let cells: Vec<_> = row.split('|').map(str::trim).collect();
        let access = if cells[2] == "no" { "open" } else { "guarded" };
        for endpoint in cells[1].split('`').skip(1).step_by(2) {
            let (method, address) = endpoint.split_once(' ').expect("a method and a path");
            let path = address.split('?').next().unwrap_or_default();
            documented.insert(format!("{access} {method} {}", without_names(path)));
        }
    }
    let routes: BTreeSet<_> = ROUTES
        .iter()
        .map(|route| {
            let access = if route.access == Access::Open { "open" } else { "guarded" };
            format!("{access} {} {}", route.method, without_names(route.path))
        })
        .collect();
    assert_eq!(documented, routes);
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
