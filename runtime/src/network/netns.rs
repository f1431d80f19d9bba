//! Names of network namespaces: bind mounts under `/run/netns`, where plugins and people look for them.

use nix::{
    errno::Errno,
    mount::{MntFlags, umount2},
    sys::statfs::{NSFS_MAGIC, PROC_SUPER_MAGIC, statfs},
};
use std::{
    collections::HashSet,
    fs, io,
    path::{Path, PathBuf},
};

/// Where `ip netns` and CNI plugins keep namespaces.
pub const DIRECTORY: &str = "/run/netns";
/// Begins the names that are ours.
const PREFIX: &str = "nodeagent-";
/// Mounts on one name that are taken off before giving up: one each time a crash came between mount and record.
const MAX_LAYERS: usize = 64;

/// A namespace's name could not be removed.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// the directory cannot be listed
    #[error("list {path}")]
    List {
        /// the directory
        path: PathBuf,
        /// the system's answer
        #[source]
        source: io::Error,
    },
    /// the namespace cannot be unmounted
    #[error("unmount {path}")]
    Unmount {
        /// the name
        path: PathBuf,
        /// the system's answer
        #[source]
        source: Errno,
    },
    /// the file cannot be removed
    #[error("remove {path}")]
    Remove {
        /// the name
        path: PathBuf,
        /// the system's answer
        #[source]
        source: io::Error,
    },
}

/// Whether a namespace can be entered by this path. A name whose mount is gone is an ordinary empty file.
pub fn is_namespace(path: &Path) -> bool {
    // namespaces named by process (/proc/1/ns/net) were in procfs up to Linux 3.18
    statfs(path).is_ok_and(|info| matches!(info.filesystem_type(), NSFS_MAGIC | PROC_SUPER_MAGIC))
}

/// The directory with the names of all pods' namespaces.
#[derive(Debug, Clone)]
pub struct NetnsDir {
    path: PathBuf,
}

impl Default for NetnsDir {
    fn default() -> Self {
        Self::new(DIRECTORY)
    }
}

impl NetnsDir {
    /// Another directory than [`DIRECTORY`], for tests.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// The name of a sandbox's namespace.
    pub fn name(&self, sandbox_id: &str) -> PathBuf {
        self.path.join(format!("{PREFIX}{sandbox_id}"))
    }

    /// Removes the name of a sandbox's namespace; fine when there is none. The namespace itself lives on for as long as
    /// a process is in it, and then dies with its interfaces, in the background.
    pub fn remove(&self, sandbox_id: &str) -> Result<(), NetnsError> {
        remove(&self.name(sandbox_id))
    }

    /// Removes the names of all namespaces of ours but those of the sandboxes in `known`. Says which ones it removed
    /// and which it could not.
    pub fn sweep(&self, known: &HashSet<String>) -> Result<Sweep, NetnsError> {
        let list_error = |source| NetnsError::List { path: self.path.clone(), source };
        let entries = match fs::read_dir(&self.path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Sweep::default()),
            Err(error) => return Err(list_error(error)),
        };
        let mut sweep = Sweep::default();
        for entry in entries {
            let name = entry.map_err(list_error)?.file_name();
            let Some(id) = name.to_str().and_then(|name| name.strip_prefix(PREFIX)) else { continue };
            if known.contains(id) {
                continue;
            }
            match self.remove(id) {
                Ok(()) => sweep.removed.push(id.to_owned()),
                Err(error) => sweep.failed.push(error),
            }
        }
        Ok(sweep)
    }
}

/// What a sweep did.
#[derive(Debug, Default)]
pub struct Sweep {
    /// ids of the sandboxes whose leftovers are gone
    pub removed: Vec<String>,
    /// why others are not
    pub failed: Vec<NetnsError>,
}

fn remove(path: &Path) -> Result<(), NetnsError> {
    for _ in 0..MAX_LAYERS {
        // lazily: a plugin or a person who looks at it just now does not keep the name
        match umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => {}
            // no mount point, or nothing at all
            Err(Errno::EINVAL | Errno::ENOENT) => break,
            Err(source) => return Err(NetnsError::Unmount { path: path.to_owned(), source }),
        }
    }
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(NetnsError::Remove { path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}
