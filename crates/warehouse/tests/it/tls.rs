//! Connections that are encrypted, and what is checked of the server and of us.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, process::Command};

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use sqlx::Row;
use testkit::{
    certificates::{self, openssl},
    native::OwnPostgres,
};
use warehouse::postgres::{Credentials, Postgres, Settings};

/// The usual certificates, and a client's with a key in an older form.
fn make_certificates(folder: &Path) -> Result<()> {
    certificates::make(folder)?;
    openssl(folder, "ecparam -name prime256v1 -genkey -noout -out client.key")?;
    openssl(folder, "req -new -key client.key -out client.csr -subj /CN=loader")?;
    openssl(
        folder,
        "x509 -req -in client.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -out client.crt",
    )?;
    // PostgreSQL runs as a user of its own, and wants a key that no other user may read
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?;
    let owner = Command::new("chown").arg("postgres").arg(folder.join("server.key")).status();
    ensure!(owner?.success() || !nix_is_root(), "chown failed");
    fs::set_permissions(folder.join("server.key"), fs::Permissions::from_mode(0o600))?;
    Ok(())
}

fn nix_is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0)
}

#[tokio::test(flavor = "multi_thread")]
async fn each_ssl_mode_checks_what_it_says() -> Result<()> {
    // given a server with TLS
    let folder = tempfile::tempdir()?;
    make_certificates(folder.path())?;
    let path = |name: &str| folder.path().join(name).display().to_string();
    let settings = format!(
        "-c ssl=on -c ssl_cert_file={} -c ssl_key_file={} -c ssl_ca_file={}",
        path("server.crt"),
        path("server.key"),
        path("ca.crt")
    );
    let server = OwnPostgres::start_with(&settings).await?;
    let database = server.database().await?;
    let client_key = fs::read_to_string(path("client.key"))?;
    ensure!(client_key.contains("BEGIN EC PRIVATE KEY"), "not the older form");
    let with_ca = |ca: &str| json!({"sslServerCA": path(ca), "sslClientCert": path("client.crt"), "sslClientKey": client_key});
    let cases = [
        ("localhost", "disable", json!({}), Some((false, None))),
        ("127.0.0.1", "require", json!({}), Some((true, None))),
        ("127.0.0.1", "verify-ca", with_ca("ca.crt"), Some((true, Some("/CN=loader")))),
        ("localhost", "verify-full", with_ca("ca.crt"), Some((true, Some("/CN=loader")))),
        // the certificate is not for this name; not by this authority
        ("127.0.0.1", "verify-full", with_ca("ca.crt"), None),
        ("localhost", "verify-ca", with_ca("other.crt"), None),
    ];
    for (host, mode, more, expected) in cases {
        // when a destination connects in this mode
        let mut credentials = database.credentials();
        (credentials["host"], credentials["sslMode"]) = (host.into(), mode.into());
        if let (Value::Object(all), Value::Object(more)) = (&mut credentials, more) {
            all.extend(more);
        }
        let settings =
            Settings { connect_timeout: std::time::Duration::from_secs(5), ..Settings::default() };
        let postgres = Postgres::new(&Credentials::read(&credentials)?, settings)?;
        // then it gets in, encrypted and as whom, or it does not
        let sql = "select ssl, client_dn from pg_stat_ssl where pid = pg_backend_pid()";
        let rows = match postgres.connection().await {
            Ok(mut connection) => Some(connection.run(sql).await?),
            Err(_) => None,
        };
        let found = rows.map(|rows| -> Result<_> {
            let ssl: bool = rows[0].try_get(0)?;
            let name: Option<String> = rows[0].try_get(1)?;
            Ok((ssl, name))
        });
        let found = found.transpose()?;
        let found = found.as_ref().map(|(ssl, name)| (*ssl, name.as_deref()));
        assert_eq!(found, expected, "{mode} to {host}");
    }
    Ok(())
}
