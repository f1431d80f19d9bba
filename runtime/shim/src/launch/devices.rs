//! `/dev`: the nodes asked for and the links every program expects.

use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, fchmodat, fstatat, makedev, mknodat};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchownat, symlinkat, unlinkat};

use super::error::LaunchError;
use super::resolve::{Make, Root, by_descriptor};
use crate::io::open_path;
use crate::protocol::{Device, Mount};

/// Makes the nodes.
pub fn make_all(root: &Root, devices: &[Device]) -> Result<(), LaunchError> {
    devices.iter().try_for_each(|device| make(root, device))
}

fn make(root: &Root, device: &Device) -> Result<(), LaunchError> {
    let failed = |source| LaunchError::Device { path: device.path.clone(), source };
    let kind = match device.kind.as_str() {
        "c" | "u" => SFlag::S_IFCHR,
        "b" => SFlag::S_IFBLK,
        _ => return Err(LaunchError::DeviceKind { path: device.path.clone(), kind: device.kind.clone() }),
    };
    let number = makedev(device.major.into(), device.minor.into());
    let (directory, name) = root.parent(&device.path).map_err(failed)?;
    let name = name.as_os_str();
    let mode = Mode::from_bits_truncate(device.mode & 0o7777);
    match mknodat(&directory, name, kind, mode, number) {
        Ok(()) => {}
        Err(Errno::EEXIST) => {
            let found = fstatat(&directory, name, AtFlags::AT_SYMLINK_NOFOLLOW).map_err(failed)?;
            if SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT != kind || found.st_rdev != number {
                return Err(failed(Errno::EEXIST));
            }
        }
        // inside a user namespace nobody makes nodes: the host's is shown instead
        Err(Errno::EPERM) => return bind(root, device).map_err(failed),
        Err(error) => return Err(failed(error)),
    }
    let (uid, gid) = (Some(Uid::from_raw(device.uid)), Some(Gid::from_raw(device.gid)));
    fchownat(&directory, name, uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW).map_err(failed)?;
    fchmodat(&directory, name, mode, FchmodatFlags::FollowSymlink).map_err(failed)
}

fn bind(root: &Root, device: &Device) -> nix::Result<()> {
    let source = open_path(&device.path)?;
    let place = root.make(&device.path, Make::File)?;
    let (source, place) = (by_descriptor(&source), by_descriptor(&place));
    mount(Some(source.as_str()), place.as_str(), None::<&str>, MsFlags::MS_BIND, None::<&str>)
}

/// Whether `/dev` is the container's own; in one bound from the host nothing is touched.
pub fn own_dev(mounts: &[Mount]) -> bool {
    mounts.iter().any(|mount| mount.target.trim_end_matches('/') == "/dev" && mount.fstype == "tmpfs")
}

/// Makes the links of a `/dev` that is the container's own.
pub fn default_links(root: &Root, mounts: &[Mount]) -> Result<(), LaunchError> {
    if !own_dev(mounts) {
        return Ok(());
    }
    let own_terminals = mounts.iter().any(|mount| mount.fstype == "devpts");
    for (name, target) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
        ("ptmx", "pts/ptmx"),
    ] {
        let path = format!("/dev/{name}");
        let failed = |source| LaunchError::Device { path: path.clone(), source };
        let (directory, _) = root.parent(&path).map_err(failed)?;
        if name == "ptmx" {
            if !own_terminals {
                continue;
            }
            // a node of that name would open terminals of the host
            match unlinkat(&directory, name, UnlinkatFlags::NoRemoveDir) {
                Ok(()) | Err(Errno::ENOENT) => {}
                Err(error) => return Err(failed(error)),
            }
        }
        match symlinkat(target, &directory, name) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(())
}
