//! Paths that are hidden or made read-only.

use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{SFlag, fstat, makedev};

use super::error::LaunchError;
use super::mounts::{reopen, restrict};
use super::resolve::{Root, by_descriptor};
use super::rootfs::add_context;
use crate::io::open_path;

/// Covers files with the null device and directories with an empty one. What is not there needs no cover. `label` is that of
/// the container's files, where SELinux is on: it may look at what covers, and find nothing.
pub fn mask(root: &Root, paths: &[String], label: Option<&str>) -> Result<(), LaunchError> {
    if paths.is_empty() {
        return Ok(());
    }
    // the host's, by descriptor, and looked at: one in the container could be a link to anything (CVE-2025-31133)
    let null = open_path("/dev/null").map_err(|source| LaunchError::Open { path: "/dev/null".into(), source })?;
    if !fstat(&null).is_ok_and(|found| found.st_rdev == makedev(1, 3)) {
        return Err(LaunchError::NotNull);
    }
    let mut empty: Option<OwnedFd> = None;
    for path in paths {
        let failed = |source| LaunchError::Mask { path: path.clone(), source };
        let place = match root.open(path) {
            Ok(place) => place,
            Err(Errno::ENOENT | Errno::ENOTDIR) => continue,
            Err(error) => return Err(failed(error)),
        };
        let mode = fstat(&place).map_err(failed)?.st_mode;
        let place = by_descriptor(&place);
        if SFlag::from_bits_truncate(mode) & SFlag::S_IFMT != SFlag::S_IFDIR {
            let null = by_descriptor(&null);
            mount(Some(null.as_str()), place.as_str(), None::<&str>, MsFlags::MS_BIND, None::<&str>).map_err(failed)?;
            continue;
        }
        if let Some(empty) = &empty {
            // one empty file system covers all of them
            let empty = by_descriptor(empty);
            mount(Some(empty.as_str()), place.as_str(), None::<&str>, MsFlags::MS_BIND, None::<&str>)
                .map_err(failed)?;
        } else {
            let kind = Some("tmpfs");
            let mut options = String::from("nr_blocks=1,nr_inodes=1");
            add_context(&mut options, label);
            mount(kind, place.as_str(), kind, MsFlags::MS_RDONLY, Some(options.as_str())).map_err(failed)?;
            empty = Some(root.open(path).map_err(failed)?);
        }
    }
    Ok(())
}

/// Makes what is at each path read-only.
pub fn make_readonly(root: &Root, paths: &[String]) -> Result<(), LaunchError> {
    for path in paths {
        let failed = |source| LaunchError::Readonly { path: path.clone(), source };
        let place = match root.open(path) {
            Ok(place) => place,
            Err(Errno::ENOENT | Errno::ENOTDIR) => continue,
            Err(error) => return Err(failed(error)),
        };
        let found = fstat(&place).map_err(failed)?;
        let (from, to) = (by_descriptor(&place), by_descriptor(&place));
        let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
        mount(Some(from.as_str()), to.as_str(), None::<&str>, flags, None::<&str>).map_err(failed)?;
        let top = reopen(root, path, (found.st_dev, found.st_ino), path)?;
        restrict(&top, MsFlags::MS_RDONLY, false).map_err(failed)?;
    }
    Ok(())
}
