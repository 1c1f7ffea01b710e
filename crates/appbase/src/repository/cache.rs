//! Copies of the last document that a source gave, for a start while the source is away.
//!
//! There may be one on disk and one in Redis. Both may hold credentials. Invariants: a copy is
//! never half written; its time is when the source said the same for the last time (give or take
//! [`CONFIRM_EVERY`]), so that its age is known; and a place that is slow or broken holds nothing
//! up, for copies are kept beside everything else.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use jiff::Timestamp;
use prometheus::IntCounterVec;
use redis::AsyncCommands;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::source::Document;
use crate::redis_client::{RedisClient, reason};

/// How often the time of an unchanged copy is renewed, and a place that failed is tried again.
const CONFIRM_EVERY: Duration = Duration::from_secs(60);
/// What Redis may take to store or give a copy.
const REDIS_TIMEOUT: Duration = Duration::from_secs(10);
/// After this long without a confirmation a copy in Redis goes, in seconds.
const REDIS_EXPIRY: i64 = 30 * 24 * 3600;
/// Fields of the hash that a copy in Redis is: the document, and when it was confirmed (RFC 3339).
const DOCUMENT: &str = "document";
const CONFIRMED_AT: &str = "confirmed_at";

/// A copy as it was found.
pub(super) struct Copy<D> {
    pub(super) document: D,
    pub(super) confirmed_at: SystemTime,
    /// What operators call the place.
    pub(super) place: &'static str,
}

/// A document, and when the source said so for the last time.
pub(super) struct Confirmed<D> {
    pub(super) document: Arc<D>,
    pub(super) at: SystemTime,
}

impl<D> Clone for Confirmed<D> {
    fn clone(&self) -> Confirmed<D> {
        Confirmed { document: self.document.clone(), at: self.at }
    }
}

/// Where copies of a source's documents are kept; by default nowhere.
#[derive(Default)]
pub struct Cache<D: Document> {
    format: D::Format,
    places: Vec<Kept<D>>,
}

/// A place of a copy. Its name is what operators know it by: the variable that sets it.
pub enum Place {
    /// A file, which only this user may read; its folder is made when needed. The file's time is
    /// when the copy was confirmed.
    File {
        /// What operators call it.
        name: &'static str,
        /// The file itself.
        path: PathBuf,
    },
    /// A hash with the fields `document` and `confirmed_at` (RFC 3339). It goes 30 days after its
    /// last confirmation.
    Redis {
        /// What operators call it.
        name: &'static str,
        /// Where it is.
        client: RedisClient,
        /// The hash itself.
        key: String,
    },
}

impl<D: Document> Cache<D> {
    /// Copies in these places, written in this format. Nothing is read or connected yet.
    pub fn new(format: D::Format, places: impl IntoIterator<Item = Place>) -> Cache<D> {
        Cache { format, places: places.into_iter().map(Kept::at).collect() }
    }

    pub(super) fn has_no_place(&self) -> bool {
        self.places.is_empty()
    }

    /// The copy that was confirmed last.
    pub(super) async fn newest(&self) -> Option<Copy<D>> {
        let mut newest: Option<Copy<D>> = None;
        for Kept { place, .. } in &self.places {
            let (bytes, confirmed_at) = match place.load().await {
                Ok(Some(loaded)) => loaded,
                Ok(None) => continue,
                Err(error) => {
                    warn!(place = place.name(), error, "copy of the configuration not readable");
                    continue;
                }
            };
            let Some(document) = D::decode(&bytes, self.format) else {
                error!(place = place.name(), "copy of the configuration is damaged");
                continue;
            };
            if newest.as_ref().is_none_or(|newest| newest.confirmed_at < confirmed_at) {
                newest = Some(Copy { document, confirmed_at, place: place.name() });
            }
        }
        newest
    }

    /// Keeps what is confirmed, to the end and once more after `stop`. `errors` counts what could
    /// not be kept, as `copy_error`.
    pub(super) async fn run(
        mut self,
        mut confirmed: watch::Receiver<Option<Confirmed<D>>>,
        errors: IntCounterVec,
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
                self.keep(&latest, &errors).await;
            }
            if is_last {
                return;
            }
        }
    }

    async fn keep(&mut self, latest: &Confirmed<D>, errors: &IntCounterVec) {
        for kept in &mut self.places {
            kept.keep(latest, self.format, errors).await;
        }
    }
}

/// What a place has.
struct Kept<D> {
    place: Place,
    stored: Option<Arc<D>>,
    tried_at: Option<SystemTime>,
    is_failing: bool,
}

impl<D: Document> Kept<D> {
    fn at(place: Place) -> Kept<D> {
        Kept { place, stored: None, tried_at: None, is_failing: false }
    }

