//! Destinations in variables: `BULKER_DESTINATION_<NAME>` holds one, as hjson.

use appbase::config::Environment;

use super::{
    DestinationConfig,
    parse::{DestinationProblem, parse},
};
use crate::config::PREFIX;

/// What variables of destinations start with, after the prefix.
const DESTINATION: &str = "DESTINATION";
/// The same for destinations of the installation itself.
const INTERNAL: &str = "INTERNAL";

/// Why there is nothing to read destinations from.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// The value is not quoted: it may hold a password.
    #[error(
        "{PREFIX}_CONFIG_SOURCE: {0} is not supported in this version. Supported: empty (variables \
         {PREFIX}_DESTINATION_<NAME>) and env://{PREFIX}_<NAME>"
    )]
    Unsupported(&'static str),
}

type Found = Vec<(String, Result<DestinationConfig, DestinationProblem>)>;

/// All destinations with the variables they came from, later ones winning over earlier ones.
pub(super) fn read(source: &str, environment: &Environment) -> Result<Found, SourceError> {
    if source.is_empty() {
        return Ok(group(DESTINATION, environment));
    }
    let Some(variable) = source.strip_prefix("env://") else {
        return Err(SourceError::Unsupported(kind(source)));
    };
    let name = variable.strip_prefix(PREFIX).and_then(|rest| rest.strip_prefix('_'));
    let name = name
        .filter(|name| !name.is_empty())
        .ok_or(SourceError::Unsupported("env:// with another prefix"))?;
    let mut found = group(INTERNAL, environment);
    found.extend(group(name, environment));
    Ok(found)
}

fn group(name: &str, environment: &Environment) -> Found {
    environment
        .group(name)
        .into_iter()
        .map(|(rest, text)| {
            let id = rest.strip_prefix('_').unwrap_or(&rest);
            (format!("{PREFIX}_{name}{rest}"), parse(text, id))
        })
        .collect()
}

fn kind(source: &str) -> &'static str {
    let known = [
        ("http://", "http://"),
        ("https://", "https://"),
        ("redis", "redis"),
        ("postgres", "postgres"),
        ("file://", "file://"),
    ];
    known
        .iter()
        .find(|(start, _)| source.starts_with(start))
        .map_or("this source", |(_, kind)| kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(source: &str) -> Vec<String> {
        let variables = [
            ("BULKER_DESTINATION_ONE", "{id: \"one\"}"),
            ("BULKER_DESTINATION_Two", "{type: \"postgres\"}"),
            ("BULKER_OTHER_THREE", "{id: \"three\"}"),
            ("BULKER_INTERNAL_FOUR", "{id: \"four\"}"),
        ];
        let environment = Environment::new("BULKER", variables, []);
        let found = read(source, &environment).unwrap();
        found.into_iter().map(|(_, parsed)| parsed.unwrap().id).collect()
    }

    #[test]
    fn variables_hold_a_destination_each() {
        assert_eq!(ids(""), ["one", "Two"]);
    }

    #[test]
    fn a_named_group_comes_with_the_internal_ones_and_wins_over_them() {
        assert_eq!(ids("env://BULKER_OTHER"), ["four", "three"]);
        assert_eq!(ids("env://BULKER_DESTINATION"), ["four", "one", "Two"]);
    }

    #[test]
    fn other_sources_are_refused_without_quoting_them() {
        let environment = Environment::new("BULKER", [], []);
        for source in [
            "redis://:s3cret@host",
            "postgres://u:s3cret@h",
            "https://s3cret",
            "/s3cret.yaml",
            "env://X",
            "env://BULKER_",
        ] {
            let error =
                read(source, &environment).map(|found| found.len()).unwrap_err().to_string();
            assert!(error.contains("Supported: empty"), "{error}");
            assert!(!error.contains("s3cret"), "{error}");
        }
    }
}
