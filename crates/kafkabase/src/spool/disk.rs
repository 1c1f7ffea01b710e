//! The few things that the spool wants from a disk, so that a test can have one that forgets what
//! was not synced.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

/// A folder of files.
pub(super) trait Disk: Send + Sync + 'static {
    fn list(&self) -> io::Result<Vec<String>>;
    /// A file that was made stays when the power goes.
    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;
    /// A file that is taken away may be there again when the power goes before the folder is
    /// synced.
    fn unlink(&self, name: &str) -> io::Result<()>;
    /// Files that were taken away stay so once this returns.
    fn sync_folder(&self) -> io::Result<()>;
}

/// Takes a file away for good. Called again after a failure, which may have come after the file
/// was gone: one that is not there is no error.
pub(super) fn remove(disk: &dyn Disk, name: &str) -> io::Result<()> {
    match disk.unlink(name) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        unlinked => unlinked?,
    }
    disk.sync_folder()
}

/// A file that is written at its end and read anywhere.
pub(super) trait DiskFile: Send + Sync {
    fn write(&self, bytes: &[u8], at: u64) -> io::Result<()>;
    /// What was written before is on the medium once this returns.
    fn sync(&self) -> io::Result<()>;
    /// Exactly `length` bytes.
    fn read(&self, at: u64, length: usize) -> io::Result<Vec<u8>>;
    fn length(&self) -> io::Result<u64>;
    fn cut(&self, length: u64) -> io::Result<()>;
}

/// Why a folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum LockError {
    #[error("another process uses the folder")]
    Taken,
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A real folder, locked for as long as this lives.
pub(super) struct Folder {
    path: PathBuf,
    /// Synced after a file was made or removed.
    folder: File,
    _lock: File,
}

impl Folder {
    /// Makes the folder, and those that it is in, where they are not there.
    pub(super) fn lock(path: &Path) -> Result<Folder, LockError> {
        let path = std::path::absolute(path)?;
        let parents = new_parents(&path);
        std::fs::create_dir_all(&path)?;
        let lock = OpenOptions::new().create(true).append(true).open(path.join("lock"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(LockError::Taken),
            Err(TryLockError::Error(error)) => return Err(error.into()),
        }
        let folder = File::open(&path)?;
        folder.sync_all()?;
        for parent in parents {
            File::open(parent)?.sync_all()?;
        }
        Ok(Folder { path, folder, _lock: lock })
    }
}

/// The folders that get an entry where `path` is made: its own parent and, as far as they are made
/// with it, those above. A spool whose parent is gone after a power cut is gone with it.
fn new_parents(path: &Path) -> Vec<PathBuf> {
    let mut missing = path.ancestors().take_while(|folder| !folder.exists());
    let mut parents = Vec::new();
    while let Some(parent) = missing.next().and_then(Path::parent) {
        parents.push(parent.to_owned());
    }
    parents
}

impl Disk for Folder {
    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.path)? {
            names.extend(entry?.file_name().into_string());
        }
        Ok(names)
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let mut options = OpenOptions::new();
        // events are for no other user to read
        options.read(true).write(true).create_new(true).mode(0o600);
        let file = options.open(self.path.join(name))?;
        self.folder.sync_all()?;
        Ok(Arc::new(file))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let file = OpenOptions::new().read(true).write(true).open(self.path.join(name))?;
        Ok(Arc::new(file))
    }

    fn unlink(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.path.join(name))
    }

    fn sync_folder(&self) -> io::Result<()> {
        self.folder.sync_all()
    }
}

impl DiskFile for File {
    fn write(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.write_all_at(bytes, at)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn read(&self, at: u64, length: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.read_exact_at(&mut bytes, at)?;
        Ok(bytes)
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn cut(&self, length: u64) -> io::Result<()> {
        self.set_len(length)?;
        self.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_folder_is_an_entry_of_its_parent_and_a_new_parent_one_of_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let there = folder.path().to_owned();
        let cases = [
            ("", vec![]),
            ("a", vec![there.clone()]),
            ("a/b/c", vec![there.join("a/b"), there.join("a"), there.clone()]),
        ];
        for (path, parents) in cases {
            assert_eq!(new_parents(&there.join(path)), parents, "{path}");
        }
    }
}
