//! The small endpoints: `/test`, `/profiles`, `/connections-metrics`, and paths that lead nowhere.

use anyhow::{Context, Result, ensure};
use bulkerapp::routes::{Access, ROUTES};
use testkit::wait_until;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    sync::mpsc,
};

use crate::app::{Answer, App, PATIENCE, Setup, TOKEN};

async fn ask(app: &App, method: &str, path: &str, body: &[u8]) -> Result<Answer> {
    let bearer = format!("Bearer {TOKEN}");
    app.request(method, path, &[("authorization", &bearer)], body).await
}

fn error(text: &str) -> String {
    serde_json::json!({ "error": text }).to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destination_is_tried_for_real() -> Result<()> {
    let (kafka, database) = (testkit::kafka().await?, testkit::postgres().await?);
    let app = Setup::new(&kafka, &database).start().await?;
    let mut credentials = database.credentials();
    credentials["id"] = "mine".into();
    credentials["destinationType"] = "postgres".into();
    let with = |field: &str, value: serde_json::Value| {
        let mut changed = credentials.clone();
        changed[field] = value;
        changed.to_string()
    };
    let yaml: String = credentials
        .as_object()
        .context("an object")?
        .iter()
        .map(|(key, value)| format!("{key}: {value}\n"))
        .collect();
    for body in [credentials.to_string(), yaml] {
        let answer = ask(&app, "POST", "/test", body.as_bytes()).await?;
        assert_eq!((answer.status, answer.body.as_str()), (200, r#"{"ok":true}"#), "{body}");
        assert_eq!(
            answer.header("content-type").as_deref(),
            Some("application/json; charset=utf-8")
        );
    }

    let closed = testkit::free_port()?;
    let cases = [
        (String::new(), "parse failed: failed to parse. input data is empty"),
        ("{".to_owned(), "parse failed: not a JSON object at line 1, column 1"),
        (with("id", 5.into()), "parse failed: id is not a string"),
        (with("destinationType", 5.into()), "parse failed: destinationType is not a string"),
        (
            with("destinationType", "lake".into()),
            "error creating bulker: unknown bulker implementation type: lake",
        ),
        (with("host", 5.into()), "error creating bulker: misconfigured: credentials: "),
        (with("defaultSchema", "".into()), "error creating bulker: misconfigured: defaultSchema"),
        (
            with("port", closed.into()),
            "error creating bulker: no PostgreSQL answered at this host and port",
        ),
        (
            with("database", "no_such_database".into()),
            "error creating bulker: misconfigured: database",
        ),
    ];
    for (body, expected) in cases {
        let answer = ask(&app, "POST", "/test", body.as_bytes()).await?;
        let start = format!("{{\"error\":\"{expected}");
        assert_eq!(answer.status, 422, "{body}: {}", answer.body);
        assert!(answer.body.starts_with(&start), "{} instead of {start}", answer.body);
    }
    // nothing of what was sent shows anywhere
    let secret = with("destinationType", "lake".into()).replace(database.password(), "s3cret");
    let answer = ask(&app, "POST", "/test", secret.as_bytes()).await?;
    assert!(!answer.body.contains("s3cret"));
    assert!(!app.service.lines().iter().any(|line| line.contains("s3cret")));
    app.stop().await
}

/// The port of a server that says this to whoever connects.
async fn answering(bytes: &'static [u8]) -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port().to_string();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.write_all(bytes).await; // a client that hangs up is served
        }
    });
    Ok(port)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destination_that_is_tried_tells_nothing_of_this_machine_and_its_network() -> Result<()> {
    let (kafka, database) = (testkit::kafka().await?, testkit::postgres().await?);
    let app = Setup::new(&kafka, &database).start().await?;
    let tried = async |changes: &[(&str, &str)]| {
        let mut credentials = database.credentials();
        credentials["destinationType"] = "postgres".into();
        for (field, value) in changes {
            // a number is a port
            let number = value.parse::<u16>().map(serde_json::Value::from);
            credentials[*field] = number.unwrap_or_else(|_| (*value).into());
        }
        ask(&app, "POST", "/test", credentials.to_string().as_bytes()).await
    };

    // a pipe that nobody writes to would hold a thread, a device without an end the memory
    let folder = tempfile::tempdir()?;
    let pipe = folder.path().join("pipe");
    ensure!(std::process::Command::new("mkfifo").arg(&pipe).status()?.success());
    let pipe = pipe.to_str().context("a path in UTF-8")?;
    for field in ["sslServerCA", "sslClientCert", "sslClientKey"] {
        let refused = format!(
            "error creating bulker: misconfigured: {field}: files of this machine are not read; \
             send the PEM itself"
        );
        for path in ["/etc/shadow", "/nope", "/dev/zero", pipe] {
            let answer = tried(&[("sslMode", "verify-ca"), (field, path)]).await?;
            assert_eq!((answer.status, answer.body), (422, error(&refused)), "{field} {path}");
        }
    }
    for host in ["/var/run/postgresql", "/nope"] {
        let answer = tried(&[("host", host)]).await?;
        let refused =
            "error creating bulker: misconfigured: host: sockets of this machine are not opened";
        assert_eq!((answer.status, answer.body), (422, error(refused)), "{host}");
    }

    // refused, unknown, another protocol, and hung up upon: one sentence
    let closed = testkit::free_port()?.to_string();
    let redis = answering(b"-ERR unknown command\r\n").await?;
    let hostile = answering(b"R\0\0\0\0").await?; // a message that is shorter than its length
    for changes in [
        [("host", "127.0.0.1"), ("port", &closed)],
        [("host", "127.0.0.1"), ("port", &redis)],
        [("host", "127.0.0.1"), ("port", &hostile)],
        [("host", "no-such-host.invalid"), ("port", "5432")],
    ] {
        let answer = tried(&changes).await?;
        let one = "error creating bulker: no PostgreSQL answered at this host and port";
        assert_eq!((answer.status, answer.body), (422, error(one)), "{changes:?}");
    }
    let metrics = app.get("/metrics").await?;
    ensure!(metrics.contains("bulkerapp_safego_panic 0"), "{metrics}");
    // what a PostgreSQL answers is what an operator has to know
    let answer = tried(&[("password", "wrong")]).await?;
    assert_eq!(answer.status, 422);
    assert!(answer.body.contains("password authentication failed"), "{}", answer.body);
    app.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_id_of_a_profile_reaches_its_topic_alone() -> Result<()> {
    let (kafka, database) = (testkit::kafka().await?, testkit::postgres().await?);
    // what Kafka never acknowledges is waited for at the stop, and what it does must not come too
    // late for a busy machine
    let setup = Setup::new(&kafka, &database)
        .with("BULKER_SHUTDOWN_TIMEOUT_SEC", "2")
        .with("BULKER_PRODUCER_WAIT_FOR_DELIVERY_MS", "5000");
    let topic = kafka.adopt(format!("{}in.id.builder.m.profiles.b64.aGlnaCBw", setup.prefix));
    let app = setup.start().await?;
    let path = "/profiles/builder/high%20p?profileId=u%2F1";
    let answer = ask(&app, "POST", path, b"ignored").await?;
    let missing = error(&format!("topic not found: {}", topic.name()));
    assert_eq!((answer.status, answer.body), (404, missing), "somebody else makes it");
    let answer = ask(&app, "POST", "/profiles/a.b/high", b"").await?;
    let text = r#"couldn't generate topicId: destination id "a.b" cannot be part of a topic name"#;
    assert_eq!((answer.status, answer.body), (400, error(text)));

    kafka.create_topic(&topic, 1, 1, &[]).await?;
    for path in [path, "/profiles/builder/high%20p"] {
        let answer = ask(&app, "POST", path, b"").await?;
        assert_eq!((answer.status, answer.body.as_str()), (200, r#"{"message":"ok"}"#));
    }
    let records = kafka.read_all(&topic).await?;
    let shapes: Vec<_> = records
        .iter()
        .map(|record| (record.key.as_deref(), record.value.as_deref(), record.headers.len()))
        .collect();
    assert_eq!(shapes, [(Some(&b"u/1"[..]), None, 0), (None, None, 0)]);
    let metrics = app.get("/metrics").await?;
    for line in [
        r#"bulkerapp_handler_events{destinationId="builder",errorType="",mode="profiles",status="success",tableName="high p"} 2"#,
        r#"bulkerapp_handler_events{destinationId="",errorType="topic not found",mode="profiles",status="error",tableName=""} 1"#,
    ] {
        assert!(metrics.contains(line), "{line}");
    }

    // gone: an error, not a wait
    kafka.delete_topic(&topic).await?;
    let is_gone = || async {
        ask(&app, "POST", path, b"").await.is_ok_and(|answer| match answer.status {
            404 => true,
            status => {
                assert_eq!(status, 503);
                false
            }
        })
    };
    wait_until(PATIENCE, is_gone).await?;
    app.stop().await
}

/// Answers requests with what it is given, in order, and hands out their first lines.
async fn prometheus(answers: Vec<&'static str>) -> Result<(u16, mpsc::Receiver<String>)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    let (sender, asked) = mpsc::channel(answers.len());
    tokio::spawn(async move {
        for answer in answers {
            let (mut stream, _) = listener.accept().await?;
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await?);
            }
            let line = String::from_utf8_lossy(&head).lines().next().unwrap_or_default().to_owned();
            sender.send(line).await?;
            stream.write_all(answer.as_bytes()).await?;
        }
        anyhow::Ok(())
    });
    Ok((port, asked))
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_of_connections_are_those_of_prometheus() -> Result<()> {
    let (kafka, database) = (testkit::kafka().await?, testkit::postgres().await?);
    let answers = vec![
        "HTTP/1.1 200 OK\r\ncontent-length: 20\r\nconnection: close\r\n\r\n{\"status\":\"success\"}",
        "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 20\r\nconnection: close\r\n\r\n{\"cut",
    ];
    let (port, mut asked) = prometheus(answers).await?;
    let setup = Setup::new(&kafka, &database);
    let app = setup
        .clone()
        .with("PROMETHEUS_URL", &format!("http://u:s3cret@127.0.0.1:{port}/"))
        .start()
        .await?;
    let path = "/connections-metrics/workspace%22.1";

    let answer = ask(&app, "GET", path, b"").await?;
    assert_eq!((answer.status, answer.body.as_str()), (200, r#"{"status":"success"}"#));
    assert_eq!(answer.header("content-type").as_deref(), Some("application/json"));
    let line = asked.recv().await.context("asked")?;
    let query = line
        .strip_prefix("GET /api/v1/query?query=")
        .and_then(|rest| rest.strip_suffix(" HTTP/1.1"))
        .context(line.clone())?;
    let query = query.replace('+', " ");
    let decoded = percent_decoded(&query);
    assert_eq!(
        decoded,
        "max(bulkerapp_consumer_queue_size{destinationId=~\"workspace\\\"\\\\.1-.*\"}) by (__name__, \
         destinationId, mode, tableName) or sum(connection_message_statuses{destinationId=~\
         \"workspace\\\"\\\\.1-.*\"}) by (__name__, destinationId, tableName, status)"
    );

    let answer = ask(&app, "GET", path, b"").await?;
    let text = "failed to get queue sizes: 503 Service Unavailable";
    assert_eq!((answer.status, answer.body), (500, error(text)));
    for start in ["failed to read response: ", "failed to get queue sizes: "] {
        let answer = ask(&app, "GET", path, b"").await?;
        assert_eq!(answer.status, 500);
        assert!(answer.body.starts_with(&format!("{{\"error\":\"{start}")), "{}", answer.body);
        assert!(!answer.body.contains("s3cret"), "{}", answer.body);
    }
    let answer = ask(&app, "GET", "/connections-metrics/too-short", b"").await?;
    assert_eq!((answer.status, answer.body), (400, error("invalid workspaceId")));
    app.stop().await?;

    let app = setup.start().await?;
    let answer = ask(&app, "GET", path, b"").await?;
    let text = "failed to get queue sizes: PROMETHEUS_URL is not set";
    assert_eq!((answer.status, answer.body), (500, error(text)));
    app.stop().await
}

fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digits = [rest.next().unwrap_or_default(), rest.next().unwrap_or_default()];
            let digits = String::from_utf8_lossy(&digits).into_owned();
            bytes.push(u8::from_str_radix(&digits, 16).unwrap_or_default());
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_methods_and_slashes_are_answered_as_the_original_does() -> Result<()> {
    let (kafka, database) = (testkit::kafka().await?, testkit::postgres().await?);
    let app = Setup::new(&kafka, &database).start().await?;
    let routes = [
        ("POST", "/bulk/it"),
        ("POST", "/profiles/builder/high"),
        ("POST", "/test"),
        ("GET", "/failed/it"),
        ("GET", "/connections-metrics/workspace-1"),
        ("GET", "/debug/pprof"),
        ("GET", "/debug/pprof/heap"),
    ];
    for (method, path) in routes {
        let other = if method == "GET" { "POST" } else { "GET" };
        let answer = ask(&app, other, path, b"").await?;
        assert_eq!((answer.status, answer.body.as_str()), (404, "404 page not found"), "{path}");
        let answer = app.request(method, path, &[], b"").await?;
        let text = error("Authorization header with Bearer token is required");
        assert_eq!((answer.status, answer.body), (401, text), "{path}");
        let answer = app.request(method, &format!("/{path}/?a=b"), &[], b"").await?;
        let moved = if method == "GET" { 301 } else { 307 };
        assert_eq!(answer.status, moved, "{path}");
        assert_eq!(answer.header("location"), Some(format!("{path}?a=b")));
    }
    let answer = ask(&app, "GET", "/debug/pprof/heap", b"").await?;
    assert_eq!(answer.status, 404);
    assert!(answer.body.starts_with("404 there is no Go runtime"), "{}", answer.body);
    app.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn each_guarded_route_wants_a_token_and_no_open_one_does() -> Result<()> {
    let (kafka, database) = (testkit::kafka().await?, testkit::postgres().await?);
    let app = Setup::new(&kafka, &database).start().await?;
    for route in &ROUTES {
        let segments = route.path.split('/').map(|s| if s.starts_with('{') { "x" } else { s });
        let path = segments.collect::<Vec<_>>().join("/");
        let other = if route.method == "GET" { "POST" } else { "GET" };
        let right = app.request(route.method.as_str(), &path, &[], b"").await?;
        let wrong = app.request(other, &path, &[], b"").await?;
        match route.access {
            Access::Guarded => assert_eq!((right.status, wrong.status), (401, 401), "{path}"),
            Access::Open => assert_eq!((right.status, wrong.status), (200, 404), "{path}"),
        }
    }
    app.stop().await
}
