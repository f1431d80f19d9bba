//! Owner, mode, times and extended attributes.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use nix::fcntl::AtFlags;
use nix::sys::stat::{FchmodatFlags, Mode, UtimensatFlags, fchmod, fchmodat, fstat, futimens, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchown, fchownat};

use super::archive::{Entry, Kind};
use super::tree::Dir;
use super::{SnapshotError, sys};

const OPAQUE: &std::ffi::CStr = c"trusted.overlay.opaque";

/// What an entry says about itself.
pub(super) struct Attributes<'a> {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: (i64, u32),
    pub symlink: bool,
    pub xattrs: &'a [(Vec<u8>, Vec<u8>)],
}

impl<'a> Attributes<'a> {
    pub(super) fn of(entry: &'a Entry) -> Attributes<'a> {
        Attributes {
            mode: entry.mode,
            uid: entry.uid,
            gid: entry.gid,
            mtime: entry.mtime,
            symlink: matches!(entry.kind, Kind::Symlink { .. }),
            xattrs: &entry.xattrs,
        }
    }
}

/// Sets everything but times on an open file or directory. What is right already is left alone: looking costs a tenth
/// of what a change costs, and most of an image belongs to root and was made with its mode.
pub(super) fn set(fd: BorrowedFd<'_>, path: &Path, attributes: &Attributes<'_>) -> Result<(), SnapshotError> {
    let failed = |action: &'static str| move |error: nix::Error| SnapshotError::disk(action, path)(error.into());
    let there = fstat(fd).map_err(failed("examine"))?;
    let owned = (there.st_uid, there.st_gid) == (attributes.uid, attributes.gid);
    if !owned {
        fchown(fd, Some(Uid::from_raw(attributes.uid)), Some(Gid::from_raw(attributes.gid)))
            .map_err(failed("set the owner of"))?;
    }
    // after the owner: a change of owner takes setuid bits and capabilities away
    if !owned || there.st_mode & 0o7777 != attributes.mode & 0o7777 {
        fchmod(fd, Mode::from_bits_truncate(attributes.mode)).map_err(failed("set the mode of"))?;
    }
    for (name, value) in attributes.xattrs.iter().filter(|(name, _)| belongs_in_layers(name)) {
        let Ok(name) = CString::new(name.as_slice()) else { continue };
        supported(sys::fsetxattr(fd, &name, value), path)?;
    }
    Ok(())
}

/// Sets everything on what cannot be opened: symlinks, devices, pipes.
pub(super) fn set_by_name(
    dir: &Dir,
    name: &[u8],
    path: &Path,
    attributes: &Attributes<'_>,
) -> Result<(), SnapshotError> {
    let failed = |action: &'static str| move |error: nix::Error| SnapshotError::disk(action, path)(error.into());
    let (uid, gid) = (Some(Uid::from_raw(attributes.uid)), Some(Gid::from_raw(attributes.gid)));
    fchownat(&dir.fd, name, uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW).map_err(failed("set the owner of"))?;
    if !attributes.symlink {
        // follows symlinks, but this is none: we have just made it and nobody else writes here
        fchmodat(&dir.fd, name, Mode::from_bits_truncate(attributes.mode), FchmodatFlags::FollowSymlink)
            .map_err(failed("set the mode of"))?;
    }
    let Ok(c_path) = CString::new(path.as_os_str().as_bytes()) else { return Ok(()) };
    for (name, value) in attributes.xattrs.iter().filter(|(name, _)| belongs_in_layers(name)) {
        // user attributes exist on files and directories only
        if let Ok(name) = CString::new(name.as_slice())
            && !name.as_bytes().starts_with(b"user.")
        {
            supported(sys::lsetxattr(&c_path, &name, value), path)?;
        }
    }
    let time = timespec(attributes.mtime);
    utimensat(&dir.fd, name, &time, &time, UtimensatFlags::NoFollowSymlink).map_err(failed("set the time of"))
}

/// Sets the time of an open file or directory.
pub(super) fn set_times(fd: BorrowedFd<'_>, path: &Path, mtime: (i64, u32)) -> Result<(), SnapshotError> {
    let time = timespec(mtime);
    futimens(fd, &time, &time).map_err(|error| SnapshotError::disk("set the time of", path)(error.into()))
}

/// Makes a directory hide what lower layers have under its name.
pub(super) fn set_opaque(path: &Path) -> Result<(), SnapshotError> {
    let c_path = CString::new(path.as_os_str().as_bytes())
        .map_err(|error| SnapshotError::disk("mark as opaque", path)(error.into()))?;
    sys::lsetxattr(&c_path, OPAQUE, b"y").map_err(SnapshotError::disk("mark as opaque", path))
}

/// Whether a layer hides everything below it. overlayfs itself does not look for that at the roots of layers.
pub(crate) fn hides_all_below(layer: &Path) -> bool {
    let opaque = File::open(layer).and_then(|directory| sys::fgetxattr(directory.as_fd(), OPAQUE));
    opaque.is_ok_and(|value| value.as_deref() == Some(b"y"))
}

/// Which extended attributes an image may set. `trusted.overlay.*` and `user.overlay.*` would steer our own mount,
/// SELinux labels come from the node, and signatures of files (IMA, EVM) speak of another machine.
fn belongs_in_layers(name: &[u8]) -> bool {
    name == b"security.capability"
        || name.starts_with(b"system.posix_acl_")
        || (name.starts_with(b"user.") && !name.starts_with(b"user.overlay."))
}

/// A file system without extended attributes is no reason to refuse an image.
fn supported(result: io::Result<()>, path: &Path) -> Result<(), SnapshotError> {
    match result {
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
            log::debug!(path:% = path.display(); "file system has no such extended attributes");
            Ok(())
        }
        other => other.map_err(SnapshotError::disk("set an extended attribute of", path)),
    }
}

fn timespec((seconds, nanoseconds): (i64, u32)) -> TimeSpec {
    TimeSpec::new(seconds, i64::from(nanoseconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_cannot_steer_overlayfs_or_selinux() {
        for fine in [&b"user.x"[..], b"security.capability", b"system.posix_acl_access"] {
            assert!(belongs_in_layers(fine));
        }
        for refused in [
            &b"trusted.overlay.opaque"[..],
            b"trusted.overlay.redirect",
            b"user.overlay.redirect",
            b"security.selinux",
            b"security.ima",
            b"trusted.x",
        ] {
            assert!(!belongs_in_layers(refused));
        }
    }
}
