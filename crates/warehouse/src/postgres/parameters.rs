//! The `parameters` of credentials, which the original hands to its driver: what of them is a
//! setting of the session.

use std::collections::BTreeMap;

use super::{quote_ident, quote_literal};

/// Parameters that drivers and libpq take for themselves. The three files of TLS among them are
/// read with the credentials.
const OF_DRIVERS: [&str; 44] = [
    "application_name",
    "binary_parameters",
    "channel_binding",
    "connect_timeout",
    "database",
    "dbname",
    "default_query_exec_mode",
    "description_cache_capacity",
    "disable_prepared_binary_result",
    "fallback_application_name",
    "gssencmode",
    "gsslib",
    "host",
    "hostaddr",
    "keepalives",
    "keepalives_count",
    "keepalives_idle",
    "keepalives_interval",
    "krbspn",
    "krbsrvname",
    "load_balance_hosts",
    "min_read_buffer_size",
    "passfile",
    "password",
    "pool_health_check_period",
    "pool_max_conn_idle_time",
    "pool_max_conn_lifetime",
    "pool_max_conns",
    "pool_min_conns",
    "port",
    "prefer_simple_protocol",
    "require_auth",
    "service",
    "servicefile",
    "sslcert",
    "sslkey",
    "sslmode",
    "sslpassword",
    "sslrootcert",
    "statement_cache_capacity",
    "statement_cache_mode",
    "target_session_attrs",
    "tcp_user_timeout",
    "user",
];

/// Settings that are ours: what we read would be something else, or more than we listen to.
const OURS: [&str; 2] = ["client_encoding", "client_min_messages"];

/// Parameters of libpq's and its relatives that begin so and are none of a session.
const PREFIXES: [&str; 3] = ["pool_", "ssl", "gss"];

/// `; set local …` for the parameters that are settings of a session. Not sent when connecting: a
/// pooler would refuse them there.
pub(super) fn session_settings(parameters: &BTreeMap<String, String>) -> String {
    let mut sql = String::new();
    for (name, value) in parameters {
        if name == "options" {
            of_options(value).into_iter().for_each(|(name, value)| add(&name, &value, &mut sql));
        } else if !OF_DRIVERS.contains(&name.as_str())
            && !PREFIXES.iter().any(|prefix| name.starts_with(prefix))
        {
            add(name, value, &mut sql);
        }
    }
    sql
}

fn add(name: &str, value: &str, sql: &mut String) {
    if OURS.iter().all(|ours| !ours.eq_ignore_ascii_case(name)) {
        sql.push_str(&format!("; set local {} = {}", quote_ident(name), quote_literal(value)));
    }
}

/// The settings in the parameter `options`: what stands behind `postgres` on a command line, such
/// as `-c work_mem=64MB --statement-timeout=5s`. What else may stand there is for the server's
/// start.
fn of_options(options: &str) -> Vec<(String, String)> {
    let mut settings = Vec::new();
    let mut words = words(options).into_iter();
    while let Some(word) = words.next() {
        let setting = match (word.strip_prefix("--"), word.strip_prefix("-c")) {
            (Some(long), _) => Some(long.to_owned()),
            (None, Some("")) => words.next(),
            (None, short) => short.map(ToOwned::to_owned),
        };
        let Some((name, value)) = setting.as_deref().and_then(|setting| setting.split_once('='))
        else {
            continue;
        };
        settings.push((name.trim().replace('-', "_"), value.to_owned()));
    }
    settings
}

/// Words between white space; a backslash makes what follows part of a word.
fn words(text: &str) -> Vec<String> {
    let (mut words, mut word) = (Vec::new(), String::new());
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => word.extend(characters.next()),
            space if space.is_whitespace() => {
                words.extend(Some(std::mem::take(&mut word)).filter(|word| !word.is_empty()));
            }
            other => word.push(other),
        }
    }
    words.extend(Some(word).filter(|word| !word.is_empty()));
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_settings_of_the_session_or_the_drivers_own() {
        let cases = [
            ("work_mem", "64MB", "; set local \"work_mem\" = '64MB'"),
            ("sslmode", "require", ""),
            ("sslrootcert", "/ca.pem", ""),
            ("sslnegotiation", "direct", ""),
            ("pool_max_conns", "5", ""),
            ("application_name", "x", ""),
            ("client_encoding", "latin1", ""),
            ("options", "-c Client_Min_Messages=debug", ""),
            ("options", "-c work_mem=64MB", "; set local \"work_mem\" = '64MB'"),
            (
                "options",
                r"-d 5 -cwork_mem=1MB  --statement-timeout=5s -c search_path=a,\ b",
                "; set local \"work_mem\" = '1MB'; set local \"statement_timeout\" = '5s'; \
                 set local \"search_path\" = 'a, b'",
            ),
            ("options", "-c", ""),
            ("options", "-c a'b=c'd", "; set local \"a'b\" = 'c''d'"),
        ];
        for (name, value, expected) in cases {
            let parameters = BTreeMap::from([(name.to_owned(), value.to_owned())]);
            assert_eq!(session_settings(&parameters), expected, "{name}: {value}");
        }
    }
}
