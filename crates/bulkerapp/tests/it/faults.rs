//! What is broken is named, in the log, in a metric and in `/health`; `/ready` and `/health` answer
//! as docs/operations.md says.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use testkit::{
    native::{OwnKafka, OwnPostgres},
    wait_until,
};

use serde_json::json;

use crate::{
    app::{App, PATIENCE, Setup, events, loaded_to},
    configuration::{destination, post, topic},
};

/// Waits until the details of `/health` hold this text somewhere below this name.
async fn wait_for_detail(app: &App, name: &str, text: &str) -> Result<()> {
    let says = || async {
        app.health().await.is_ok_and(|details| details[name].to_string().contains(text))
    };
    let said = wait_until(PATIENCE, says).await;
    let details = app.health().await?;
    said.with_context(|| format!("{name} without {text:?}: {details}"))
}

async fn has_metric(app: &App, start: &str, parts: &[&str], end: &str) -> Result<()> {
    let is_there = || async {
        let metrics = app.get("/metrics").await.unwrap_or_default();
        metrics.lines().any(|line| {
            line.starts_with(start)
                && line.ends_with(end)
                && parts.iter().all(|part| line.contains(part))
        })
    };
    wait_until(PATIENCE, is_there).await.with_context(|| format!("{start} {parts:?} {end}"))
}

