//! Adjusts a freshly unpacked layer to the layers below it.
//!
//! A directory that the archive took for granted exists below, and in the merged tree the upper one's owner and mode
//! count: without this, `/tmp` would lose its sticky bit as soon as a layer puts a file into it.

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{Mode, SFlag, fstatat};
use nix::unistd::{linkat, symlinkat};

use super::attributes::{self, Attributes};
use super::tree::{Dir, open_plain, show};
use super::unpack::Unpacked;
use super::{SnapshotError, sys};

/// `parents` are the root directories of the layers below, topmost first. They are open directories because those
/// layers may get their final names meanwhile. Returns the bytes and inodes that the layer takes in the end.
pub(super) fn settle(root: &Path, unpacked: Unpacked, parents: &[Arc<File>]) -> Result<(u64, u64), SnapshotError> {
    let Unpacked { implied, links, times, mut bytes, mut inodes } = unpacked;
    let own = Arc::new(File::open(root).map_err(SnapshotError::disk("open", root))?);
    links.for_each(|target, path| {
        if let Some(copied) = link(root, &own, target, path, parents)? {
            bytes += copied.div_ceil(4096) * 4096;
            inodes += 1;
        }
        Ok(())
    })?;
    implied.for_each(|path, new| adopt(root, &own, path, if new.is_empty() { parents } else { &[] }))?;
    times.for_each(|path, time| {
        let place = root.join(std::ffi::OsStr::from_bytes(path));
        match open_plain(&own, path, OFlag::O_RDONLY | OFlag::O_DIRECTORY) {
            Ok(fd) => attributes::set_times(fd.as_fd(), &place, time_of(time)),
            // a later entry of the archive put something else there
            Err(error) if gone(&error) => Ok(()),
            Err(error) => Err(SnapshotError::disk("open", place)(error)),
        }
    })?;
    Ok((bytes, inodes))
}

/// As [`Unpacked::times`] has it.
fn time_of(bytes: &[u8]) -> (i64, u32) {
    let (mut seconds, mut nanoseconds) = ([0; 8], [0; 4]);
    seconds.iter_mut().chain(&mut nanoseconds).zip(bytes).for_each(|(to, from)| *to = *from);
    (i64::from_le_bytes(seconds), u32::from_le_bytes(nanoseconds))
}

/// Gives a directory the owner, mode and time that it has below.
fn adopt(root: &Path, own: &File, path: &[u8], parents: &[Arc<File>]) -> Result<(), SnapshotError> {
    let place = root.join(std::ffi::OsStr::from_bytes(path));
    let directory = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
    let own = match open_plain(own, path, directory) {
        Ok(fd) => fd,
        Err(error) if gone(&error) => return Ok(()),
        Err(error) => return Err(SnapshotError::disk("open", place)(error)),
    };
    for parent in parents {
        match open_plain(parent, path, directory) {
            Ok(fd) => {
                let below = File::from(fd).metadata().map_err(SnapshotError::disk("examine", &place))?;
                let copied = Attributes {
                    mode: below.mode() & 0o7777,
                    uid: below.uid(),
                    gid: below.gid(),
                    mtime: (below.mtime(), u32::try_from(below.mtime_nsec()).unwrap_or(0)),
                    symlink: false,
                    xattrs: &[],
                };
                attributes::set(own.as_fd(), &place, &copied)?;
                return attributes::set_times(own.as_fd(), &place, copied.mtime);
            }
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            // a file, symlink or whiteout: whatever is further down is not visible
            Err(error) if gone(&error) => break,
            Err(error) => return Err(SnapshotError::disk("open the lower layer's", &place)(error)),
        }
    }
    // new here: what mkdir makes as root, whatever the daemon's umask
    let fresh = Attributes { mode: 0o755, uid: 0, gid: 0, mtime: (0, 0), symlink: false, xattrs: &[] };
    attributes::set(own.as_fd(), &place, &fresh)?;
    attributes::set_times(own.as_fd(), &place, fresh.mtime)
}

