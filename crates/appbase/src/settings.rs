//! Settings of every service of the suite: port, tokens, logs.

use clap::Args;

use crate::values::{List, boolean, integer};

/// Settings that all binaries share.
#[derive(Debug, Clone, Args)]
pub struct AppConfig {
    /// Name of this process among its siblings.
    #[arg(long)]
    pub instance_id: Option<String>,
    /// Port of the HTTP API.
    #[arg(long, default_value = "3042", value_parser = integer::<u16>)]
    pub http_port: u16,
    /// Hashed tokens, `salt.hash`, separated by commas.
    #[arg(long, default_value = "", hide_default_value = true)]
    pub auth_tokens: List,
    /// Plain tokens, separated by commas.
    #[arg(long, default_value = "", hide_default_value = true)]
    pub raw_auth_tokens: List,
    /// Hashed tokens that also open administrative endpoints.
    #[arg(long, default_value = "", hide_default_value = true)]
    pub admin_auth_tokens: List,
    /// Plain tokens that also open administrative endpoints.
    #[arg(long, default_value = "", hide_default_value = true)]
    pub raw_admin_auth_tokens: List,
    /// Secrets that hashed tokens were made with, separated by commas.
    #[arg(long, default_value = "", hide_default_value = true)]
    pub token_secret: List,
    /// Serve without tokens: without it a service that has no token does not start.
    #[arg(long, default_value = "false", value_parser = boolean, action = clap::ArgAction::Set)]
    pub auth_open: bool,
    /// `json`, or anything else for text.
    #[arg(long, default_value = "text")]
    pub log_format: String,
    /// Connections that are served at a time; more wait to be accepted.
    #[arg(long, default_value = "10000", value_parser = integer::<u32>)]
    pub http_max_connections: u32,
    /// Seconds that a client may take to send the head of a request, and that a connection may be
    /// idle.
    #[arg(long, default_value = "75", value_parser = crate::values::seconds)]
    pub http_header_timeout_sec: std::time::Duration,
}

impl AppConfig {
    /// Names that are also read without the prefix.
    pub const UNPREFIXED: &'static [&'static str] = &[
        "INSTANCE_ID",
        "HTTP_PORT",
        "AUTH_TOKENS",
        "RAW_AUTH_TOKENS",
        "TOKEN_SECRET",
        "LOG_FORMAT",
    ];
    /// What stands in for a name that is not set.
    pub const FALLBACKS: &'static [(&'static str, &'static [&'static str])] =
        &[("HTTP_PORT", &["PORT"])];
}
