//! Who sees what: with no token, with a user's, with an administrator's.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use testkit::wait_until;
use tokio::net::TcpStream;

use crate::app::{App, DESTINATION, PATIENCE, Setup, TOKEN};

const ADMIN: &str = "of-an-administrator";
/// Everything that shows bodies of events.
const BODIES: [&str; 3] = ["/failed/it", "/log/bulker_batch.all/it", "/events"];

async fn status(app: &App, path: &str, token: &str) -> Result<u16> {
    let bearer = format!("Bearer {token}");
    Ok(app.request("GET", path, &[("authorization", &bearer)], b"").await?.status)
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_of_events_are_shown_by_one_rule() -> Result<()> {
    let (kafka, database) = (testkit::kafka().await?, testkit::postgres().await?);
    let setup = Setup::new(&kafka, &database).with("BULKER_ENABLE_CONSUMERS", "false");
    let with_admins = setup.clone().with("BULKER_RAW_ADMIN_AUTH_TOKENS", ADMIN);
    let for_users = with_admins.clone().with("BULKER_EVENT_BODIES_FOR", "user");
    // where there are no tokens of administrators, a user's opens everything
    for (setup, of_users) in [(setup, 200), (with_admins, 403), (for_users, 200)] {
        let app = setup.start().await?;
        for path in BODIES {
            assert_eq!(status(&app, path, TOKEN).await?, of_users, "{path}");
            assert_eq!(status(&app, path, "invented").await?, 401, "{path}");
            if of_users == 403 {
                assert_eq!(status(&app, path, ADMIN).await?, 200, "{path}");
            }
        }
        app.stop().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn names_and_reasons_are_told_to_administrators_alone() -> Result<()> {
    // given a database that does not let us in, so that there is something to tell
    let (kafka, database) = (testkit::kafka().await?, testkit::postgres().await?);
    let mut setup = Setup::new(&kafka, &database).with("BULKER_RAW_ADMIN_AUTH_TOKENS", ADMIN);
    setup.password = "wrong".to_owned();
    let app = setup.start().await?;
    let ask = async |path: &str, token: &str| -> Result<Value> {
        let bearer = if token.is_empty() { String::new() } else { format!("Bearer {token}") };
        let answer = app.request("GET", path, &[("authorization", &bearer)], b"").await?;
        ensure!(answer.status == 200, "{path}: {}", answer.status);
        Ok(serde_json::from_str(&answer.body)?)
    };
    let knows = || async {
        let _ = ask("/stats", ADMIN).await; // databases are asked for those who want to know
        let health = ask("/health", ADMIN).await.unwrap_or_default();
        health["details"]["silentDestinations"][DESTINATION].is_string()
    };
    wait_until(PATIENCE, knows).await.context("an administrator sees the reason")?;

    // then a probe learns what it needs, and no more
    for token in ["", "invented", TOKEN] {
        for path in ["/health", "/ready"] {
            let reply = ask(path, token).await?;
            let names: Vec<_> = reply.as_object().context("an object")?.keys().collect();
            assert_eq!(names, ["producerQueueSize", "status", "topicsUpdatedAt"], "{path} {token}");
        }
    }
    // and a user that the database does not tell, not why
    let path = format!("/stats/{DESTINATION}");
    let problem = async |token| -> Result<String> {
        Ok(ask(&path, token).await?["destinations"][0]["problem"].to_string())
    };
    assert!(problem(ADMIN).await?.contains(database.user()));
    assert_eq!(
        problem(TOKEN).await?,
        r#""the database did not tell; /health has the reason, for administrators""#
    );
    app.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_addresses_that_are_listened_on_can_be_chosen() -> Result<()> {
    let (kafka, database) = (testkit::kafka().await?, testkit::postgres().await?);
    let metrics = testkit::free_port()?;
    let setup = Setup::new(&kafka, &database)
        .with("BULKER_LISTEN_HTTP", "127.0.0.2")
        .with("BULKER_LISTEN_METRICS", "127.0.0.2")
        .with("BULKER_METRICS_PORT", &metrics.to_string());
    let mut app = setup.spawn()?;
    app.service.wait_for_line("serving", PATIENCE).await?;
    for port in [app.port, metrics] {
        assert!(TcpStream::connect(("127.0.0.2", port)).await.is_ok(), "{port}");
        assert!(TcpStream::connect(("127.0.0.1", port)).await.is_err(), "{port}");
    }
    // the command of a container's health check asks there
    let checked =
        setup.with("BULKER_HTTP_PORT", &app.port.to_string()).run(&["healthcheck"]).await?;
    assert!(checked.is_success, "{}", checked.log);
    let ended = app.service.terminate(PATIENCE).await?;
    ensure!(ended.success(), "{ended}");
    Ok(())
}
