//! Copies of the last document that a source gave, for a start while the source is away.
//!
//! There may be one on disk and one in Redis. Both hold credentials. Invariants: a copy is never half written; its
//! time is when the source said the same for the last time (give or take [`CONFIRM_EVERY`]), so that its age is known;
//! and a place that is slow or broken holds nothing up, for copies are kept beside everything else.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use appbase::redis_client::{RedisClient, reason};
use jiff::Timestamp;
use kafkabase::fnv1a;
use redis::AsyncCommands;
use reqwest::Url;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::{
    document::{Document, Format},
    settings::{RedisSettings, SourceConfig},
    sources::Source,
};
use crate::metrics;

/// How often the time of an unchanged copy is renewed, and a place that failed is tried again.
const CONFIRM_EVERY: Duration = Duration::from_secs(60);
/// What Redis may take to store or give a copy.
const REDIS_TIMEOUT: Duration = Duration::from_secs(10);
/// After this long without a confirmation a copy in Redis goes, in seconds.
const REDIS_EXPIRY: i64 = 30 * 24 * 3600;
const DOCUMENT: &str = "document";
const CONFIRMED_AT: &str = "confirmed_at";

/// A copy as it was found.
pub(super) struct Copy {
    pub(super) document: Document,
    pub(super) confirmed_at: SystemTime,
    /// What operators call the place.
    pub(super) place: &'static str,
}

/// A document, and when the source said so for the last time.
#[derive(Clone)]
pub(super) struct Confirmed {
    pub(super) document: Arc<Document>,
    pub(super) at: SystemTime,
}

/// Where copies of a source's documents are kept.
#[derive(Default)]
pub(super) struct Copies {
    format: Format,
    places: Vec<Kept>,
}

/// What a place has.
struct Kept {
    place: Place,
    stored: Option<Arc<Document>>,
    tried_at: Option<SystemTime>,
    is_failing: bool,
}

enum Place {
    File(PathBuf),
    Redis { client: RedisClient, key: String },
}

impl Copies {
    /// The places that the settings name for this source; maybe none.
    pub(super) fn new(config: &SourceConfig, redis: &RedisSettings, source: &Source) -> Copies {
        let Some((file, format)) = source.copy() else { return Copies::default() };
        let mut places = Vec::new();
        if let Some(folder) = &config.cache_dir {
            places.push(Kept::at(Place::File(folder.join(file))));
        }
        if let Some(url) = redis.url.as_deref().filter(|_| source.name() != "redis") {
            match RedisClient::new(url, &redis.tls) {
                Ok(client) => {
                    let key = key(source.name(), &config.config_source);
                    places.push(Kept::at(Place::Redis { client, key }));
                }
                Err(error) => {
                    error!(error = %error, "REDIS_URL: no copy of the configuration there");
                }
            }
        }
        Copies { format, places }
    }

    pub(super) fn is_none(&self) -> bool {
        self.places.is_empty()
    }

    /// The copy that was confirmed last.
    pub(super) async fn newest(&self) -> Option<Copy> {
        let mut newest: Option<Copy> = None;
        for Kept { place, .. } in &self.places {
            let (bytes, confirmed_at) = match place.load().await {
                Ok(Some(loaded)) => loaded,
                Ok(None) => continue,
                Err(error) => {
                    warn!(place = place.name(), error, "copy of the configuration not readable");
                    continue;
                }
            };
            let Some(document) = Document::decode(&bytes, self.format) else {
                error!(place = place.name(), "copy of the configuration is damaged");
                continue;
            };
            if newest.as_ref().is_none_or(|newest| newest.confirmed_at < confirmed_at) {
                newest = Some(Copy { document, confirmed_at, place: place.name() });
            }
        }
        newest
    }

    /// Keeps what is confirmed, to the end and once more after `stop`.
    pub(super) async fn run(
        mut self,
        mut confirmed: watch::Receiver<Option<Confirmed>>,
        stop: CancellationToken,
    ) {
        confirmed.mark_changed(); // by the start
        loop {
            let is_last = tokio::select! {
                () = stop.cancelled() => true,
                changed = confirmed.changed() => changed.is_err(),
            };
            let latest = confirmed.borrow_and_update().clone();
            if let Some(latest) = latest {
                self.keep(&latest).await;
            }
            if is_last {
                return;
            }
        }
    }

