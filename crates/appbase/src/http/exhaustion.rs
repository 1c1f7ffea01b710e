//! What clients cannot do, without a token, whatever they send or leave unsent.

use std::{net::SocketAddr, time::Duration};

use axum::{
    Router,
    body::Body,
    routing::{get, post},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::timeout,
};

use super::{
    ServerLimits,
    pool::room_beside,
    serve::tests::{exchange, limits, start},
    stream::FREE_HEAD,
};

/// Longer than anything here takes on a slow machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a connection may be idle, where that is to happen.
const SHORT: Duration = Duration::from_millis(200);

/// `/` and `/probe` answer at once, `/large` with more than sockets hold, `/body` once it has the
/// whole body, `/never` never.
fn router() -> Router {
    Router::new()
        .route("/", get(async || "served"))
        .route("/probe", get(async || "alive"))
        .route("/large", get(async || "x".repeat(64 << 20)))
        .route(
            "/body",
            post(async |body: Body| {
                http_body_util::BodyExt::collect(body).await.map(|_| ()).unwrap_or_default();
                "taken"
            }),
        )
        .route("/never", get(std::future::pending::<&'static str>))
}

fn request(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
}

async fn connect(address: SocketAddr) -> TcpStream {
    TcpStream::connect(address).await.unwrap()
}

/// The answer to one request on a connection of its own.
async fn ask(address: SocketAddr, path: &str) -> String {
    let answer = async { exchange(&mut connect(address).await, &request(path)).await };
    timeout(PATIENCE, answer).await.expect("no answer")
}

/// Opens a connection, sends this, and waits until the server has read it.
async fn open(address: SocketAddr, sent: &str) -> TcpStream {
    let mut stream = connect(address).await;
    stream.write_all(sent.as_bytes()).await.unwrap();
    stream
}

/// Whether the server has ended the connection.
async fn until_closed(stream: &mut TcpStream) {
    let mut rest = Vec::new();
    let ended = timeout(PATIENCE, stream.read_to_end(&mut rest)).await;
    let _ = ended.expect("still open"); // an end or a reset
}

#[tokio::test]
async fn a_connection_that_is_idle_gives_way_to_a_new_one() {
    // given as many connections as are allowed, one with a request in hand, the others idle
    let limits = ServerLimits { connections: 3, header_timeout: 10 * PATIENCE, ..limits() };
    let running = start(router(), limits).await;
    let mut busy = open(running.address, "GET /never HTTP/1.1\r\nHost: x\r\n\r\n").await;
    let mut silent = connect(running.address).await;
    let mut half = open(running.address, "GET / HTTP/1.1\r\nHos").await;
    // when others come and stay, then they are served, and those that were idle are gone
    let mut others = Vec::new();
    for idle in [&mut silent, &mut half] {
        let mut stream = open(running.address, "GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
        let mut answer = [0; 12];
        timeout(PATIENCE, stream.read_exact(&mut answer)).await.expect("no answer").unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200");
        until_closed(idle).await;
        others.push(stream);
    }
    let mut byte = [0];
    assert!(timeout(Duration::from_millis(1), busy.read(&mut byte)).await.is_err(), "in hand");
}

#[tokio::test]
async fn a_request_waits_for_the_first_of_the_busy_connections_that_ends() {
    let limits = ServerLimits { connections: 1, ..limits() };
    let running = start(router(), limits).await;
    let busy = open(running.address, "GET /never HTTP/1.1\r\nHost: x\r\n\r\n").await;
    let waiting = tokio::spawn(ask(running.address, "/"));
    assert!(ask(running.address, "/probe").await.ends_with("alive"));
    drop(busy);
    assert!(waiting.await.unwrap().ends_with("served"));
}

#[tokio::test]
async fn a_client_that_keeps_its_connection_busy_lets_others_in_between_two_requests() {
    // given the only connection that is allowed, which always has its next request ready
    let limits = ServerLimits { connections: 1, ..limits() };
    let running = start(router(), limits).await;
    let mut greedy = open(running.address, &"GET / HTTP/1.1\r\nHost: x\r\n\r\n".repeat(50)).await;
    // when another one waits, then it is served, and the first one told to come again
    assert!(ask(running.address, "/").await.ends_with("served"));
    until_closed(&mut greedy).await;
}

#[tokio::test]
async fn a_client_that_goes_away_while_it_waits_is_not_waited_for() {
    // given a request that waited until its client left
    let limits = ServerLimits { connections: 1, ..limits() };
    let running = start(router(), limits).await;
    let busy = open(running.address, "GET /never HTTP/1.1\r\nHost: x\r\n\r\n").await;
    let waiting = open(running.address, "GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(ask(running.address, "/probe").await.ends_with("alive"));
    drop((waiting, busy));
    // then connections are kept again
    let is_kept = async {
        loop {
            let request = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";
            let mut stream = open(running.address, request).await;
            let mut answer = vec![0; 4_096];
            let length = stream.read(&mut answer).await.unwrap();
            let answer = String::from_utf8_lossy(&answer[..length]).into_owned();
            if answer.starts_with("HTTP/1.1 200") && !answer.contains("connection: close") {
                return;
            }
        }
    };
    timeout(PATIENCE, is_kept).await.expect("connections are not kept");
}

#[tokio::test]
async fn probes_are_answered_whatever_clients_hold() {
    // given a server all of whose connections are busy, and whose room is full of requests that
    // wait, of silent connections, and of unfinished heads
    let limits = ServerLimits { connections: 2, ..limits() };
    let running = start(router(), limits).await;
    let mut held = Vec::new();
    for _ in 0..2 {
        held.push(open(running.address, "GET /never HTTP/1.1\r\nHost: x\r\n\r\n").await);
    }
    for sent in ["GET / HTTP/1.1\r\nHost: x\r\n\r\n", "", "GET / HTTP/1.1\r\nHo"] {
        for _ in 0..2 * room_beside(limits.connections) {
            held.push(open(running.address, sent).await);
        }
        // then a probe is answered
        for _ in 0..3 {
            assert!(ask(running.address, "/probe").await.ends_with("alive"), "{sent}");
        }
    }
    // and a request that had to make way was told to come again
    let mut answer = String::new();
    held[2].read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("retry-after: 1"), "{answer}");
}

#[tokio::test]
async fn an_answer_that_is_not_taken_ends_its_connection() {
    for path in ["/large", "/"] {
        // given clients that read nothing, and ask until their answers fill all buffers
        let limits = ServerLimits { connections: 2, header_timeout: SHORT, ..limits() };
        let running = start(router(), limits).await;
        let mut deaf = Vec::new();
        for _ in 0..2 {
            let socket = TcpSocket::new_v4().unwrap();
            socket.set_recv_buffer_size(2_048).unwrap();
            let stream = socket.connect(running.address).await.unwrap();
            deaf.push(tokio::spawn(async move {
                let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").repeat(1_000);
                let mut stream = stream;
                while stream.write_all(request.as_bytes()).await.is_ok() {}
            }));
        }
        // then they are cut, and others are served
        for client in deaf {
            timeout(PATIENCE, client).await.expect("still open").unwrap();
        }
        assert!(ask(running.address, "/").await.ends_with("served"));
    }
}

#[tokio::test]
async fn an_answer_that_is_taken_slowly_arrives() {
    // given a client that takes a large answer in more than the idle time, and pauses that are
    // shorter
    let limits = ServerLimits { header_timeout: Duration::from_secs(1), ..limits() };
    let running = start(router(), limits).await;
    let mut stream = open(running.address, &request("/large")).await;
    let (mut taken, mut piece) = (0, vec![0; 4 << 20]);
    loop {
        match stream.read(&mut piece).await.unwrap() {
            0 => break,
            bytes => taken += bytes,
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(taken > 64 << 20, "{taken}");
}

#[tokio::test]
async fn a_head_that_is_too_large_is_a_431() {
    let limits = ServerLimits { header_bytes: 20_000, ..limits() };
    let running = start(router(), limits).await;
    let head = |length: usize| {
        let value = "x".repeat(length);
        format!("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nLong: {value}\r\n\r\n")
    };
    let answer = exchange(&mut connect(running.address).await, &head(19_000)).await;
    assert!(answer.ends_with("served"), "{answer}");
    let mut stream = open(running.address, &head(20_000)).await;
    let mut answer = [0; "HTTP/1.1 431".len()];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 431");
}

#[tokio::test]
async fn large_heads_that_are_not_finished_keep_others_of_their_size_only() {
    // given as many unfinished large heads as there is memory for
    let limits = ServerLimits { header_timeout: Duration::from_secs(2), ..limits() };
    let running = start(router(), limits).await;
    let unfinished = |length: usize| {
        format!("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nLong: {}", "x".repeat(length))
    };
    let mut held = Vec::new();
    for _ in 0..limits.header_memory / limits.header_bytes {
        held.push(open(running.address, &unfinished(50_000)).await);
    }
    // then small ones are served at once, one more large one when the time of one of them is over
    let large = format!("{}\r\n\r\n", unfinished(50_000));
    let large = tokio::spawn(async move {
        let mut stream = connect(running.address).await;
        exchange(&mut stream, &large).await
    });
    assert!(ask(running.address, "/").await.ends_with("served"));
    assert!(!large.is_finished());
    assert!(timeout(PATIENCE, large).await.expect("no answer").unwrap().ends_with("served"));
}

#[tokio::test]
async fn a_large_head_is_of_its_request_only() {
    // given memory for one large head, and a connection whose request had one
    let limits = ServerLimits { header_memory: 1, ..limits() };
    let running = start(router(), limits).await;
    let value = "x".repeat(2 * FREE_HEAD);
    let head = format!("GET / HTTP/1.1\r\nHost: x\r\nLong: {value}\r\n\r\n");
    let mut open = Vec::new();
    for _ in 0..3 {
        let mut stream = connect(running.address).await;
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = [0; 12];
        timeout(PATIENCE, stream.read_exact(&mut answer)).await.expect("no answer").unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200");
        open.push(stream); // kept open, without another request
    }
}

#[tokio::test]
async fn the_system_asks_whether_a_silent_client_is_still_there() {
    // given a connection, as the kernel has it: its own end, the client's, and the timer that runs
    let running = start(router(), limits()).await;
    let stream = open(running.address, "GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
    let port = |port: u16| format!("0100007F:{port:04X}");
    let ends = (port(running.address.port()), port(stream.local_addr().unwrap().port()));
    let timer = || {
        let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
        table.lines().find_map(|line| {
            let columns: Vec<&str> = line.split_whitespace().collect();
            let [_, own, client, _, _, timer, ..] = columns[..] else { return None };
            (own == ends.0 && client == ends.1).then(|| timer[..2].to_owned())
        })
    };
    // then it is the one of keepalive, once the answer was taken
    let is_kept_alive = async {
        while timer().as_deref() != Some("02") {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, is_kept_alive).await.expect("no keepalive");
}
