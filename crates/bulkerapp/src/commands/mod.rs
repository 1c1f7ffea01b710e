//! What an operator does at the command line beside running the service. Commands read the same
//! settings as it does.

mod preflight;
mod set_start;

use std::{collections::HashMap, ffi::OsString, process::ExitCode, sync::Arc, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use appbase::config::Environment;
use kafkabase::{Admin, SpoolCommand};
use loader::{LoadTarget, StartAt, TargetSource};

use crate::{
    config::Config,
    destinations::{Configuration, Destinations, RedisSettings},
    intake::spool,
    service,
};

/// How Kafka's brokers see a command.
const CLIENT_ID: &str = "bulkerapp-command";
/// For each administrative call.
const ADMIN_TIMEOUT: Duration = Duration::from_secs(15);

/// A command, as its words say.
#[derive(Debug, PartialEq, Eq)]
pub enum Command {
    /// Looks whether the switch to this service, or back from it, can be made.
    Preflight { back: bool },
    /// Sets where a topic is read from next.
    SetStart { topic: String, at: StartAt },
    /// Sends what is in a spool's folder, or in its quarantine, or forgets its quarantine.
    Spool(SpoolCommand),
}

impl Command {
    /// Takes the words of a command out of the arguments; flags that are settings stay. `None`:
    /// there is no command.
    pub fn take(arguments: &mut Vec<OsString>) -> Result<Option<Command>> {
        let name =
            arguments.first().and_then(|first| first.to_str()).unwrap_or_default().to_owned();
        let is_word = |argument: &&OsString| !argument.as_encoded_bytes().starts_with(b"-");
        let count = arguments.iter().take_while(is_word).count();
        match name.as_str() {
            "preflight" => {
                ensure!(count == 1, "usage: bulkerapp preflight [--back]");
                arguments.remove(0);
                let flags = arguments.len();
                arguments.retain(|argument| argument != "--back");
                Ok(Some(Command::Preflight { back: arguments.len() < flags }))
            }
            "set-start" => {
                let words: Vec<String> = arguments
                    .drain(..count)
                    .map(|word| word.to_string_lossy().into_owned())
                    .collect();
                let [_, topic, at] = words.as_slice() else {
                    bail!("usage: bulkerapp set-start TOPIC OFFSET|earliest|latest");
                };
                let at = match at.as_str() {
                    "earliest" => StartAt::Earliest,
                    "latest" => StartAt::Latest,
                    number => StartAt::Offset(
                        number.parse().context("OFFSET is a number, `earliest` or `latest`")?,
                    ),
                };
                Ok(Some(Command::SetStart { topic: topic.clone(), at }))
            }
            "spool" => {
                let words: Vec<String> = arguments
                    .drain(..count)
                    .skip(1)
                    .map(|word| word.to_string_lossy().into_owned())
                    .collect();
                let usage = || format!("usage: bulkerapp spool {}", SpoolCommand::USAGE);
                let command = SpoolCommand::parse(&words).with_context(usage)?;
                Ok(Some(Command::Spool(command)))
            }
            _ => Ok(None),
        }
    }

    /// Runs it. What it finds goes to standard output, logs to standard error.
    pub async fn run(&self, config: &Config, environment: &Environment) -> Result<ExitCode> {
        match self {
            Command::Preflight { back } => preflight::run(config, environment, *back).await,
            Command::SetStart { topic, at } => {
                set_start::run(config, environment, topic, *at).await
            }
            Command::Spool(command) => {
                spool::run(command, config, environment).await.map(|()| ExitCode::SUCCESS)
            }
        }
    }
}

fn admin(config: &Config) -> Result<Admin> {
    let client = config.kafka.client_settings(CLIENT_ID);
    Admin::new(&client, ADMIN_TIMEOUT).context("Kafka's settings")
}

/// The configured destinations, and those of them that can be loaded into, by id.
async fn destinations(
    config: &Config,
    environment: &Environment,
) -> Result<(Arc<Destinations>, HashMap<String, Arc<LoadTarget>>)> {
    let redis = RedisSettings::from(&config.events_log);
    let configuration = Configuration::start(&config.source, &redis, environment).await?;
    let destinations = configuration.destinations();
    let targets = service::open_targets(config, destinations.clone()).targets();
    let targets = targets.iter().map(|target| (target.destination_id.clone(), target.clone()));
    Ok((destinations, targets.collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(words: &str) -> (Result<Option<Command>, String>, Vec<String>) {
        let mut arguments: Vec<OsString> = words.split_whitespace().map(OsString::from).collect();
        let taken = Command::take(&mut arguments).map_err(|error| error.to_string());
        (taken, arguments.into_iter().map(|a| a.into_string().unwrap()).collect())
    }

    #[test]
    fn words_are_taken_and_settings_stay() {
        let set = |at| Ok(Some(Command::SetStart { topic: "t".to_owned(), at }));
        let cases = [
            ("", Ok(None), ""),
            ("--http-port 1", Ok(None), "--http-port 1"),
            ("preflight", Ok(Some(Command::Preflight { back: false })), ""),
            (
                "preflight --back --http-port 1",
                Ok(Some(Command::Preflight { back: true })),
                "--http-port 1",
            ),
            ("set-start t 5 --http-port 1", set(StartAt::Offset(5)), "--http-port 1"),
            ("set-start t earliest", set(StartAt::Earliest), ""),
            ("set-start t latest", set(StartAt::Latest), ""),
            (
                "spool replay f --http-port 1",
                Ok(Some(Command::Spool(SpoolCommand::Replay { folder: "f".to_owned() }))),
                "--http-port 1",
            ),
        ];
        for (words, expected, left) in cases {
            let (taken, arguments) = take(words);
            assert_eq!(taken, expected, "{words}");
            assert_eq!(arguments.join(" "), left, "{words}");
        }
        for words in
            ["set-start t", "set-start t 5 6", "set-start t soon", "preflight back", "spool"]
        {
            assert!(take(words).0.is_err(), "{words}");
        }
    }
}
