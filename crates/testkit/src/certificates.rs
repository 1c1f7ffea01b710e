//! Certificates for tests of encrypted connections, made with openssl.

use std::{path::Path, process::Command};

use anyhow::{Context, Result, ensure};

/// Makes two authorities, `ca` and `other`, and the certificate of a server, `server`, that the
/// first one signed for the name `localhost`. Each has files `<name>.crt` and `<name>.key` in the
/// folder, in PEM, and is valid for two days.
pub fn make(folder: &Path) -> Result<()> {
    let key = "-newkey rsa:2048 -nodes";
    for authority in ["ca", "other"] {
        let output = format!("-keyout {authority}.key -out {authority}.crt");
        openssl(folder, &format!("req -x509 {key} {output} -days 2 -subj /CN={authority}"))?;
    }
    let names = "-subj /CN=localhost -addext subjectAltName=DNS:localhost";
    openssl(folder, &format!("req {key} -keyout server.key -out server.csr {names}"))?;
    let authority = "-CA ca.crt -CAkey ca.key -CAcreateserial";
    let output = "-days 2 -copy_extensions copy -out server.crt";
    openssl(folder, &format!("x509 -req -in server.csr {authority} {output}"))
}

/// Runs openssl in the folder, with words that single spaces separate.
pub fn openssl(folder: &Path, words: &str) -> Result<()> {
    let output = Command::new("openssl").current_dir(folder).args(words.split(' ')).output();
    let output = output.context("openssl is needed")?;
    ensure!(output.status.success(), "{words}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
