//! bulkerapp as operators run it: a process with an environment, against real parts.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use testkit::{Database, Kafka, Topic, process::Service, wait_until};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

pub(crate) const TOKEN: &str = "it-token";
/// The destination of every test; topics are kept apart by their prefix.
pub(crate) const DESTINATION: &str = "it";
/// Longer than anything here takes on a slow machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Everything that one test's bulkerapp needs to know. Each test has its own topics, by a prefix.
#[derive(Clone)]
pub(crate) struct Setup {
    pub(crate) bootstrap: String,
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) database: String,
    pub(crate) user: String,
    pub(crate) password: String,
    pub(crate) prefix: String,
    /// Options of the destination, as in its configuration.
    pub(crate) options: String,
    pub(crate) environment: Vec<(String, String)>,
    /// Limits of the process, as options of `ulimit`.
    pub(crate) limits: Vec<String>,
    /// Topics that every process makes.
    pub(crate) _standing: Arc<[Topic; 2]>,
}

impl Setup {
    pub(crate) fn new(kafka: &Kafka, database: &Database) -> Setup {
        let prefix = format!("it{}.", uuid::Uuid::new_v4().simple());
        let standing = ["shared-retry", "dead-letter"].map(|n| kafka.adopt(format!("{prefix}{n}")));
        Setup {
            bootstrap: kafka.bootstrap().to_owned(),
            host: database.host().to_owned(),
            port: database.port(),
            database: database.name().to_owned(),
            user: database.user().to_owned(),
            password: database.password().to_owned(),
            prefix,
            options: r#"mode: "batch", frequency: 0.0167, batchSize: 1000"#.to_owned(),
            // several instances of one test each load all topics; tests of ownership take this away
            environment: vec![("BULKER_SHARDS".to_owned(), "1".to_owned())],
            limits: Vec::new(),
            _standing: Arc::new(standing),
        }
    }

    pub(crate) fn with_options(mut self, options: &str) -> Setup {
        self.options = options.to_owned();
        self
    }

    /// Lets instances share the topics among them.
    pub(crate) fn sharing_topics(mut self) -> Setup {
        self.environment.retain(|(name, _)| name != "BULKER_SHARDS");
        self
    }

    /// Reaches the database through a proxy.
    pub(crate) fn through(mut self, host: &str, port: u16) -> Setup {
        host.clone_into(&mut self.host);
        self.port = port;
        self
    }

