//! What an ADD was done with, kept until its DEL is done: configuration files change while pods run, and DEL has to
//! undo what was, not what would be.
//!
//! A record is written before the first plugin runs and again with the result. So a record without a result is an ADD
//! that did not finish, and no record means that there is nothing to undo.

use super::{conf::ConfList, pod::PodNetwork};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{
    fs, io,
    path::{Path, PathBuf},
    time::SystemTime,
};

/// Form of the records; a daemon reads those of all its predecessors.
const FORMAT: u32 = 1;
const SUFFIX: &str = ".json";
/// Largest record: the largest answer of a plugin and the largest configuration, with room.
const MAX_SIZE: u64 = 8 * 1024 * 1024;

/// Who runs the plugins of a list. DEL is done by whatever did ADD.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum By {
    /// the executables in the plugin directories
    Exec,
    /// this program itself
    Builtin,
}

/// One sandbox's attachment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    format: u32,
    /// who did the ADD
    pub by: By,
    /// the pod as it was given to ADD
    pub pod: PodNetwork,
    /// the configuration as it was
    pub list: ConfList,
    /// answer of the last plugin
    pub result: Option<Value>,
    /// DEL was asked for and answered; what remains to be done waits for the kernel
    #[serde(default)]
    pub deleted: bool,
    /// when the ADD began, in nanoseconds since 1970; of two pods with one host port the earlier has it
    #[serde(default)]
    pub added: u64,
}

impl Record {
    pub(super) fn new(by: By, pod: PodNetwork, list: ConfList) -> Self {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let added = u64::try_from(since.as_nanos()).unwrap_or(u64::MAX);
        Self { format: FORMAT, by, pod, list, result: None, deleted: false, added }
    }
}

/// Why a record is not to be had.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// the directory could not be made
    #[error("create {path}")]
    Create {
        /// the directory
        path: PathBuf,
        /// the system's answer
        #[source]
        source: io::Error,
    },
    /// the record could not be turned into text
    #[error("encode {path}")]
    Encode {
        /// the record's file
        path: PathBuf,
        /// what went wrong
        #[source]
        source: serde_json::Error,
    },
    /// the record could not be written
    #[error("write {path}")]
    Write {
        /// the file
        path: PathBuf,
        /// the system's answer
        #[source]
        source: io::Error,
    },
    /// the record could not be read
    #[error("read {path}")]
    Read {
        /// the file
        path: PathBuf,
        /// the system's answer
        #[source]
        source: io::Error,
    },
    /// the record makes no sense
    #[error("understand {path}")]
    Decode {
        /// the file
        path: PathBuf,
        /// what is wrong
        #[source]
        source: serde_json::Error,
    },
    /// the record was written by a later version of this program
    #[error("{path} has format {format}, which this version does not know")]
    Format {
        /// the file
        path: PathBuf,
        /// what it says
        format: u32,
    },
    /// the record could not be removed
    #[error("remove {path}")]
    Remove {
        /// the file
        path: PathBuf,
        /// the system's answer
        #[source]
        source: io::Error,
    },
}

/// A directory with one file per sandbox.
#[derive(Debug, Clone)]
pub(super) struct Cache {
    directory: PathBuf,
}

impl Cache {
    pub(super) fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// Where the inputs of plugins are.
    pub(super) fn inputs(&self) -> PathBuf {
        self.directory.join("calls")
    }

    fn path(&self, sandbox: &str) -> PathBuf {
        self.directory.join(format!("{sandbox}{SUFFIX}"))
    }

    /// Writes a record in one step. Not synced: after a power cut no pod runs, and what plugins left is swept by GC.
    pub(super) fn store(&self, record: &Record) -> Result<(), CacheError> {
        fs::create_dir_all(&self.directory)
            .map_err(|source| CacheError::Create { path: self.directory.clone(), source })?;
        let path = self.path(&record.pod.sandbox_id);
        let text = serde_json::to_vec(record).map_err(|source| CacheError::Encode { path: path.clone(), source })?;
        // no suffix: what a crash leaves is not taken for a record
        let temporary = self.directory.join(format!(".{}.new", record.pod.sandbox_id));
        let written = write_private(&temporary, &text).and_then(|()| fs::rename(&temporary, &path));
        written.map_err(|source| CacheError::Write { path, source })
    }

