//! Files that survive a power cut, and directories that vanish at once.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Writes a file so that after a crash it is complete or absent: temporary file, fsync, rename, fsync of the directory.
///
/// A file may name things in other directories: what was renamed in `before` is durable before the file has its name.
pub(crate) fn write_durably(temporary: &Path, target: &Path, bytes: &[u8], before: &[&Path]) -> io::Result<()> {
    let path = unique(temporary);
    let result = (|| {
        let mut file = File::options().write(true).create_new(true).open(&path)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        // after the file: a journal has then written the renames along with it, and has nothing left to do
        before.iter().try_for_each(|directory| sync_directory(directory))?;
        std::fs::rename(&path, target)?;
        target.parent().map_or(Ok(()), sync_directory)
    })();
    if result.is_err() {
        // the first error is the one to report; what stays is swept at the next start
        let _ = std::fs::remove_file(&path);
    }
    result
}

/// Makes renames inside a directory durable.
pub(crate) fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// A name in `directory` that nobody else uses: not another task, not a daemon that was killed before us.
pub(crate) fn unique(directory: &Path) -> PathBuf {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_nanos());
    let count = COUNTER.fetch_add(1, Ordering::Relaxed);
    directory.join(format!("{:x}-{now:x}-{count:x}", std::process::id()))
}

/// Moves a directory away in one step; the slow part, deleting what is in it, is then nobody's concern but
/// [`remove_all`]'s. `None` when it was not there.
pub(crate) fn set_aside(path: &Path, temporary: &Path) -> io::Result<Option<PathBuf>> {
    let aside = unique(temporary);
    match std::fs::rename(path, &aside) {
        Ok(()) => Ok(Some(aside)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Deletes a file or a tree that was set aside. Failing is not fatal: the next start tries again.
pub(crate) fn remove_all(path: &Path) {
    let removed = match std::fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            log::warn!(path:% = path.display(), error:% = error; "cannot remove what is no longer needed");
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_neither_target_nor_temporary_file() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("missing/target");
        assert!(write_durably(dir.path(), &target, b"x", &[]).is_err());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_directory_set_aside_is_gone_from_its_place_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        std::fs::create_dir_all(tree.join("a/b")).unwrap();
        let aside = set_aside(&tree, dir.path()).unwrap().unwrap();
        assert!(!tree.exists());
        remove_all(&aside);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        assert_eq!(set_aside(&tree, dir.path()).unwrap(), None);
    }
}
