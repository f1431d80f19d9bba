//! One operation at a time per sandbox, any number of sandboxes at once.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::sync::OwnedMutexGuard;

type Entries = Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>;

/// The sandboxes that something is done to.
#[derive(Debug, Default, Clone)]
pub(super) struct SandboxLocks {
    entries: Arc<Entries>,
}

/// Held while something is done to a sandbox; its entry goes with the last one.
#[derive(Debug)]
pub(super) struct SandboxGuard {
    guard: Option<OwnedMutexGuard<()>>,
    id: String,
    entries: Arc<Entries>,
}

impl SandboxLocks {
    pub(super) async fn lock(&self, id: &str) -> SandboxGuard {
        let lock = {
            let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(entries.entry(id.to_owned()).or_default())
        };
        // made before the wait: when the wait is given up, dropping it tidies the entry
        let mut guard = SandboxGuard { guard: None, id: id.to_owned(), entries: Arc::clone(&self.entries) };
        guard.guard = Some(lock.lock_owned().await);
        guard
    }
}

impl Drop for SandboxGuard {
    fn drop(&mut self) {
        self.guard = None;
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        // new references are only made under the map's lock, so a count of one means nobody waits
        if entries.get(&self.id).is_some_and(|lock| Arc::strong_count(lock) == 1) {
            entries.remove(&self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_same_sandbox_waits_another_does_not_and_nothing_is_left() {
        let locks = SandboxLocks::default();
        let first = locks.lock("a").await;
        let _other = locks.lock("b").await;
        let mut waiting = Box::pin(locks.lock("a"));
        assert!(futures_util::poll!(&mut waiting).is_pending());
        {
            let mut given_up = Box::pin(locks.lock("a"));
            assert!(futures_util::poll!(&mut given_up).is_pending());
        }
        drop(first);
        drop(waiting.await);
        assert_eq!(locks.entries.lock().unwrap().keys().collect::<Vec<_>>(), ["b"]);
    }
}
