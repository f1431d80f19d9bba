//! Addresses from ranges, kept in the same files as the reference plugin `host-local` keeps them: one file per address
//! in use, named after it, with the owner inside; the last one given out of each pool; a lock. Both can work on one
//! directory at the same time.

use super::conf::{Pool, Range, from_bits, to_bits};
use nix::fcntl::{Flock, FlockArg};
use std::{
    fs, io,
    io::Write,
    net::IpAddr,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

/// A mark on its way; no name of an address.
const UNFINISHED: &str = "unfinished.nodeagent";

/// Who has an address: a sandbox and its interface.
#[derive(Debug, Clone, Copy)]
pub(super) struct Owner<'a> {
    pub(super) sandbox: &'a str,
    pub(super) interface: &'a str,
}

impl Owner<'_> {
    fn text(self) -> String {
        // the separator is the reference plugin's
        format!("{}\r\n{}", self.sandbox, self.interface)
    }
}

/// An address that was given out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Lease {
    pub(super) ip: IpAddr,
    pub(super) prefix: u8,
    pub(super) gateway: IpAddr,
}

/// No address, or none could be given back.
#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    /// the directory could not be made
    #[error("create address store {path}")]
    Create {
        /// the directory
        path: PathBuf,
        /// the system's answer
        #[source]
        source: io::Error,
    },
    /// the directory could not be locked
    #[error("lock address store {path}")]
    Lock {
        /// the lock's file
        path: PathBuf,
        /// the system's answer
        #[source]
        source: io::Error,
    },
    /// the directory could not be listed
    #[error("list address store {path}")]
    List {
        /// the directory
        path: PathBuf,
        /// the system's answer
        #[source]
        source: io::Error,
    },
    /// an address could not be marked as used
    #[error("write {path}")]
    Write {
        /// the address's file
        path: PathBuf,
        /// the system's answer
        #[source]
        source: io::Error,
    },
    /// an address could not be marked as free
    #[error("remove {path}")]
    Remove {
        /// the address's file
        path: PathBuf,
        /// the system's answer
        #[source]
        source: io::Error,
    },
    /// all are in use
    #[error("no address left in {first}-{last} ({path})")]
    Exhausted {
        /// first address of the pool
        first: IpAddr,
        /// last address of the pool
        last: IpAddr,
        /// the directory that says who has them
        path: PathBuf,
    },
}

/// The addresses of one network.
#[derive(Debug)]
pub(super) struct Store<'a> {
    directory: &'a Path,
    _lock: Flock<fs::File>,
}

impl<'a> Store<'a> {
    /// Opens the directory, and has it for itself while it lives.
    pub(super) fn open(directory: &'a Path) -> Result<Self, AddressError> {
        fs::create_dir_all(directory).map_err(|source| AddressError::Create { path: directory.to_owned(), source })?;
        let path = directory.join("lock");
        let lock_error = |source: io::Error| AddressError::Lock { path: path.clone(), source };
        let file = fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let lock = Flock::lock(file.map_err(lock_error)?, FlockArg::LockExclusive)
            .map_err(|(_, errno)| lock_error(errno.into()))?;
        Ok(Self { directory, _lock: lock })
    }

    /// One address from each pool, or none.
    pub(super) fn allocate(&self, pools: &[Pool], owner: Owner<'_>) -> Result<Vec<Lease>, AddressError> {
        let mut leases: Vec<Lease> = Vec::with_capacity(pools.len());
        for (index, pool) in pools.iter().enumerate() {
            match self.take(index, pool, owner) {
                Ok(lease) => leases.push(lease),
                Err(error) => {
                    let taken: Vec<_> = leases.iter().map(|lease| lease.ip).collect();
                    if !taken.is_empty() {
                        self.release(owner, &taken)?;
                    }
                    return Err(error);
                }
            }
        }
        Ok(leases)
    }

