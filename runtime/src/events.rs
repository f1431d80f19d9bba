//! What happened to containers, for those who listen.

use std::sync::Arc;

use tokio::sync::broadcast;

use crate::clock;
use crate::sandbox::PodView;

/// Events a slow listener may be behind; one that falls further is told so and sees the present state instead.
const BACKLOG: usize = 1024;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    /// Made.
    Created,
    /// Its program runs; of a sandbox: it is ready.
    Started,
    /// Its program ended; of a sandbox: it is not ready any more.
    Stopped,
    /// Gone.
    Deleted,
}

/// One event, with the pod as it was right after it.
#[derive(Debug, Clone)]
pub struct ContainerEvent {
    /// What happened.
    pub kind: EventKind,
    /// The container, or the sandbox itself.
    pub id: String,
    /// Nanoseconds since the epoch.
    pub at: i64,
    /// The pod.
    pub pod: Arc<PodView>,
}

/// The hub; cheap to clone. Publishing never waits.
#[derive(Debug, Clone)]
pub struct Events {
    sender: broadcast::Sender<ContainerEvent>,
}

impl Default for Events {
    fn default() -> Self {
        Events { sender: broadcast::channel(BACKLOG).0 }
    }
}

impl Events {
    /// Tells everybody who listens.
    pub fn publish(&self, kind: EventKind, id: &str, pod: &Arc<PodView>) {
        if self.sender.receiver_count() == 0 {
            return;
        }
        // fails only when the last listener has just left
        let _ = self.sender.send(ContainerEvent { kind, id: id.to_owned(), at: clock::now(), pod: Arc::clone(pod) });
    }

    /// Listens from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<ContainerEvent> {
        self.sender.subscribe()
    }
}
