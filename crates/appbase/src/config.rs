//! Configuration from flags, variables and a file.
//!
//! The prefix is applied once, here: a shared struct answers to `BULKER_KAFKA_SASL` in one binary
//! and to `INGEST_KAFKA_SASL` in another. Where a value comes from, first match: flag, prefixed
//! variable, variable without prefix (only names that have always been readable so),
//! `<service>.env`, default. An empty variable counts as not set.
//!
//! Invariant: an error names the variable (or flag) and never quotes a value.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ffi::OsString,
    path::{Path, PathBuf},
};

use clap::{
    CommandFactory, FromArgMatches,
    error::{ContextKind, ContextValue, ErrorKind},
};

/// Why a configuration is not usable.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The text of a variable or flag is not a value of its type.
    #[error("{name}: {reason}")]
    Value {
        /// The variable or flag that holds it; for a line that cannot be parsed, the file.
        name: String,
        /// What it should be.
        reason: String,
    },
    /// A value without a default is not set.
    #[error("{name} is not set")]
    Missing {
        /// The variable that would set it.
        name: String,
    },
    /// The file is there but cannot be read.
    #[error("{} cannot be read", path.display())]
    File {
        /// Where it is.
        path: PathBuf,
        /// Why it cannot be read.
        #[source]
        source: dotenvy::Error,
    },
    /// An unknown flag, or a request for help.
    #[error(transparent)]
    Usage(#[from] clap::Error),
}

/// Names that are found in more places than `<PREFIX>_<NAME>` and the file.
#[derive(Debug, Clone, Copy, Default)]
pub struct Names {
    /// Also read without the prefix.
    pub unprefixed: &'static [&'static [&'static str]],
    /// Where nothing is set: the first of these variables that is, before the default.
    pub fallbacks: &'static [(&'static str, &'static [&'static str])],
}

/// What was parsed, and which names were set rather than left at their defaults.
#[derive(Debug)]
pub struct Parsed<C> {
    /// The settings.
    pub config: C,
    /// Names in upper case, without prefix.
    pub set: BTreeSet<String>,
}

/// The variables of the process and the entries of its file.
#[derive(Debug, Clone)]
pub struct Environment {
    prefix: &'static str,
    variables: BTreeMap<String, String>,
    /// Keys in upper case: the file's keys have no case.
    file: BTreeMap<String, String>,
}

impl Environment {
    /// Reads the process' variables and `<service>.env` in the folder that `<PREFIX>_CONFIG_PATH`
    /// names (the working folder when unset). `service` is the prefix in lower case. A missing file
    /// is fine; one that cannot be read or parsed is an error. Variables that are not UTF-8 are
    /// left out.
    pub fn of_process(prefix: &'static str) -> Result<Environment, ConfigError> {
        let variables: BTreeMap<String, String> = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        let folder = variables
            .get(&format!("{prefix}_CONFIG_PATH"))
            .filter(|folder| !folder.is_empty())
            .map_or(".", String::as_str);
        let path = Path::new(folder).join(format!("{}.env", prefix.to_lowercase()));
        let file = read_file(&path)?;
        Ok(Environment { prefix, variables, file })
    }

    /// An environment made of these variables and file entries only.
    pub fn new<'a>(
        prefix: &'static str,
        variables: impl IntoIterator<Item = (&'a str, &'a str)>,
        file: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Environment {
        let owned = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        let upper = |(name, value): (&str, &str)| (name.to_uppercase(), value.to_owned());
        Environment {
            prefix,
            variables: variables.into_iter().map(owned).collect(),
            file: file.into_iter().map(upper).collect(),
        }
    }

    /// Parses `C` from `arguments` (without the program's name) and this environment. A call for
    /// help is an error as well, [`ConfigError::Usage`], whose text is the help.
    pub fn parse<C: CommandFactory + FromArgMatches>(
        &self,
        arguments: &[OsString],
        names: &Names,
    ) -> Result<Parsed<C>, ConfigError> {
        // as flags before the real ones: clap then checks all values in one way
        let mut line = vec![OsString::from(self.prefix.to_lowercase())];
        let mut origins = HashMap::new();
        let mut set = BTreeSet::new();
        let command = C::command().mut_args(|argument| {
            let Some(flag) = argument.get_long().map(|long| format!("--{long}")) else {
                return argument;
            };
            let name = argument.get_id().as_str().to_uppercase();
            let variable = format!("{}_{name}", self.prefix);
            if has_flag(arguments, &flag) {
                set.insert(name);
                origins.insert(flag.clone(), flag);
            } else if let Some((origin, value)) = self.find(&name, names) {
                line.push(format!("{flag}={value}").into());
                set.insert(name);
                origins.insert(flag, origin);
            } else {
                origins.insert(flag, variable.clone());
            }
            let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
            argument.help(format!("{help} [variable: {variable}]"))
        });
        line.extend(arguments.iter().cloned());
        let parsed = command
            .try_get_matches_from(line)
            .and_then(|mut matches| C::from_arg_matches_mut(&mut matches));
        match parsed {
            Ok(config) => Ok(Parsed { config, set }),
            Err(error) => Err(named(error, &origins)),
        }
    }

