//! The container's root file system: layers as an overlay.

use std::fmt::Write;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::unistd::{chdir, symlinkat};

use super::error::LaunchError;
use super::resolve::Root;
use crate::io::open_path;
use crate::protocol::Rootfs;

/// mount(2) takes one page of options, the last byte being zero.
const OPTIONS_MAX: usize = 4095;

/// Mounts the layers and opens the result.
pub fn mount_layers(rootfs: &Rootfs) -> Result<Root, LaunchError> {
    let failed = |source| LaunchError::Rootfs { target: rootfs.target.clone(), source };
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
    add_context(&mut options, rootfs);
    (options.len() <= OPTIONS_MAX).then_some(options)
}

/// Options in terms of links `0`, `1`, ... in the working directory: 500 layers fit, and no name needs escapes. The
/// links are on a tmpfs that the overlay is then mounted over; it goes with the mount namespace. (`lowerdir+` of the
/// newer interface would do the same from 6.5 on only, and slower.)
fn short_options(rootfs: &Rootfs) -> nix::Result<String> {
    let target = rootfs.target.as_str();
    mount(Some("tmpfs"), target, Some("tmpfs"), MsFlags::empty(), Some("size=0,nr_inodes=4096,mode=700"))?;
    chdir(target)?;
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
        symlinkat(rootfs.upper.as_str(), &here, "u")?;
        symlinkat(rootfs.work.as_str(), &here, "w")?;
        options.push_str(",upperdir=u,workdir=w");
    }
    add_context(&mut options, rootfs);
    if options.len() > OPTIONS_MAX { Err(Errno::E2BIG) } else { Ok(options) }
}

fn add_context(options: &mut String, rootfs: &Rootfs) {
    if let Some(context) = &rootfs.context {
        // the quotes keep the commas of the categories
        let _ = write!(options, ",context=\"{context}\"");
    }
}
