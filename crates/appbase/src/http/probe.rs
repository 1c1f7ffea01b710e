//! One request to this machine, for health checks of containers that have no HTTP client.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

/// The longest that it takes.
const WITHIN: Duration = Duration::from_secs(5);

/// Whether `GET path` on a local port answers 200 within 5 s. `listens_on` is the address that the
/// service listens on.
pub async fn probe(listens_on: IpAddr, port: u16, path: &str) -> bool {
    let address = match listens_on {
        IpAddr::V4(all) if all.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(all) if all.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        one => one,
    };
    let ask = async {
        let mut stream = TcpStream::connect((address, port)).await?;
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut status = [0; "HTTP/1.1 200".len()];
        stream.read_exact(&mut status).await?;
        std::io::Result::Ok(status.ends_with(b" 200"))
    };
    matches!(timeout(WITHIN, ask).await, Ok(Ok(true)))
}
