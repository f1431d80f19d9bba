//! One run at a time: flock on a file that also says who holds it.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::{RUN_DIR, STATE_DIR};
use crate::host::root::Ownership;
use crate::host::{Host, RootError};
use crate::plan::Stage;

/// For whom a run waits, and how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// For nobody.
    None,
    /// For whoever it is.
    For(Duration),
    /// Only for a run that waits for no unit. The units that start behind this run wait for it: a run that waits for one of them
    /// would never end as long as this one waits for it.
    ForThoseBefore(Duration),
}

/// Why the lock is not held.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Its file.
    #[error("open lock {path}")]
    Open {
        /// Path on the host.
        path: String,
        /// Why.
        #[source]
        source: RootError,
    },
    /// The file is there, the lock is not.
    #[error("lock {path}")]
    Lock {
        /// Path on the host.
        path: String,
        /// Why.
        #[source]
        source: Errno,
    },
    /// Saying who holds it.
    #[error("write lock {path}")]
    Write {
        /// Path on the host.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Somebody else is at it.
    #[error("another run holds {path}: {holder}")]
    Busy {
        /// Path on the host.
        path: String,
        /// Process id and command.
        holder: String,
    },
    /// Somebody else is at it, who may wait for what comes after this run.
    #[error("another run holds {path}, and may wait for units that start after this one: {holder}")]
    Ahead {
        /// Path on the host.
        path: String,
        /// Process id and command.
        holder: String,
    },
}

/// Held as long as it lives; the kernel lets go of it even when the process is killed.
#[derive(Debug)]
pub struct Lock {
    _file: Flock<File>,
}

impl Lock {
    /// Takes the lock, waiting for whoever holds it as long as `patience` lasts.
    pub async fn take(host: &Host, command: &str, patience: Patience) -> Result<Lock, LockError> {
        // the lock of a tree lies in the tree: two bakes of different trees do not mind each other
        let dir = if host.is_offline() { STATE_DIR } else { RUN_DIR };
        let path = format!("{dir}/agent.lock");
        let open = |source| LockError::Open { path: path.clone(), source };
        if !host.root.exists(dir).map_err(open)? {
            let mode = if host.is_offline() { 0o700 } else { 0o755 };
            host.root.make_directory(dir, Ownership { mode, uid: 0, gid: 0 }).map_err(open)?;
        }
        let file = host.root.open_append(&path, 0o644).map_err(open)?;
        let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(locked) => locked,
            Err((file, Errno::EWOULDBLOCK)) => wait(file, &path, patience).await?,
            Err((_, source)) => return Err(LockError::Lock { path, source }),
        };
        let mut lock = Lock { _file: file };
        lock.sign(command).map_err(|source| LockError::Write { path, source })?;
        Ok(lock)
    }

    fn sign(&mut self, command: &str) -> std::io::Result<()> {
        self._file.set_len(0)?;
        self._file.write_all(format!("{} {command}\n", std::process::id()).as_bytes())
    }
}

async fn wait(mut file: File, path: &str, patience: Patience) -> Result<Flock<File>, LockError> {
    let holder = holder(&mut file).unwrap_or_else(|| "it does not say who it is".to_owned());
    let busy = || LockError::Busy { path: path.to_owned(), holder: holder.clone() };
    let patience = match patience {
        Patience::None => return Err(busy()),
        Patience::ForThoseBefore(_) if !waits_for_no_unit(&holder) => {
            return Err(LockError::Ahead { path: path.to_owned(), holder });
        }
        Patience::For(time) | Patience::ForThoseBefore(time) => time,
    };
    log::info!("waiting for another run: {holder}");
    // flock has no deadline; a thread that still waits when it passes ends with the process
    let waiting = tokio::task::spawn_blocking(move || Flock::lock(file, FlockArg::LockExclusive));
    match tokio::time::timeout(patience, waiting).await {
        Ok(Ok(Ok(locked))) => Ok(locked),
        Ok(Ok(Err((_, source)))) => Err(LockError::Lock { path: path.to_owned(), source }),
        Ok(Err(_)) | Err(_) => Err(busy()),
    }
}

/// The stages before the units only enqueue them.
fn waits_for_no_unit(holder: &str) -> bool {
    [Stage::Early, Stage::Prepare].iter().any(|stage| holder.ends_with(&format!("--stage {}", stage.word())))
}

/// Process id and command, as the holder wrote them.
fn holder(file: &mut File) -> Option<String> {
    let mut text = String::new();
    file.rewind().ok()?;
    file.take(4096).read_to_string(&mut text).ok()?;
    let (pid, command) = text.trim_end().split_once(' ')?;
    Some(format!("pid {pid}, {command}"))
}
