//! One destination, as it is configured.

use kafkabase::TopicMode;
use serde_json::{Map, Value};
use warehouse::{Kind, LoadMode, StreamOptions};

use super::{
    config::DestinationConfig,
    document::Found,
    parse::{self, DestinationProblem},
};

/// A destination with its options read.
pub struct Destination {
    /// As its source has it.
    pub config: DestinationConfig,
    /// Those that can be read, over the defaults.
    pub options: StreamOptions,
    /// The mode of events that name none.
    pub mode: TopicMode,
    /// What is not as it should be; none of it holds a secret.
    pub problems: Vec<String>,
    /// False: nothing but the id is known.
    pub(super) is_readable: bool,
}

impl Destination {
    pub(super) fn new(config: DestinationConfig) -> Destination {
        let mut problems = Vec::new();
        let mut options = StreamOptions::default();
        for (key, value) in &config.options {
            problems.extend(options.set(key, value).err().map(|error| error.to_string()));
        }
        problems.extend(options.validate().err().map(|error| error.to_string()));
        if Kind::parse(&config.kind).is_none() {
            problems.push(format!(
                "type {:?}: this version loads destinations of type postgres only",
                config.kind
            ));
        }
        let mode = match options.mode {
            Some(LoadMode::Stream) => TopicMode::Stream,
            Some(LoadMode::Batch) | None => TopicMode::Batch,
        };
        Destination { config, options, mode, problems, is_readable: true }
    }

    /// One of which nothing but the id is known. It takes events, which wait until it is repaired.
    pub(super) fn unreadable(id: &str, problem: String) -> Destination {
        let config = DestinationConfig {
            id: id.to_owned(),
            kind: String::new(),
            credentials: Value::Null,
            options: Map::new(),
            special: String::new(),
            updated_at: None,
        };
        Destination {
            config,
            options: StreamOptions::default(),
            mode: TopicMode::Batch,
            problems: vec![problem],
            is_readable: false,
        }
    }

    /// What its warehouse is; `None`: one that this version does not load.
    pub fn kind(&self) -> Option<Kind> {
        Kind::parse(&self.config.kind)
    }

    /// Whether its topics can be loaded.
    pub fn is_loadable(&self) -> bool {
        self.kind().is_some()
    }

    /// Tables whose topics are there before their first event.
    pub fn special_tables(&self) -> &'static [&'static str] {
        match self.config.special.as_str() {
            "metrics" => &["metrics", "active_incoming"],
            "backup" => &["backup"],
            _ => &[],
        }
    }
}

impl Found {
    /// The destination that was found here.
    pub(super) fn config(&self) -> Result<DestinationConfig, DestinationProblem> {
        parse::read_config(self.object.clone()?, self.id.as_deref())
    }
}
