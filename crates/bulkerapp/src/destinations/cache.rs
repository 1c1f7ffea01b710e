//! Where copies of the configuration are kept. Files, keys and contents are those of the original
//! where it has them.

use appbase::{
    redis_client::RedisClient,
    repository::{Cache, Place, Source},
};
use kafkabase::fnv1a;
use reqwest::Url;
use tracing::error;

use super::{
    document::Document,
    settings::{RedisSettings, SourceConfig},
    sources::DestinationSource,
};

/// The places that the settings name for this source; maybe none.
pub(super) fn new(
    config: &SourceConfig,
    redis: &RedisSettings,
    source: &DestinationSource,
) -> Cache<Document> {
    let Some((file, format)) = source.copy() else { return Cache::default() };
    let mut places = Vec::new();
    if let Some(folder) = &config.cache_dir {
        places.push(Place::File { name: "CACHE_DIR", path: folder.join(file) });
    }
    if let Some(url) = redis.url.as_deref().filter(|_| source.name() != "redis") {
        match RedisClient::new(url, &redis.tls) {
            Ok(client) => {
                let key = key(source.name(), &config.config_source);
                places.push(Place::Redis { name: "REDIS_URL", client, key });
            }
            Err(error) => {
                error!(error = %error, "REDIS_URL: no copy of the configuration there");
            }
        }
    }
    Cache::new(format, places)
}

/// The key of a copy in Redis. Installations that share a Redis differ by the source's address;
/// passwords are no part of it.
fn key(kind: &str, source: &str) -> String {
    let address = Url::parse(source).map(|mut url| {
        // fail only for addresses without a host, which have no password either
        let _ = url.set_password(None);
        let _ = url.set_username("");
        url.to_string()
    });
    format!("bulker:configuration:{kind}:{:08x}", fnv1a(&address.unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_in_redis_depends_on_the_address_and_on_no_password() {
        let one = key("http", "http://u:p@console/export");
        assert_eq!(one, key("http", "http://u:other@console/export"));
        assert_ne!(one, key("http", "http://console/other"));
        assert!(one.starts_with("bulker:configuration:http:"));
    }
}
