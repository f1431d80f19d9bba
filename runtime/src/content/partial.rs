//! What came of a large blob before the daemon was killed, so that the next one need not begin anew.
//!
//! Only what takes long is worth it, so a copy begins in the middle, once a download has turned out to be slow, and the
//! file says where: `<root>/partial/<digest>`, eight bytes of position and what came from there on. Nothing is synced:
//! after a power cut the bytes may be wrong, which the digest of the whole tells.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};

use super::{Digest, disk};

/// The position, little-endian.
const HEAD: u64 = 8;

/// Middles of blobs under `<root>/partial/`.
#[derive(Debug, Clone)]
pub(crate) struct Partials {
    directory: PathBuf,
}

/// One of them, from an earlier download.
#[derive(Debug)]
pub(crate) struct Kept {
    file: Flock<File>,
    path: PathBuf,
    /// Where it begins and ends in the blob.
    pub start: u64,
    pub end: u64,
}

/// Adds to one. Another download of the same blob at the same time keeps nothing.
#[derive(Debug)]
pub(crate) struct Keeper {
    path: PathBuf,
    state: State,
}

#[derive(Debug)]
enum State {
    Nothing,
    Open(Flock<File>),
    /// Somebody else has it, or the disk is full: without a copy it works as well.
    GivenUp,
}

impl Partials {
    pub(crate) fn open(root: &Path) -> io::Result<Partials> {
        let directory = root.join("partial");
        std::fs::create_dir_all(&directory)?;
        Ok(Partials { directory })
    }

    fn path(&self, digest: Digest) -> PathBuf {
        self.directory.join(digest.hex())
    }

    /// What is there of a blob; `None` when it is nothing or somebody is adding to it.
    pub(crate) fn find(&self, digest: Digest, size: u64) -> io::Result<Option<Kept>> {
        let path = self.path(digest);
        let file = match File::options().read(true).append(true).open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let Ok(mut file) = Flock::lock(file, FlockArg::LockExclusiveNonblock) else { return Ok(None) };
        let length = file.metadata()?.len();
        let mut head = [0; 8];
        if length > HEAD {
            file.read_exact(&mut head)?;
        }
        let start = u64::from_le_bytes(head);
        let end = start.saturating_add(length.saturating_sub(HEAD));
        if end <= start || end >= size {
            // empty, of another making, or a whole one, which would have been used up
            disk::remove_all(&path);
            return Ok(None);
        }
        Ok(Some(Kept { file, path, start, end }))
    }

    /// For a download that goes on after `kept`, or begins.
    pub(crate) fn keeper(&self, digest: Digest, kept: Option<Kept>) -> Keeper {
        let state = kept.map_or(State::Nothing, |kept| State::Open(kept.file));
        Keeper { path: self.path(digest), state }
    }

    /// It served its purpose, or is wrong.
    pub(crate) fn remove(&self, digest: Digest) {
        disk::remove_all(&self.path(digest));
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

impl Kept {
    /// For whoever reads what is there.
    pub(crate) fn reader(&self) -> io::Result<io::Take<File>> {
        let mut file = File::open(&self.path)?;
        file.seek(SeekFrom::Start(HEAD))?;
        Ok(file.take(self.end - self.start))
    }
}

impl Keeper {
    /// Adds what comes at a position: anywhere at first, then without a gap.
    pub(crate) fn add(&mut self, position: u64, bytes: &[u8]) {
        if matches!(self.state, State::Nothing) {
            self.state = begin(&self.path, position).map_or(State::GivenUp, State::Open);
        }
        if let State::Open(file) = &mut self.state
            && file.write_all(bytes).is_err()
        {
            self.state = State::GivenUp;
        }
    }
}

fn begin(path: &Path, position: u64) -> Option<Flock<File>> {
    let file = File::options().append(true).create(true).open(path).ok()?;
    let mut file = Flock::lock(file, FlockArg::LockExclusiveNonblock).ok()?;
    // nobody has it: what is in it is of no use
    file.set_len(0).ok()?;
    file.write_all(&position.to_le_bytes()).ok()?;
    Some(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn partials() -> (tempfile::TempDir, Partials, Digest) {
        let dir = tempfile::tempdir().unwrap();
        let partials = Partials::open(dir.path()).unwrap();
        (dir, partials, Digest::of(b"x"))
    }

    fn bytes(kept: &Kept) -> Vec<u8> {
        let mut bytes = Vec::new();
        kept.reader().unwrap().read_to_end(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn what_was_kept_is_found_with_its_place_and_gone_on_with() {
        let (_dir, partials, digest) = partials();
        assert!(partials.find(digest, 1000).unwrap().is_none());
        let mut keeper = partials.keeper(digest, None);
        keeper.add(100, b"some");
        keeper.add(104, b"more");
        assert!(partials.find(digest, 1000).unwrap().is_none(), "somebody adds to it");
        drop(keeper);
        let kept = partials.find(digest, 1000).unwrap().unwrap();
        assert_eq!((kept.start, kept.end, bytes(&kept)), (100, 108, b"somemore".to_vec()));
        partials.keeper(digest, Some(kept)).add(108, b"!");
        let kept = partials.find(digest, 1000).unwrap().unwrap();
        assert_eq!((kept.end, bytes(&kept)), (109, b"somemore!".to_vec()));
        partials.remove(digest);
        assert!(partials.find(digest, 1000).unwrap().is_none());
    }

    #[test]
    fn only_one_download_at_a_time_keeps_a_blob() {
        let (_dir, partials, digest) = partials();
        let (mut first, mut second) = (partials.keeper(digest, None), partials.keeper(digest, None));
        first.add(0, b"first");
        second.add(7, b"second");
        drop((first, second));
        let kept = partials.find(digest, 1000).unwrap().unwrap();
        assert_eq!((kept.start, bytes(&kept)), (0, b"first".to_vec()));
    }

    #[test]
    fn what_cannot_be_gone_on_with_is_removed() {
        let (dir, partials, digest) = partials();
        for content in
            [&b""[..], b"short", b"\0\0\0\0\0\0\0\0", b"\xff\xff\xff\xff\xff\xff\xff\xffx", b"\0\0\0\0\0\0\0\0toolong"]
        {
            std::fs::write(dir.path().join("partial").join(digest.hex()), content).unwrap();
            assert!(partials.find(digest, 7).unwrap().is_none(), "{content:?}");
            assert_eq!(std::fs::read_dir(dir.path().join("partial")).unwrap().count(), 0, "{content:?}");
        }
        partials.keeper(digest, None).add(0, b"begin");
        partials.sweep(Duration::from_secs(3600));
        assert!(partials.find(digest, 1000).unwrap().is_some());
        partials.sweep(Duration::ZERO);
        assert!(partials.find(digest, 1000).unwrap().is_none());
    }
}
