//! Records that survive the daemon: one small JSON file per object, versioned and bound to the boot.
//!
//! Written by rename and without fsync: a daemon that dies leaves whole records, and after a power cut nothing that
//! they describe runs any more.

mod proto;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

pub use proto::as_base64;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Format of the records; raised when an older daemon could not make sense of a newer one's.
const VERSION: u32 = 1;

/// A record is some kilobytes; what is bigger was not written by us.
const MAX_SIZE: u64 = 4 << 20;

/// What can go wrong with records.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// A directory could not be made or listed.
    #[error("cannot use {}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A record could not be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A record could not be made into text.
    #[error("cannot encode {}", path.display())]
    Encode {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A record could not be removed.
    #[error("cannot remove {}", path.display())]
    Remove {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// The kinds of records; each has a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Pod sandboxes.
    Pod,
    /// Containers: what changes.
    Container,
    /// Containers: what the shim is to launch, which does not change.
    Spec,
}

impl Kind {
    fn directory(self) -> &'static str {
        match self {
            Kind::Pod => "pods",
            Kind::Container => "containers",
            Kind::Spec => "specs",
        }
    }
}

#[derive(Serialize)]
struct Written<'a, T> {
    version: u32,
    boot: &'a str,
    record: &'a T,
}

#[derive(Deserialize)]
struct Read<T> {
    version: u32,
    boot: String,
    record: T,
}

/// A record as it was found.
#[derive(Debug)]
pub struct Found<T> {
    /// Its name.
    pub id: String,
    /// Written since the host was started.
    pub this_boot: bool,
    /// What it says.
    pub record: T,
}

/// Where records are.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
    boot: String,
}

impl Store {
    /// Makes the directories. `boot` is `/proc/sys/kernel/random/boot_id`.
    pub fn open(root: &Path, boot: &str) -> Result<Self, StateError> {
        for kind in [Kind::Pod, Kind::Container, Kind::Spec] {
            let path = root.join(kind.directory());
            fs::create_dir_all(&path).map_err(|source| StateError::Directory { path, source })?;
        }
        Ok(Store { root: root.to_owned(), boot: boot.trim().to_owned() })
    }

    fn path(&self, kind: Kind, id: &str) -> PathBuf {
        self.root.join(kind.directory()).join(format!("{id}.json"))
    }

    /// Writes a record in one step.
    pub fn write<T: Serialize>(&self, kind: Kind, id: &str, record: &T) -> Result<(), StateError> {
        let path = self.path(kind, id);
        let written = Written { version: VERSION, boot: &self.boot, record };
        let text = match serde_json::to_vec(&written) {
            Ok(text) => text,
            Err(source) => return Err(StateError::Encode { path, source }),
        };
        let temporary = path.with_extension("new");
        fs::write(&temporary, text)
            .and_then(|()| fs::rename(&temporary, &path))
            .map_err(|source| StateError::Write { path, source })
    }

    /// Removes a record; a missing one is as good.
    pub fn remove(&self, kind: Kind, id: &str) -> Result<(), StateError> {
        let path = self.path(kind, id);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(StateError::Remove { path, source }),
            _ => Ok(()),
        }
    }

    /// Reads all records of a kind. One that cannot be read is logged and removed: what it described is swept by those
    /// who find it without an owner.
    pub fn load<T: DeserializeOwned>(&self, kind: Kind) -> Result<Vec<Found<T>>, StateError> {
        let directory = self.root.join(kind.directory());
        let failed = |source| StateError::Directory { path: directory.clone(), source };
        let mut found = Vec::new();
        for entry in fs::read_dir(&directory).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            match read::<T>(&path) {
                Ok(read) => {
                    let id = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
                    found.push(Found { id, this_boot: read.boot == self.boot, record: read.record });
                }
                Err(error) => {
                    log::warn!(path:% = path.display(); "dropping a record that cannot be used: {error}");
                    // it stays and is met again at the next start
                    let _ = fs::remove_file(&path);
                }
            }
        }
        Ok(found)
    }
}

fn read<T: DeserializeOwned>(path: &Path) -> io::Result<Read<T>> {
    if path.extension().is_none_or(|extension| extension != "json") {
        return Err(io::Error::other("it was never finished"));
    }
    let size = fs::metadata(path)?.len();
    if size > MAX_SIZE {
        return Err(io::Error::other(format!("{size} bytes are too many")));
    }
    let read: Read<T> = serde_json::from_slice(&fs::read(path)?)?;
    if read.version > VERSION {
        return Err(io::Error::other(format!("its version is {}, this daemon knows {VERSION}", read.version)));
    }
    Ok(read)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(boot: &str) -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), boot).unwrap();
        (dir, store)
    }

    #[test]
    fn what_was_written_is_found_again() {
        let (dir, store) = store("boot-1\n");
        store.write(Kind::Pod, "a", &7).unwrap();
        store.write(Kind::Pod, "a", &8).unwrap();
        let found = store.load::<i32>(Kind::Pod).unwrap();
        assert_eq!((found.len(), found[0].id.as_str(), found[0].record, found[0].this_boot), (1, "a", 8, true));
        assert!(store.load::<i32>(Kind::Container).unwrap().is_empty());
        let next = Store::open(dir.path(), "boot-2").unwrap();
        assert!(!next.load::<i32>(Kind::Pod).unwrap()[0].this_boot);
    }

    #[test]
    fn removing_twice_is_fine() {
        let (_dir, store) = store("b");
        store.write(Kind::Spec, "a", &1).unwrap();
        store.remove(Kind::Spec, "a").unwrap();
        store.remove(Kind::Spec, "a").unwrap();
        assert!(store.load::<i32>(Kind::Spec).unwrap().is_empty());
    }

    #[test]
    fn what_cannot_be_read_is_dropped_and_the_rest_kept() {
        let (dir, store) = store("b");
        store.write(Kind::Pod, "good", &1).unwrap();
        let pods = dir.path().join("pods");
        fs::write(pods.join("torn.json"), "{\"version\":1,").unwrap();
        fs::write(pods.join("newer.json"), r#"{"version":99,"boot":"b","record":1}"#).unwrap();
        fs::write(pods.join("half.new"), "").unwrap();
        let found = store.load::<i32>(Kind::Pod).unwrap();
        assert_eq!(found.iter().map(|f| f.id.as_str()).collect::<Vec<_>>(), ["good"]);
        assert_eq!(fs::read_dir(&pods).unwrap().count(), 1);
    }
}
