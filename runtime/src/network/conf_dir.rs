//! The directory of network configurations: which one counts, and why none does.
//!
//! Nothing is watched. Each question looks at the directory (one readdir and a stat per file, tens of microseconds) and
//! reads the files again only when one of them changed: the answer is never older than the question, and there is no
//! event to miss.

use super::conf::{self, ConfError, ConfList};
use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

/// Largest configuration that is read.
const MAX_SIZE: u64 = 1024 * 1024;
/// Most files that are looked at.
const MAX_FILES: usize = 256;

/// Why pods cannot get a network.
#[derive(Debug, Clone, thiserror::Error)]
pub enum NotReady {
    /// the directory cannot be listed; that it is missing is the usual state before a CNI is installed
    #[error("cannot read CNI configuration directory {path}: {source}")]
    Directory {
        /// the directory
        path: PathBuf,
        /// the system's answer
        source: Arc<io::Error>,
    },
    /// there is no file to read
    #[error("no CNI configuration (*.conflist, *.conf, *.json) in {path}")]
    Empty {
        /// the directory
        path: PathBuf,
    },
    /// no file is usable; this is the first that is not
    #[error("CNI configuration {file} {reason}", reason = sentence(.source))]
    Broken {
        /// the first broken file
        file: PathBuf,
        /// what is wrong with it
        source: Arc<ConfError>,
    },
    /// none of the files has the network that is asked for
    #[error("no CNI configuration in {path} has the name {name:?}")]
    Named {
        /// the directory
        path: PathBuf,
        /// the wanted name
        name: String,
    },
    /// the configuration names an executable that is not installed
    #[error("CNI plugin {plugin} of {file} is in none of {}", list(.directories))]
    PluginMissing {
        /// the configuration
        file: PathBuf,
        /// the executable
        plugin: String,
        /// where it was looked for
        directories: Vec<PathBuf>,
    },
}

/// The error with its causes: this text is all that an administrator sees of it, in the node's Ready condition.
fn sentence(error: &Arc<ConfError>) -> String {
    let mut text = match &**error {
        readable @ (ConfError::Read(_) | ConfError::Size(_) | ConfError::LoopbackOnly) => readable.to_string(),
        invalid => format!("is invalid: {invalid}"),
    };
    let mut cause = std::error::Error::source(&**error);
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

fn list(directories: &[PathBuf]) -> String {
    directories.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// A file as it was when read.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp {
    path: PathBuf,
    inode: u64,
    size: u64,
    /// changes with every write, rename and chmod, and cannot be set back
    changed: (i64, i64),
}

#[derive(Debug, Default)]
struct Remembered {
    stamps: Vec<Stamp>,
    chosen: Option<Result<Arc<ConfList>, NotReady>>,
}

/// The directory, remembered as it was last seen.
#[derive(Debug)]
pub(super) struct ConfDir {
    path: PathBuf,
    /// the only network that counts, when the administrator named one
    name: Option<String>,
    remembered: Mutex<Remembered>,
}

impl ConfDir {
    pub(super) fn new(path: PathBuf, name: Option<String>) -> Self {
        Self { path, name, remembered: Mutex::default() }
    }

    /// The first usable configuration, in the order of file names.
    pub(super) fn current(&self) -> Result<Arc<ConfList>, NotReady> {
        let stamps =
            self.look().map_err(|source| NotReady::Directory { path: self.path.clone(), source: Arc::new(source) })?;
        let mut remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(chosen) = remembered.chosen.as_ref().filter(|_| remembered.stamps == stamps) {
            return chosen.clone();
        }
        let chosen = self.choose(&stamps);
        match &chosen {
            Ok(list) => {
                log::info!(network = list.name.as_str(), file = list.source.display().to_string().as_str(); "pod network chosen");
            }
            Err(reason) => log::warn!(reason = reason.to_string().as_str(); "no pod network"),
        }
        *remembered = Remembered { stamps, chosen: Some(chosen.clone()) };
        chosen
    }

    fn look(&self) -> io::Result<Vec<Stamp>> {
        let mut paths = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let path = entry?.path();
            if path.extension().is_some_and(|end| end == "conflist" || end == "conf" || end == "json") {
                paths.push(path);
            }
        }
        paths.sort();
        paths.truncate(MAX_FILES);
        // a file that vanished meanwhile is as good as never seen; a dangling link is not: it is stamped to be reported
        let stamp = |path: PathBuf| match fs::metadata(&path).or_else(|_| fs::symlink_metadata(&path)) {
            Ok(metadata) if metadata.is_dir() => None,
            Ok(metadata) => Some(Stamp {
                path,
                inode: metadata.ino(),
                size: metadata.len(),
                changed: (metadata.ctime(), metadata.ctime_nsec()),
            }),
            Err(_) => None,
        };
        Ok(paths.into_iter().filter_map(stamp).collect())
    }

    fn choose(&self, stamps: &[Stamp]) -> Result<Arc<ConfList>, NotReady> {
        let mut first_broken = None;
        let mut other_network = false;
        for stamp in stamps {
            match read(&stamp.path) {
                Ok(list) if self.name.as_ref().is_none_or(|name| *name == list.name) => return Ok(Arc::new(list)),
                Ok(_) => other_network = true,
                Err(error) => {
                    log::warn!(file = stamp.path.display().to_string().as_str(), error = error.to_string().as_str(); "CNI configuration left out");
                    first_broken.get_or_insert((stamp.path.clone(), error));
                }
            }
        }
        match (first_broken, &self.name) {
            (None, Some(name)) if other_network => Err(NotReady::Named { path: self.path.clone(), name: name.clone() }),
            (Some((file, error)), _) => Err(NotReady::Broken { file, source: Arc::new(error) }),
            (None, _) => Err(NotReady::Empty { path: self.path.clone() }),
        }
    }
}

