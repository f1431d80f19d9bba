//! How much space images and containers take.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::model::FsUsage;
use super::store::Store;
use crate::snapshot::measure;

/// Walking all writable layers costs, and the kubelet asks every ten seconds.
const FRESH: Duration = Duration::from_secs(30);

impl Store {
    /// Kept up to date by commits and removals, so nothing is walked.
    pub(crate) fn usage(&self) -> FsUsage {
        let (blob_bytes, blobs) = self.content.usage();
        let (bytes, inodes) = self.snapshots.usage();
        FsUsage {
            mountpoint: self.snapshots.directory().to_owned(),
            used_bytes: blob_bytes + bytes,
            inodes_used: blobs + inodes,
        }
    }
}

/// The last measurement of containers' writable layers.
#[derive(Debug)]
pub(crate) struct ContainerUsage {
    directory: PathBuf,
    state: Arc<Mutex<Measured>>,
}

#[derive(Debug, Default)]
struct Measured {
    used_bytes: u64,
    inodes_used: u64,
    at: Option<Instant>,
    running: bool,
}

impl ContainerUsage {
    pub(crate) fn new(directory: PathBuf) -> ContainerUsage {
        ContainerUsage { directory, state: Arc::default() }
    }

    /// The last measurement; starts the next one in the background when it is old.
    pub(crate) fn get(&self) -> FsUsage {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let stale = state.at.is_none_or(|at| at.elapsed() > FRESH);
        if stale && !state.running && tokio::runtime::Handle::try_current().is_ok() {
            state.running = true;
            let (directory, shared) = (self.directory.clone(), self.state.clone());
            tokio::task::spawn_blocking(move || {
                let (used_bytes, inodes_used) = measure(&directory);
                *shared.lock().unwrap_or_else(PoisonError::into_inner) =
                    Measured { used_bytes, inodes_used, at: Some(Instant::now()), running: false };
            });
        }
        FsUsage { mountpoint: self.directory.clone(), used_bytes: state.used_bytes, inodes_used: state.inodes_used }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_writable_layers_are_measured_in_the_background() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("c1")).unwrap();
        std::fs::write(dir.path().join("c1/file"), vec![1; 100_000]).unwrap();
        let usage = ContainerUsage::new(dir.path().to_owned());
        usage.get();
        let deadline = Instant::now() + Duration::from_secs(10);
        while usage.get().inodes_used == 0 && Instant::now() < deadline {
            tokio::task::yield_now().await;
        }
        assert_eq!(usage.get().inodes_used, 2);
        assert!(usage.get().used_bytes >= 100_000);
        assert_eq!(usage.get().mountpoint, dir.path());
    }
}