    /// Variables whose names start with `<PREFIX>_<group>`, as the rest of the name and the text;
    /// those of the file first. Empty ones are left out.
    pub fn group(&self, group: &str) -> Vec<(String, &str)> {
        let start = format!("{}_{group}", self.prefix);
        let of_file =
            self.file.iter().filter_map(|(name, value)| Some((name.strip_prefix(group)?, value)));
        let of_process = self
            .variables
            .iter()
            .filter_map(|(name, value)| Some((name.strip_prefix(start.as_str())?, value)));
        of_file
            .chain(of_process)
            .filter(|(_, value)| !value.is_empty())
            .map(|(rest, value)| (rest.to_owned(), value.as_str()))
            .collect()
    }

    /// The text set for `name`, and the name of what holds it.
    fn find(&self, name: &str, names: &Names) -> Option<(String, &str)> {
        let mut places = vec![format!("{}_{name}", self.prefix)];
        if names.unprefixed.iter().any(|group| group.contains(&name)) {
            places.push(name.to_owned());
        }
        if let Some(found) = self.first_variable(places) {
            return Some(found);
        }
        if let Some(value) = self.file.get(name) {
            return Some((name.to_owned(), value));
        }
        let fallbacks = names.fallbacks.iter().filter(|(of, _)| *of == name);
        self.first_variable(fallbacks.flat_map(|(_, places)| *places).map(|p| (*p).to_owned()))
    }

    fn first_variable(&self, places: impl IntoIterator<Item = String>) -> Option<(String, &str)> {
        places.into_iter().find_map(|place| {
            let value = self.variables.get(&place).filter(|value| !value.is_empty())?;
            Some((place, value.as_str()))
        })
    }
}

fn read_file(path: &Path) -> Result<BTreeMap<String, String>, ConfigError> {
    let unreadable = |source| ConfigError::File { path: path.to_owned(), source };
    let entries = match dotenvy::from_path_iter(path) {
        Ok(entries) => entries,
        Err(error) if error.not_found() => return Ok(BTreeMap::new()),
        Err(error) => return Err(unreadable(error)),
    };
    entries
        .map(|entry| entry.map(|(name, value)| (name.to_uppercase(), value)))
        .collect::<Result<_, _>>()
        .map_err(|error| match error {
            // its text quotes the line, which may hold a secret
            dotenvy::Error::LineParse(_, at) => ConfigError::Value {
                name: path.display().to_string(),
                reason: format!("a line cannot be parsed at column {at}"),
            },
            other => unreadable(other),
        })
}

fn has_flag(arguments: &[OsString], flag: &str) -> bool {
    arguments.iter().filter_map(|argument| argument.to_str()).any(|argument| {
        argument.strip_prefix(flag).is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
    })
}

