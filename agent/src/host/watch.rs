//! Waits for changes in a directory.

use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::unix::AsyncFd;

use super::{Host, sys};

/// Why a directory cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// The kernel does not let us.
    #[error("watch {path}")]
    Watch {
        /// Path on the host.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// Tells when something in a directory changed.
#[derive(Debug)]
pub struct Watch {
    inotify: AsyncFd<OwnedFd>,
    path: String,
}

impl Watch {
    /// On a directory; while it does not exist, on the nearest parent that does. The first change there ends the wait too,
    /// and the caller looks and watches again.
    pub fn on(host: &Host, path: &str) -> Result<Watch, WatchError> {
        let failed = |source: Errno| WatchError::Watch { path: path.to_owned(), source: source.into() };
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).map_err(failed)?;
        let flags = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_CLOSE_WRITE;
        let mut below = path;
        loop {
            let full = host.root.path().join(below.trim_start_matches('/'));
            match inotify.add_watch(&full, flags) {
                Err(Errno::ENOENT) if below.len() > 1 => below = below.rsplit_once('/').map_or("/", |(up, _)| up),
                result => {
                    result.map_err(failed)?;
                    break;
                }
            }
        }
        let inotify = sys::watched(OwnedFd::from(inotify))
            .map_err(|source| WatchError::Watch { path: path.to_owned(), source })?;
        Ok(Watch { inotify, path: below.to_owned() })
    }

    /// Waits for the next change.
    pub async fn changed(&mut self) -> Result<(), WatchError> {
        let failed = |source| WatchError::Watch { path: self.path.clone(), source };
        loop {
            let mut ready = self.inotify.readable().await.map_err(failed)?;
            // what changed is of no interest: the caller looks for itself
            let mut events = [0; 4096];
            match nix::unistd::read(ready.get_inner(), &mut events) {
                Ok(_) => return Ok(()),
                Err(Errno::EAGAIN) => ready.clear_ready(),
                Err(error) => return Err(failed(error.into())),
            }
        }
    }
}
