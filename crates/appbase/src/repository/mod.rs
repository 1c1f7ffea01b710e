//! A document that is kept elsewhere and polled: read at the start, followed to the end of the
//! process, with copies for a start while its source is away.
//!
//! What the document means is its owner's business: it says how bytes become a document, and takes
//! each new one. A service with several repositories follows each in a span that names it.
//!
//! Invariant: a source that is away changes nothing. At the start the newest copy stands in for it,
//! later what it said last stays in force; either way operators see how old that is.

mod cache;
mod file;
mod http;
mod postgres;
mod redis;
mod source;
mod status;

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use prometheus::IntCounterVec;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use self::cache::Confirmed;
pub use self::{
    cache::{Cache, Place},
    file::FileSource,
    http::{HttpAnswer, HttpSettings, HttpSource, Validator},
    postgres::{PostgresSettings, PostgresSource, TextRow},
    redis::{HashFields, RedisHashSource},
    source::{Document, Source, SourceReadError, SourceSettingsError},
    status::{NoCopy, RepositoryStatus, StartError},
};

/// The longest that one reading may take.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// Puts a document in force.
type Apply<D> = Box<dyn FnMut(&D) + Send>;

/// A source at work.
pub struct Repository<S: Source> {
    source: S,
    cache: Cache<S::Document>,
    apply: Apply<S::Document>,
    errors: IntCounterVec,
    status: watch::Sender<RepositoryStatus>,
    /// What copies are made of.
    confirmed: watch::Sender<Option<Confirmed<S::Document>>>,
}

impl<S: Source> Repository<S> {
    /// Reads the source once; the newest copy stands in where that fails, and the default document
    /// where the source is there but has nothing yet.
    ///
    /// `apply` is called with each document that differs from what the source said before, the
    /// first time before this returns (after a copy also with the same one again). A document is
    /// copied and reported as confirmed only after it. `errors` counts failures; its one label is
    /// the type: `error`, `parse_error`, `copy_error`, or what the source names.
    ///
    /// A dropped call may have applied a document already; nothing runs on.
    pub async fn start(
        source: S,
        cache: Cache<S::Document>,
        errors: IntCounterVec,
        apply: impl FnMut(&S::Document) + Send + 'static,
    ) -> Result<Repository<S>, StartError> {
        let status =
            RepositoryStatus { source: source.name(), copy: None, confirmed_at: None, error: None };
        let mut repository = Repository {
            source,
            cache,
            apply: Box::new(apply),
            errors,
            status: watch::Sender::new(status),
            confirmed: watch::Sender::new(None),
        };
        match read_within(READ_TIMEOUT, &mut repository.source).await {
            Ok(document) => repository.take(document),
            Err(error) => repository.start_from_copy(error).await?,
        }
        Ok(repository)
    }

    /// Where the document in force came from, and from then on each change of that.
    pub fn status(&self) -> watch::Receiver<RepositoryStatus> {
        self.status.subscribe()
    }

    /// Follows the source until `stop`, and ends once the copies hold what was confirmed last; that
    /// takes as long as the slowest place does. A dropped call leaves the last document in force
    /// and each copy whole, if maybe older.
    pub async fn follow(mut self, stop: CancellationToken) {
        let cache = std::mem::take(&mut self.cache);
        let keeping = cache.run(self.confirmed.subscribe(), self.errors.clone(), stop.clone());
        tokio::join!(self.follow_source(stop), keeping);
    }

