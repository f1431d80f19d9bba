//! Small blobs on disk, one file per digest, complete or absent.

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Digest, disk};

/// Manifests, indexes and configs are all small; a bigger file here was not written by us.
const MAX_BLOB: u64 = 8 << 20;

/// What can go wrong with a blob on disk.
#[derive(Debug, thiserror::Error)]
pub enum ContentError {
    /// Creating the directory of the store.
    #[error("cannot create {path}")]
    Create {
        /// The directory.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Reading a blob.
    #[error("cannot read blob {path}")]
    Read {
        /// The blob's file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Writing a blob.
    #[error("cannot write blob {path}")]
    Write {
        /// The blob's file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The bytes are not the ones that were promised.
    #[error("content has digest {actual}, expected {expected}")]
    Mismatch {
        /// What was asked for.
        expected: Digest,
        /// What the bytes hash to.
        actual: Digest,
    },
}

/// A blob that is written but has no name yet.
#[derive(Debug)]
pub(crate) struct Staged {
    digest: Digest,
    /// Empty once it was moved.
    path: PathBuf,
    size: u64,
}

impl Staged {
    /// Waits until the bytes are on disk.
    pub(crate) fn sync(&self) -> Result<(), ContentError> {
        let synced = std::fs::File::open(&self.path).and_then(|file| file.sync_all());
        synced.map_err(|source| ContentError::Write { path: self.path.clone(), source })
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if !self.path.as_os_str().is_empty() {
            disk::remove_all(&self.path);
        }
    }
}

/// Blobs by digest under `<root>/content/sha256/`.
#[derive(Debug)]
pub struct ContentStore {
    blobs: PathBuf,
    temporary: PathBuf,
    bytes: AtomicU64,
    files: AtomicU64,
}

impl ContentStore {
    /// Opens the store and counts what it holds; `temporary` must be on the same file system.
    pub fn open(root: &Path, temporary: &Path) -> Result<ContentStore, ContentError> {
        let blobs = root.join("content/sha256");
        let create = |source| ContentError::Create { path: blobs.clone(), source };
        std::fs::create_dir_all(&blobs).map_err(create)?;
        let store = ContentStore {
            blobs: blobs.clone(),
            temporary: temporary.to_owned(),
            bytes: AtomicU64::new(0),
            files: AtomicU64::new(0),
        };
        for entry in std::fs::read_dir(&blobs).map_err(create)? {
            let metadata = entry.and_then(|entry| entry.metadata()).map_err(create)?;
            store.count(metadata.len());
        }
        Ok(store)
    }

    /// Where all blobs are.
    pub(crate) fn directory(&self) -> &Path {
        &self.blobs
    }

    /// The file of a blob, whether it exists or not.
    pub fn path(&self, digest: Digest) -> PathBuf {
        self.blobs.join(digest.hex())
    }

    /// A blob's bytes, checked against its digest; `None` when it is not here, or damaged and therefore useless.
    pub fn get(&self, digest: Digest) -> Result<Option<Vec<u8>>, ContentError> {
        let path = self.path(digest);
        let read = || -> io::Result<Vec<u8>> {
            let mut bytes = Vec::new();
            std::fs::File::open(&path)?.take(MAX_BLOB + 1).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        match read() {
            Ok(bytes) if Digest::of(&bytes) == digest => Ok(Some(bytes)),
            Ok(_) => {
                log::warn!(path:% = path.display(); "blob is damaged, fetching it again");
                self.remove(digest)?;
                Ok(None)
            }
            Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(ContentError::Read { path, source }),
        }
    }

    /// Writes bytes aside, whose digest is known beforehand. `None` when the store has them already. Nothing is left
    /// behind when they do not match, or when the result is dropped.
    pub(crate) fn stage(&self, expected: Digest, bytes: &[u8]) -> Result<Option<Staged>, ContentError> {
        let actual = Digest::of(bytes);
        if actual != expected {
            return Err(ContentError::Mismatch { expected, actual });
        }
        if self.path(expected).exists() {
            return Ok(None);
        }
        let staged = Staged { digest: expected, path: disk::unique(&self.temporary), size: bytes.len() as u64 };
        std::fs::write(&staged.path, bytes)
            .map_err(|source| ContentError::Write { path: staged.path.clone(), source })?;
        Ok(Some(staged))
    }

    /// Gives staged bytes, which are on disk by now, their name.
    pub(crate) fn commit(&self, mut staged: Staged) -> Result<(), ContentError> {
        let path = self.path(staged.digest);
        let new = !path.exists();
        std::fs::rename(&staged.path, &path).map_err(|source| ContentError::Write { path, source })?;
        staged.path = PathBuf::new();
        if new {
            self.count(staged.size);
        }
        Ok(())
    }

    /// Removes a blob; one that is not there is fine.
    pub fn remove(&self, digest: Digest) -> Result<(), ContentError> {
        let path = self.path(digest);
        let size = match std::fs::symlink_metadata(&path) {
            Ok(metadata) => metadata.len(),
            Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(source) => return Err(ContentError::Read { path, source }),
        };
        match std::fs::remove_file(&path) {
            Ok(()) => {
                self.bytes.fetch_sub(blocks(size), Ordering::Relaxed);
                self.files.fetch_sub(1, Ordering::Relaxed);
                Ok(())
            }
            Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(source) => Err(ContentError::Write { path, source }),
        }
    }

    /// Every digest that has a file here; other names are not ours and are left alone.
    pub fn list(&self) -> Result<Vec<Digest>, ContentError> {
        let read = |source| ContentError::Read { path: self.blobs.clone(), source };
        let mut digests = Vec::new();
        for entry in std::fs::read_dir(&self.blobs).map_err(read)? {
            if let Ok(digest) = Digest::from_hex(&entry.map_err(read)?.file_name().to_string_lossy()) {
                digests.push(digest);
            }
        }
        Ok(digests)
    }

    /// Bytes on disk and number of files.
    pub fn usage(&self) -> (u64, u64) {
        (self.bytes.load(Ordering::Relaxed), self.files.load(Ordering::Relaxed))
    }

    fn count(&self, size: u64) {
        self.bytes.fetch_add(blocks(size), Ordering::Relaxed);
        self.files.fetch_add(1, Ordering::Relaxed);
    }
}

/// File systems hand out space in blocks of 4 KiB.
fn blocks(size: u64) -> u64 {
    size.div_ceil(4096) * 4096
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, ContentStore) {
        let dir = tempfile::tempdir().unwrap();
        let temporary = dir.path().join("tmp");
        std::fs::create_dir(&temporary).unwrap();
        let store = ContentStore::open(dir.path(), &temporary).unwrap();
        (dir, store)
    }

    fn put(store: &ContentStore, digest: Digest, bytes: &[u8]) {
        if let Some(staged) = store.stage(digest, bytes).unwrap() {
            staged.sync().unwrap();
            store.commit(staged).unwrap();
        }
    }

    #[test]
    fn a_blob_is_found_again_and_counted() {
        let (dir, store) = store();
        let digest = Digest::of(b"hello");
        put(&store, digest, b"hello");
        put(&store, digest, b"hello");
        assert_eq!(store.get(digest).unwrap().as_deref(), Some(&b"hello"[..]));
        assert_eq!(store.usage(), (4096, 1));
        let reopened = ContentStore::open(dir.path(), &dir.path().join("tmp")).unwrap();
        assert_eq!(reopened.usage(), (4096, 1));
        reopened.remove(digest).unwrap();
        reopened.remove(digest).unwrap();
        assert_eq!(reopened.usage(), (0, 0));
        assert_eq!(reopened.get(digest).unwrap(), None);
    }

    #[test]
    fn a_wrong_digest_or_a_change_of_mind_leaves_nothing() {
        let (dir, store) = store();
        let digest = Digest::of(b"hello");
        assert!(matches!(store.stage(digest, b"hellO"), Err(ContentError::Mismatch { .. })));
        drop(store.stage(digest, b"hello").unwrap().unwrap());
        assert_eq!(store.list().unwrap(), vec![]);
        assert_eq!(std::fs::read_dir(dir.path().join("tmp")).unwrap().count(), 0);
    }

    #[test]
    fn a_damaged_blob_counts_as_absent() {
        let (_dir, store) = store();
        let digest = Digest::of(b"hello");
        put(&store, digest, b"hello");
        std::fs::write(store.path(digest), b"HELLO").unwrap();
        assert_eq!(store.get(digest).unwrap(), None);
        assert_eq!(store.list().unwrap(), vec![]);
    }
}
