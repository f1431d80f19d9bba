//! The beginning of a large blob, kept so that a daemon that was killed need not begin anew.
//!
//! Nothing is synced: after a power cut the bytes may be wrong, which the digest of the whole tells. A small blob is
//! faster fetched again than written twice.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};

use super::{Digest, disk};

/// What is worth keeping: ten seconds of a network of 100 Mbit/s.
const WORTHWHILE: u64 = 96 << 20;

/// Beginnings of blobs under `<root>/partial/`.
#[derive(Debug)]
pub(crate) struct Partials {
    directory: PathBuf,
}

/// One of them, for one download at a time.
#[derive(Debug)]
pub(crate) struct Partial {
    path: PathBuf,
    file: Flock<File>,
    /// What is there already.
    pub length: u64,
}

impl Partials {
    pub(crate) fn open(root: &Path) -> io::Result<Partials> {
        let directory = root.join("partial");
        std::fs::create_dir_all(&directory)?;
        Ok(Partials { directory })
    }

    /// A place for a blob's beginning; `None` when it is not worth it or somebody else downloads the same blob.
    pub(crate) fn begin(&self, digest: Digest, size: u64) -> io::Result<Option<Partial>> {
        if size < WORTHWHILE {
            return Ok(None);
        }
        let path = self.directory.join(digest.hex());
        let file = File::options().read(true).append(true).create(true).open(&path)?;
        let Ok(file) = Flock::lock(file, FlockArg::LockExclusiveNonblock) else { return Ok(None) };
        let mut length = file.metadata()?.len();
        if length >= size {
            // a whole one would have been used up
            file.set_len(0)?;
            length = 0;
        }
        Ok(Some(Partial { path, file, length }))
    }

    /// Removes those that nobody has added to for a while.
    pub(crate) fn sweep(&self, age: Duration) {
        for entry in std::fs::read_dir(&self.directory).into_iter().flatten().flatten() {
            let modified = entry.metadata().and_then(|metadata| metadata.modified());
            if modified.is_ok_and(|modified| modified.elapsed().is_ok_and(|own| own >= age)) {
                disk::remove_all(&entry.path());
            }
        }
    }
}

impl Partial {
    /// For whoever adds to it.
    pub(crate) fn writer(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    /// For whoever reads what is there.
    pub(crate) fn reader(&self) -> io::Result<File> {
        File::open(&self.path)
    }

    /// It served its purpose, or is wrong.
    pub(crate) fn remove(self) {
        disk::remove_all(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_beginning_is_found_again_by_one_download_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let partials = Partials::open(dir.path()).unwrap();
        let digest = Digest::of(b"x");
        assert!(partials.begin(digest, 1000).unwrap().is_none());
        let first = partials.begin(digest, WORTHWHILE).unwrap().unwrap();
        assert_eq!(first.length, 0);
        first.writer().unwrap().write_all(b"begin").unwrap();
        assert!(partials.begin(digest, WORTHWHILE).unwrap().is_none());
        drop(first);
        let again = partials.begin(digest, WORTHWHILE).unwrap().unwrap();
        assert_eq!(again.length, 5);
        again.remove();
        assert_eq!(partials.begin(digest, WORTHWHILE).unwrap().unwrap().length, 0);
        partials.sweep(Duration::from_secs(3600));
        assert_eq!(std::fs::read_dir(dir.path().join("partial")).unwrap().count(), 1);
        partials.sweep(Duration::ZERO);
        assert_eq!(std::fs::read_dir(dir.path().join("partial")).unwrap().count(), 0);
    }
}