async fn status(app: &App, path: &str) -> Result<u16> {
    Ok(app.request("GET", path, &[], b"").await?.status)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_database_password_is_named_and_intake_goes_on() -> Result<()> {
    let (kafka, database) = (testkit::kafka().await?, testkit::postgres().await?);
    let setup = Setup { password: "wrong".to_owned(), ..Setup::new(&kafka, &database) };
    let topic = kafka.adopt(setup.topic("t"));
    let app = setup.start().await?;
    assert_eq!(app.post("t", r#"{"id":0}"#).await?, 200);
    wait_for_detail(&app, "failingTopics", "password authentication failed").await?;
    has_metric(&app, "bulkerapp_consumer_error", &[topic.name(), "warehouse_misconfigured"], "")
        .await?;
    has_metric(&app, "bulkerapp_destination_answers", &["it"], " 0").await?;
    wait_for_detail(&app, "silentDestinations", "password authentication failed").await?;
    app.service.wait_for_line("password authentication failed", PATIENCE).await?;
    assert_eq!((status(&app, "/ready").await?, status(&app, "/health").await?), (200, 200));
    assert!(!app.service.lines().iter().any(|line| line.contains("\"wrong\"")));
    app.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_away_is_named_and_loaded_into_when_it_is_back() -> Result<()> {
    let own = OwnPostgres::start().await?;
    let (kafka, database) = (testkit::kafka().await?, own.database().await?);
    let setup = Setup::new(&kafka, &database);
    let topic = kafka.adopt(setup.topic("t"));
    own.shut_down().await?;
    let app = setup.start().await?;
    assert_eq!(app.post("t", r#"{"id":0}"#).await?, 200);
    has_metric(&app, "bulkerapp_destination_answers", &["it"], " 0").await?;
    wait_for_detail(&app, "silentDestinations", "it").await?;
    assert_eq!((status(&app, "/ready").await?, status(&app, "/health").await?), (200, 200));
    own.restart().await?;
    loaded_to(&database, topic.name(), 1).await?;
    has_metric(&app, "bulkerapp_destination_answers", &["it"], " 1").await?;
    app.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kafka_that_is_away_is_named_at_the_start_and_later() -> Result<()> {
    // given Kafka away when the service starts
    let own = OwnKafka::start().await?;
    let database = testkit::postgres().await?;
    let setup = Setup::new(&own.kafka(), &database);
    own.shut_down().await?;
    let app = setup.spawn()?;
    let answers = || async { status(&app, "/health").await.is_ok_and(|status| status == 200) };
    wait_until(PATIENCE, answers).await.context("/health answers")?;
    // then it takes no traffic, is worth keeping, and says why
    assert_eq!(status(&app, "/ready").await?, 503);
    wait_for_detail(&app, "notReady", "topic manager is not ready").await?;
    wait_for_detail(&app, "kafkaError", "onnect").await?;
    has_metric(&app, "bulkerapp_kafka_unreachable_total", &["\"connection\""], "").await?;
    assert_eq!(app.ask("/stats").await?.status, 503);
    has_metric(&app, "bulkerapp_topic_manager_error", &["load_metadata_error"], "").await?;
    // when it comes, goes, and comes back, so does /ready
    own.restart().await?;
    let is_ready = |wanted: u16| {
        let app = &app;
        move || async move { status(app, "/ready").await.is_ok_and(|status| status == wanted) }
    };
    wait_until(PATIENCE, is_ready(200)).await.context("ready")?;
    own.kill9().await?;
    wait_until(PATIENCE, is_ready(503)).await.context("not ready")?;
    wait_for_detail(&app, "notReady", "topic manager is outdated").await?;
    assert_eq!(status(&app, "/health").await?, 200);
    own.restart().await?;
    wait_until(PATIENCE, is_ready(200)).await.context("ready again")?;
    let calm = || async { app.health().await.is_ok_and(|details| details["kafkaError"].is_null()) };
    wait_until(PATIENCE, calm).await.context("the error is over")?;
    app.stop().await
}

/// Runs openssl with these words.
fn openssl(folder: &Path, words: &str) -> Result<()> {
    let output = Command::new("openssl").current_dir(folder).args(words.split(' ')).output();
    let output = output.context("openssl is needed")?;
    ensure!(output.status.success(), "{words}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// A key and a certificate for 127.0.0.1 that signs itself.
fn make_certificate(folder: &Path, name: &str) -> Result<()> {
    let make = "req -x509 -newkey rsa:2048 -nodes -days 2 -addext subjectAltName=IP:127.0.0.1 -subj /CN=127.0.0.1";
    openssl(folder, &format!("{make} -keyout {name}.key -out {name}.crt"))
}

fn make_folder() -> Result<PathBuf> {
    let folder = std::env::temp_dir().join(format!("it-tls-{}", uuid::Uuid::new_v4().simple()));
    fs::create_dir(&folder)?;
    // servers run as users of their own
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o755))?;
    Ok(folder)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_of_postgresql_that_is_not_trusted_is_named() -> Result<()> {
    // given a server with TLS
    let folder = make_folder()?;
    make_certificate(&folder, "server")?;
    make_certificate(&folder, "other")?;
    let path = |name: &str| folder.join(name).display().to_string();
    let is_root = fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0);
    let owner = Command::new("chown").args(["postgres", &path("server.key")]).status();
    ensure!(owner?.success() || !is_root, "chown failed");
    fs::set_permissions(path("server.key"), fs::Permissions::from_mode(0o600))?;
    let own = OwnPostgres::start_with(&format!(
        "-c ssl=on -c ssl_cert_file={} -c ssl_key_file={}",
        path("server.crt"),
        path("server.key")
    ))
    .await?;
    let (kafka, database) = (testkit::kafka().await?, own.database().await?);
    let setup = |ca: &str| {
        let mut credentials = database.credentials();
        credentials["sslMode"] = "verify-full".into();
        credentials["sslServerCA"] = path(ca).into();
        let destination = serde_json::json!({
            "id": "it", "type": "postgres", "credentials": credentials,
            "options": {"mode": "batch", "frequency": 0.0167},
        });
        let setup = Setup::new(&kafka, &database);
        setup.with("BULKER_DESTINATION_IT", &destination.to_string())
    };
    // when its certificate is not by an authority that is trusted
    let distrusting = setup("other.crt");
    let topic = kafka.adopt(distrusting.topic("t"));
    let app = distrusting.start().await?;
    assert_eq!(app.post("t", r#"{"id":0}"#).await?, 200);
    // then that is said
    wait_for_detail(&app, "failingTopics", "certificate").await?;
    has_metric(&app, "bulkerapp_consumer_error", &[topic.name(), "warehouse_tls"], "").await?;
    wait_for_detail(&app, "silentDestinations", "certificate").await?;
    app.service.wait_for_line("look at sslMode and the certificates", PATIENCE).await?;
    assert_eq!((status(&app, "/ready").await?, status(&app, "/health").await?), (200, 200));
    app.stop().await?;
    // and with the right one the event is loaded
    let trusting = Setup { prefix: distrusting.prefix.clone(), ..setup("server.crt") };
    let app = trusting.start().await?;
    loaded_to(&database, topic.name(), 1).await?;
    app.stop().await?;
    fs::remove_dir_all(&folder)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_credentials_is_named_in_log_metric_and_health() -> Result<()> {
    let (kafka, database) = (testkit::kafka().await?, testkit::postgres().await?);
    let cases = [
        ("user", "username", json!("nobody"), "user \\\"nobody\\\"", "warehouse_misconfigured"),
        (
            "database",
            "database",
            json!("none"),
            "\\\"none\\\" does not exist",
            "warehouse_misconfigured",
        ),
        ("port", "port", json!(1), "127.0.0.1:1: Connection refused", "warehouse_unavailable"),
        ("tls", "sslMode", json!("require"), "server does not support TLS", "warehouse_tls"),
    ];
    let mut setup = Setup::new(&kafka, &database);
    let mut topics = Vec::new();
    for (id, field, value, ..) in &cases {
        let mut broken = destination(id, &database);
        broken["credentials"][field] = value.clone();
        broken["credentials"]["parameters"] = json!({"connect_timeout": "2"});
        setup = setup.with(&format!("BULKER_DESTINATION_{id}"), &broken.to_string());
        topics.push(kafka.adopt(topic(&setup, id, "batch", "t")));
    }
    let app = setup.start().await?;
    for (id, ..) in &cases {
        assert_eq!(post(&app, id, "t", r#"{"id":0}"#).await?, 200, "{id}");
    }
    for ((id, _, _, reason, label), topic) in cases.iter().zip(&topics) {
        wait_for_detail(&app, "failingTopics", reason).await?;
        let details = app.health().await?;
        assert!(details["failingTopics"][topic.name()].is_string(), "{id}: {details}");
        let labels = [topic.name(), label];
        has_metric(&app, "bulkerapp_consumer_error", &labels, "").await?;
        has_metric(&app, "bulkerapp_destination_answers", &[id], " 0").await?;
        let is_logged = |line: &String| line.contains(topic.name()) && line.contains(reason);
        assert!(app.service.lines().iter().any(is_logged), "{id}: {:#?}", app.service.lines());
    }
    assert_eq!((status(&app, "/ready").await?, status(&app, "/health").await?), (200, 200));
    app.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_yaml_file_that_is_not_readable_is_named_at_the_start_and_later() -> Result<()> {
    let (kafka, database) = (testkit::kafka().await?, testkit::postgres().await?);
    let folder = make_folder()?;
    let file = folder.join("destinations.yaml");
    let broken = "destinations:\n  one: {type: postgres\n  two: [\n";
    let place = format!("{}: not a YAML object (line 3, column", file.display());
    let setup = Setup::new(&kafka, &database)
        .with("BULKER_CONFIG_SOURCE", &format!("file://{}", file.display()))
        .with("BULKER_CONFIG_REFRESH_PERIOD_SEC", "1");
    // at the start there is nothing to go on with
    fs::write(&file, broken)?;
    let ran = setup.run(&[]).await?;
    assert!(!ran.is_success && ran.log.contains("BULKER_CONFIG_SOURCE"), "{}", ran.log);
    assert!(ran.log.contains(&place), "{}", ran.log);
    // later, what was read last counts
    let good = json!({"destinations": {"one": destination("one", &database)}});
    fs::write(&file, good.to_string())?;
    let _topic = kafka.adopt(topic(&setup, "one", "batch", "t"));
    let app = setup.start().await?;
    fs::write(&file, broken)?;
    wait_for_detail(&app, "configurationError", &place).await?;
    has_metric(&app, "bulkerapp_configuration_error", &["\"parse_error\""], "").await?;
    app.service.wait_for_line(&place, PATIENCE).await?;
    assert_eq!(post(&app, "one", "t", r#"{"id":0}"#).await?, 200);
    assert_eq!((status(&app, "/ready").await?, status(&app, "/health").await?), (200, 200));
    fs::write(&file, good.to_string())?;
    let is_over = || async {
        app.health().await.is_ok_and(|details| details["configurationError"].is_null())
    };
    wait_until(PATIENCE, is_over).await.context("the error is over")?;
    app.stop().await?;
    fs::remove_dir_all(&folder)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_right_to_make_tables_is_named() -> Result<()> {
    let (kafka, database) = (testkit::kafka().await?, testkit::postgres().await?);
    let role = format!("role_{}", uuid::Uuid::new_v4().simple());
    let grants = format!(
        "create role {role} login password 'x'; revoke create on schema public from public"
    );
    database.execute(&grants).await?;
    let setup = Setup::new(&kafka, &database);
    let setup = Setup { user: role.clone(), password: "x".to_owned(), ..setup };
    let topic = kafka.adopt(setup.topic("t"));
    let app = setup.start().await?;
    assert_eq!(app.post("t", r#"{"id":0}"#).await?, 200);
    let denied = "permission denied for schema public";
    for (name, what) in [("destinationsWithoutOffsets", "bulker_offsets"), ("failingTopics", "t")] {
        wait_for_detail(&app, name, &format!("table {what} cannot be made")).await?;
        wait_for_detail(&app, name, denied).await?;
    }
    has_metric(&app, "bulkerapp_exactly_once", &["it"], " 0").await?;
    has_metric(&app, "bulkerapp_consumer_error", &[topic.name(), "permission_denied"], "").await?;
    app.service.wait_for_line("no right to keep the offsets table", PATIENCE).await?;
    app.service.wait_for_line(denied, PATIENCE).await?;
    assert_eq!((status(&app, "/ready").await?, status(&app, "/health").await?), (200, 200));
    app.stop().await?;
    database.execute(&format!("drop owned by {role}; drop role {role}")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_of_kafka_that_is_not_trusted_is_named() -> Result<()> {
    // given a broker with TLS
    let folder = make_folder()?;
    make_certificate(&folder, "kafka")?;
    make_certificate(&folder, "other")?;
    let path = |name: &str| folder.join(name).display().to_string();
    let both = [fs::read(path("kafka.key"))?, fs::read(path("kafka.crt"))?].concat();
    fs::write(path("kafka.pem"), both)?;
    let own = OwnKafka::start_with(&format!(
        "listener.security.protocol.map=CLIENTS:SSL,CONTROLLER:PLAINTEXT\n\
         ssl.keystore.type=PEM\nssl.keystore.location={}\n\
         ssl.truststore.type=PEM\nssl.truststore.location={}\n",
        path("kafka.pem"),
        path("kafka.crt")
    ))
    .await?;
    let database = testkit::postgres().await?;
    let setup = Setup::new(&own.kafka(), &database).with("BULKER_KAFKA_SSL", "true");
    // when the certificate is not by an authority that is trusted
    let app = setup.clone().with("BULKER_KAFKA_SSL_CA_FILE", &path("other.crt")).spawn()?;
    let answers = || async { status(&app, "/health").await.is_ok_and(|status| status == 200) };
    wait_until(PATIENCE, answers).await.context("/health answers")?;
    wait_for_detail(&app, "kafkaError", "certificate").await?;
    has_metric(&app, "bulkerapp_kafka_unreachable_total", &["\"certificate\""], "").await?;
    assert_eq!((status(&app, "/ready").await?, status(&app, "/health").await?), (503, 200));
    app.service.wait_for_line("certificate verify failed", PATIENCE).await?;
    app.stop().await?;
    let refused = setup.clone().with("BULKER_KAFKA_SSL_CA_FILE", &path("other.crt"));
    let refused = refused.run(&["preflight"]).await?;
    assert!(!refused.is_success && refused.output.contains("FAIL  kafka: "), "{}", refused.output);
    assert!(refused.output.contains("certificate"), "{}", refused.output);
    // with the right one it is served
    let app = setup.with("BULKER_KAFKA_SSL_CA_FILE", &path("kafka.crt")).start().await?;
    app.stop().await?;
    fs::remove_dir_all(&folder)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn two_instances_with_one_index_double_nothing_and_are_named() -> Result<()> {
    let (kafka, database) = (testkit::kafka().await?, testkit::postgres().await?);
    let setup = Setup::new(&kafka, &database)
        .with_options(r#"mode: "batch", frequency: 0.0167, batchSize: 50"#);
    let topic = kafka.adopt(setup.topic("t"));
    kafka.create_topic(topic.name(), 1, 1, &[]).await?;
    let (first, second) = (setup.start().await?, setup.start().await?);
    let mut count = 0;
    let is_named = || async {
        for app in [&first, &second] {
            let details = app.health().await.unwrap_or_default();
            let others = &details["topicsLoadedByOthersToo"][topic.name()];
            if others.as_str().is_some_and(|text| text.contains("INSTANCE_INDEX")) {
                return true;
            }
        }
        false
    };
    while !is_named().await {
        ensure!(count < 100_000, "two loaders of one topic never met");
        kafka.produce_all(topic.name(), 0, events(count..count + 500)).await?;
        count += 500;
    }
    loaded_to(&database, topic.name(), i64::try_from(count)?).await?;
    let overtaken = |metrics: &str| metrics.contains("bulkerapp_overtaken_loads_total{");
    let metrics = [first.get("/metrics").await?, second.get("/metrics").await?];
    assert!(metrics.iter().any(|metrics| overtaken(metrics)));
    let logs = [first.service.lines(), second.service.lines()].concat();
    assert!(logs.iter().any(|line| line.contains("two instances have the same INSTANCE_INDEX")));
    first.stop().await?;
    second.stop().await?;
    crate::app::assert_exactly_once(&database, "t", count).await
}
