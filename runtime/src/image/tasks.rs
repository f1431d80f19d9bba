//! Running pulls: one task per reference and credentials, however many callers wait for it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::credentials::Credentials;
use super::error::ImageError;
use super::model::Image;
use super::reference::Reference;

pub(crate) type Key = (Reference, Option<Credentials>);
type Outcome = Result<Arc<Image>, Arc<ImageError>>;
type Running = HashMap<Key, watch::Receiver<Option<Outcome>>>;

/// The tasks of this process. They end by themselves or at shutdown, not when a caller goes away.
#[derive(Debug, Default)]
pub(crate) struct Tasks {
    running: Arc<Mutex<Running>>,
    tracker: TaskTracker,
    stop: CancellationToken,
}

impl Tasks {
    /// Waits for the task with this key, starting it when there is none.
    pub(crate) async fn join<F>(&self, key: Key, start: impl FnOnce() -> F) -> Result<Arc<Image>, ImageError>
    where
        F: Future<Output = Result<Arc<Image>, ImageError>> + Send + 'static,
    {
        let mut result = self.enter(key, start);
        let outcome = match result.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.clone(),
            Err(_) => None,
        };
        match outcome {
            Some(Ok(image)) => Ok(image),
            Some(Err(error)) => Err(ImageError::Shared(error)),
            // stopped, or a defect: the task is gone without a result
            None => Err(ImageError::ShuttingDown),
        }
    }

    fn enter<F>(&self, key: Key, start: impl FnOnce() -> F) -> watch::Receiver<Option<Outcome>>
    where
        F: Future<Output = Result<Arc<Image>, ImageError>> + Send + 'static,
    {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(result) = running.get(&key) {
            return result.clone();
        }
        let (publish, result) = watch::channel(None);
        if self.stop.is_cancelled() {
            return result;
        }
        running.insert(key.clone(), result.clone());
        let leave = Leave { running: self.running.clone(), key };
        let (stop, work) = (self.stop.clone(), start());
        self.tracker.spawn(async move {
            // cancel safety: both branches end the task
            let outcome = tokio::select! {
                outcome = work => outcome.map_err(Arc::new),
                () = stop.cancelled() => Err(Arc::new(ImageError::ShuttingDown)),
            };
            // first out of the map: whoever asks from now on gets a pull of their own
            drop(leave);
            let _ = publish.send(Some(outcome));
        });
        result
    }

    /// Stops everything and waits for it.
    pub(crate) async fn shutdown(&self) {
        self.stop.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }
}

/// Takes a task out of the map, even when it panics.
struct Leave {
    running: Arc<Mutex<Running>>,
    key: Key,
}

impl Drop for Leave {
    fn drop(&mut self) {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::Semaphore;

    use super::*;

    fn key(reference: &str) -> Key {
        (Reference::parse(reference).unwrap(), None)
    }

    /// Counts how often it was started and waits for a permit.
    fn work(
        started: &Arc<AtomicUsize>,
        gate: &Arc<Semaphore>,
    ) -> impl Future<Output = Result<Arc<Image>, ImageError>> + Send + 'static {
        started.fetch_add(1, Ordering::SeqCst);
        let gate = gate.clone();
        async move {
            gate.acquire().await.unwrap().forget();
            Err(ImageError::NotHere { image: "x".into() })
        }
    }

    #[tokio::test]
    async fn callers_share_a_task_and_a_finished_one_is_never_served_again() {
        let tasks = Arc::new(Tasks::default());
        let (started, gate) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
        let first = tasks.join(key("a"), || work(&started, &gate));
        let second = tasks.join(key("a"), || work(&started, &gate));
        let other = tasks.join(key("b"), || work(&started, &gate));
        let all = async { tokio::join!(first, second, other) };
        let (results, ()) = tokio::join!(all, async {
            gate.add_permits(2);
        });
        assert!(matches!(results.0, Err(ImageError::Shared(_))));
        assert!(matches!(results.1, Err(ImageError::Shared(_))));
        assert_eq!(started.load(Ordering::SeqCst), 2);
        gate.add_permits(1);
        let _ = tasks.join(key("a"), || work(&started, &gate)).await;
        assert_eq!(started.load(Ordering::SeqCst), 3);
    }

    #[tokio::test]
    async fn a_task_goes_on_when_its_caller_goes_away_and_stops_at_shutdown() {
        let tasks = Tasks::default();
        let (started, gate) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
        {
            let caller = tasks.join(key("a"), || work(&started, &gate));
            tokio::pin!(caller);
            assert!(futures_util::future::poll_immediate(&mut caller).await.is_none());
        }
        assert_eq!(tasks.tracker.len(), 1);
        tasks.shutdown().await;
        assert_eq!(tasks.tracker.len(), 0);
        let late = tasks.join(key("a"), || work(&started, &gate)).await;
        assert!(matches!(late, Err(ImageError::ShuttingDown)));
    }
}
