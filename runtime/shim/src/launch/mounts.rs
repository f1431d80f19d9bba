//! The container's mounts, in the order given.
//!
//! Targets are opened inside the root first and mounted on through their descriptor, so that a link swapped in by a
//! container sharing the volume leads nowhere. What a mount brought up is opened anew and compared with its source.

use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{SFlag, fstat};
use nix::sys::statvfs::{FsFlags, fstatvfs};

use super::error::LaunchError;
use super::idmap::map_ids;
use super::resolve::{Make, Root, by_descriptor};
use super::rootfs;
use crate::io::open_path;
use crate::protocol::{Mount, Propagation};
use crate::sys::{MountAttributes, attach_tree, clone_tree, set_mount_attributes, set_selinux_label};
use crate::user_namespace::UserNamespace;

/// Flags that belong to a mount and not to its file system.
const PER_MOUNT: MsFlags = MsFlags::MS_RDONLY
    .union(MsFlags::MS_NOSUID)
    .union(MsFlags::MS_NODEV)
    .union(MsFlags::MS_NOEXEC)
    .union(MsFlags::MS_NOATIME)
    .union(MsFlags::MS_NODIRATIME)
    .union(MsFlags::MS_RELATIME)
    .union(MsFlags::MS_STRICTATIME);

/// Sources that must stay peers of the host's mounts, copied before the host's mounts are cut off.
pub struct Shared(Vec<Option<OwnedFd>>);

/// Copies the sources of mounts that propagate both ways. After [`cut_off`] they would only receive.
pub fn take_shared(mounts: &[Mount]) -> Result<Shared, LaunchError> {
    let take = |mount: &Mount| {
        if mount.propagation != Propagation::Shared || !mount.fstype.is_empty() || mount.image.is_some() {
            return Ok(None);
        }
        let source = open_source(mount)?;
        match clone_tree(&source, mount.recursive) {
            Ok(tree) => Ok(Some(tree)),
            Err(source) => Err(LaunchError::Mount { what: mount.source.clone(), target: mount.target.clone(), source }),
        }
    };
    mounts.iter().map(take).collect::<Result<_, _>>().map(Shared)
}

/// Nothing mounted from here on is seen by the host. Slave and not private: what the host mounts under a source with
/// host-to-container propagation still arrives.
pub fn cut_off() -> Result<(), LaunchError> {
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_SLAVE | MsFlags::MS_REC, None::<&str>)
        .map_err(|source| LaunchError::Attributes { target: "/".into(), source })
}

/// Makes all mounts. `label` is that of the container's files, where SELinux is on.
pub fn mount_all(
    root: &Root,
    mounts: &[Mount],
    mut shared: Shared,
    user: Option<&UserNamespace>,
    label: Option<&str>,
) -> Result<(), LaunchError> {
    let mut later = Vec::new();
    for (index, mount) in mounts.iter().enumerate() {
        if let Some(image) = &mount.image {
            let layers = rootfs::mount_layers(image, user)?;
            let source = layers.open(&mount.sub_path);
            let path = || format!("{} of the image for {}", mount.sub_path, mount.target);
            bind(root, mount, source.map_err(|source| LaunchError::MountSource { path: path(), source })?, None)?;
        } else if mount.fstype.is_empty() {
            let source = open_source(mount)?;
            let tree = match shared.0.get_mut(index).and_then(Option::take) {
                None if mount.idmapped => Some(mapped(mount, &source, user)?),
                tree => tree,
            };
            bind(root, mount, source, tree)?;
        } else if let Some(top) = file_system(root, mount, label)? {
            later.push((mount, top));
        }
    }
    for (mount, top) in later {
        restrict(&top, MsFlags::MS_RDONLY, false)
            .map_err(|source| LaunchError::Attributes { target: mount.target.clone(), source })?;
    }
    Ok(())
}

fn open_source(mount: &Mount) -> Result<OwnedFd, LaunchError> {
    open_path(&mount.source).map_err(|source| LaunchError::MountSource { path: mount.source.clone(), source })
}

