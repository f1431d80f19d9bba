//! Changing files: whole or not at all, also across a power cut.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, renameat};
use nix::sys::stat::{Mode, fchmod, fstatat, mkdirat};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, fsync, symlinkat, unlinkat};

use super::super::sys;
use super::resolve::MAX_LINKS;
use super::{Kind, NOT_OFFLINE, Root, RootError, split};

/// Names longer than this leave no room for the temporary name beside them.
const NAME_LIMIT: usize = 230;

/// Mode and owner of what is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ownership {
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// A directory held open and the name in it that is to change.
struct Place {
    dir: OwnedFd,
    name: String,
}

impl Root {
    /// Makes the path itself a file with this content, atomically; a link there is replaced (see [`Root::end_of_links`] for
    /// writing to where it leads). Parent directories are made.
    pub fn write(&self, path: &str, content: &[u8], owner: Ownership) -> Result<(), RootError> {
        let place = self.place(path, true)?;
        self.ledger.note(format!("write {path}"));
        self.replace(path, &place, |temp| self.fill(path, &place, temp, content, owner))
    }

    /// Makes the path itself a link to `target`, atomically, whatever it was before (a directory is not replaced).
    pub fn symlink(&self, path: &str, target: &str) -> Result<(), RootError> {
        let place = self.place(path, true)?;
        self.ledger.note(format!("link {path} -> {target}"));
        self.replace(path, &place, |temp| symlinkat(target, &place.dir, temp).map_err(failed(path, "make link")))
    }

    /// Removes a file or link; true when there was one.
    pub fn remove(&self, path: &str) -> Result<bool, RootError> {
        let place = match self.place(path, false) {
            Err(RootError::Write { source: Errno::ENOENT, .. }) => return Ok(false),
            other => other?,
        };
        match fstatat(&place.dir, place.name.as_str(), AtFlags::AT_SYMLINK_NOFOLLOW) {
            Err(Errno::ENOENT) => return Ok(false),
            found => found.map_err(failed(path, "look up"))?,
        };
        self.ledger.note(format!("remove {path}"));
        match unlinkat(&place.dir, place.name.as_str(), UnlinkatFlags::NoRemoveDir) {
            Ok(()) => fsync(&place.dir).map_err(failed(path, "sync directory")).map(|()| true),
            Err(Errno::ENOENT) => Ok(false),
            Err(source) => Err(RootError::Write { path: path.to_owned(), step: "remove", source }),
        }
    }

    /// Removes a directory when it is empty; true when it is gone by this call.
    pub fn remove_empty_directory(&self, path: &str) -> Result<bool, RootError> {
        let place = match self.place(path, false) {
            Err(RootError::Write { source: Errno::ENOENT, .. }) => return Ok(false),
            other => other?,
        };
        match unlinkat(&place.dir, place.name.as_str(), UnlinkatFlags::RemoveDir) {
            Ok(()) => {
                self.ledger.note(format!("remove directory {path}"));
                Ok(true)
            }
            Err(Errno::ENOENT | Errno::ENOTEMPTY | Errno::EEXIST) => Ok(false),
            Err(source) => Err(RootError::Write { path: path.to_owned(), step: "remove directory", source }),
        }
    }

