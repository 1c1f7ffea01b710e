//! Destinations in variables: `BULKER_DESTINATION_<NAME>` holds one, as hjson. They do not change
//! while the process runs.

use appbase::config::Environment;

use super::SourceError;
use crate::{
    config::PREFIX,
    destinations::{
        document::{Document, Found},
        parse::{Syntax, read_object},
    },
};

/// What variables of destinations start with, after the prefix.
pub(super) const DESTINATION: &str = "DESTINATION";
/// The same for destinations of the installation itself.
pub(super) const INTERNAL: &str = "INTERNAL";

/// The group of variables that `env://BULKER_<GROUP>` names.
pub(super) fn group_of(source: &str) -> Result<&str, SourceError> {
    let variable = source.strip_prefix("env://").unwrap_or(source);
    let group = variable.strip_prefix(PREFIX).and_then(|rest| rest.strip_prefix('_'));
    group.filter(|group| !group.is_empty()).ok_or(SourceError::Prefix)
}

/// The destinations of all variables whose names start with `BULKER_<group>`.
pub(super) fn read(group: &str, environment: &Environment) -> Document {
    let variables = environment.group(group).into_iter();
    let found = variables.map(|(rest, text)| {
        let object = read_object(text, Syntax::Hjson);
        let names_itself = object.as_ref().is_ok_and(|object| {
            object.get("id").is_some_and(|id| !id.is_null() && id.as_str() != Some(""))
        });
        let name = rest.strip_prefix('_').unwrap_or(&rest);
        let id = (object.is_ok() && !names_itself).then(|| name.to_owned());
        Found { place: format!("{PREFIX}_{group}{rest}"), id, object }
    });
    Document(found.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const VARIABLES: [(&str, &str); 5] = [
        ("BULKER_DESTINATION_ONE", "{id: \"one\"}"),
        ("BULKER_DESTINATION_Two", "{type: \"postgres\"}"),
        ("BULKER_DESTINATION_X", "{id: \"s3cret"),
        ("BULKER_OTHER_THREE", "{id: \"three\"}"),
        ("BULKER_INTERNAL_FOUR", "{id: \"four\"}"),
    ];

    fn places(group: &str) -> Vec<(String, Option<String>)> {
        let document = read(group, &Environment::new("BULKER", VARIABLES, []));
        let of = |found: &Found| (found.place.clone(), found.id().map(str::to_owned));
        document.0.iter().map(of).collect()
    }

    #[test]
    fn variables_hold_a_destination_each_and_may_name_it() {
        let expected = [
            ("BULKER_DESTINATION_ONE", Some("one")),
            ("BULKER_DESTINATION_Two", Some("Two")),
            ("BULKER_DESTINATION_X", None),
        ];
        let expected = expected.map(|(place, id)| (place.to_owned(), id.map(str::to_owned)));
        assert_eq!(places(DESTINATION), expected);
        assert_eq!(places(INTERNAL).len(), 1);
    }

    #[test]
    fn a_group_has_the_prefix_of_the_service() {
        assert_eq!(group_of("env://BULKER_OTHER").unwrap(), "OTHER");
        for source in ["env://X", "env://BULKER_", "env://"] {
            assert_eq!(group_of(source), Err(SourceError::Prefix), "{source}");
        }
    }
}
