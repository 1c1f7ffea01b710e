//! `bulkerapp preflight`: can the switch be made, in either direction?
//!
//! A line for each check, `ok` or `FAIL` with what to do. Everything is asked, nothing is tried: it
//! changes nothing, and may run while anything else runs.

use std::{collections::HashMap, process::ExitCode, sync::Arc, time::Duration};

use anyhow::Result;
use appbase::{auth::TokenAuth, config::Environment, telemetry::chain};
use futures_util::StreamExt;
use kafkabase::{
    Admin, Fetcher, FetcherSettings, TopicId, TopicMetadata, TopicMode, last_client_error,
};

use loader::{
    LoadTarget, SwitchoverStatus, SwitchoverStatuses, is_retry_topic_in_order, paused_destinations,
};
use warehouse::LedgerRights;

use super::{CLIENT_ID, admin, destinations};
use crate::{config::Config, destinations::Destinations, service, topics::pauses_topic};

/// How long a database may take.
const DATABASE_WITHIN: Duration = Duration::from_secs(15);
/// Questions to Kafka that are on their way at a time.
const AT_ONCE: usize = 16;
/// Topics that a line names.
const SHOWN: usize = 10;
/// Topics of tables have one partition.
const PARTITION: i32 = 0;

pub(super) async fn run(
    config: &Config,
    environment: &Environment,
    back: bool,
) -> Result<ExitCode> {
    let mut report = Report::default();
    if !back {
        report.check("tokens", TokenAuth::new(&config.app).map(|_| String::new()));
    }
    let (destinations, targets) = destinations(config, environment).await?;
    report.destinations(&destinations, &targets);
    let admin = admin(config)?;
    if let Some(kafka) = report.kafka(config, &admin).await {
        let look = Look { config, admin: &admin, kafka, targets: &targets, back };
        look.at_everything(&mut report, &destinations).await;
    }
    println!("{}", if report.failed == 0 { "ready to switch" } else { "not ready to switch" });
    Ok(if report.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Prints what is found.
#[derive(Default)]
struct Report {
    failed: usize,
}

impl Report {
    fn ok(&mut self, what: &str, text: &str) {
        let colon = if text.is_empty() { "" } else { ": " };
        println!("ok    {what}{colon}{text}");
    }

    fn fail(&mut self, what: &str, text: &str) {
        self.failed += 1;
        println!("FAIL  {what}: {text}");
    }

    fn check(&mut self, what: &str, found: Result<String, impl std::error::Error>) {
        match found {
            Ok(text) => self.ok(what, &text),
            Err(error) => self.fail(what, &chain(&error).to_string()),
        }
    }

    /// One line for all topics of a check: fine, or which are not, and what to do.
    fn topics(&mut self, what: &str, count: usize, bad: &[String], advice: &str) {
        if bad.is_empty() {
            return self.ok(what, &format!("{count} topics"));
        }
        let shown = bad.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
        let more = bad.len().saturating_sub(SHOWN);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        self.fail(what, &format!("{} of {count} topics: {shown}{more}. {advice}", bad.len()));
    }

    fn destinations(
        &mut self,
        destinations: &Destinations,
        targets: &HashMap<String, Arc<LoadTarget>>,
    ) {
        for problem in destinations.problems() {
            self.fail("configuration", &format!("{problem}. Repair the destination"));
        }
        match targets.len() {
            0 => self.fail("configuration", "no destination can be loaded into; see CONFIG_SOURCE"),
            count => self.ok("configuration", &format!("{count} destinations")),
        }
    }

    /// What the cluster is; `None`: it does not answer.
    async fn kafka(&mut self, config: &Config, admin: &Admin) -> Option<Cluster> {
        let client = config.kafka.client_settings(CLIENT_ID);
        // its errors say why brokers cannot be reached
        let _talking = Fetcher::new(&client, &FetcherSettings::default());
        let found = async { Ok((admin.cluster_id().await?, admin.topics().await?)) };
        let found: Result<_, kafkabase::AdminError> = found.await;
        match found {
            Ok((id, topics)) => {
                self.ok("kafka", &format!("cluster {id}, {} topics", topics.len()));
                Some(Cluster { id, topics })
            }
            Err(error) => {
                let reason = last_client_error().map_or(error.reason, |last| last.reason);
                let advice = "Look at KAFKA_BOOTSTRAP_SERVERS, KAFKA_SSL, KAFKA_SSL_CA, KAFKA_SASL";
                self.fail("kafka", &format!("{reason}. {advice}"));
                None
            }
        }
    }
}

/// The cluster, as it is now.
struct Cluster {
    id: String,
    topics: Vec<TopicMetadata>,
}

/// What is looked at.
struct Look<'a> {
    config: &'a Config,
    admin: &'a Admin,
    kafka: Cluster,
    targets: &'a HashMap<String, Arc<LoadTarget>>,
    back: bool,
}

impl Look<'_> {
    async fn at_everything(&self, report: &mut Report, destinations: &Destinations) {
        let prefix = &self.config.kafka.kafka_topic_prefix;
        let mut of_tables: HashMap<String, Vec<String>> = HashMap::new();
        let (mut retry, mut wide, mut strange) = (Vec::new(), Vec::new(), 0);
        for topic in &self.kafka.topics {
            let Some(id) = TopicId::parse(prefix, &topic.name) else {
                continue;
            };
            if destinations.get(&id.destination_id).is_none() {
                strange += 1;
                continue;
            }
            if topic.partitions != 1 {
                wide.push(topic.name.clone());
            }
            match id.mode {
                TopicMode::Batch | TopicMode::Stream => {
                    of_tables.entry(id.destination_id).or_default().push(topic.name.clone());
                }
                TopicMode::Retry => retry.push(topic.name.clone()),
                TopicMode::Dead | TopicMode::Profiles => {}
            }
        }
        let shared = &self.config.kafka.kafka_destinations_retry_topic_name;
        retry.extend(self.kafka.topics.iter().map(|t| &t.name).filter(|n| *n == shared).cloned());
        let mut all: Vec<String> = of_tables.values().flatten().chain(&retry).cloned().collect();
        all.sort_unstable();
        if strange > 0 {
            let text = format!("{strange} of destinations that are not configured are left alone");
            report.ok("topics", &text);
        }
        let advice = "Neither side loads a topic with several partitions";
        report.topics("one partition", all.len(), &wide, advice);
        self.at_groups(report, &all).await;
        if self.back {
            self.at_instances(report).await;
            self.at_retries(report, &retry).await;
        }
        self.at_pauses(report).await;
        let mut ids: Vec<_> = self.targets.keys().collect();
        ids.sort_unstable();
        for id in ids {
            let topics = of_tables.remove(id).unwrap_or_default();
            self.at_destination(report, &self.targets[id], topics).await;
        }
    }

    /// No consumer may read our topics by their groups.
    async fn at_groups(&self, report: &mut Report, topics: &[String]) {
        let asked = topics.iter().map(|topic| async move {
            match self.admin.topic_group(topic, PARTITION).members().await {
                Ok(0) => None,
                Ok(members) => Some(format!("{topic} ({members} members)")),
                Err(error) => Some(format!("{topic} ({error})")),
            }
        });
        let found: Vec<_> = futures_util::stream::iter(asked).buffered(AT_ONCE).collect().await;
        let live: Vec<String> = found.into_iter().flatten().collect();
        let advice = if self.back {
            "Another consumer reads them already"
        } else {
            "The original still runs, or stopped less than 45 s ago: stop it, and look again"
        };
        report.topics("no live group members", topics.len(), &live, advice);
    }

    /// Our own instances share an internal topic by a group.
    async fn at_instances(&self, report: &mut Report) {
        let group = service::loaders_group(&self.config.kafka.kafka_topic_prefix);
        match self.admin.group_members(&group).await {
            Ok(0) => report.ok("no instance runs", "none that shares topics by the group"),
            Ok(members) => {
                let text = format!("{members} instances of bulkerapp in group {group}. Stop them");
                report.fail("no instance runs", &text);
            }
            Err(error) => report.fail("no instance runs", &error.to_string()),
        }
    }

    async fn at_retries(&self, report: &mut Report, topics: &[String]) {
        let mut bad = Vec::new();
        for topic in topics {
            match is_retry_topic_in_order(self.admin, topic).await {
                Ok(true) => {}
                Ok(false) => bad.push(topic.clone()),
                Err(error) => bad.push(format!("{topic} ({error})")),
            }
        }
        let advice = "Events behind the group's offset were moved already, the original would move them again: start \
                      bulkerapp and stop it with SIGTERM";
        report.topics("retries in order", topics.len(), &bad, advice);
    }

    /// The original knows no pauses.
    async fn at_pauses(&self, report: &mut Report) {
        let topic = pauses_topic(&self.config.kafka.kafka_topic_prefix);
        if !self.kafka.topics.iter().any(|known| known.name == topic) {
            return report.ok("pauses", "none");
        }
        let client = self.config.kafka.client_settings(CLIENT_ID);
        match paused_destinations(self.admin, &client, &topic).await {
            Ok(paused) if paused.is_empty() => report.ok("pauses", "none"),
            Ok(paused) => {
                let ids = paused.into_keys().collect::<Vec<_>>().join(", ");
                if self.back {
                    let advice = "The original would load into them: resume them, or take them out of its configuration";
                    report.fail("pauses", &format!("destinations {ids} are paused. {advice}"));
                } else {
                    report.ok("pauses", &format!("destinations {ids} are paused here"));
                }
            }
            Err(error) => report.fail("pauses", &chain(&error).to_string()),
        }
    }

    async fn at_destination(&self, report: &mut Report, target: &LoadTarget, topics: Vec<String>) {
        let what = format!("destination {}", target.destination_id);
        let asked = async {
            let rights = target.warehouse.ledger_rights().await?;
            let statuses = SwitchoverStatuses::read(self.admin, target, &self.kafka.id).await?;
            Ok((rights, statuses))
        };
        let asked = tokio::time::timeout(DATABASE_WITHIN, asked).await;
        let answer: Result<(LedgerRights, SwitchoverStatuses<'_>), warehouse::LoadError> =
            match asked {
                Ok(answer) => answer,
                Err(_) => return report.fail(&what, "the database does not answer in time"),
            };
        let (rights, statuses) = match answer {
            Ok(found) => found,
            Err(error) => return report.fail(&what, &chain(&error).to_string()),
        };
        let LedgerRights { server, is_too_old, missing, .. } = rights;
        if is_too_old {
            report.fail(&what, &format!("{server} is too old"));
        }
        match missing {
            None => report.ok(&what, &format!("{server}, rights")),
            Some(grant) => {
                let text = format!("no right to keep offsets: at-least-once. {grant}");
                report.fail(&what, &text);
            }
        }
        self.at_offsets(report, &what, &statuses, topics).await;
    }

    async fn at_offsets(
        &self,
        report: &mut Report,
        what: &str,
        statuses: &SwitchoverStatuses<'_>,
        topics: Vec<String>,
    ) {
        let count = topics.len();
        let asked = topics.into_iter().map(|topic| async move {
            let found = statuses.of(&topic).await;
            (topic, found)
        });
        let found: Vec<_> = futures_util::stream::iter(asked).buffered(AT_ONCE).collect().await;
        let (mut bad, mut moved) = (Vec::new(), Vec::new());
        for (topic, status) in found {
            match status {
                Ok(status) => match self.complaint(&status) {
                    Some(complaint) => bad.push(format!("{topic} ({complaint})")),
                    None => moved.extend(
                        status
                            .notice
                            .map(|(kind, events)| format!("{topic} ({kind}, {events} offsets)")),
                    ),
                },
                Err(error) => bad.push(format!("{topic} ({error})")),
            }
        }
        let (check, advice) = if self.back {
            (
                "offsets handed over",
                "The original would load events twice, or skip some: start bulkerapp and stop it with SIGTERM",
            )
        } else {
            ("starts", "See `held topics` in docs/operations.md")
        };
        report.topics(&format!("{what}, {check}"), count, &bad, advice);
        if !self.back && !moved.is_empty() {
            let shown = moved.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
            let text = format!("{} topics start elsewhere than we stopped: {shown}", moved.len());
            report.ok(&format!("{what}, starts"), &text);
        }
    }

    fn complaint(&self, status: &SwitchoverStatus) -> Option<String> {
        if !self.back {
            return status.held.map(str::to_owned);
        }
        (!status.is_handed_over()).then(|| {
            let row = status.position.map_or("none".to_owned(), |row| row.to_string());
            let group = status.group.map_or("none".to_owned(), |group| group.to_string());
            format!("row {row}, group {group}")
        })
    }
}