    async fn keep(
        &mut self,
        Confirmed { document, at }: &Confirmed<D>,
        format: D::Format,
        errors: &IntCounterVec,
    ) {
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
                errors.with_label_values(&["copy_error"]).inc();
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
            Place::File { name, .. } | Place::Redis { name, .. } => name,
        }
    }

    async fn load(&self) -> Result<Option<(Vec<u8>, SystemTime)>, String> {
        match self {
            Place::File { path, .. } => match load_file(path).await {
                Ok(loaded) => Ok(Some(loaded)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(error) => Err(error.to_string()),
            },
            Place::Redis { client, key, .. } => {
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
            Place::File { path, .. } => {
                let path = path.clone();
                let written =
                    tokio::task::spawn_blocking(move || write_file(&path, &bytes, at)).await;
                written.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
            }
            Place::Redis { client, key, .. } => {
                let fields = [(DOCUMENT, bytes), (CONFIRMED_AT, text(at).into_bytes())];
                put(client, key, &fields).await.map(drop)
            }
        }
    }

    async fn touch(&self, at: SystemTime) -> Result<(), String> {
        match self {
            Place::File { path, .. } => {
                let file = std::fs::File::options().append(true).open(path);
                file.and_then(|file| file.set_modified(at)).map_err(|error| error.to_string())
            }
            Place::Redis { client, key, .. } => {
                let fields = [(CONFIRMED_AT, text(at).into_bytes())];
                match put(client, key, &fields).await? {
                    true => Ok(()),
                    false => Err("the copy there is gone".to_owned()),
                }
            }
        }
    }
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

/// Whole or not at all, and readable by this user only.
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

    use super::*;
    use crate::repository::samples::{Words, errors};

    fn cache(folder: &Path) -> Cache<Words> {
        let path = folder.join("made").join("copy");
        Cache::new((), [Place::File { name: "CACHE_DIR", path }])
    }

    fn confirmed(word: &str, seconds_ago: u64) -> Confirmed<Words> {
        let at = SystemTime::now() - Duration::from_secs(seconds_ago);
        Confirmed { document: Arc::new(Words::of(word)), at }
    }

    #[tokio::test]
    async fn a_copy_on_disk_comes_back_with_its_time_and_only_this_user_reads_it() {
        let folder = tempfile::tempdir().unwrap();
        let mut cache = cache(folder.path());
        assert!(cache.newest().await.is_none());
        let hour_ago = confirmed("one", 3600);
        cache.keep(&hour_ago, &errors()).await;
        let path = folder.path().join("made").join("copy");
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let copy = cache.newest().await.unwrap();
        assert!(copy.document == *hour_ago.document);
        assert_eq!(copy.confirmed_at, hour_ago.at);
    }

    #[tokio::test]
    async fn a_confirmation_renews_the_time_of_a_copy_but_not_each_time() {
        let folder = tempfile::tempdir().unwrap();
        let mut cache = cache(folder.path());
        let first = confirmed("one", 300);
        cache.keep(&first, &errors()).await;
        cache.keep(&confirmed("one", 290), &errors()).await;
        assert_eq!(cache.newest().await.unwrap().confirmed_at, first.at);
        let later = confirmed("one", 200);
        cache.keep(&later, &errors()).await;
        assert_eq!(cache.newest().await.unwrap().confirmed_at, later.at);
        let changed = confirmed("two", 199);
        cache.keep(&changed, &errors()).await;
        assert!(cache.newest().await.unwrap().document == *changed.document);
    }

    #[tokio::test]
    async fn a_stop_keeps_what_was_confirmed_just_before() {
        let folder = tempfile::tempdir().unwrap();
        let (sender, receiver) = watch::channel(None);
        let stop = CancellationToken::new();
        sender.send_replace(Some(confirmed("one", 0)));
        stop.cancel();
        cache(folder.path()).run(receiver, errors(), stop).await;
        assert!(cache(folder.path()).newest().await.is_some());
    }

    #[tokio::test]
    async fn a_damaged_copy_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let mut cache = cache(folder.path());
        cache.keep(&confirmed("one", 0), &errors()).await;
        std::fs::write(folder.path().join("made").join("copy"), b"[{").unwrap();
        assert!(cache.newest().await.is_none());
    }

    #[tokio::test]
    async fn a_place_that_cannot_be_written_is_counted_and_tried_again_later() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("made"), b"a file where the folder should be").unwrap();
        let (mut cache, errors) = (cache(folder.path()), errors());
        let count = || errors.with_label_values(&["copy_error"]).get();
        cache.keep(&confirmed("one", 300), &errors).await;
        cache.keep(&confirmed("one", 290), &errors).await;
        assert_eq!(count(), 1);
        cache.keep(&confirmed("one", 200), &errors).await;
        assert_eq!(count(), 2);
        std::fs::remove_file(folder.path().join("made")).unwrap();
        cache.keep(&confirmed("one", 100), &errors).await;
        assert_eq!(count(), 2);
        assert!(cache.newest().await.is_some());
    }
}
