//! Redis over TLS: `REDIS_TLS_CA` encrypts, and says whom to trust.

use std::fs;

use anyhow::{Context, Result, ensure};
use testkit::{certificates, process::Service, wait_until};

use crate::app::{PATIENCE, Setup};

#[tokio::test(flavor = "multi_thread")]
async fn only_the_given_authority_is_trusted() -> Result<()> {
    let folder = tempfile::tempdir()?;
    certificates::make(folder.path())?;
    let port = testkit::free_port()?;
    let mut command = tokio::process::Command::new("redis-server");
    command.current_dir(folder.path()).args(["--port", "0", "--bind", "127.0.0.1", "--save", ""]);
    command.args(["--tls-port", &port.to_string(), "--tls-auth-clients", "no"]);
    command.args(["--tls-cert-file", "server.crt", "--tls-key-file", "server.key"]);
    command.args(["--tls-ca-cert-file", "ca.crt"]);
    let mut server = Service::start(command)?;
    server.wait_for_line("Ready to accept connections", PATIENCE).await?;

    let (kafka, database) = (testkit::kafka().await?, testkit::postgres().await?);
    let authority = |name: &str| fs::read_to_string(folder.path().join(name));
    let setup = Setup::new(&kafka, &database)
        .with("BULKER_CONFIG_SOURCE", "redis")
        .with("BULKER_REDIS_URL", &format!("redis://localhost:{port}"));

    let right = setup.clone().with("BULKER_REDIS_TLS_CA", &authority("ca.crt")?).start().await?;
    let has_source = || async {
        let health = right.get("/health").await.unwrap_or_default();
        health.contains("there is no hash enrichedConnections")
    };
    wait_until(PATIENCE, has_source).await.context("the source answers over TLS")?;
    right.stop().await?;

    let mut wrong = setup.with("BULKER_REDIS_TLS_CA", &authority("other.crt")?).spawn()?;
    let status = wrong.service.wait(PATIENCE).await?;
    ensure!(status.code() == Some(1), "{status}");
    let line = wrong.service.wait_for_line("BULKER_CONFIG_SOURCE", PATIENCE).await?;
    ensure!(line.contains("certificate verify failed"), "{line}");
    server.terminate(PATIENCE).await?;
    Ok(())
}
