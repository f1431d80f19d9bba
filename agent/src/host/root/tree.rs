//! Removing a directory with all that is in it.

use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, SFlag, fstat, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::{Root, RootError};

/// Deeper than anything that a cluster leaves behind; a descriptor is held for each level.
const DEPTH: usize = 64;

impl Root {
    /// Removes a file, link or directory with all that is in it; true when there was something. Links are removed, never
    /// followed, and what is mounted in it is an error: it is somebody else's data.
    pub fn remove_tree(&self, path: &str) -> Result<bool, RootError> {
        let failed = |step, source| RootError::Write { path: path.to_owned(), step, source };
        let Some((parent, name)) = self.parent_of(path)? else { return Ok(false) };
        let found = match fstatat(&parent, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Err(Errno::ENOENT) => return Ok(false),
            found => found.map_err(|source| failed("look up", source))?,
        };
        self.refuse_kernel_state(path, &parent)?;
        self.ledger().note(format!("remove all of {path}"));
        let device = fstat(&parent).map_err(|source| failed("look up", source))?.st_dev;
        if SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR {
            let dir = open_dir(&parent, name).map_err(|source| failed("open directory", source))?;
            empty(&dir, device, DEPTH).map_err(|source| failed("remove what is in it", source))?;
            unlinkat(&parent, name, UnlinkatFlags::RemoveDir).map_err(|source| failed("remove directory", source))?;
        } else {
            unlinkat(&parent, name, UnlinkatFlags::NoRemoveDir).map_err(|source| failed("remove", source))?;
        }
        nix::unistd::fsync(&parent).map_err(|source| failed("sync directory", source))?;
        Ok(true)
    }
}

fn open_dir(parent: impl AsFd, name: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(parent, name, flags, Mode::empty())
}

fn empty(dir: &OwnedFd, device: libc::dev_t, depth: usize) -> Result<(), Errno> {
    // a mount point, or deeper than can be
    if fstat(dir)?.st_dev != device {
        return Err(Errno::EXDEV);
    }
    if depth == 0 {
        return Err(Errno::ELOOP);
    }
    let listed = nix::dir::Dir::from_fd(openat(
        dir,
        ".",
        OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
        Mode::empty(),
    )?)?;
    for entry in listed {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        match unlinkat(dir, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => continue,
            Err(Errno::EISDIR | Errno::EPERM) => {}
            Err(other) => return Err(other),
        }
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let child = openat(dir, name, flags, Mode::empty())?;
        empty(&child, device, depth - 1)?;
        unlinkat(dir, name, UnlinkatFlags::RemoveDir)?;
    }
    Ok(())
}