    pub(crate) fn with(mut self, name: &str, value: &str) -> Setup {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The topic of a table.
    pub(crate) fn topic(&self, table: &str) -> String {
        format!("{}in.id.{DESTINATION}.m.batch.t.{table}", self.prefix)
    }

    /// Whether it is a topic of a table of this test.
    pub(crate) fn is_table_topic(&self, topic: &str) -> bool {
        topic.strip_prefix(&self.prefix).is_some_and(|rest| rest.starts_with("in.id."))
    }

    /// The topic of a table whose events are loaded as they come.
    pub(crate) fn stream_topic(&self, table: &str) -> String {
        format!("{}in.id.{DESTINATION}.m.stream.t.{table}", self.prefix)
    }

    pub(crate) fn retry_topic(&self) -> String {
        format!("{}in.id.{DESTINATION}.m.retry.t._all_", self.prefix)
    }

    /// Each test has its own, as its own installation would.
    pub(crate) fn dead_letter_topic(&self) -> String {
        format!("{}dead-letter", self.prefix)
    }

    pub(crate) fn shared_retry_topic(&self) -> String {
        format!("{}shared-retry", self.prefix)
    }

    /// Starts the process and waits until it takes traffic.
    pub(crate) async fn start(&self) -> Result<App> {
        let mut app = self.spawn()?;
        app.service.wait_for_ok(app.port, "/ready", PATIENCE).await?;
        Ok(app)
    }

    /// Starts the process on a free port.
    pub(crate) fn spawn(&self) -> Result<App> {
        self.spawn_on(testkit::free_port()?)
    }

    /// `ulimit` with these options rules the process: `-f 100` is kilobytes of its largest file,
    /// `-n 100` its open files.
    pub(crate) fn with_limit(mut self, options: &str) -> Setup {
        self.limits.push(format!("ulimit {options}"));
        self
    }

    /// Starts the process on this port.
    pub(crate) fn spawn_on(&self, port: u16) -> Result<App> {
        Ok(App { service: Service::start(self.command(port, &[])?)?, port })
    }

    /// Runs a command of the program, with the environment of the service, to its end.
    pub(crate) async fn run(&self, words: &[&str]) -> Result<Ran> {
        let mut command = self.command(testkit::free_port()?, words)?;
        command.stdin(std::process::Stdio::null()).kill_on_drop(true);
        let output = tokio::time::timeout(PATIENCE, command.output()).await??;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok(Ran {
            is_success: output.status.success(),
            output: text(&output.stdout),
            log: text(&output.stderr),
        })
    }

    /// Starts a command that may take long, or wait for something.
    pub(crate) fn begin(&self, words: &[&str]) -> Result<App> {
        let port = testkit::free_port()?;
        Ok(App { service: Service::start(self.command(port, words)?)?, port })
    }

    fn command(&self, port: u16, arguments: &[&str]) -> Result<tokio::process::Command> {
        let destination = format!(
            r#"{{id: "{DESTINATION}", type: "postgres", credentials: {{host: "{}", port: {}, database: "{}", username: "{}", password: "{}", defaultSchema: "public", sslMode: "disable"}}, options: {{{}}}}}"#,
            self.host, self.port, self.database, self.user, self.password, self.options
        );
        const PROGRAM: &str = env!("CARGO_BIN_EXE_bulkerapp");
        let mut command = if self.limits.is_empty() {
            tokio::process::Command::new(PROGRAM)
        } else {
            let mut shell = tokio::process::Command::new("bash");
            let script = format!("{} && exec \"$0\" \"$@\"", self.limits.join(" && "));
            shell.args(["-c", &script, PROGRAM]);
            shell
        };
        command
            .args(arguments)
            .env("BULKER_HTTP_PORT", port.to_string())
            .env("BULKER_METRICS_PORT", testkit::free_port()?.to_string())
            .env("BULKER_RAW_AUTH_TOKENS", TOKEN)
            .env("BULKER_INSTANCE_ID", "it")
            .env("BULKER_KAFKA_BOOTSTRAP_SERVERS", &self.bootstrap)
            .env("BULKER_KAFKA_TOPIC_PREFIX", &self.prefix)
            .env("BULKER_KAFKA_TOPIC_REPLICATION_FACTOR", "1")
            .env("BULKER_TOPIC_MANAGER_REFRESH_PERIOD_SEC", "1")
            .env("BULKER_KAFKA_DESTINATIONS_RETRY_TOPIC_NAME", self.shared_retry_topic())
            .env("BULKER_KAFKA_DESTINATIONS_DEAD_LETTER_TOPIC_NAME", self.dead_letter_topic())
            .env("BULKER_SHUTDOWN_EXTRA_DELAY_SEC", "0")
            .env("BULKER_DESTINATION_IT", destination);
        for (name, value) in &self.environment {
            command.env(name, value);
        }
        Ok(command)
    }
}

/// A command that came to its end.
pub(crate) struct Ran {
    pub(crate) is_success: bool,
    pub(crate) output: String,
    pub(crate) log: String,
}

/// A running bulkerapp.
pub(crate) struct App {
    pub(crate) service: Service,
    pub(crate) port: u16,
}

impl App {
    /// Posts one event and returns the status.
    pub(crate) async fn post(&self, table: &str, event: &str) -> Result<u16> {
        post(self.port, table, event).await
    }

