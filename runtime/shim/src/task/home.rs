//! What is kept of a task, in a directory of its own below the handler's: its bundle, and how its shim is reached. It has the
//! task's name, as shims expect of bundles, and outlives all processes.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use serde_json::{Value, json};

use super::error::TaskError;

/// Of a file that is read here.
const MAX_FILE: u64 = 8 << 20;

/// Longest id taken.
const MAX_ID: usize = 128;

/// Longest path of a socket, with its final zero.
const MAX_SOCKET: usize = 108;

/// How a shim is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// `unix://` and a path.
    pub address: String,
    /// Of its task service: 2 or 3.
    pub version: u32,
    /// Its process, 0 for none that is known.
    pub pid: i32,
    /// When that began, in ticks since the boot: a number alone may have been given to another one.
    pub began: u64,
    /// Whether the task is the first of its pod, with which the shim ends.
    pub of_pod: bool,
}

impl Address {
    fn parse(text: &[u8]) -> Option<Self> {
        let document: Value = serde_json::from_slice(text).ok()?;
        Some(Self {
            address: document["address"].as_str()?.to_owned(),
            version: u32::try_from(document["version"].as_u64()?).ok()?,
            pid: i32::try_from(document["pid"].as_i64()?).ok()?,
            began: document["began"].as_u64()?,
            of_pod: document["of_pod"].as_bool()?,
        })
    }

    fn document(&self) -> Value {
        let Self { address, version, pid, began, of_pod } = self;
        json!({"address": address, "version": version, "pid": pid, "began": began, "of_pod": of_pod})
    }

    /// The socket.
    pub fn path(&self) -> Result<&Path, TaskError> {
        let path = self.address.strip_prefix("unix://").map(Path::new).filter(|path| path.is_absolute());
        path.ok_or_else(|| {
            TaskError::Usage(format!("address {:?}: only `unix://` and an absolute path are known", self.address))
        })
    }

    /// The process, if it is still the same.
    pub fn process(&self) -> Option<i32> {
        (self.pid > 1 && began(self.pid) == Some(self.began)).then_some(self.pid)
    }
}

/// When a process began, in ticks since the boot.
pub fn began(pid: i32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // the name before may contain anything
    let (_, rest) = text.rsplit_once(')')?;
    rest.split_whitespace().nth(19)?.parse().ok()
}

/// The directory of a task.
#[derive(Debug, Clone)]
pub struct Home {
    root: PathBuf,
    /// Its name.
    pub id: String,
}

impl Home {
    /// That of `id` below the handler's `root`.
    pub fn new(root: &Path, id: &str) -> Result<Self, TaskError> {
        if id.is_empty() || id.len() > MAX_ID || !id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
            return Err(TaskError::Usage(format!("{id:?} is no container id")));
        }
        Ok(Self { root: root.to_owned(), id: id.to_owned() })
    }

    /// Makes it. What is left of another attempt is used again.
    pub fn make(&self) -> Result<(), TaskError> {
        let path = self.path().join("rootfs");
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(TaskError::file("make", path))
    }

    /// Where it is.
    pub fn path(&self) -> PathBuf {
        self.root.join(&self.id)
    }

    /// As text.
    pub fn text(&self) -> String {
        self.path().to_string_lossy().into_owned()
    }

    /// That of another task of the same handler.
    pub fn of(&self, id: &str) -> Result<Self, TaskError> {
        Self::new(&self.root, id)
    }

    /// Where runc is to keep its own.
    pub fn runc_root(&self) -> String {
        self.root.join("runc").to_string_lossy().into_owned()
    }

    /// Where the shim of the pod tells what happens. Short: addresses have a bound.
    pub fn events(&self) -> Result<PathBuf, TaskError> {
        let path = self.root.join("events").join(self.id.get(..16).unwrap_or(&self.id));
        if path.as_os_str().len() >= MAX_SOCKET {
            let path = path.display();
            return Err(TaskError::Usage(format!(
                "{path}: longer than an address can be; give the runtime a shorter `root`"
            )));
        }
        Ok(path)
    }

    /// How its shim is reached; none when it never was.
    pub fn address(&self) -> Result<Option<Address>, TaskError> {
        let path = self.path().join("shim.json");
        match read(&path) {
            Ok(text) => match Address::parse(&text) {
                Some(address) => Ok(Some(address)),
                None => Err(TaskError::Document { path, reason: "no address of a shim".to_owned() }),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(TaskError::File { action: "read", path, source }),
        }
    }

    /// Notes how its shim is reached.
    pub fn note_address(&self, address: &Address) -> Result<(), TaskError> {
        self.write("shim.json", address.document().to_string().as_bytes())
    }

    /// Writes a file of it.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<(), TaskError> {
        write(&self.path().join(name), bytes)
    }

    /// Notes something for people, where the log of its shim is.
    pub fn note(&self, message: &str) {
        let file = fs::OpenOptions::new().append(true).create(true).mode(0o600).open(self.path().join("shim.log"));
        if let Ok(mut file) = file {
            // there is no better place: the standard streams are the container's
            let _ = writeln!(file, "nodeagent-shim: {message}");
        }
    }

    /// Whether it has that file.
    pub fn has(&self, name: &str) -> bool {
        self.path().join(name).exists()
    }

    /// Removes it with all that is in it.
    pub fn remove(&self) -> Result<(), TaskError> {
        let path = self.path();
        match fs::remove_dir_all(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(TaskError::File { action: "remove", path, source })
            }
            _ => Ok(()),
        }
    }
}

/// Reads a file, up to a bound.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    Ok(bytes)
}

/// Writes a file so that nobody sees a part of it.
pub fn write(path: &Path, bytes: &[u8]) -> Result<(), TaskError> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    let written = || {
        let mut options = fs::OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600).custom_flags(OFlag::O_NOFOLLOW.bits());
        options.open(&new)?.write_all(bytes)?;
        fs::rename(&new, path)
    };
    written().map_err(TaskError::file("write", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_kept_and_names_a_process_only_while_that_is_the_same() {
        let directory = tempfile::tempdir().unwrap();
        let home = Home::new(directory.path(), "abc").unwrap();
        home.make().unwrap();
        assert_eq!(home.address().unwrap(), None);
        let pid = std::process::id().cast_signed();
        let began = began(pid).unwrap();
        let address = Address { address: "unix:///run/x".into(), version: 2, pid, began, of_pod: true };
        home.note_address(&address).unwrap();
        let read = home.address().unwrap().unwrap();
        assert_eq!((&read, read.process()), (&address, Some(pid)));
        assert_eq!(Address { began: began + 1, ..read }.process(), None);
        home.write("shim.json", b"{}").unwrap();
        assert!(home.address().unwrap_err().to_string().ends_with("shim.json: no address of a shim"));
        home.remove().unwrap();
        home.remove().unwrap();
    }

    #[test]
    fn names_and_addresses_lead_nowhere_else() {
        for id in ["", "..", "a/b", "a.b"] {
            assert!(Home::new(Path::new("/r"), id).is_err(), "{id}");
        }
        let of = |address: &str| Address { address: address.into(), version: 2, pid: 0, began: 0, of_pod: false };
        assert_eq!(of("unix:///run/s").path().unwrap(), Path::new("/run/s"));
        for address in ["unix://run/s", "vsock://2:1", "/run/s", ""] {
            assert!(of(address).path().is_err(), "{address}");
        }
        let long = Home::new(&Path::new("/").join("x".repeat(120)), "abc").unwrap();
        assert!(long.events().unwrap_err().to_string().contains("shorter `root`"));
    }
}