fn read(path: &Path) -> Result<ConfList, ConfError> {
    let size = fs::metadata(path).map_err(ConfError::Read)?.len();
    if size > MAX_SIZE {
        return Err(ConfError::Size(size));
    }
    conf::parse(&fs::read(path).map_err(ConfError::Read)?, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Dir(tempfile::TempDir);

    impl Dir {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn write(&self, name: &str, text: &str) {
            fs::write(self.0.path().join(name), text).unwrap();
        }

        fn network(&self, file: &str, name: &str) {
            self.write(file, &format!(r#"{{"cniVersion":"1.0.0","name":"{name}","plugins":[{{"type":"p"}}]}}"#));
        }

        fn open(&self) -> ConfDir {
            ConfDir::new(self.0.path().to_owned(), None)
        }
    }

    fn chosen(dir: &ConfDir) -> String {
        dir.current().map_or_else(|error| error.to_string(), |list| list.name.clone())
    }

    #[test]
    fn the_first_usable_file_by_name_counts_and_changes_are_seen_at_once() {
        let files = Dir::new();
        let dir = files.open();
        assert!(chosen(&dir).starts_with("no CNI configuration"));
        files.network("20-b.conflist", "b");
        assert_eq!(chosen(&dir), "b");
        files.network("10-a.conf", "a");
        files.network("00-note.txt", "no");
        assert_eq!(chosen(&dir), "a");
        files.write("10-a.conf", "{");
        assert_eq!(chosen(&dir), "b");
        fs::remove_file(files.0.path().join("20-b.conflist")).unwrap();
        assert!(
            chosen(&dir).contains("10-a.conf is invalid: not a JSON object of the CNI form: EOF"),
            "{}",
            chosen(&dir)
        );
        files.network("10-a.conf", "again");
        assert_eq!(chosen(&dir), "again");
        files.0.close().unwrap();
        assert!(chosen(&dir).starts_with("cannot read CNI configuration directory"));
    }

    #[test]
    fn an_unchanged_directory_is_not_read_again() {
        let files = Dir::new();
        files.network("a.conflist", "a");
        let dir = files.open();
        let (first, second) = (dir.current().unwrap(), dir.current().unwrap());
        assert!(Arc::ptr_eq(&first, &second));
        // same length, same inode
        files.network("a.conflist", "b");
        assert_eq!(chosen(&dir), "b");
    }

    #[test]
    fn leftovers_that_are_no_network_do_not_win() {
        let files = Dir::new();
        files.write("00-loopback.conf", r#"{"cniVersion":"0.3.1","name":"lo","type":"loopback"}"#);
        std::os::unix::fs::symlink("gone", files.0.path().join("05-dangling.conflist")).unwrap();
        fs::create_dir(files.0.path().join("06-directory.conf")).unwrap();
        files.network("10-a.conflist", "a");
        assert_eq!(chosen(&files.open()), "a");
        fs::remove_file(files.0.path().join("10-a.conflist")).unwrap();
        assert!(chosen(&files.open()).ends_with("00-loopback.conf has the loopback plugin only"));
    }

    #[test]
    fn a_named_network_is_the_only_one_that_counts() {
        let files = Dir::new();
        files.network("10-podman.conflist", "podman");
        let dir = ConfDir::new(files.0.path().to_owned(), Some("calico".into()));
        assert!(chosen(&dir).contains("has the name \"calico\""));
        files.network("20-calico.conflist", "calico");
        assert_eq!(chosen(&dir), "calico");
    }

    #[test]
    fn a_file_beyond_the_bound_is_not_read() {
        let files = Dir::new();
        files.write("a.conf", &" ".repeat(1024 * 1024 + 1));
        assert!(chosen(&files.open()).ends_with("a.conf is 1048577 bytes large"), "{}", chosen(&files.open()));
    }
}
