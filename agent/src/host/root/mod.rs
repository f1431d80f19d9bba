//! The host's files, as a directory that nothing escapes from.
//!
//! Every path given here is an absolute path *on the host*; with `--root DIR` it means the same path below DIR, and links in
//! the tree, absolute ones included, are followed inside the tree only. An image that is being built is not trusted: a link
//! planted in it must not make a root process write to the build machine.

mod append;
mod label;
mod resolve;
mod tree;
mod write;

pub use write::Ownership;

use std::collections::BTreeMap;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};

use super::ledger::Ledger;
use resolve::Resolver;

/// No file that the agent reads is larger than this; a config file of this size is a mistake or an attack.
pub const READ_LIMIT: u64 = 4 * 1024 * 1024;

/// A directory with more entries than this is not one of those the agent looks into.
const LIST_LIMIT: usize = 65_536;

/// Below an offline root these belong to a running kernel or boot, which is not the target's.
const NOT_OFFLINE: [&str; 4] = ["proc", "sys", "run", "dev"];

/// What can go wrong with a file of the host.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    /// The root directory itself.
    #[error("open root directory {}", path.display())]
    OpenRoot {
        /// As given.
        path: PathBuf,
        /// Why.
        #[source]
        source: Errno,
    },
    /// Opening for reading.
    #[error("open {path}")]
    Open {
        /// Path on the host.
        path: String,
        /// Why.
        #[source]
        source: Errno,
    },
    /// Reading.
    #[error("read {path}")]
    Read {
        /// Path on the host.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Larger than the caller is ready for.
    #[error("read {path}: larger than {limit} bytes")]
    TooLarge {
        /// Path on the host.
        path: String,
        /// The bound.
        limit: u64,
    },
    /// Not UTF-8 where text is wanted.
    #[error("read {path}: not UTF-8 at byte {at}")]
    NotText {
        /// Path on the host.
        path: String,
        /// Offset of the first wrong byte.
        at: usize,
    },
    /// Not a regular file.
    #[error("{path} is {found}, want a regular file")]
    NotRegular {
        /// Path on the host.
        path: String,
        /// What it is.
        found: &'static str,
    },
    /// One step of a write.
    #[error("write {path}: {step}")]
    Write {
        /// Path on the host.
        path: String,
        /// Which system call, in words.
        step: &'static str,
        /// Why.
        #[source]
        source: Errno,
    },
    /// A write to kernel or boot state of a root that is not running.
    #[error("write {path}: refused, {top} of an offline root is not the target's own state")]
    Offline {
        /// Path on the host.
        path: String,
        /// The top directory it resolves to.
        top: &'static str,
    },
    /// A path that names no file.
    #[error("path {path:?} is not an absolute path to a file")]
    BadPath {
        /// As given.
        path: String,
    },
}

impl RootError {
    /// The errno behind it, where there is one.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            RootError::OpenRoot { source, .. } | RootError::Open { source, .. } | RootError::Write { source, .. } => {
                Some(*source)
            }
            RootError::Read { source, .. } => source.raw_os_error().map(Errno::from_raw),
            _ => None,
        }
    }
}

/// What kind of object a name is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Regular file.
    File,
    /// Directory.
    Directory,
    /// Symbolic link.
    Link,
    /// Device, socket, pipe.
    Other,
}

impl Kind {
    fn of(stat: &FileStat) -> Kind {
        match SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT {
            SFlag::S_IFREG => Kind::File,
            SFlag::S_IFDIR => Kind::Directory,
            SFlag::S_IFLNK => Kind::Link,
            _ => Kind::Other,
        }
    }

    /// For messages.
    pub fn in_words(self) -> &'static str {
        match self {
            Kind::File => "a regular file",
            Kind::Directory => "a directory",
            Kind::Link => "a symbolic link",
            Kind::Other => "a device, socket or pipe",
        }
    }
}

/// Kind, mode and owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metadata {
    /// What it is.
    pub kind: Kind,
    /// Permission bits with set-id and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes.
    pub size: u64,
}

/// The host's file system; see the module.
#[derive(Debug, Clone)]
pub struct Root {
    resolver: Arc<Resolver>,
    path: Arc<PathBuf>,
    offline: bool,
    ledger: Ledger,
}

impl Root {
    /// The file system of the running system.
    pub fn live(ledger: Ledger) -> Result<Root, RootError> {
        Root::open(Path::new("/"), false, ledger)
    }

    /// A tree that does not run: an image being built, or an installed system before its first boot.
    pub fn offline(path: &Path, ledger: Ledger) -> Result<Root, RootError> {
        Root::open(path, true, ledger)
    }

