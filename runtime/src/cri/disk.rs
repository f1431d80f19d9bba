//! How much containers have written. Walking a writable layer costs, and kubelet asks for all of them every ten seconds: so
//! lists give the last measurement, and old ones are renewed one at a time beside them.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nodeagent_cri_api::{FilesystemIdentifier, FilesystemUsage, UInt64Value};
use tokio::sync::Semaphore;

use crate::clock;
use crate::snapshot::measure;

/// No measurement is renewed earlier.
const FRESH: Duration = Duration::from_secs(10);

/// A walk may take this part of the time at most: big layers are measured less often.
const SHARE: u32 = 50;

/// How long a question about one container waits for its first measurement.
const PATIENCE: Duration = Duration::from_secs(5);

/// The last measurements. Clones share them.
#[derive(Debug, Clone)]
pub(super) struct WritableLayers {
    known: Arc<Mutex<HashMap<String, Entry>>>,
    walking: Arc<Semaphore>,
}

#[derive(Debug, Default)]
struct Entry {
    last: Option<Measured>,
    asked: bool,
}

#[derive(Debug, Clone, Copy)]
struct Measured {
    bytes: u64,
    inodes: u64,
    at: i64,
    due: Instant,
}

impl Default for WritableLayers {
    fn default() -> Self {
        WritableLayers { known: Arc::default(), walking: Arc::new(Semaphore::new(1)) }
    }
}

impl WritableLayers {
    /// The last measurement of a container's layer; the next one is begun when that is old.
    pub fn latest(&self, container: &str, upper: &str) -> Option<FilesystemUsage> {
        let last = {
            let mut known = self.lock();
            let entry = known.entry(container.to_owned()).or_default();
            let due = entry.last.is_none_or(|last| last.due <= Instant::now());
            if due && !std::mem::replace(&mut entry.asked, true) {
                tokio::spawn(self.clone().renew(container.to_owned(), PathBuf::from(upper)));
            }
            entry.last
        };
        last.map(|last| usage(&last, upper))
    }

    /// The last measurement, or the first one, which is waited for.
    pub async fn of_one(&self, container: &str, upper: &str) -> Option<FilesystemUsage> {
        let known = self.latest(container, upper);
        if known.is_some() {
            return known;
        }
        let first = async {
            loop {
                // the walk that `latest` has begun holds the place, or waits for it before us
                let place = self.walking.acquire().await;
                if let Some(last) = self.lock().get(container).and_then(|entry| entry.last) {
                    return usage(&last, upper);
                }
                drop(place);
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, first).await.ok()
    }

    /// Forgets the containers that are gone.
    pub fn keep(&self, exists: impl Fn(&str) -> bool) {
        self.lock().retain(|id, _| exists(id));
    }

    async fn renew(self, container: String, upper: PathBuf) {
        // never closed
        let Ok(_place) = self.walking.acquire().await else { return };
        let begun = Instant::now();
        let walked = tokio::task::spawn_blocking(move || measure(&upper)).await;
        let mut known = self.lock();
        // one that was forgotten meanwhile stays so
        let Some(entry) = known.get_mut(&container) else { return };
        entry.asked = false;
        if let Ok((bytes, inodes)) = walked {
            let due = Instant::now() + FRESH.max(begun.elapsed() * SHARE);
            entry.last = Some(Measured { bytes, inodes, at: clock::now(), due });
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn usage(measured: &Measured, upper: &str) -> FilesystemUsage {
    FilesystemUsage {
        timestamp: measured.at,
        fs_id: Some(FilesystemIdentifier { mountpoint: upper.to_owned() }),
        used_bytes: Some(UInt64Value { value: measured.bytes }),
        inodes_used: Some(UInt64Value { value: measured.inodes }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_question_about_one_waits_for_the_first_measurement_and_lists_give_the_last() {
        let layers = WritableLayers::default();
        let dir = tempfile::tempdir().unwrap();
        let upper = dir.path().to_str().unwrap();
        std::fs::write(dir.path().join("file"), vec![1; 100_000]).unwrap();
        assert!(layers.latest("c", upper).is_none(), "a list waits for nobody");
        let first = layers.of_one("c", upper).await.unwrap();
        assert!(first.used_bytes.unwrap().value >= 100_000, "{first:?}");
        assert_eq!(first.fs_id.clone().unwrap().mountpoint, upper);
        std::fs::write(dir.path().join("more"), vec![1; 100_000]).unwrap();
        assert_eq!(layers.latest("c", upper).unwrap(), first, "fresh enough");
        layers.keep(|id| id != "c");
        assert!(layers.latest("c", upper).is_none(), "forgotten");
    }

    #[tokio::test]
    async fn old_measurements_are_renewed_once() {
        let layers = WritableLayers::default();
        let dir = tempfile::tempdir().unwrap();
        let upper = dir.path().to_str().unwrap();
        let first = layers.of_one("c", upper).await.unwrap();
        layers.lock().get_mut("c").unwrap().last.as_mut().unwrap().due = Instant::now();
        std::fs::write(dir.path().join("file"), vec![1; 100_000]).unwrap();
        assert_eq!(layers.latest("c", upper).unwrap(), first, "the old one is given meanwhile");
        while layers.latest("c", upper).unwrap() == first {
            tokio::task::yield_now().await;
        }
        assert!(!layers.lock()["c"].asked);
    }
}
