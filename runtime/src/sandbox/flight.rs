//! Work that is done once for all who ask for it at the same time, and goes on when they leave.

use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

type Outcome<V, E> = Option<Result<V, Arc<E>>>;

struct Flight<R, V, E> {
    request: R,
    outcome: watch::Receiver<Outcome<V, E>>,
}

type Running<K, R, V, E> = Arc<Mutex<HashMap<K, Flight<R, V, E>>>>;

/// Running work by its key.
pub struct Flights<K, R, V, E> {
    running: Running<K, R, V, E>,
}

/// The work ended without a result: the daemon is going down.
#[derive(Debug, PartialEq, Eq)]
pub struct Abandoned;

impl<K, R, V, E> Default for Flights<K, R, V, E> {
    fn default() -> Self {
        Flights { running: Running::default() }
    }
}

impl<K, R, V, E> Flights<K, R, V, E>
where
    K: Eq + Hash + Clone + Send + 'static,
    R: PartialEq + Clone + Send + 'static,
    V: Clone + Send + Sync + 'static,
    E: Send + Sync + 'static,
{
    /// Joins the work that is running under `key` for the same request, or starts it. Work for another request under
    /// the same key is waited for first.
    pub async fn join<F>(&self, key: &K, request: &R, work: impl Fn() -> F) -> Result<Result<V, Arc<E>>, Abandoned>
    where
        F: Future<Output = Result<V, E>> + Send + 'static,
    {
        loop {
            let (mut outcome, ours) = self.find_or_start(key, request, &work);
            let ended = outcome.wait_for(Option::is_some).await.map(|outcome| outcome.clone());
            match ended {
                Ok(Some(result)) if ours => return Ok(result),
                Err(_) if ours => return Err(Abandoned),
                _ => {}
            }
        }
    }

    fn find_or_start<F>(&self, key: &K, request: &R, work: &impl Fn() -> F) -> (watch::Receiver<Outcome<V, E>>, bool)
    where
        F: Future<Output = Result<V, E>> + Send + 'static,
    {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(flight) = running.get(key) {
            return (flight.outcome.clone(), flight.request == *request);
        }
        let (sender, outcome) = watch::channel(None);
        running.insert(key.clone(), Flight { request: request.clone(), outcome: outcome.clone() });
        let landing = Landing { running: Arc::clone(&self.running), key: key.clone() };
        let work = work();
        tokio::spawn(async move {
            let result = work.await.map_err(Arc::new);
            // first out of the table, so that whoever comes after the result starts anew
            drop(landing);
            let _ = sender.send(Some(result));
        });
        (outcome, true)
    }
}

/// Takes the work out of the table, however it ends.
struct Landing<K: Eq + Hash, R, V, E> {
    running: Running<K, R, V, E>,
    key: K,
}

impl<K: Eq + Hash, R, V, E> Drop for Landing<K, R, V, E> {
    fn drop(&mut self) {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::sync::Notify;

    use super::*;

    #[derive(Default)]
    struct Work {
        runs: AtomicU32,
        gate: Notify,
    }

    impl Work {
        async fn run(self: Arc<Self>) -> Result<u32, String> {
            let run = self.runs.fetch_add(1, Ordering::SeqCst) + 1;
            self.gate.notified().await;
            if run == 2 { Err("second".to_owned()) } else { Ok(run) }
        }
    }

    fn joined(
        flights: &Arc<Flights<u8, u8, u32, String>>,
        request: u8,
        work: &Arc<Work>,
    ) -> tokio::task::JoinHandle<Result<u32, String>> {
        let (flights, work) = (Arc::clone(flights), Arc::clone(work));
        tokio::spawn(async move {
            let result = flights.join(&0, &request, || Arc::clone(&work).run()).await.unwrap();
            result.map_err(|error| error.as_ref().clone())
        })
    }

    async fn started(work: &Work, runs: u32) {
        while work.runs.load(Ordering::SeqCst) < runs {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn the_same_request_joins_and_another_one_waits_its_turn() {
        let (flights, work) = (Arc::new(Flights::default()), Arc::new(Work::default()));
        let (first, joining) = (joined(&flights, 1, &work), joined(&flights, 1, &work));
        started(&work, 1).await;
        let other = joined(&flights, 2, &work);
        tokio::task::yield_now().await;
        work.gate.notify_one();
        assert_eq!((first.await.unwrap(), joining.await.unwrap()), (Ok(1), Ok(1)));
        started(&work, 2).await;
        work.gate.notify_one();
        assert_eq!(other.await.unwrap(), Err("second".to_owned()));
        assert_eq!(work.runs.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn work_goes_on_when_its_caller_leaves() {
        let (flights, work) = (Arc::new(Flights::default()), Arc::new(Work::default()));
        let caller = joined(&flights, 1, &work);
        started(&work, 1).await;
        caller.abort();
        let retry = joined(&flights, 1, &work);
        tokio::task::yield_now().await;
        work.gate.notify_one();
        assert_eq!(retry.await.unwrap(), Ok(1));
    }
}
