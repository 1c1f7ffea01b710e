//! Servers of a test's own, to be killed, frozen and started again: always native processes,
//! whatever the shared parts are, and always stopped by process id.

use std::{ops::Deref, path::PathBuf, time::Duration};

use anyhow::{Context, Result, ensure};
use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::task::JoinSet;

use crate::{Database, Kafka, free_port, stack::Stack, wait_until};

const GONE_LIMIT: Duration = Duration::from_secs(10);
/// So that the loss of a broker is noticed in seconds instead of half a minute.
const QUICK_FAILOVER: &str = "broker.session.timeout.ms=3000\nbroker.heartbeat.interval.ms=500\nreplica.lag.time.max.ms=5000\n";

/// One server in a stack of its own, to be ended, frozen and started again.
#[derive(Debug)]
pub struct Part {
    name: &'static str,
    stack: Stack,
    /// What asks it to end cleanly.
    end_signal: Signal,
}

impl Part {
    async fn start(name: &'static str, stack: Stack, end_signal: Signal) -> Result<Part> {
        stack.up().await?;
        Ok(Part { name, stack, end_signal })
    }

    pub fn pid(&self) -> Result<i32> {
        self.stack.process_of(self.name)
    }

    /// The file that it writes its log to; gone with it.
    pub fn log(&self) -> PathBuf {
        self.stack.log_of(self.name)
    }

    /// A crash: the server and its children at once. Waits until they are gone.
    pub async fn kill9(&self) -> Result<()> {
        let parent = self.parent()?;
        let all = with_children(parent)?;
        send(&all, Signal::SIGKILL)?;
        self.wait_until_gone(parent, &all).await
    }

    /// A clean end: PostgreSQL cuts sessions and writes everything, Kafka has its controlled
    /// shutdown.
    pub async fn shut_down(&self) -> Result<()> {
        let parent = self.parent()?;
        let all = with_children(parent)?;
        send(&[parent], self.end_signal)?;
        self.wait_until_gone(parent, &all).await
    }

    /// Freezes the server and its children: connections stay, nothing answers.
    pub fn stop_process(&self) -> Result<()> {
        // the parent first, so that it starts no child that we do not see
        let parent = self.parent()?;
        send(&[parent], Signal::SIGSTOP)?;
        send(&with_children(parent)?, Signal::SIGSTOP)
    }

    pub fn continue_process(&self) -> Result<()> {
        send(&with_children(self.parent()?)?, Signal::SIGCONT)
    }

    /// Starts it again on the same port and data, and waits until it answers.
    pub async fn restart(&self) -> Result<()> {
        self.stack.up().await
    }

    fn parent(&self) -> Result<Pid> {
        Ok(Pid::from_raw(self.pid()?))
    }

    async fn wait_until_gone(&self, parent: Pid, all: &[Pid]) -> Result<()> {
        wait_until(GONE_LIMIT, || async { all.iter().all(|pid| is_gone(*pid)) })
            .await
            .with_context(|| format!("{} (process {parent}) does not go away", self.name))
    }
}

/// A PostgreSQL server.
#[derive(Debug)]
pub struct OwnPostgres {
    part: Part,
    url: String,
}

impl OwnPostgres {
    pub async fn start() -> Result<OwnPostgres> {
        OwnPostgres::start_with("").await
    }

    /// `settings`: words for the server's command line, such as `-c wal_level=logical`.
    pub async fn start_with(settings: &str) -> Result<OwnPostgres> {
        let stack = Stack::new("postgres").with("STACK_POSTGRES_SETTINGS", settings);
        let part = Part::start("postgres", stack, Signal::SIGINT).await?;
        let url = part.stack.address("TESTKIT_POSTGRES_URL").await?;
        Ok(OwnPostgres { part, url })
    }

    /// A superuser's way in.
    pub fn url(&self) -> &str {
        &self.url
    }

    pub async fn database(&self) -> Result<Database> {
        Ok(Database::create_on(&self.url).await?.dropped_with_server())
    }
}

impl Deref for OwnPostgres {
    type Target = Part;

    fn deref(&self) -> &Part {
        &self.part
    }
}

/// A Redis server. It keeps nothing on disk: killed, it comes back empty.
#[derive(Debug)]
pub struct OwnRedis {
    part: Part,
    url: String,
}

impl OwnRedis {
    pub async fn start() -> Result<OwnRedis> {
        let part = Part::start("redis", Stack::new("redis"), Signal::SIGTERM).await?;
        let url = part.stack.address("TESTKIT_REDIS_URL").await?;
        Ok(OwnRedis { part, url })
    }

    /// `redis://host:port`
    pub fn url(&self) -> &str {
        &self.url
    }
}

impl Deref for OwnRedis {
    type Target = Part;

    fn deref(&self) -> &Part {
        &self.part
    }
}

/// A Kafka node: broker and controller in one process.
#[derive(Debug)]
pub struct OwnKafka {
    part: Part,
    bootstrap: String,
    node_id: i32,
}