    async fn follow_source(&mut self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.source.changed() => {}
            }
            let read = tokio::select! {
                () = stop.cancelled() => return,
                read = read_within(READ_TIMEOUT, &mut self.source) => read,
            };
            match read {
                Ok(document) => self.take(document),
                Err(error) => self.failed(&error),
            }
        }
    }

    /// The source answered; `None`: nothing new.
    fn take(&mut self, document: Option<S::Document>) {
        let now = SystemTime::now();
        let is_known = |document: &S::Document| {
            self.confirmed.borrow().as_ref().is_some_and(|known| *known.document == *document)
        };
        if let Some(document) = document.filter(|document| !is_known(document)) {
            (self.apply)(&document);
            self.confirmed.send_replace(Some(Confirmed { document: Arc::new(document), at: now }));
        } else {
            self.confirmed.send_modify(|confirmed| {
                if let Some(confirmed) = confirmed {
                    confirmed.at = now;
                }
            });
        }
        let is_live = self.source.is_live();
        self.status.send_modify(|status| {
            if status.error.take().is_some() {
                info!(source = status.source, "configuration can be read again");
            }
            status.copy = None;
            status.confirmed_at = is_live.then_some(now);
        });
    }

    fn failed(&mut self, error: &SourceReadError) {
        self.count(error);
        let reason = error.to_string();
        self.status.send_modify(|status| {
            if status.error.as_ref() != Some(&reason) {
                let age_seconds = status.age().map(|age| age.as_secs());
                warn!(
                    source = status.source,
                    error = reason,
                    age_seconds,
                    "configuration cannot be read; what was read last counts"
                );
                status.error = Some(reason);
            }
        });
    }

    async fn start_from_copy(&mut self, error: SourceReadError) -> Result<(), StartError> {
        self.count(&error);
        let source_name = self.source.name();
        let reason = error.to_string();
        let Some(copy) = self.cache.newest().await else {
            if !error.is_missing {
                let copies = match self.cache.has_no_place() {
                    true => NoCopy::NotKept,
                    false => NoCopy::NotUsable,
                };
                return Err(StartError { source_name, reason, copies });
            }
            (self.apply)(&S::Document::default());
            self.status.send_modify(|status| status.error = Some(reason));
            return Ok(());
        };
        (self.apply)(&copy.document);
        self.status.send_modify(|status| {
            status.copy = Some(copy.place);
            status.confirmed_at = Some(copy.confirmed_at);
            status.error = Some(reason);
            error!(
                source = source_name,
                error = status.error,
                copy = copy.place,
                age_seconds = status.age().map(|age| age.as_secs()),
                "configuration cannot be read; the last known copy of it counts"
            );
        });
        Ok(())
    }

    fn count(&self, error: &SourceReadError) {
        self.errors.with_label_values(&[&error.label]).inc();
    }
}

async fn read_within<S: Source>(
    limit: Duration,
    source: &mut S,
) -> Result<Option<S::Document>, SourceReadError> {
    match tokio::time::timeout(limit, source.read()).await {
        Ok(read) => read,
        Err(_) => Err(SourceReadError::new(format!("no answer within {limit:?}"))),
    }
}

#[cfg(test)]
pub(crate) mod samples {
    use prometheus::{IntCounterVec, Opts};

    use super::Document;

    /// Words that end with a full stop, so that half of a document is not taken for a whole one.
    #[derive(Debug, Clone, Default, PartialEq, Eq)]
    pub(crate) struct Words(pub(crate) Vec<String>);

    impl Words {
        pub(crate) fn of(text: &str) -> Words {
            Words(text.split_whitespace().map(str::to_owned).collect())
        }

        pub(crate) fn parse(bytes: &[u8]) -> Result<Words, String> {
            let text = std::str::from_utf8(bytes).ok();
            let words = text.and_then(|text| text.strip_suffix('.')).map(Words::of);
            words.ok_or_else(|| "no full stop".to_owned())
        }
    }

    impl Document for Words {
        type Format = ();

        fn encode(&self, (): ()) -> Vec<u8> {
            format!("{}.", self.0.join(" ")).into_bytes()
        }

        fn decode(bytes: &[u8], (): ()) -> Option<Words> {
            Words::parse(bytes).ok()
        }
    }

    /// A counter of failures, by type.
    pub(crate) fn errors() -> IntCounterVec {
        IntCounterVec::new(Opts::new("errors", "Failures."), &["errorType"]).unwrap()
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::VecDeque, path::Path, sync::Mutex};

    use super::{
        samples::{Words, errors},
        *,
    };

    type Read = Result<Option<Words>, SourceReadError>;

    /// Gives these readings one after the other, a moment apart, and then does not
    /// answer.
    struct Scripted(VecDeque<Read>);

    impl Source for Scripted {
        type Document = Words;

        fn name(&self) -> &'static str {
            "scripted"
        }

        async fn read(&mut self) -> Read {
            match self.0.pop_front() {
                Some(read) => read,
                None => std::future::pending().await,
            }
        }

        async fn changed(&mut self) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    fn words(text: &str) -> Read {
        Ok(Some(Words::of(text)))
    }

    fn away() -> Read {
        Err(SourceReadError::new("away".to_owned()))
    }

    type Applied = Arc<Mutex<Vec<String>>>;

