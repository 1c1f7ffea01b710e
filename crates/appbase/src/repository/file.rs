//! A document in a file.
//!
//! Invariant: a file that is being written is not half read. A new content counts once two looks in
//! a row have found it.

use std::{io, path::PathBuf, time::Duration};

use super::source::{Document, Source, SourceReadError};

/// A file that is looked at each period.
pub struct FileSource<D> {
    path: PathBuf,
    period: Duration,
    parse: fn(&[u8]) -> Result<D, String>,
    /// What was read last, and whether it is in force.
    content: Vec<u8>,
    is_settled: bool,
    is_first: bool,
}

impl<D: Document> FileSource<D> {
    /// Nothing is opened yet. `parse` makes a document of the whole content, or says what is wrong
    /// with it without quoting it.
    pub fn new(
        path: impl Into<PathBuf>,
        period: Duration,
        parse: fn(&[u8]) -> Result<D, String>,
    ) -> FileSource<D> {
        FileSource {
            path: path.into(),
            period,
            parse,
            content: Vec::new(),
            is_settled: false,
            is_first: true,
        }
    }

    fn unreadable(&self, error: &io::Error) -> SourceReadError {
        SourceReadError::new(format!("{}: {error}", self.path.display()))
    }
}

impl<D: Document> Source for FileSource<D> {
    type Document = D;

    fn name(&self) -> &'static str {
        "file"
    }

    async fn read(&mut self) -> Result<Option<D>, SourceReadError> {
        let content = tokio::fs::read(&self.path).await.map_err(|error| self.unreadable(&error))?;
        let is_same = content == self.content;
        self.content = content;
        if self.is_first {
            self.is_first = false;
        } else if !is_same {
            self.is_settled = false;
            return Ok(None);
        } else if self.is_settled {
            return Ok(None);
        }
        let document = (self.parse)(&self.content).map_err(|problem| {
            SourceReadError::new(format!("{}: {problem}", self.path.display())).of_content()
        })?;
        self.is_settled = true;
        Ok(Some(document))
    }

    async fn changed(&mut self) {
        tokio::time::sleep(self.period).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::samples::Words;

    #[tokio::test]
    async fn a_content_counts_once_it_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("words.txt");
        let write = |text: &str| std::fs::write(&path, text).unwrap();
        write("one.");
        let mut source = FileSource::new(&path, Duration::from_secs(1), Words::parse);
        let count = |read: Option<Words>| read.map(|words| words.0.len());
        assert_eq!(count(source.read().await.unwrap()), Some(1));
        assert_eq!(count(source.read().await.unwrap()), None);
        write(".");
        assert_eq!(count(source.read().await.unwrap()), None);
        write("one two.");
        assert_eq!(count(source.read().await.unwrap()), None);
        assert_eq!(count(source.read().await.unwrap()), Some(2));
        assert_eq!(count(source.read().await.unwrap()), None);
        write("one two th");
        assert_eq!(count(source.read().await.unwrap()), None);
        for _ in 0..2 {
            let error = source.read().await.unwrap_err();
            assert!(error.to_string().ends_with("words.txt: no full stop"), "{error}");
        }
    }
}
