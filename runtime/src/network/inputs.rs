//! What plugins are told, and whether the ones of a daemon that was killed are still at work.
//!
//! A plugin outlives a daemon that dies under it. If its network were undone meanwhile, what it takes after that, an address
//! mostly, would belong to nobody. So the input of each call on a pod is a file that is locked: the lock goes with the
//! standard input, and is there as long as the plugin, or what it has started, reads from that.
//!
//! ```text
//! <directory>/<sandbox>.<process of the daemon>.<number>    with flock(2)
//! ```

use nix::{
    errno::Errno,
    sys::memfd::{MFdFlags, memfd_create},
};
use std::{
    collections::HashMap,
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Seek, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::time::{Instant, timeout_at};

/// Time that those of an earlier daemon have, from the first look at them: they are not heard of but by their end.
const PATIENCE: Duration = Duration::from_secs(10);

/// Files of this daemon, and of those before it.
#[derive(Debug)]
pub(super) struct Inputs {
    directory: PathBuf,
    patience: Duration,
    number: AtomicU64,
    left: OnceLock<Left>,
}

/// What was there when this daemon came.
#[derive(Debug)]
struct Left {
    files: Mutex<Files>,
    deadline: Instant,
}

/// By sandbox.
type Files = HashMap<String, Vec<PathBuf>>;

impl Left {
    fn files(&self) -> MutexGuard<'_, Files> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An input, until the call has ended.
#[derive(Debug)]
pub(super) struct Input {
    /// Of an open file description that nobody else reads from.
    pub(super) file: File,
    path: Option<PathBuf>,
}

impl Drop for Input {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            remove(path);
        }
    }
}

impl Inputs {
    /// Touches nothing yet. `limit`: time for a DEL, which this is a part of.
    pub(super) fn new(directory: PathBuf, limit: Duration) -> Self {
        Self { directory, patience: limit.min(PATIENCE), number: AtomicU64::new(0), left: OnceLock::new() }
    }

    /// For a call on a pod.
    pub(super) fn of(&self, sandbox: &str, text: &[u8]) -> io::Result<Input> {
        // what is there from here on is our own
        self.left();
        let (path, file) = loop {
            let number = self.number.fetch_add(1, Ordering::Relaxed);
            let path = self.directory.join(format!("{sandbox}.{}.{number}", std::process::id()));
            match OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path) {
                Ok(file) => break (path, file),
                Err(error) if error.kind() == io::ErrorKind::NotFound => fs::create_dir_all(&self.directory)?,
                // of an earlier daemon with the same process number: a plugin may be reading it
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        };
        let input = Input { file: written(file, text)?, path: Some(path) };
        // unlocked by the last one that has it open
        input.file.try_lock().map_err(io::Error::from)?;
        Ok(input)
    }

    /// For a call that leaves nothing behind.
    pub(super) fn of_nobody(text: &[u8]) -> io::Result<Input> {
        let file = memfd_create(c"cni-input", MFdFlags::MFD_CLOEXEC)?;
        Ok(Input { file: written(File::from(file), text)?, path: None })
    }

    /// Waits until no plugin of an earlier daemon works for a sandbox.
    pub(super) async fn settled(&self, sandbox: &str) {
        let left = self.left();
        let files = left.files().get(sandbox).cloned();
        for path in files.unwrap_or_default() {
            match timeout_at(left.deadline, unlocked(&path)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    log::warn!(path = path.display().to_string().as_str(), error = error.to_string().as_str(); "cannot tell whether a plugin is at work");
                }
                Err(_) => {
                    log::warn!(sandbox = sandbox; "a plugin that an earlier daemon started does not end: what it takes from here on nobody gives back");
                }
            }
            remove(&path);
        }
        left.files().remove(sandbox);
    }

    fn left(&self) -> &Left {
        self.left
            .get_or_init(|| Left { files: Mutex::new(list(&self.directory)), deadline: Instant::now() + self.patience })
    }
}

fn written(mut file: File, text: &[u8]) -> io::Result<File> {
    file.write_all(text)?;
    file.rewind()?;
    Ok(file)
}

fn list(directory: &Path) -> Files {
    let mut files = Files::new();
    match fs::read_dir(directory) {
        Ok(entries) => {
            for entry in entries.flatten() {
                let name = entry.file_name();
                let sandbox = name.to_str().and_then(|name| name.rsplitn(3, '.').nth(2));
                if let Some(sandbox) = sandbox {
                    files.entry(sandbox.to_owned()).or_default().push(entry.path());
                }
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => {
            log::warn!(path = directory.display().to_string().as_str(), error = error.to_string().as_str(); "cannot tell which plugins are at work");
        }
    }
    files
}

/// Waits for its lock. In a thread of its own, which ends with whoever has it: flock(2) blocks, and cannot be given up.
async fn unlocked(path: &Path) -> io::Result<()> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        file => file?,
    };
    match file.try_lock() {
        Ok(()) => return Ok(()),
        Err(TryLockError::WouldBlock) => {}
        Err(TryLockError::Error(error)) => return Err(error),
    }
    let (tell, told) = tokio::sync::oneshot::channel();
    std::thread::Builder::new().name("cni-leftover".to_owned()).spawn(move || {
        // it fails when nobody waits any more
        let _ = tell.send(file.lock());
    })?;
    told.await.map_err(|_| io::Error::from(Errno::ECANCELED))?
}

fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        log::debug!(path = path.display().to_string().as_str(), error = error.to_string().as_str(); "cannot remove a plugin's input");
    }
}