    pub(super) fn open(path: &Path, offline: bool, ledger: Ledger) -> Result<Root, RootError> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let dir =
            open(path, flags, Mode::empty()).map_err(|source| RootError::OpenRoot { path: path.to_owned(), source })?;
        Ok(Root { resolver: Arc::new(Resolver::new(dir)), path: Arc::new(path.to_owned()), offline, ledger })
    }

    /// Where the tree lies on the machine that the agent runs on. For messages and for programs that take a root option.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// True for a tree that does not run.
    pub fn is_offline(&self) -> bool {
        self.offline
    }

    /// Behaves as on a kernel without openat2. For tests of the fallback.
    #[cfg(any(test, feature = "testing"))]
    pub fn without_openat2(self) -> Root {
        self.resolver.without_openat2();
        self
    }

    /// The file's bytes, or none when it does not exist.
    pub fn read(&self, path: &str) -> Result<Option<Vec<u8>>, RootError> {
        self.read_bounded(path, READ_LIMIT)
    }

    /// As [`Root::read`] with a bound of the caller's.
    pub fn read_bounded(&self, path: &str, limit: u64) -> Result<Option<Vec<u8>>, RootError> {
        // O_NONBLOCK: a pipe planted in place of a file must not hang the agent
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
        let Some(file) = self.open_existing(path, flags)? else { return Ok(None) };
        let stat = fstat(&file).map_err(|source| RootError::Open { path: path.to_owned(), source })?;
        let kind = Kind::of(&stat);
        if kind != Kind::File {
            return Err(RootError::NotRegular { path: path.to_owned(), found: kind.in_words() });
        }
        let mut bytes = Vec::new();
        // files of /proc and /sys say size 0: only reading tells
        std::fs::File::from(file)
            .take(limit + 1)
            .read_to_end(&mut bytes)
            .map_err(|source| RootError::Read { path: path.to_owned(), source })?;
        if bytes.len() as u64 > limit {
            return Err(RootError::TooLarge { path: path.to_owned(), limit });
        }
        Ok(Some(bytes))
    }

    /// The file's text, or none when it does not exist.
    pub fn read_text(&self, path: &str) -> Result<Option<String>, RootError> {
        let Some(bytes) = self.read(path)? else { return Ok(None) };
        match String::from_utf8(bytes) {
            Ok(text) => Ok(Some(text)),
            Err(error) => Err(RootError::NotText { path: path.to_owned(), at: error.utf8_error().valid_up_to() }),
        }
    }

    /// Kind, mode and owner of what the path leads to, or none. Links are followed.
    pub fn metadata(&self, path: &str) -> Result<Option<Metadata>, RootError> {
        let Some(handle) = self.open_existing(path, OFlag::O_PATH)? else { return Ok(None) };
        self.metadata_of(path, handle).map(Some)
    }

    /// As [`Root::metadata`], of the name itself: a link is a link.
    pub fn link_metadata(&self, path: &str) -> Result<Option<Metadata>, RootError> {
        let Some(handle) = self.open_existing(path, OFlag::O_PATH | OFlag::O_NOFOLLOW)? else { return Ok(None) };
        self.metadata_of(path, handle).map(Some)
    }

    /// True when the path leads to something.
    pub fn exists(&self, path: &str) -> Result<bool, RootError> {
        Ok(self.metadata(path)?.is_some())
    }

    /// What the link says, or none when there is nothing or no link.
    pub fn link_target(&self, path: &str) -> Result<Option<String>, RootError> {
        let Some((parent, name)) = self.parent_of(path)? else { return Ok(None) };
        match readlinkat(&parent, name) {
            Ok(target) => Ok(Some(target.to_string_lossy().into_owned())),
            Err(Errno::ENOENT | Errno::EINVAL) => Ok(None),
            Err(source) => Err(RootError::Open { path: path.to_owned(), source }),
        }
    }

    /// The names in a directory, sorted by byte; none when it does not exist. Names that are not UTF-8 are left out: nothing
    /// that the agent looks for has one.
    pub fn list(&self, path: &str) -> Result<Option<Vec<String>>, RootError> {
        let failed = |source| RootError::Open { path: path.to_owned(), source };
        let Some(dir) = self.open_existing(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY)? else { return Ok(None) };
        let mut dir = nix::dir::Dir::from_fd(dir).map_err(failed)?;
        let mut names = Vec::new();
        for entry in dir.iter() {
            let entry = entry.map_err(failed)?;
            if let Ok(name) = entry.file_name().to_str()
                && name != "."
                && name != ".."
            {
                names.push(name.to_owned());
            }
            if names.len() > LIST_LIMIT {
                return Err(RootError::TooLarge { path: path.to_owned(), limit: LIST_LIMIT as u64 });
            }
        }
        names.sort_unstable();
        Ok(Some(names))
    }

    /// The files that count in a set of drop-in directories, in the order in which they are read: by name, and of files with
    /// one name the one in the earliest directory. An empty file or a link to /dev/null there hides the later ones.
    pub fn drop_ins(&self, dirs: &[&str], suffix: &str) -> Result<Vec<(String, String)>, RootError> {
        let mut winners: BTreeMap<String, String> = BTreeMap::new();
        for dir in dirs {
            for name in self.list(dir)?.unwrap_or_default() {
                if name.ends_with(suffix) && !name.starts_with('.') {
                    winners.entry(name.clone()).or_insert_with(|| format!("{dir}/{name}"));
                }
            }
        }
        let mut files = Vec::new();
        for path in winners.into_values() {
            let hidden = self.link_target(&path)?.as_deref() == Some("/dev/null");
            if !hidden && let Some(bytes) = self.read(&path)? {
                files.push((path, String::from_utf8_lossy(&bytes).into_owned()));
            }
        }
        Ok(files)
    }

    /// Bytes that root's programs can still write where the path is; none when it does not exist.
    pub fn free_bytes(&self, path: &str) -> Result<Option<u64>, RootError> {
        let Some(dir) = self.open_existing(path, OFlag::O_RDONLY)? else { return Ok(None) };
        let stat =
            nix::sys::statvfs::fstatvfs(&dir).map_err(|source| RootError::Open { path: path.to_owned(), source })?;
        #[allow(clippy::useless_conversion)] // the types differ between C libraries
        Ok(Some(u64::from(stat.blocks_available()) * u64::from(stat.fragment_size())))
    }

    /// True when something accepts connections on the Unix socket. Blocks while its queue is full.
    pub fn accepts_connections(&self, path: &str) -> Result<bool, RootError> {
        use std::os::fd::AsRawFd;
        let Some(socket) = self.open_existing(path, OFlag::O_PATH)? else { return Ok(false) };
        // by descriptor: the path in the tree may be longer than an address can be, and would not stay inside the root
        let address = format!("/proc/self/fd/{}", socket.as_raw_fd());
        Ok(std::os::unix::net::UnixStream::connect(address).is_ok())
    }

    /// Where changes are noted.
    pub(in crate::host) fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    fn open_existing(&self, path: &str, flags: OFlag) -> Result<Option<OwnedFd>, RootError> {
        let opened = if flags.contains(OFlag::O_NOFOLLOW) {
            match self.parent_of(path)? {
                Some((parent, name)) => nix::fcntl::openat(&parent, name, flags | OFlag::O_CLOEXEC, Mode::empty()),
                None => return Ok(None),
            }
        } else {
            self.resolver.open(Path::new(path), flags)
        };
        match opened {
            Ok(file) => Ok(Some(file)),
            // a component that is a file, not a directory, means that there is no such path either
            Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(None),
            Err(source) => Err(RootError::Open { path: path.to_owned(), source }),
        }
    }

    fn metadata_of(&self, path: &str, handle: OwnedFd) -> Result<Metadata, RootError> {
        let stat = fstat(handle.as_fd()).map_err(|source| RootError::Open { path: path.to_owned(), source })?;
        Ok(Metadata {
            kind: Kind::of(&stat),
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            size: u64::try_from(stat.st_size).unwrap_or(0),
        })
    }

    /// The directory that holds the name, open, and the name; none when the directory does not exist.
    fn parent_of<'p>(&self, path: &'p str) -> Result<Option<(OwnedFd, &'p str)>, RootError> {
        let (parent, name) = split(path)?;
        match self.resolver.open(Path::new(parent), OFlag::O_RDONLY | OFlag::O_DIRECTORY) {
            Ok(dir) => Ok(Some((dir, name))),
            Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(None),
            Err(source) => Err(RootError::Open { path: parent.to_owned(), source }),
        }
    }
}

/// Directory and name of a path; the root itself and names that are no names are refused.
fn split(path: &str) -> Result<(&str, &str), RootError> {
    let bad = || RootError::BadPath { path: path.to_owned() };
    if !path.starts_with('/') || path.contains('\0') {
        return Err(bad());
    }
    let trimmed = path.trim_end_matches('/');
    let (parent, name) = trimmed.rsplit_once('/').ok_or_else(bad)?;
    if name.is_empty() || name == "." || name == ".." {
        return Err(bad());
    }
    Ok((if parent.is_empty() { "/" } else { parent }, name))
}

#[cfg(test)]
mod tests;
