//! Rows that are merged by key: some new, some there already.

use anyhow::Result;
use serde_json::json;

use crate::loader::{FAIL, ISOLATE, Loader};

#[tokio::test(flavor = "multi_thread")]
async fn new_keys_and_repeats_come_out_the_same() -> Result<()> {
    for how in [FAIL, ISOLATE] {
        let loader = Loader::new().await?;
        let options = json!({"primaryKey": "id", "deduplicate": true});
        let events = |ids: std::ops::Range<usize>, version: usize| -> Vec<String> {
            ids.map(|id| json!({"id": id, "version": version}).to_string()).collect()
        };
        // all new; one repeat at the end; all new again, a repeat right after; all there
        let loads = [(0..100, 1), (100..200, 2), (199..300, 3), (300..400, 4), (0..400, 5)];
        for (ids, version) in loads {
            let count = ids.len() as u64;
            let report = loader.load(&options, &events(ids.clone(), version), how).await?;
            assert_eq!((report.counts.loaded, report.counts.merged), (count, 0), "{ids:?}");
            let sql = format!("select count(*) from t where version = {version}");
            assert_eq!(loader.number(&sql).await?, i64::try_from(ids.len())?, "{ids:?}");
        }
        assert_eq!(loader.number("select count(*) from t").await?, 400);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn another_constraint_is_not_taken_for_a_repeat() -> Result<()> {
    let loader = Loader::new().await?;
    let sql =
        "create table t (id bigint primary key, other bigint unique); insert into t values (1, 1)";
    loader.database.query(sql).await?;
    let options = json!({"primaryKey": "id", "deduplicate": true});
    let event = |id: usize, other: usize| json!({"id": id, "other": other}).to_string();
    let report = loader.load(&options, &[event(2, 2), event(3, 1), event(4, 4)], ISOLATE).await?;
    assert_eq!(report.refused.iter().map(|row| row.row).collect::<Vec<_>>(), [1]);
    assert_eq!(loader.number("select count(*) from t").await?, 3);
    Ok(())
}