/// A copy of the mounts at `source`. As with every other runtime, ids are mapped on the first of them only: file systems
/// mounted below it may not be able to.
fn mapped(mount: &Mount, source: &OwnedFd, user: Option<&UserNamespace>) -> Result<OwnedFd, LaunchError> {
    let user = user.ok_or(LaunchError::NoUserNamespace)?;
    let failed = |source| LaunchError::IdMapped { path: mount.source.clone(), source };
    let tree = clone_tree(source, mount.recursive).map_err(failed)?;
    map_ids(&tree, user, 0).map_err(failed)?;
    Ok(tree)
}

/// Bind mount, or attachment of the copied `tree`.
fn bind(root: &Root, spec: &Mount, source: OwnedFd, tree: Option<OwnedFd>) -> Result<(), LaunchError> {
    let target = || spec.target.clone();
    let attributes = |source| LaunchError::Attributes { target: target(), source };
    let from = fstat(&source).map_err(|source| LaunchError::MountSource { path: spec.source.clone(), source })?;
    let directory = SFlag::from_bits_truncate(from.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR;
    let make = if directory { Make::Directory } else { Make::File };
    let place = root.make(&spec.target, make).map_err(|source| LaunchError::Target { path: target(), source })?;
    let mounted = match tree {
        Some(tree) => attach_tree(&tree, &place),
        None => {
            let flags = MsFlags::MS_BIND | if spec.recursive { MsFlags::MS_REC } else { MsFlags::empty() };
            let (source, place) = (by_descriptor(&source), by_descriptor(&place));
            mount(Some(source.as_str()), place.as_str(), None::<&str>, flags, None::<&str>)
        }
    };
    mounted.map_err(|source| LaunchError::Mount { what: spec.source.clone(), target: target(), source })?;

    let top = reopen(root, &spec.target, (from.st_dev, from.st_ino), &spec.source)?;
    let mut flags = MsFlags::from_bits_truncate(spec.flags as _) & PER_MOUNT;
    if spec.readonly || spec.recursive_readonly {
        flags |= MsFlags::MS_RDONLY;
    }
    if !flags.is_empty() {
        restrict(&top, flags - if spec.recursive_readonly { MsFlags::MS_RDONLY } else { MsFlags::empty() }, false)
            .map_err(attributes)?;
    }
    if spec.recursive_readonly {
        // no fallback: what was asked for is that nothing below is writable, which only this can do
        let set = MountAttributes { set: libc::MOUNT_ATTR_RDONLY, ..MountAttributes::default() };
        set_mount_attributes(&top, true, set).map_err(attributes)?;
    }
    let propagation = match spec.propagation {
        Propagation::Private => MsFlags::MS_PRIVATE,
        Propagation::Slave => MsFlags::MS_SLAVE,
        Propagation::Shared => MsFlags::MS_SHARED,
    };
    let place = by_descriptor(&top);
    mount(None::<&str>, place.as_str(), None::<&str>, propagation | MsFlags::MS_REC, None::<&str>).map_err(attributes)
}

/// Mounts a new file system; returns it when it is to become read-only after the mounts inside it are made.
fn file_system(root: &Root, spec: &Mount, label: Option<&str>) -> Result<Option<OwnedFd>, LaunchError> {
    let target = || spec.target.clone();
    let failed = |source| LaunchError::Mount { what: spec.fstype.clone(), target: target(), source };
    let place =
        root.make(&spec.target, Make::Directory).map_err(|source| LaunchError::Target { path: target(), source })?;
    let before = fstat(&place).map_err(failed)?;
    let mut flags = MsFlags::from_bits_truncate(spec.flags as _) - (MsFlags::MS_BIND | MsFlags::MS_REMOUNT);
    let readonly = spec.readonly || flags.contains(MsFlags::MS_RDONLY);
    let postponed = readonly && spec.fstype == "tmpfs";
    flags.set(MsFlags::MS_RDONLY, readonly && !postponed);
    let source = if spec.source.is_empty() { &spec.fstype } else { &spec.source };
    // the kernel has mounted the one of the IPC namespace already, and then refuses options: its label is set as a file's is
    let is_queues = spec.fstype == "mqueue";
    let data = (!spec.data.is_empty() && !is_queues).then_some(spec.data.as_str());
    mount(Some(source.as_str()), by_descriptor(&place).as_str(), Some(spec.fstype.as_str()), flags, data)
        .map_err(failed)?;
    if let Some(label) = label.filter(|_| is_queues) {
        let top = root.open(&spec.target).map_err(failed)?;
        let labelled = set_selinux_label(&by_descriptor(&top), label);
        labelled.map_err(|source| LaunchError::Attributes { target: target(), source })?;
    }
    if !postponed {
        return Ok(None);
    }
    let top = root.open(&spec.target).map_err(failed)?;
    let after = fstat(&top).map_err(failed)?;
    if (before.st_dev, before.st_ino) == (after.st_dev, after.st_ino) {
        return Err(LaunchError::Replaced { what: spec.fstype.clone(), target: target() });
    }
    Ok(Some(top))
}

/// Opens what is now at `path`, which must be the file `identity` (device and inode).
pub fn reopen(root: &Root, path: &str, identity: (u64, u64), what: &str) -> Result<OwnedFd, LaunchError> {
    let failed = |source| LaunchError::Target { path: path.into(), source };
    let top = root.open(path).map_err(failed)?;
    let found = fstat(&top).map_err(failed)?;
    if (found.st_dev, found.st_ino) != identity {
        return Err(LaunchError::Replaced { what: what.into(), target: path.into() });
    }
    Ok(top)
}

/// Adds restrictions to a mount, keeping those it has.
pub fn restrict<Fd: AsFd>(top: Fd, flags: MsFlags, recursive: bool) -> nix::Result<()> {
    match set_mount_attributes(&top, recursive, attributes(flags)) {
        Err(Errno::ENOSYS) => {}
        result => return result,
    }
    // a remount sets all flags anew: those of the source would be lost
    let kept = fstatvfs(&top)?.flags();
    let mut all = flags;
    for (have, flag) in [
        (FsFlags::ST_RDONLY, MsFlags::MS_RDONLY),
        (FsFlags::ST_NOSUID, MsFlags::MS_NOSUID),
        (FsFlags::ST_NODEV, MsFlags::MS_NODEV),
        (FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
        (FsFlags::ST_NOATIME, MsFlags::MS_NOATIME),
        (FsFlags::ST_NODIRATIME, MsFlags::MS_NODIRATIME),
    ] {
        if kept.contains(have) {
            all |= flag;
        }
    }
    let all = all | MsFlags::MS_REMOUNT | MsFlags::MS_BIND;
    mount(None::<&str>, by_descriptor(top).as_str(), None::<&str>, all, None::<&str>)
}

fn attributes(flags: MsFlags) -> MountAttributes {
    let mut set = 0;
    for (flag, attribute) in [
        (MsFlags::MS_RDONLY, libc::MOUNT_ATTR_RDONLY),
        (MsFlags::MS_NOSUID, libc::MOUNT_ATTR_NOSUID),
        (MsFlags::MS_NODEV, libc::MOUNT_ATTR_NODEV),
        (MsFlags::MS_NOEXEC, libc::MOUNT_ATTR_NOEXEC),
        (MsFlags::MS_NODIRATIME, libc::MOUNT_ATTR_NODIRATIME),
    ] {
        if flags.contains(flag) {
            set |= attribute;
        }
    }
    let mut clear = 0;
    // access time is one value of three, not a bit each
    for (flag, value) in
        [(MsFlags::MS_NOATIME, libc::MOUNT_ATTR_NOATIME), (MsFlags::MS_STRICTATIME, libc::MOUNT_ATTR_STRICTATIME)]
    {
        if flags.contains(flag) {
            set |= value;
            clear = libc::MOUNT_ATTR__ATIME;
        }
    }
    MountAttributes { set, clear, ..MountAttributes::default() }
}