/// Makes a hard link whose target was not in the archive before it: within the layer if it came later, else by a copy
/// from below, which is what overlayfs itself does on a write. Returns the size of a copy.
fn link(
    root: &Path,
    own: &File,
    target: &[u8],
    path: &[u8],
    parents: &[Arc<File>],
) -> Result<Option<u64>, SnapshotError> {
    let (to, name) = split(own, path)
        .map_err(SnapshotError::disk("open the directory of", root.join(std::ffi::OsStr::from_bytes(path))))?;
    let place = root.join(std::ffi::OsStr::from_bytes(path));
    let failed = |error: Errno| SnapshotError::disk("link", &place)(error.into());
    if let Ok((from, target_name)) = split(own, target) {
        match linkat(&from.fd, target_name, &to.fd, name, AtFlags::empty()) {
            Ok(()) => return Ok(None),
            Err(Errno::EEXIST) => return Ok(None),
            Err(Errno::ENOENT) => {}
            Err(error) => return Err(failed(error)),
        }
    }
    for parent in parents {
        let (from, target_name) = match split(parent, target) {
            Ok(found) => found,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => continue,
            // removed or replaced here: whatever is further down is not visible
            Err(error) if gone(&error) => break,
            Err(error) => return Err(SnapshotError::disk("open the lower layer's", &place)(error)),
        };
        let there = match fstatat(&from.fd, target_name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(there) => there,
            Err(Errno::ENOENT) => continue,
            Err(error) => return Err(failed(error)),
        };
        return match SFlag::from_bits_truncate(there.st_mode & libc::S_IFMT) {
            SFlag::S_IFREG => copy(&from, target_name, &to, name, &place).map(Some),
            SFlag::S_IFLNK => {
                let destination = readlinkat(&from.fd, target_name).map_err(failed)?;
                symlinkat(destination.as_os_str(), &to.fd, name).map_err(failed)?;
                Ok(Some(0))
            }
            _ => Err(SnapshotError::Missing { path: show(target) }),
        };
    }
    Err(SnapshotError::Missing { path: show(target) })
}

fn copy(from: &Dir, source: &[u8], to: &Dir, name: &[u8], place: &Path) -> Result<u64, SnapshotError> {
    let failed = |error: io::Error| SnapshotError::disk("copy", place)(error);
    let open = |dir: &Dir, name: &[u8], flags| {
        openat(&dir.fd, name, flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::from_bits_truncate(0o600))
            .map(File::from)
            .map_err(|error| failed(error.into()))
    };
    let mut input = open(from, source, OFlag::O_RDONLY)?;
    let mut output = open(to, name, OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL)?;
    let bytes = io::copy(&mut input, &mut output).map_err(failed)?;
    let metadata = input.metadata().map_err(failed)?;
    let capability = sys::fgetxattr(input.as_fd(), c"security.capability").map_err(failed)?;
    let xattrs: Vec<_> = capability.map(|value| (b"security.capability".to_vec(), value)).into_iter().collect();
    let copied = Attributes {
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        mtime: (metadata.mtime(), u32::try_from(metadata.mtime_nsec()).unwrap_or(0)),
        symlink: false,
        xattrs: &xattrs,
    };
    attributes::set(output.as_fd(), place, &copied)?;
    attributes::set_times(output.as_fd(), place, copied.mtime)?;
    Ok(bytes)
}

/// The directory that holds a path, and the path's last part.
fn split<'a>(root: &File, path: &'a [u8]) -> io::Result<(Dir, &'a [u8])> {
    let (parent, name) = match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (&b""[..], path),
    };
    let fd = open_plain(root, parent, OFlag::O_PATH | OFlag::O_DIRECTORY)?;
    Ok((Dir { fd, path: parent.to_vec() }, name))
}

fn gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP))
}