    async fn keep(&mut self, latest: &Confirmed) {
        for kept in &mut self.places {
            kept.keep(latest, self.format).await;
        }
    }
}

impl Kept {
    fn at(place: Place) -> Kept {
        Kept { place, stored: None, tried_at: None, is_failing: false }
    }

    async fn keep(&mut self, Confirmed { document, at }: &Confirmed, format: Format) {
        let is_stored = self.stored.as_ref().is_some_and(|stored| stored == document);
        let age = self.tried_at.and_then(|tried_at| at.duration_since(tried_at).ok());
        if (is_stored || self.is_failing) && age.is_some_and(|age| age < CONFIRM_EVERY) {
            return;
        }
        self.tried_at = Some(*at);
        let done = match is_stored {
            true => self.place.touch(*at).await,
            false => self.place.store(document.encode(format), *at).await,
        };
        match done {
            Ok(()) => {
                self.stored = Some(document.clone());
                if std::mem::take(&mut self.is_failing) {
                    info!(place = self.place.name(), "copy of the configuration is kept again");
                }
            }
            Err(error) => {
                metrics::CONFIGURATION_ERRORS.with_label_values(&["copy_error"]).inc();
                self.stored = None;
                if !std::mem::replace(&mut self.is_failing, true) {
                    warn!(
                        place = self.place.name(),
                        error, "copy of the configuration cannot be kept"
                    );
                }
            }
        }
    }
}

impl Place {
    fn name(&self) -> &'static str {
        match self {
            Place::File(_) => "CACHE_DIR",
            Place::Redis { .. } => "REDIS_URL",
        }
    }

    async fn load(&self) -> Result<Option<(Vec<u8>, SystemTime)>, String> {
        match self {
            Place::File(path) => match load_file(path).await {
                Ok(loaded) => Ok(Some(loaded)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(error) => Err(error.to_string()),
            },
            Place::Redis { client, key } => {
                let get = async {
                    let fields: (Option<Vec<u8>>, Option<String>) =
                        client.connect().await?.hmget(key, &[DOCUMENT, CONFIRMED_AT]).await?;
                    Ok(fields)
                };
                let (document, at) = in_time(get).await?;
                let at = at.and_then(|at| at.parse::<Timestamp>().ok());
                Ok(document.zip(at.and_then(|at| SystemTime::try_from(at).ok())))
            }
        }
    }

    async fn store(&self, bytes: Vec<u8>, at: SystemTime) -> Result<(), String> {
        match self {
            Place::File(path) => {
                let path = path.clone();
                let written =
                    tokio::task::spawn_blocking(move || write_file(&path, &bytes, at)).await;
                written.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
            }
            Place::Redis { client, key } => {
                let fields = [(DOCUMENT, bytes), (CONFIRMED_AT, text(at).into_bytes())];
                put(client, key, &fields).await.map(drop)
            }
        }
    }

    async fn touch(&self, at: SystemTime) -> Result<(), String> {
        match self {
            Place::File(path) => {
                let file = std::fs::File::options().append(true).open(path);
                file.and_then(|file| file.set_modified(at)).map_err(|error| error.to_string())
            }
            Place::Redis { client, key } => {
                let fields = [(CONFIRMED_AT, text(at).into_bytes())];
                match put(client, key, &fields).await? {
                    true => Ok(()),
                    false => Err("the copy there is gone".to_owned()),
                }
            }
        }
    }
}

/// The key of a copy in Redis. Installations that share a Redis differ by the source's address; passwords are no
/// part of it.
fn key(kind: &str, source: &str) -> String {
    let address = Url::parse(source).map(|mut url| {
        // fail only for addresses without a host, which have no password either
        let _ = url.set_password(None);
        let _ = url.set_username("");
        url.to_string()
    });
    format!("bulker:configuration:{kind}:{:08x}", fnv1a(&address.unwrap_or_default()))
}

fn text(at: SystemTime) -> String {
    Timestamp::try_from(at).map(|at| at.to_string()).unwrap_or_default()
}