    /// The next free address after the one given out last, so that one that was just freed rests for a while.
    fn take(&self, index: usize, pool: &Pool, owner: Owner<'_>) -> Result<Lease, AddressError> {
        let marker = self.directory.join(format!("last_reserved_ip.{index}"));
        let last: Option<IpAddr> = fs::read_to_string(&marker).ok().and_then(|text| text.trim().parse().ok());
        for (ip, range) in candidates(pool, last) {
            if ip == range.gateway || !self.mark(ip, owner)? {
                continue;
            }
            overwrite(&marker, &ip.to_string()).map_err(|source| AddressError::Write { path: marker, source })?;
            return Ok(Lease { ip, prefix: range.prefix, gateway: range.gateway });
        }
        // pools are not empty
        let (first, last) = (pool.first(), pool.last());
        Err(AddressError::Exhausted {
            first: first.map_or(IpAddr::from([0; 4]), |range| range.first),
            last: last.map_or(IpAddr::from([0; 4]), |range| range.last),
            path: self.directory.to_owned(),
        })
    }

    /// Marks an address as used; `false` when it is. Nobody ever sees the mark without its owner, also not after a crash:
    /// such a one could not be given back.
    fn mark(&self, ip: IpAddr, owner: Owner<'_>) -> Result<bool, AddressError> {
        let path = self.directory.join(ip.to_string());
        match fs::symlink_metadata(&path) {
            Ok(file) if is_of_nobody(&file) => {}
            Ok(_) => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(AddressError::Write { path, source }),
        }
        let unfinished = self.directory.join(UNFINISHED);
        let written = overwrite(&unfinished, &owner.text()).and_then(|()| fs::rename(&unfinished, &path));
        written.map(|()| true).map_err(|source| AddressError::Write { path, source })
    }

    /// Frees everything that an owner has. `known` spares looking through all files.
    pub(super) fn release(&self, owner: Owner<'_>, known: &[IpAddr]) -> Result<(), AddressError> {
        for ip in known {
            self.free(&self.directory.join(ip.to_string()), owner)?;
        }
        if !known.is_empty() {
            return Ok(());
        }
        let list_error = |source| AddressError::List { path: self.directory.to_owned(), source };
        for entry in fs::read_dir(self.directory).map_err(list_error)? {
            let entry = entry.map_err(list_error)?;
            if entry.file_name().to_str().is_some_and(|name| name.parse::<IpAddr>().is_ok()) {
                self.free(&entry.path(), owner)?;
            }
        }
        Ok(())
    }

    fn free(&self, path: &Path, owner: Owner<'_>) -> Result<(), AddressError> {
        let of_nobody = || fs::symlink_metadata(path).is_ok_and(|file| is_of_nobody(&file));
        if of_nobody() || fs::read_to_string(path).is_ok_and(|text| text.trim() == owner.text()) {
            fs::remove_file(path).map_err(|source| AddressError::Remove { path: path.to_owned(), source })?;
        }
        Ok(())
    }
}

/// All addresses of a pool once, beginning behind `last`.
fn candidates(pool: &Pool, last: Option<IpAddr>) -> impl Iterator<Item = (IpAddr, &Range)> {
    let ends = |range: &Range| (to_bits(range.first).0, to_bits(range.last).0);
    let place = last.map(to_bits).and_then(|(last, _)| {
        let holds = |range: &Range| (ends(range).0..=ends(range).1).contains(&last);
        Some((pool.iter().position(holds)?, last))
    });
    let mut segments: Vec<_> = pool.iter().map(|range| (ends(range), range)).collect();
    if let Some((position, last)) = place {
        // its own range is cut in two: what is behind comes first, then the other ranges, then what is before
        segments.rotate_left(position);
        let ((first, end), range) = segments[0];
        segments[0] = ((last.saturating_add(1), end), range);
        segments.push(((first, last), range));
    }
    segments
        .into_iter()
        .flat_map(|((first, end), range)| (first..=end).map(move |bits| (from_bits(bits, range.first), range)))
}

/// The reference plugin writes the owner after it has made the file, and the disk may lose what was just written: whoever
/// has the lock and sees an empty file sees one whose writer has died.
fn is_of_nobody(file: &fs::Metadata) -> bool {
    file.is_file() && file.len() == 0
}

/// Not truncated before it is written: ext4 makes whoever closes a file that was truncated wait for the disk.
fn overwrite(path: &Path, text: &str) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    file.set_len(text.len() as u64)
}

#[cfg(test)]
#[path = "host_local_tests.rs"]
mod tests;