    async fn start(
        cache: Cache<Words>,
        reads: impl IntoIterator<Item = Read>,
    ) -> (Result<Repository<Scripted>, StartError>, Applied) {
        let applied = Applied::default();
        let log = applied.clone();
        let apply = move |words: &Words| log.lock().unwrap().push(words.0.join(" "));
        let source = Scripted(reads.into_iter().collect());
        (Repository::start(source, cache, errors(), apply).await, applied)
    }

    fn on_disk(folder: &Path) -> Cache<Words> {
        Cache::new((), [Place::File { name: "CACHE_DIR", path: folder.join("copy") }])
    }

    fn applied_so_far(applied: &Applied) -> Vec<String> {
        applied.lock().unwrap().clone()
    }

    #[tokio::test]
    async fn a_source_that_is_away_changes_nothing_and_says_so() {
        let reads = [words("one"), away(), Ok(None), words("one"), words("two"), away()];
        let (repository, applied) = start(Cache::default(), reads).await;
        let repository = repository.unwrap_or_else(|error| panic!("{error}"));
        let (errors, mut status) = (repository.errors.clone(), repository.status());
        assert_eq!(applied_so_far(&applied), ["one"]);
        let stop = CancellationToken::new();
        let following = tokio::spawn(repository.follow(stop.clone()));
        let is_away = |status: &RepositoryStatus| status.error.as_deref() == Some("away");
        status.wait_for(is_away).await.unwrap();
        assert!(status.borrow().age().is_some() && !status.borrow().is_missing());
        assert_eq!(applied_so_far(&applied), ["one"]);
        status.wait_for(|status| status.error.is_none()).await.unwrap();
        status.wait_for(is_away).await.unwrap();
        assert_eq!(
            applied_so_far(&applied),
            ["one", "two"],
            "an equal document is not applied again"
        );
        assert_eq!(errors.with_label_values(&["error"]).get(), 2);
        stop.cancel();
        following.await.unwrap();
    }

    #[tokio::test]
    async fn a_reading_that_does_not_end_is_a_failure() {
        let mut silent = Scripted(VecDeque::new());
        let error = read_within(Duration::from_millis(5), &mut silent).await.unwrap_err();
        assert_eq!(error.to_string(), "no answer within 5ms");
    }

    #[tokio::test]
    async fn a_copy_stands_in_until_the_source_answers() {
        let folder = tempfile::tempdir().unwrap();
        let (started, _) = start(on_disk(folder.path()), [words("one")]).await;
        let stop = CancellationToken::new();
        stop.cancel();
        started.unwrap_or_else(|error| panic!("{error}")).follow(stop).await;

        let (started, applied) = start(on_disk(folder.path()), [away(), words("two")]).await;
        let repository = started.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(applied_so_far(&applied), ["one"]);
        let mut status = repository.status();
        assert_eq!(status.borrow().copy, Some("CACHE_DIR"));
        assert_eq!(status.borrow().error.as_deref(), Some("away"));
        assert!(status.borrow().age().is_some());
        let stop = CancellationToken::new();
        let following = tokio::spawn(repository.follow(stop.clone()));
        status.wait_for(|status| status.copy.is_none()).await.unwrap();
        assert_eq!(applied_so_far(&applied), ["one", "two"]);
        assert!(status.borrow().error.is_none());
        stop.cancel();
        following.await.unwrap();
        let copy = on_disk(folder.path()).newest().await.unwrap();
        assert_eq!(copy.document, Words::of("two"));
    }

    #[tokio::test]
    async fn a_start_without_source_and_copy_fails_unless_there_is_nothing_yet() {
        let folder = tempfile::tempdir().unwrap();
        let (started, applied) = start(on_disk(folder.path()), [away()]).await;
        let error = started.map(|_| ()).unwrap_err();
        assert_eq!(error.copies, NoCopy::NotUsable);
        let (without_places, _) = start(Cache::default(), [away()]).await;
        assert_eq!(without_places.map(|_| ()).unwrap_err().copies, NoCopy::NotKept);
        let expected = "the scripted source cannot be read: away; there is no usable copy of it";
        assert_eq!(error.to_string(), expected);
        assert!(applied_so_far(&applied).is_empty());

        let missing = SourceReadError::new("nothing there".to_owned()).missing();
        let (started, applied) = start(on_disk(folder.path()), [Err(missing)]).await;
        let repository = started.unwrap_or_else(|error| panic!("{error}"));
        assert!(repository.status().borrow().is_missing());
        assert_eq!(applied_so_far(&applied), [""], "the default document");
        assert!(on_disk(folder.path()).newest().await.is_none());
    }
}
