//! Destinations in a YAML file: the top key `destinations` maps ids to them.
//!
//! Invariant: a file that is being written is not half read. A new content counts once two looks in a row have
//! found it.

use std::{io, path::PathBuf};

use serde_json::{Map, Value};

use super::ReadError;
use crate::destinations::document::{Document, Found, object};

pub(super) struct FileSource {
    path: PathBuf,
    /// What was read last, and whether it is in force.
    content: Vec<u8>,
    is_settled: bool,
    is_first: bool,
}

impl FileSource {
    pub(super) fn new(path: &str) -> FileSource {
        FileSource {
            path: PathBuf::from(path),
            content: Vec::new(),
            is_settled: false,
            is_first: true,
        }
    }

    pub(super) async fn read(&mut self) -> Result<Option<Document>, ReadError> {
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
        let document = parse(&self.content).map_err(|problem| {
            ReadError::new(format!("{}: {problem}", self.path.display())).of_content()
        })?;
        self.is_settled = true;
        Ok(Some(document))
    }

    fn unreadable(&self, error: &io::Error) -> ReadError {
        ReadError::new(format!("{}: {error}", self.path.display()))
    }
}

/// The problem says where it is and quotes nothing.
fn parse(content: &[u8]) -> Result<Document, String> {
    let text = std::str::from_utf8(content).map_err(|_| "not UTF-8".to_owned())?;
    let root: Option<Map<String, Value>> = serde_saphyr::from_str(text).map_err(|error| {
        let place = error.location();
        let place = place.map(|at| format!(" (line {}, column {})", at.line(), at.column()));
        format!("not a YAML object{}", place.unwrap_or_default())
    })?;
    let by_id = match root.and_then(|mut root| root.remove("destinations")) {
        None | Some(Value::Null) => return Ok(Document::default()),
        Some(Value::Object(by_id)) => by_id,
        Some(_) => return Err("`destinations` does not map ids to destinations".to_owned()),
    };
    let found = by_id.into_iter().map(|(id, value)| Found {
        place: format!("destinations.{id}"),
        id: Some(id),
        object: object(value),
    });
    Ok(Document(found.collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(text: &str) -> Vec<String> {
        let document = parse(text.as_bytes()).unwrap();
        document.0.iter().filter_map(Found::id).map(str::to_owned).collect()
    }

    #[test]
    fn keys_are_ids() {
        let text = "
            destinations:
              one: {type: postgres, id: other}
              2: {type: postgres}
              three: 7
        ";
        assert_eq!(ids(text), ["one", "2", "three"]);
        let document = parse(text.as_bytes()).unwrap();
        let configs = document.0.iter().map(|found| found.config().map(|config| config.id));
        let configs: Vec<_> = configs.map(|config| config.map_err(|e| e.to_string())).collect();
        assert_eq!(
            configs,
            [Ok("one".to_owned()), Ok("2".to_owned()), Err("not an object".to_owned())]
        );
    }

    #[test]
    fn a_file_without_destinations_has_none() {
        for text in ["", "# nothing yet\n", "destinations:\n", "other: {a: 1}\n"] {
            assert!(ids(text).is_empty(), "{text:?}");
        }
    }

    #[test]
    fn a_problem_says_where_and_quotes_nothing() {
        let text = "destinations:\n  one: {credentials: {password: s3cret\n";
        let problem = parse(text.as_bytes()).unwrap_err();
        assert!(problem.contains("line ") && !problem.contains("s3cret"), "{problem}");
        assert!(parse(b"destinations: s3cret").is_err());
    }

    #[tokio::test]
    async fn a_content_counts_once_it_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("destinations.yaml");
        let write = |text: &str| std::fs::write(&path, text).unwrap();
        write("destinations: {one: {}}\n");
        let mut source = FileSource::new(path.to_str().unwrap());
        let count = |read: Option<Document>| read.map(|document| document.0.len());
        assert_eq!(count(source.read().await.unwrap()), Some(1));
        assert_eq!(count(source.read().await.unwrap()), None);
        write("destinations: {}\n");
        assert_eq!(count(source.read().await.unwrap()), None);
        write("destinations: {one: {}, two: {}}\n");
        assert_eq!(count(source.read().await.unwrap()), None);
        assert_eq!(count(source.read().await.unwrap()), Some(2));
        assert_eq!(count(source.read().await.unwrap()), None);
        write("destinations: [\n");
        assert_eq!(count(source.read().await.unwrap()), None);
        for _ in 0..2 {
            let error = source.read().await.unwrap_err();
            assert!(error.to_string().contains("destinations.yaml: not a YAML object"), "{error}");
        }
    }
}