/// Returns whether a document was there before.
async fn put(client: &RedisClient, key: &str, fields: &[(&str, Vec<u8>)]) -> Result<bool, String> {
    let put = async {
        let mut pipeline = redis::pipe();
        pipeline.atomic().hexists(key, DOCUMENT);
        pipeline.hset_multiple(key, fields).ignore().expire(key, REDIS_EXPIRY).ignore();
        let (was_there,): (bool,) = pipeline.query_async(&mut client.connect().await?).await?;
        Ok(was_there)
    };
    in_time(put).await
}

async fn in_time<T>(
    answer: impl Future<Output = Result<T, redis::RedisError>>,
) -> Result<T, String> {
    match tokio::time::timeout(REDIS_TIMEOUT, answer).await {
        Ok(answer) => answer.map_err(|error| reason(&error)),
        Err(_) => Err("no answer in time".to_owned()),
    }
}

async fn load_file(path: &Path) -> io::Result<(Vec<u8>, SystemTime)> {
    let bytes = tokio::fs::read(path).await?;
    Ok((bytes, tokio::fs::metadata(path).await?.modified()?))
}

/// Whole or not at all, and for nobody else's eyes.
fn write_file(path: &Path, bytes: &[u8], at: SystemTime) -> io::Result<()> {
    use std::io::Write;
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    let mut file = tempfile::NamedTempFile::new_in(folder)?; // mode 0600
    file.write_all(bytes)?;
    file.as_file().set_modified(at)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    std::fs::File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use serde_json::json;

    use super::*;

    fn copies(folder: &Path) -> Copies {
        let path = folder.join("made").join("bulker-connections");
        Copies { format: Format::Array, places: vec![Kept::at(Place::File(path))] }
    }

    fn confirmed(id: &str, seconds_ago: u64) -> Confirmed {
        let document = Document::of_array(vec![json!({"id": id, "type": "postgres"})]);
        let at = SystemTime::now() - Duration::from_secs(seconds_ago);
        Confirmed { document: Arc::new(document), at }
    }

    #[tokio::test]
    async fn a_copy_on_disk_comes_back_with_its_time_and_is_nobody_elses() {
        let folder = tempfile::tempdir().unwrap();
        let mut copies = copies(folder.path());
        assert!(copies.newest().await.is_none());
        let hour_ago = confirmed("one", 3600);
        copies.keep(&hour_ago).await;
        let path = folder.path().join("made").join("bulker-connections");
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let copy = copies.newest().await.unwrap();
        assert!(copy.document == *hour_ago.document);
        assert_eq!(copy.confirmed_at, hour_ago.at);
    }

    #[tokio::test]
    async fn a_confirmation_renews_the_time_of_a_copy_but_not_each_time() {
        let folder = tempfile::tempdir().unwrap();
        let mut copies = copies(folder.path());
        let first = confirmed("one", 300);
        copies.keep(&first).await;
        copies.keep(&confirmed("one", 290)).await;
        assert_eq!(copies.newest().await.unwrap().confirmed_at, first.at);
        let later = confirmed("one", 200);
        copies.keep(&later).await;
        assert_eq!(copies.newest().await.unwrap().confirmed_at, later.at);
        let changed = confirmed("two", 199);
        copies.keep(&changed).await;
        assert!(copies.newest().await.unwrap().document == *changed.document);
    }

    #[tokio::test]
    async fn a_stop_keeps_what_was_confirmed_just_before() {
        let folder = tempfile::tempdir().unwrap();
        let (sender, receiver) = watch::channel(None);
        let stop = CancellationToken::new();
        sender.send_replace(Some(confirmed("one", 0)));
        stop.cancel();
        copies(folder.path()).run(receiver, stop).await;
        assert!(copies(folder.path()).newest().await.is_some());
    }

    #[tokio::test]
    async fn a_damaged_copy_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let mut copies = copies(folder.path());
        copies.keep(&confirmed("one", 0)).await;
        std::fs::write(folder.path().join("made").join("bulker-connections"), b"[{").unwrap();
        assert!(copies.newest().await.is_none());
    }

    #[test]
    fn the_key_in_redis_depends_on_the_address_and_on_no_password() {
        let one = key("http", "http://u:p@console/export");
        assert_eq!(one, key("http", "http://u:other@console/export"));
        assert_ne!(one, key("http", "http://console/other"));
        assert!(one.starts_with("bulker:configuration:http:"));
    }
}