impl OwnKafka {
    /// A cluster of one.
    pub async fn start() -> Result<OwnKafka> {
        OwnKafka::start_with("").await
    }

    /// `properties`: further lines for the broker's settings.
    pub async fn start_with(properties: &str) -> Result<OwnKafka> {
        let properties = format!("{QUICK_FAILOVER}{properties}");
        let stack = Stack::new("kafka")
            .with("STACK_KAFKA_PROPERTIES", properties)
            .with("STACK_KAFKA_HEAP", "256m");
        OwnKafka::start_node(1, stack).await
    }

    async fn start_node(node_id: i32, stack: Stack) -> Result<OwnKafka> {
        let part = Part::start("kafka", stack, Signal::SIGTERM).await?;
        let bootstrap = part.stack.address("TESTKIT_KAFKA").await?;
        Ok(OwnKafka { part, bootstrap, node_id })
    }

    pub fn bootstrap(&self) -> &str {
        &self.bootstrap
    }

    pub fn node_id(&self) -> i32 {
        self.node_id
    }

    pub fn kafka(&self) -> Kafka {
        Kafka::thrown_away(&self.bootstrap)
    }
}

impl Deref for OwnKafka {
    type Target = Part;

    fn deref(&self) -> &Part {
        &self.part
    }
}

/// Three nodes that replicate to each other.
#[derive(Debug)]
pub struct KafkaCluster {
    nodes: Vec<OwnKafka>,
}

impl KafkaCluster {
    pub async fn start() -> Result<KafkaCluster> {
        KafkaCluster::start_with("").await
    }

    /// `properties`: further lines for every broker's settings.
    pub async fn start_with(properties: &str) -> Result<KafkaCluster> {
        let ports = [free_port()?, free_port()?, free_port()?];
        let voters = (1..).zip(ports).map(|(id, port)| format!("{id}@127.0.0.1:{port}"));
        let voters = voters.collect::<Vec<_>>().join(",");
        // any 22 characters of base64 whose last one has no spare bits set
        let cluster_id = format!("{}A", &uuid::Uuid::new_v4().simple().to_string()[..21]);
        let mut starting = JoinSet::new();
        for (id, port) in (1..).zip(ports) {
            let stack = Stack::new("kafka")
                .with("STACK_KAFKA_NODE_ID", id.to_string())
                .with("STACK_KAFKA_CONTROLLER_PORT", port.to_string())
                .with("STACK_KAFKA_VOTERS", voters.clone())
                .with("STACK_KAFKA_CLUSTER_ID", &cluster_id)
                .with("STACK_KAFKA_PROPERTIES", format!("{QUICK_FAILOVER}{properties}"))
                .with("STACK_KAFKA_HEAP", "256m");
            starting.spawn(OwnKafka::start_node(id, stack)); // together: each waits for a quorum
        }
        let mut nodes = Vec::new();
        while let Some(node) = starting.join_next().await {
            nodes.push(node??);
        }
        nodes.sort_by_key(OwnKafka::node_id);
        ensure!(nodes.len() == 3, "{} nodes instead of 3", nodes.len());
        Ok(KafkaCluster { nodes })
    }

    pub fn bootstrap(&self) -> String {
        self.nodes.iter().map(OwnKafka::bootstrap).collect::<Vec<_>>().join(",")
    }

    pub fn kafka(&self) -> Kafka {
        Kafka::thrown_away(self.bootstrap())
    }

    pub fn nodes(&self) -> &[OwnKafka] {
        &self.nodes
    }

    /// The node that leads a partition now.
    pub async fn leader(&self, topic: &str, partition: usize) -> Result<&OwnKafka> {
        let leaders = self.kafka().leaders(topic).await?;
        let id =
            leaders.get(partition).with_context(|| format!("{topic} has no such partition"))?;
        let leader = self.nodes.iter().find(|node| node.node_id == *id);
        leader.with_context(|| format!("partition {partition} of {topic} has no leader"))
    }
}

fn send(pids: &[Pid], signal: Signal) -> Result<()> {
    for pid in pids {
        match kill(*pid, signal) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => return Err(error).with_context(|| format!("send {signal} to {pid}")),
        }
    }
    Ok(())
}

/// A process and its direct children (PostgreSQL's sessions are processes).
fn with_children(parent: Pid) -> Result<Vec<Pid>> {
    let mut all = vec![parent];
    for entry in std::fs::read_dir("/proc").context("read /proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
        if state_of(pid).is_some_and(|(_, its_parent)| its_parent == parent.as_raw()) {
            all.push(Pid::from_raw(pid));
        }
    }
    Ok(all)
}

fn is_gone(pid: Pid) -> bool {
    state_of(pid.as_raw()).is_none_or(|(state, _)| state == "Z" || state == "X")
}

/// State letter and parent of a process, as proc(5) gives them.
fn state_of(pid: i32) -> Option<(String, i32)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(") ")?; // the name before it may hold anything
    let mut fields = fields.split(' ');
    Some((fields.next()?.to_owned(), fields.next()?.parse().ok()?))
}
