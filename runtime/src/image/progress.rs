//! How far pulls are: counted by whoever moves bytes, read by `Status`, by the log and by people who wait.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// A pull that takes longer than this says so in the log, again and again.
pub(super) const LOG_EVERY: Duration = Duration::from_secs(10);

/// One running pull.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PullProgress {
    /// What is pulled, or the file that is imported.
    pub image: String,
    /// Since when, in seconds.
    pub seconds: f64,
    /// Compressed bytes of the layers that are not here yet; 0 until the manifest is known.
    pub bytes_total: u64,
    /// Of these, what has come.
    pub bytes: u64,
    /// Layers of the image.
    pub layers_total: usize,
    /// Of these, what is here.
    pub layers: usize,
}

/// The counters behind it.
#[derive(Debug)]
pub(crate) struct Progress {
    image: String,
    started: Instant,
    bytes_total: AtomicU64,
    bytes: AtomicU64,
    layers_total: AtomicUsize,
    layers: AtomicUsize,
}

impl Progress {
    pub(super) fn expect(&self, layers: usize, bytes: u64) {
        self.layers_total.store(layers, Ordering::Relaxed);
        self.bytes_total.store(bytes, Ordering::Relaxed);
    }

    pub(super) fn came(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Another pull brought these, or an attempt that failed.
    pub(super) fn correct(&self, add: u64, take_back: u64) {
        self.bytes.fetch_add(add, Ordering::Relaxed);
        self.bytes.fetch_sub(take_back, Ordering::Relaxed);
    }

    pub(super) fn layer_done(&self) {
        self.layers.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn snapshot(&self) -> PullProgress {
        PullProgress {
            image: self.image.clone(),
            seconds: self.started.elapsed().as_secs_f64(),
            bytes_total: self.bytes_total.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            layers_total: self.layers_total.load(Ordering::Relaxed),
            layers: self.layers.load(Ordering::Relaxed),
        }
    }

    /// A line for the log.
    pub(super) fn log(&self) {
        let now = self.snapshot();
        log::info!(
            reference = self.image.as_str(), bytes = now.bytes, bytes_total = now.bytes_total, layers = now.layers,
            layers_total = now.layers_total, elapsed:? = self.started.elapsed();
            "pulling an image"
        );
    }
}

/// All running pulls.
#[derive(Debug, Clone, Default)]
pub(crate) struct Running(Arc<Mutex<Vec<Weak<Progress>>>>);

impl Running {
    pub(super) fn start(&self, image: String) -> Arc<Progress> {
        let progress = Arc::new(Progress {
            image,
            started: Instant::now(),
            bytes_total: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            layers_total: AtomicUsize::new(0),
            layers: AtomicUsize::new(0),
        });
        let mut running = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        running.retain(|other| other.strong_count() > 0);
        running.push(Arc::downgrade(&progress));
        progress
    }

    pub(super) fn list(&self) -> Vec<PullProgress> {
        let running = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        running.iter().filter_map(Weak::upgrade).map(|progress| progress.snapshot()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pull_is_listed_as_long_as_somebody_works_on_it() {
        let running = Running::default();
        let (first, second) = (running.start("a".into()), running.start("b".into()));
        first.expect(2, 100);
        first.came(60);
        first.correct(10, 30);
        first.layer_done();
        let listed = running.list();
        assert_eq!(listed.iter().map(|one| one.image.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!((listed[0].bytes, listed[0].bytes_total, listed[0].layers, listed[0].layers_total), (40, 100, 1, 2));
        drop(first);
        assert_eq!(running.list().len(), 1);
        drop(second);
        assert!(running.list().is_empty());
    }
}
