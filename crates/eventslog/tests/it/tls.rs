//! Encrypted connections to Redis, and what is checked of it.

use anyhow::{Context, Result};
use eventslog::Query;
use testkit::{certificates, native::OwnRedis};

use crate::running::{QUICKLY, Running, ask, config, connect, stream};

#[tokio::test]
async fn a_certificate_is_verified_unless_told_otherwise() -> Result<()> {
    // given a Redis with TLS on one port and without on another
    let folder = tempfile::tempdir()?;
    certificates::make(folder.path())?;
    let path = |name: &str| folder.path().join(name).display().to_string();
    let own = OwnRedis::start().await?;
    let mut redis = connect(own.url()).await?;
    let port = testkit::free_port()?.to_string();
    let () = ask(
        &mut redis,
        &[
            "CONFIG",
            "SET",
            "tls-cert-file",
            &path("server.crt"),
            "tls-key-file",
            &path("server.key"),
            "tls-auth-clients",
            "no",
            "tls-port",
            &port,
        ],
    )
    .await?;
    let ca = format!("--redis-tls-ca={}", std::fs::read_to_string(path("ca.crt"))?);
    let other = format!("--redis-tls-ca={}", std::fs::read_to_string(path("other.crt"))?);
    let skip = "--redis-tls-skip-verify=true";
    let plain_port = own.url().rsplit(':').next().context("a port")?;
    let cases: [(String, &[&str], bool); 9] = [
        (format!("rediss://localhost:{port}"), &[], false),
        (format!("rediss://localhost:{port}"), &[&ca], true),
        (format!("rediss://localhost:{port}"), &[&other], false),
        (format!("rediss://127.0.0.1:{port}"), &[&ca], false),
        (format!("rediss://127.0.0.1:{port}"), &[skip], true),
        (format!("rediss://127.0.0.1:{port}"), &[skip, &other], true),
        // certificates mean TLS
        (format!("redis://localhost:{port}"), &[&ca], true),
        (format!("redis://localhost:{plain_port}"), &[&ca], false),
        (format!("redis://localhost:{plain_port}"), &[], true),
    ];
    for (url, settings, is_open) in cases {
        let address = format!("--redis-url={url}");
        let words = [&[address.as_str()], settings].concat();
        let running = Running::start(&config(&words), QUICKLY)?;
        let query = Query { streams: vec![stream("incoming", "a")], ..Query::default() };
        let read = running.log.read(&query).await;
        assert_eq!(read.is_ok(), is_open, "{url} {}: {read:?}", settings.len());
        running.stop().await?;
    }
    Ok(())
}

#[test]
fn settings_that_are_wrong_are_named_and_not_quoted() {
    let open = |arguments: &[&str]| {
        Running::start(&config(arguments), QUICKLY).map(drop).unwrap_err().to_string()
    };
    for url in ["hunter2", "http://:hunter2@host", "redis://host:hunter2"] {
        let error = open(&[&format!("--events-log-redis-url={url}")]);
        assert!(error.starts_with("EVENTS_LOG_REDIS_URL "), "{error}");
        assert!(!error.contains("hunter2"), "{error}");
    }
    let error = open(&["--redis-url=rediss://host", "--redis-tls-ca=hunter2"]);
    assert_eq!(error, "REDIS_TLS_CA is not a certificate in PEM");
    assert_eq!(open(&["--clickhouse-host=a b"]), "CLICKHOUSE_HOST is not host:port");
}