/// Says which variable it was instead of quoting what it held.
fn named(error: clap::Error, origins: &HashMap<String, String>) -> ConfigError {
    let argument = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(argument)) => Some(argument),
        Some(ContextValue::Strings(arguments)) => arguments.first(),
        _ => None,
    };
    let name = argument.and_then(|argument| {
        let flag = argument.split([' ', '=', '[', '<']).next()?;
        origins.get(flag).cloned()
    });
    let Some(name) = name else {
        return ConfigError::Usage(error);
    };
    match error.kind() {
        ErrorKind::MissingRequiredArgument => ConfigError::Missing { name },
        ErrorKind::ValueValidation | ErrorKind::InvalidValue => {
            let reason = std::error::Error::source(&error)
                .map_or_else(|| "not a value it can have".to_owned(), ToString::to_string);
            ConfigError::Value { name, reason }
        }
        _ => ConfigError::Usage(error),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use clap::Parser;

    use super::*;
    use crate::values;

    #[derive(Debug, Parser)]
    struct Sample {
        /// Where to listen.
        #[arg(long, default_value = "3042", value_parser = values::integer::<u16>)]
        http_port: u16,
        #[arg(long, required = true)]
        servers: String,
        #[arg(long)]
        token_secret: Option<String>,
        #[arg(long, default_value = "1000", value_parser = values::millis)]
        wait_ms: Duration,
        #[arg(long, default_value = "false", value_parser = values::boolean)]
        #[arg(action = clap::ArgAction::Set)]
        open: bool,
    }

    const NAMES: Names = Names {
        unprefixed: &[&["HTTP_PORT", "SERVERS", "TOKEN_SECRET"]],
        fallbacks: &[("HTTP_PORT", &["PORT"])],
    };

    fn parse(
        variables: &[(&str, &str)],
        file: &[(&str, &str)],
        flags: &[&str],
    ) -> Result<Parsed<Sample>, ConfigError> {
        let environment = Environment::new(
            "BULKER",
            [("BULKER_SERVERS", "kafka:9092")].iter().chain(variables).copied(),
            file.iter().copied(),
        );
        let flags: Vec<_> = flags.iter().map(OsString::from).collect();
        environment.parse(&flags, &NAMES)
    }

    #[test]
    fn the_nearest_source_wins() {
        let port = |variables: &[_], file: &[_], flags: &[_]| {
            parse(variables, file, flags).unwrap().config.http_port
        };
        assert_eq!(port(&[], &[], &[]), 3042);
        assert_eq!(port(&[("PORT", "1")], &[], &[]), 1);
        assert_eq!(port(&[("PORT", "1")], &[("http_port", "2")], &[]), 2);
        assert_eq!(port(&[("HTTP_PORT", "3")], &[("HTTP_PORT", "2")], &[]), 3);
        assert_eq!(port(&[("HTTP_PORT", "3"), ("BULKER_HTTP_PORT", "4")], &[], &[]), 4);
        assert_eq!(port(&[("BULKER_HTTP_PORT", "4")], &[], &["--http-port", "5"]), 5);
        assert_eq!(port(&[("BULKER_HTTP_PORT", "x")], &[], &["--http-port=5"]), 5);
    }

    #[test]
    fn an_empty_variable_is_not_set() {
        let parsed = parse(&[("BULKER_HTTP_PORT", ""), ("HTTP_PORT", "7")], &[], &[]).unwrap();
        assert_eq!(parsed.config.http_port, 7);
        let parsed = parse(&[("BULKER_OPEN", "")], &[], &[]).unwrap();
        assert!(!parsed.set.contains("OPEN"));
    }

    #[test]
    fn only_marked_names_are_read_without_prefix() {
        let parsed = parse(&[("WAIT_MS", "5")], &[], &[]).unwrap();
        assert_eq!(parsed.config.wait_ms, Duration::from_secs(1));
    }

    #[test]
    fn an_unreadable_value_names_its_variable_and_is_not_quoted() {
        let cases = [
            (&[("BULKER_HTTP_PORT", "s3cret")][..], &[][..], "BULKER_HTTP_PORT: not an integer"),
            (&[("HTTP_PORT", "70000")], &[], "HTTP_PORT: out of range"),
            (&[("BULKER_WAIT_MS", "s3cret")], &[], "BULKER_WAIT_MS: not an integer"),
            (&[("BULKER_OPEN", "s3cret")], &[], "BULKER_OPEN: neither true nor false"),
            (&[], &["--wait-ms=s3cret"], "--wait-ms: not an integer"),
        ];
        for (variables, flags, expected) in cases {
            let error = parse(variables, &[], flags).unwrap_err();
            assert_eq!(error.to_string(), expected);
            assert!(!format!("{error:?}").contains("s3cret"));
        }
    }

    #[test]
    fn a_missing_value_names_its_variable() {
        let environment = Environment::new("BULKER", [], []);
        let error = environment.parse::<Sample>(&[], &NAMES).unwrap_err();
        assert_eq!(error.to_string(), "BULKER_SERVERS is not set");
    }

    #[test]
    fn the_file_has_keys_without_prefix_and_without_case() {
        let folder = std::env::temp_dir().join(format!("appbase-config-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("bulker.env");
        std::fs::write(&path, "# a comment\nHttp_Port=9\nTOKEN_SECRET='a b'\n").unwrap();
        let file = read_file(&path).unwrap();
        assert_eq!(file["HTTP_PORT"], "9");
        assert_eq!(file["TOKEN_SECRET"], "a b");
        std::fs::write(&path, "TOKEN_SECRET=\"s3cret\n").unwrap();
        let error = read_file(&path).unwrap_err();
        assert!(!error.to_string().contains("s3cret"), "{error}");
        std::fs::remove_dir_all(&folder).unwrap();
        assert!(read_file(&path).unwrap().is_empty(), "a missing file is fine");
    }

    #[test]
    fn a_group_of_variables_is_found_in_both_places() {
        let environment = Environment::new(
            "BULKER",
            [
                ("BULKER_DESTINATION_ONE", "{}"),
                ("BULKER_DESTINATION_EMPTY", ""),
                ("DESTINATION_X", "{}"),
            ],
            [("destination_two", "{}")],
        );
        assert_eq!(
            environment.group("DESTINATION"),
            [("_TWO".to_owned(), "{}"), ("_ONE".to_owned(), "{}")]
        );
    }
}
