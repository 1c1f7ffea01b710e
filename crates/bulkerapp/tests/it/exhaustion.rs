//! Clients that take what others need, without a token or with one: the service goes on.

use anyhow::{Context, Result, ensure};
use testkit::{process::http_status, wait_until};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
};

use crate::app::{DESTINATION, PATIENCE, Setup, TOKEN, events, loaded_to};

#[tokio::test(flavor = "multi_thread")]
async fn half_a_body_is_given_up_with_408_and_holds_neither_others_nor_probes() -> Result<()> {
    // given as many connections as are allowed, each silent in the middle of an event
    let (kafka, database) = (testkit::kafka().await?, testkit::postgres().await?);
    let setup = Setup::new(&kafka, &database)
        .with("BULKER_HTTP_MAX_CONNECTIONS", "3")
        .with("BULKER_HTTP_HEADER_TIMEOUT_SEC", "2");
    let _topic = kafka.adopt(setup.topic("t"));
    let app = setup.start().await?;
    let head = format!(
        "POST /post/{DESTINATION}?tableName=t HTTP/1.1\r\nHost: x\r\n\
         Authorization: Bearer {TOKEN}\r\nContent-Length: 1000\r\n\r\n{{\"a\":"
    );
    let mut silent = Vec::new();
    for _ in 0..3 {
        let mut stream = TcpStream::connect(("127.0.0.1", app.port)).await?;
        stream.write_all(head.as_bytes()).await?;
        silent.push(stream);
    }
    // then probes are answered, others wait for their turn, and the silent ones are told
    assert_eq!(http_status(app.port, "/health").await?, 200);
    assert_eq!(app.post("t", r#"{"id":1}"#).await?, 200);
    for mut stream in silent {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        ensure!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    }
    app.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_leave_open_files_for_metrics_kafka_and_the_database() -> Result<()> {
    // given few open files, and more connections than that, which send nothing or half a head
    let (kafka, database) = (testkit::kafka().await?, testkit::postgres().await?);
    let metrics_port = testkit::free_port()?;
    let setup = Setup::new(&kafka, &database)
        .with_limit("-n 256")
        .with("BULKER_METRICS_PORT", &metrics_port.to_string());
    let topic = kafka.adopt(setup.topic("t"));
    let app = setup.start().await?;
    for sent in ["", "GET /health HTTP/1.1\r\nHo"] {
        let mut idle = Vec::new();
        for _ in 0..300 {
            let mut stream = TcpStream::connect(("127.0.0.1", app.port)).await?;
            // it may have given way to the next already
            let _ = stream.write_all(sent.as_bytes()).await;
            idle.push(stream);
        }
        // then scrapers, senders and loads get theirs
        assert_eq!(http_status(metrics_port, "/metrics").await?, 200);
        let loaded = if sent.is_empty() { 0 } else { 5 };
        for event in events(loaded..loaded + 5) {
            assert_eq!(app.post("t", &event).await?, 200);
        }
        loaded_to(&database, &topic, loaded as i64 + 5).await?;
    }
    let lines = app.service.lines();
    ensure!(!lines.iter().any(|line| line.contains("Too many open files")), "{lines:#?}");
    ensure!(lines.iter().any(|line| line.contains("fewer connections are served")), "{lines:#?}");
    app.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_are_not_read_hold_up_nobody_for_longer_than_the_idle_time() -> Result<()> {
    let (kafka, database) = (testkit::kafka().await?, testkit::postgres().await?);
    let setup = Setup::new(&kafka, &database)
        .with("BULKER_HTTP_MAX_CONNECTIONS", "3")
        .with("BULKER_HTTP_HEADER_TIMEOUT_SEC", "2");
    let _topic = kafka.adopt(setup.topic("t"));
    let app = setup.start().await?;
    // given clients that ask and do not read, until nothing of theirs is taken any more
    let requests = "GET /health HTTP/1.1\r\nHost: x\r\n\r\n".repeat(1_000);
    let (port, requests) = (app.port, requests.as_bytes());
    let deaf = (0..3).map(|_| async move {
        let socket = TcpSocket::new_v4()?;
        socket.set_recv_buffer_size(2_048)?;
        let address = ([127, 0, 0, 1], port).into();
        let mut stream = socket.connect(address).await?;
        while stream.write_all(requests).await.is_ok() {}
        anyhow::Ok(())
    });
    let deaf = futures_util::future::try_join_all(deaf);
    tokio::pin!(deaf);
    // when another one comes, then it is served, and they are cut
    let event = &events(0..1)[0];
    let is_taken = || async { app.post("t", event).await.is_ok_and(|status| status == 200) };
    let post = wait_until(PATIENCE, is_taken);
    let (deaf, post) = tokio::join!(deaf, post);
    deaf.context("clients that do not read")?;
    post.context("another client")?;
    app.stop().await
}