    /// Makes a directory and those above it; one that exists gets the mode and owner too.
    pub fn make_directory(&self, path: &str, owner: Ownership) -> Result<(), RootError> {
        let place = self.place(path, true)?;
        let name = place.name.as_str();
        self.ledger.note(format!("make directory {path}"));
        match mkdirat(&place.dir, name, Mode::from_bits_truncate(owner.mode)) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(source) => return Err(RootError::Write { path: path.to_owned(), step: "make directory", source }),
        }
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let dir = openat(&place.dir, name, flags, Mode::empty()).map_err(failed(path, "open directory"))?;
        fchown(&dir, Some(Uid::from_raw(owner.uid)), Some(Gid::from_raw(owner.gid)))
            .map_err(failed(path, "set owner"))?;
        fchmod(&dir, Mode::from_bits_truncate(owner.mode)).map_err(failed(path, "set mode"))?;
        fsync(&place.dir).map_err(failed(path, "sync directory"))
    }

    /// Sets mode and owner of the path itself, which must not be a link.
    pub fn set_ownership(&self, path: &str, owner: Ownership) -> Result<(), RootError> {
        let place = self.place(path, false)?;
        let name = place.name.as_str();
        self.ledger.note(format!("set mode {:o} and owner {}:{} of {path}", owner.mode, owner.uid, owner.gid));
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let file = openat(&place.dir, name, flags, Mode::empty()).map_err(failed(path, "open"))?;
        fchown(&file, Some(Uid::from_raw(owner.uid)), Some(Gid::from_raw(owner.gid)))
            .map_err(failed(path, "set owner"))?;
        fchmod(&file, Mode::from_bits_truncate(owner.mode)).map_err(failed(path, "set mode"))
    }

    /// Writes into an existing file in place, in one call: what kernel interfaces want. Never for files on disk.
    pub(in crate::host) fn write_kernel_file(&self, path: &str, value: &str) -> Result<(), RootError> {
        if self.offline {
            return Err(RootError::Offline { path: path.to_owned(), top: "the kernel's state" });
        }
        self.ledger.note(format!("write {path} = {value}"));
        let file =
            self.resolver.open(Path::new(path), OFlag::O_WRONLY | OFlag::O_TRUNC).map_err(failed(path, "open"))?;
        let written = nix::unistd::write(&file, value.as_bytes()).map_err(failed(path, "write"))?;
        if written == value.len() {
            return Ok(());
        }
        Err(RootError::Write { path: path.to_owned(), step: "write the whole value", source: Errno::EIO })
    }

    /// The place of the name itself, in a directory that may be written.
    fn place(&self, path: &str, make_parents: bool) -> Result<Place, RootError> {
        let (parent, name) = split(path)?;
        if name.len() > NAME_LIMIT {
            return Err(RootError::Write { path: path.to_owned(), step: "look up", source: Errno::ENAMETOOLONG });
        }
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
        let dir = match self.resolver.open(Path::new(parent), flags) {
            Err(Errno::ENOENT) if make_parents => {
                self.make_directory(parent, Ownership { mode: 0o755, uid: 0, gid: 0 })?;
                self.resolver.open(Path::new(parent), flags)
            }
            other => other,
        }
        .map_err(failed(path, "open directory"))?;
        self.refuse_kernel_state(path, &dir)?;
        Ok(Place { dir, name: name.to_owned() })
    }

    /// The path that a chain of links ends at, whether there is a file or not.
    pub fn end_of_links(&self, path: &str) -> Result<String, RootError> {
        let mut at = path.to_owned();
        for _ in 0..MAX_LINKS {
            let Some(target) = self.link_target(&at)? else { return Ok(at) };
            // joined, not tidied: what `..` means behind a link is for the resolver to find out
            at = match target.starts_with('/') {
                true => target,
                false => format!("{}/{target}", split(&at)?.0.trim_end_matches('/')),
            };
        }
        Err(RootError::Write { path: path.to_owned(), step: "follow links", source: Errno::ELOOP })
    }

    pub(super) fn refuse_kernel_state(&self, path: &str, dir: &OwnedFd) -> Result<(), RootError> {
        if !self.offline {
            return Ok(());
        }
        match self.resolver.is_within(dir, &NOT_OFFLINE) {
            Ok(false) => Ok(()),
            Ok(true) => Err(RootError::Offline { path: path.to_owned(), top: "/proc, /sys, /run or /dev" }),
            Err(source) => Err(RootError::Write { path: path.to_owned(), step: "look at directory", source }),
        }
    }

    /// Makes a new object under a temporary name and renames it over the old one.
    fn replace(
        &self,
        path: &str,
        place: &Place,
        make: impl Fn(&str) -> Result<(), RootError>,
    ) -> Result<(), RootError> {
        // One fixed name: what a power cut left is found and replaced by the next attempt. It ends in no suffix that the
        // readers of drop-in directories look for.
        let temp = format!(".{}.nodeagent~", place.name);
        match unlinkat(&place.dir, temp.as_str(), UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(source) => {
                return Err(RootError::Write { path: path.to_owned(), step: "remove old temporary file", source });
            }
        }
        let made = make(&temp).and_then(|()| {
            renameat(&place.dir, temp.as_str(), &place.dir, place.name.as_str())
                .map_err(failed(path, "rename into place"))
        });
        if made.is_err() {
            // the first error is the one to tell; the next attempt removes what stays
            let _ = unlinkat(&place.dir, temp.as_str(), UnlinkatFlags::NoRemoveDir);
        }
        made?;
        fsync(&place.dir).map_err(failed(path, "sync directory"))
    }

    fn fill(&self, path: &str, place: &Place, temp: &str, content: &[u8], owner: Ownership) -> Result<(), RootError> {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file =
            openat(&place.dir, temp, flags, Mode::from_bits_truncate(0o600)).map_err(failed(path, "make file"))?;
        // the content comes last: a secret must not be readable before its mode is right
        fchown(&file, Some(Uid::from_raw(owner.uid)), Some(Gid::from_raw(owner.gid)))
            .map_err(failed(path, "set owner"))?;
        fchmod(&file, Mode::from_bits_truncate(owner.mode)).map_err(failed(path, "set mode"))?;
        self.label(path, place, &file)?;
        let mut file = std::fs::File::from(file);
        file.write_all(content)
            .and_then(|()| file.sync_all())
            .map_err(|error| failed(path, "write content")(Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))))
    }

    /// A new inode would get the label of a fresh file; the old file's is kept. A new file has what the policy gave it, and
    /// on a build machine without SELinux what its directory has, if the tree is labelled at all.
    fn label(&self, path: &str, place: &Place, file: &OwnedFd) -> Result<(), RootError> {
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let label = match openat(&place.dir, place.name.as_str(), flags, Mode::empty()) {
            Ok(old) => sys::selinux_label(&old),
            Err(Errno::ENOENT) => match sys::selinux_label(file) {
                Ok(None) => sys::selinux_label(&place.dir),
                _ => return Ok(()),
            },
            // not a file that could be opened (a link, a socket): its label says nothing about a regular file
            Err(_) => return Ok(()),
        };
        match label.map_err(failed(path, "read SELinux label"))? {
            Some(label) => sys::set_selinux_label(file, &label).map_err(failed(path, "set SELinux label")),
            None => Ok(()),
        }
    }

    /// What the name is, without following it. For callers that must not write through links.
    pub fn is_link(&self, path: &str) -> Result<bool, RootError> {
        Ok(self.link_metadata(path)?.is_some_and(|found| found.kind == Kind::Link))
    }
}

fn failed(path: &str, step: &'static str) -> impl FnOnce(Errno) -> RootError {
    let path = path.to_owned();
    move |source| RootError::Write { path, step, source }
}