    pub(super) fn load(&self, sandbox: &str) -> Result<Option<Record>, CacheError> {
        let path = self.path(sandbox);
        let read_error = |source| CacheError::Read { path: path.clone(), source };
        let text = match fs::metadata(&path) {
            Ok(metadata) if metadata.len() > MAX_SIZE => {
                return Err(read_error(io::Error::new(io::ErrorKind::FileTooLarge, "record is too large")));
            }
            Ok(_) => fs::read(&path).map_err(read_error)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(read_error(error)),
        };
        #[derive(Deserialize)]
        struct Head {
            format: u32,
        }
        let decode_error = |source| CacheError::Decode { path: path.clone(), source };
        let Head { format } = serde_json::from_slice(&text).map_err(decode_error)?;
        if format > FORMAT {
            return Err(CacheError::Format { path, format });
        }
        serde_json::from_slice(&text).map(Some).map_err(decode_error)
    }

    pub(super) fn remove(&self, sandbox: &str) -> Result<(), CacheError> {
        let path = self.path(sandbox);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(CacheError::Remove { path, source }),
            _ => Ok(()),
        }
    }

    /// Ids of all sandboxes that have a record.
    pub(super) fn sandboxes(&self) -> Result<Vec<String>, CacheError> {
        let read_error = |source| CacheError::Read { path: self.directory.clone(), source };
        let entries = match fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(read_error(error)),
        };
        let mut sandboxes = Vec::new();
        for entry in entries {
            let name = entry.map_err(read_error)?.file_name();
            let id = name.to_str().and_then(|name| name.strip_suffix(SUFFIX));
            sandboxes.extend(id.filter(|id| super::conf::is_name(id)).map(str::to_owned));
        }
        sandboxes.sort();
        Ok(sandboxes)
    }
}

/// Conf lists may carry credentials.
fn write_private(path: &Path, text: &[u8]) -> io::Result<()> {
    use std::{io::Write, os::unix::fs::OpenOptionsExt};
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(id: &str) -> Record {
        let list = super::super::conf::parse(
            br#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"p","k":[1]}]}"#,
            Path::new("/c"),
        );
        let pod = PodNetwork { sandbox_id: id.to_owned(), name: "p".to_owned(), ..PodNetwork::default() };
        Record::new(By::Exec, pod, list.unwrap())
    }

    #[test]
    fn records_come_back_as_stored_and_are_private() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::new(directory.path().join("deep/cni"));
        assert_eq!(cache.load("aa").unwrap(), None);
        assert!(cache.sandboxes().unwrap().is_empty());
        cache.remove("aa").unwrap();
        let mut stored = record("aa");
        cache.store(&stored).unwrap();
        assert_eq!(cache.load("aa").unwrap().as_ref(), Some(&stored));
        stored.result = Some(serde_json::json!({"ips": []}));
        cache.store(&stored).unwrap();
        assert_eq!(cache.load("aa").unwrap(), Some(stored));
        let mode = fs::metadata(cache.path("aa")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        cache.store(&record("bb")).unwrap();
        fs::write(cache.directory.join(".cc.new"), "half").unwrap();
        assert_eq!(cache.sandboxes().unwrap(), ["aa", "bb"]);
        cache.remove("aa").unwrap();
        assert_eq!(cache.sandboxes().unwrap(), ["bb"]);
    }

    #[test]
    fn a_record_of_a_later_version_or_a_broken_one_is_an_error_that_names_it() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::new(directory.path().to_owned());
        fs::write(cache.path("aa"), r#"{"format":2,"anything":true}"#).unwrap();
        let error = cache.load("aa").unwrap_err();
        assert!(error.to_string().contains("aa.json has format 2"), "{error}");
        fs::write(cache.path("aa"), "{").unwrap();
        assert!(matches!(cache.load("aa"), Err(CacheError::Decode { .. })));
    }

    #[test]
    fn records_of_the_first_format_stay_readable() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::new(directory.path().to_owned());
        fs::write(cache.path("aa"), include_str!("fixtures/record-1.json")).unwrap();
        let record = cache.load("aa").unwrap().unwrap();
        assert_eq!((record.by, record.list.name.as_str()), (By::Exec, "pods"));
        assert_eq!(record.pod.port_mappings[0].host_port, 8080);
        assert_eq!(record.result.unwrap()["ips"][0]["address"], "10.1.0.2/24");
    }
}
