//! Settings of every service of the suite: port, tokens, logs.

use std::time::Duration;

use clap::Args;

use crate::{
    connections_within,
    http::{BodyLimits, ServerLimits},
    values::{List, boolean, integer, seconds},
};

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
    /// Connections that are served at a time. Beyond them an idle one gives way; where none is
    /// idle, requests wait for one.
    #[arg(long, default_value = "10000", value_parser = integer::<u32>)]
    pub http_max_connections: u32,
    /// Seconds that a client may take to send the head of a request or leave an answer where it is,
    /// and that a connection may be idle or silent in the middle of a body.
    #[arg(long, default_value = "75", value_parser = seconds)]
    pub http_header_timeout_sec: Duration,
    /// Bytes of the head of a request; a larger one is answered with 431.
    #[arg(long, default_value = "417792", value_parser = integer::<u32>)]
    pub http_max_header_bytes: u32,
    /// MiB of all heads together that are larger than 8 KiB; others wait to be read.
    #[arg(long, default_value = "64", value_parser = integer::<u32>)]
    pub http_header_memory_limit_mb: u32,
    /// Seconds that the body of an event may take.
    #[arg(long, default_value = "60", value_parser = seconds)]
    pub http_body_timeout_sec: Duration,
    /// Seconds of silence after which the system asks whether a client is still there.
    #[arg(long, default_value = "60", value_parser = seconds)]
    pub http_keepalive_sec: Duration,
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

    /// What a server of these settings bears, in a process that may have so many files open.
    /// `drain`: how long requests may take after the stop.
    pub fn server_limits(&self, open_files: u64, drain: Duration) -> ServerLimits {
        ServerLimits {
            connections: connections_within(open_files, self.http_max_connections),
            header_timeout: self.http_header_timeout_sec,
            header_bytes: self.http_max_header_bytes as usize,
            header_memory: (self.http_header_memory_limit_mb as usize) << 20,
            keepalive: self.http_keepalive_sec,
            drain,
        }
    }

    /// What a body of at most so many bytes may take.
    pub fn body_limits(&self, bytes: usize) -> BodyLimits {
        BodyLimits {
            bytes,
            silence: self.http_header_timeout_sec,
            total: self.http_body_timeout_sec,
        }
    }
}
