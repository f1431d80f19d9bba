//! The container's root file system: layers as an overlay.

use std::fmt::Write;
use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, stat};
use nix::unistd::{Gid, Uid, chdir, chown, mkdir, symlinkat};

use super::error::LaunchError;
use super::idmap::map_ids;
use super::resolve::Root;
use crate::io::open_path;
use crate::protocol::Rootfs;
use crate::sys::{attach_tree, clone_tree};
use crate::user_namespace::UserNamespace;

/// mount(2) takes one page of options, the last byte being zero.
const OPTIONS_MAX: usize = 4095;

/// Mounts the layers, in a user namespace with its ids, and opens the result.
pub fn mount_layers(rootfs: &Rootfs, user: Option<&UserNamespace>) -> Result<Root, LaunchError> {
    let failed = |source| LaunchError::Rootfs { target: rootfs.target.clone(), source };
    if let Some(user) = user {
        mount_mapped(rootfs, user)?;
        let root = open_path(&rootfs.target).map(Root::new).map_err(failed)?;
        let (uid, gid) = user.ids.uid(0).zip(user.ids.gid(0)).ok_or(LaunchError::UnmappedId { id: 0 })?;
        return Ok(root.owned_by(uid, gid));
    }
    match rootfs.lower.as_slice() {
        [] => return Err(LaunchError::NoLayers),
        // overlayfs needs two layers of some kind; one alone is read-only anyway
        [only] if rootfs.upper.is_empty() => {
            let flags = MsFlags::MS_BIND;
            mount(Some(only.as_str()), rootfs.target.as_str(), None::<&str>, flags, None::<&str>).map_err(failed)?;
            let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
            mount(None::<&str>, rootfs.target.as_str(), None::<&str>, flags, None::<&str>).map_err(failed)?;
        }
        _ => {
            let options = match direct_options(rootfs) {
                Some(options) => options,
                None => short_options(rootfs).map_err(failed)?,
            };
            let (kind, target) = (Some("overlay"), rootfs.target.as_str());
            mount(kind, target, kind, MsFlags::empty(), Some(options.as_str())).map_err(failed)?;
        }
    }
    open_path(&rootfs.target).map(Root::new).map_err(failed)
}

/// Layers are shared between containers with different ids, so each is mounted mapped first. The writable layer is the
/// container's own and has the ids of the host in it; only its root directory came from the image.
fn mount_mapped(rootfs: &Rootfs, user: &UserNamespace) -> Result<(), LaunchError> {
    let failed = |source| LaunchError::Rootfs { target: rootfs.target.clone(), source };
    let target = rootfs.target.as_str();
    let mapped = |layer: &String, set| {
        let failed = |source| LaunchError::IdMapped { path: layer.clone(), source };
        let tree = open_path(layer).and_then(|source| clone_tree(&source, false)).map_err(failed)?;
        map_ids(&tree, user, set).map_err(failed)?;
        Ok(tree)
    };
    if rootfs.upper.is_empty()
        && let [only] = rootfs.lower.as_slice()
    {
        let tree = mapped(only, libc::MOUNT_ATTR_RDONLY)?;
        return open_path(target).and_then(|place| attach_tree(&tree, &place)).map_err(failed);
    }
    if rootfs.lower.is_empty() {
        return Err(LaunchError::NoLayers);
    }
    stage(target).map_err(failed)?;
    let mut options = String::from("lowerdir=");
    for (number, layer) in rootfs.lower.iter().enumerate() {
        let tree = mapped(layer, 0)?;
        let name = number.to_string();
        mkdir(name.as_str(), Mode::S_IRWXU).map_err(failed)?;
        open_path(&name).and_then(|place| attach_tree(&tree, &place)).map_err(failed)?;
        options.push_str(if number > 0 { ":" } else { "" });
        options.push_str(&name);
    }
    if !rootfs.upper.is_empty() {
        give_to_inside(&rootfs.upper, user)?;
        let here = open_path(".").map_err(failed)?;
        add_upper(&mut options, rootfs, &here).map_err(failed)?;
    }
    add_context(&mut options, rootfs.context.as_deref());
    if options.len() > OPTIONS_MAX {
        return Err(failed(Errno::E2BIG));
    }
    mount(Some("overlay"), target, Some("overlay"), MsFlags::empty(), Some(options.as_str())).map_err(failed)
}

/// The writable layer's root directory has the owner that the image says, until this was done once.
fn give_to_inside(upper: &str, user: &UserNamespace) -> Result<(), LaunchError> {
    let failed = |source| LaunchError::Owner { path: upper.into(), source };
    let found = stat(upper).map_err(failed)?;
    let unmapped = |id: u32| LaunchError::UnmappedId { id };
    let uid = user.ids.uid(found.st_uid).ok_or_else(|| unmapped(found.st_uid))?;
    let gid = user.ids.gid(found.st_gid).ok_or_else(|| unmapped(found.st_gid))?;
    chown(upper, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))).map_err(failed)
}

/// Options with the paths as they are; none when they are too long or would need escapes.
fn direct_options(rootfs: &Rootfs) -> Option<String> {
    let special = |path: &String| path.contains([':', ',', '\\']);
    if rootfs.lower.iter().chain([&rootfs.upper, &rootfs.work]).any(special) {
        return None;
    }
    let mut options = format!("lowerdir={}", rootfs.lower.join(":"));
    if !rootfs.upper.is_empty() {
        let _ = write!(options, ",upperdir={},workdir={}", rootfs.upper, rootfs.work);
    }
    add_context(&mut options, rootfs.context.as_deref());
    (options.len() <= OPTIONS_MAX).then_some(options)
}

/// Options in terms of links `0`, `1`, ... in the working directory: 500 layers fit, and no name needs escapes. The
/// links are on a tmpfs that the overlay is then mounted over; it goes with the mount namespace. (`lowerdir+` of the
/// newer interface would do the same from 6.5 on only, and slower.)
fn short_options(rootfs: &Rootfs) -> nix::Result<String> {
    stage(&rootfs.target)?;
    let here = open_path(".")?;
    let mut options = String::from("lowerdir=");
    for (number, layer) in rootfs.lower.iter().enumerate() {
        let name = number.to_string();
        symlinkat(layer.as_str(), &here, name.as_str())?;
        if number > 0 {
            options.push(':');
        }
        options.push_str(&name);
    }
    if !rootfs.upper.is_empty() {
        add_upper(&mut options, rootfs, &here)?;
    }
    add_context(&mut options, rootfs.context.as_deref());
    if options.len() > OPTIONS_MAX { Err(Errno::E2BIG) } else { Ok(options) }
}

/// An empty place at `target` for short names, and this process in it.
fn stage(target: &str) -> nix::Result<()> {
    mount(Some("tmpfs"), target, Some("tmpfs"), MsFlags::empty(), Some("size=0,nr_inodes=4096,mode=700"))?;
    chdir(target)
}

fn add_upper(options: &mut String, rootfs: &Rootfs, here: &OwnedFd) -> nix::Result<()> {
    symlinkat(rootfs.upper.as_str(), here, "u")?;
    symlinkat(rootfs.work.as_str(), here, "w")?;
    options.push_str(",upperdir=u,workdir=w");
    Ok(())
}

/// Gives all files of a new file system one label.
pub(super) fn add_context(options: &mut String, context: Option<&str>) {
    if let Some(context) = context {
        // the quotes keep the commas of the categories
        let _ = write!(options, ",context=\"{context}\"");
    }
}