    /// Sends any request; a header without a value is left out.
    pub(crate) async fn request(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Answer> {
        let mut head = format!(
            "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {}\r\n",
            body.len()
        );
        for (name, value) in headers.iter().filter(|(_, value)| !value.is_empty()) {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        Answer::parse(&exchange(self.port, &[head.as_bytes(), body].concat()).await?)
    }

    pub(crate) async fn get(&self, path: &str) -> Result<String> {
        let request = format!(
            "GET {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {TOKEN}\r\nconnection: close\r\n\r\n"
        );
        exchange(self.port, request.as_bytes()).await
    }

    /// `GET` with the token.
    pub(crate) async fn ask(&self, path: &str) -> Result<Answer> {
        let bearer = format!("Bearer {TOKEN}");
        self.request("GET", path, &[("authorization", &bearer)], b"").await
    }

    /// `POST` with the token, without a body.
    pub(crate) async fn order(&self, path: &str) -> Result<Answer> {
        let bearer = format!("Bearer {TOKEN}");
        self.request("POST", path, &[("authorization", &bearer)], b"").await
    }

    /// The details of `/health`.
    pub(crate) async fn health(&self) -> Result<serde_json::Value> {
        let answer = self.ask("/health").await?;
        ensure!(answer.status == 200, "{}", answer.status);
        Ok(serde_json::from_str::<serde_json::Value>(&answer.body)?["details"].take())
    }

    /// Stops it as an orchestrator does.
    pub(crate) async fn stop(mut self) -> Result<()> {
        let status = self.service.terminate(PATIENCE).await?;
        ensure!(status.success(), "ended with {status}: {:#?}", self.service.lines());
        Ok(())
    }
}

/// What came back.
pub(crate) struct Answer {
    pub(crate) status: u16,
    head: String,
    pub(crate) body: String,
}

impl Answer {
    fn parse(text: &str) -> Result<Answer> {
        let (head, body) = text.split_once("\r\n\r\n").context("no head")?;
        let status = head.split(' ').nth(1).context("no status")?.parse()?;
        Ok(Answer { status, head: head.to_owned(), body: body.to_owned() })
    }

    /// The body of an answer whose end was not known when it began. An error when it was cut.
    pub(crate) fn unchunked(&self) -> Result<String> {
        let (mut whole, mut rest) = (String::new(), self.body.as_str());
        loop {
            let (size, after) = rest.split_once("\r\n").context("no size of a chunk")?;
            let size = usize::from_str_radix(size, 16)?;
            if size == 0 {
                return Ok(whole);
            }
            whole.push_str(after.get(..size).context("cut in a chunk")?);
            rest = after.get(size + 2..).context("cut after a chunk")?;
        }
    }

    /// The value of a header, by its name in small letters.
    pub(crate) fn header(&self, name: &str) -> Option<String> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.find(|(found, _)| *found == name).map(|(_, value)| value.to_owned())
    }
}

/// Posts one event to the app on this port and returns the status.
pub(crate) async fn post(port: u16, table: &str, event: &str) -> Result<u16> {
    let request = format!(
        "POST /post/{DESTINATION}?tableName={table} HTTP/1.1\r\nhost: localhost\r\n\
         authorization: Bearer {TOKEN}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{event}",
        event.len()
    );
    let answer = exchange(port, request.as_bytes()).await?;
    let status = answer.split(' ').nth(1).context("no status")?;
    Ok(status.parse()?)
}

async fn exchange(port: u16, request: &[u8]) -> Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.write_all(request).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// Numbered events; the number is `id`.
pub(crate) fn events(numbers: std::ops::Range<u64>) -> Vec<String> {
    numbers.map(|id| format!(r#"{{"id":{id},"name":"event {id}"}}"#)).collect()
}

/// Waits until the table's offsets row stands at `offset`.
pub(crate) async fn loaded_to(database: &Database, topic: &str, offset: i64) -> Result<()> {
    let sql = format!("select next_offset from bulker_offsets where topic = '{topic}'");
    let wanted = offset.to_string();
    let reached = wait_until(PATIENCE, || async {
        // the table is not there before the first run
        database.value(&sql).await.is_ok_and(|value| value == wanted)
    })
    .await;
    reached.with_context(|| format!("{topic} was not loaded to {offset}"))
}

/// Checks that the events `0..count` are in the table, each exactly once.
pub(crate) async fn assert_exactly_once(
    database: &Database,
    table: &str,
    count: u64,
) -> Result<()> {
    let sql = format!(
        "select count(*) || ' rows, ' || count(distinct id) || ' ids, ' || coalesce(max(id), -1) || ' the last' from {table}"
    );
    let found = database.value(&sql).await?;
    let last = i64::try_from(count)? - 1;
    ensure!(found == format!("{count} rows, {count} ids, {last} the last"), "found {found}");
    Ok(())
}
