//! Addresses whose pods are gone and whose links are not yet.
//!
//! To remove a veth costs the caller a grace period of the kernel (15 ms, one after the other for all pods). With the
//! pod's namespace it goes by itself, in the background, and nobody waits. So DEL of a built-in network only notes the
//! pod here, and returns; when the kernel reports the host's end gone, the address goes back to its pool, and not
//! earlier: until then packets for it would still find their way into the old pod. A namespace that somebody keeps alive
//! loses its link the expensive way after [`PATIENCE`].
//!
//! Nothing is lost in a crash: the pod's record stays until its address is back, and the sweep at the next start sees
//! it.

use super::{
    Inner, builtin,
    cache::Record,
    chain_of,
    netlink::{
        NetlinkError, Socket,
        events::{LinkEvents, News},
    },
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

/// A namespace without processes and mounts is gone in 40 to 160 ms.
const PATIENCE: Duration = Duration::from_secs(1);

/// The pods that are noted, and the task that looks after them while there are any.
#[derive(Debug)]
pub(super) struct Releases {
    waiting: Mutex<Waiting>,
    /// how many are waiting
    count: watch::Sender<usize>,
    /// told when a pod is noted
    wake: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    pods: BTreeMap<String, Pod>,
    task_runs: bool,
}

#[derive(Debug)]
struct Pod {
    record: Record,
    link: String,
    deadline: Instant,
    /// whether it was looked for since the events began to flow
    looked: bool,
    gone: bool,
}

impl Default for Releases {
    fn default() -> Self {
        Self { waiting: Mutex::default(), count: watch::Sender::new(0), wake: Notify::new() }
    }
}

impl Releases {
    fn with<T>(&self, change: impl FnOnce(&mut Waiting) -> T) -> T {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let value = change(&mut waiting);
        let count = waiting.pods.len();
        self.count.send_if_modified(|present| std::mem::replace(present, count) != count);
        value
    }

    pub(super) fn contains(&self, sandbox: &str) -> bool {
        self.with(|waiting| waiting.pods.contains_key(sandbox))
    }

    /// Forgets a pod whose remains are removed in another way.
    pub(super) fn forget(&self, sandbox: &str) {
        self.with(|waiting| waiting.pods.remove(sandbox));
    }

    /// Waits until fewer pods are waiting than now; `false` when none was.
    pub(super) async fn progress(&self) -> bool {
        let mut count = self.count.subscribe();
        let now = *count.borrow_and_update();
        now > 0 && count.wait_for(|count| *count < now).await.is_ok()
    }

    /// Waits until no pod is waiting.
    pub(super) async fn settled(&self) {
        // the sender lives as long as we do
        let _ = self.count.subscribe().wait_for(|count| *count == 0).await;
    }
}

/// Notes a pod. The caller has the sandbox's lock.
pub(super) fn later(inner: &Arc<Inner>, record: Record) {
    let sandbox = record.pod.sandbox_id.clone();
    let link = builtin::host_link_name(&sandbox);
    let pod = Pod { record, link, deadline: Instant::now() + PATIENCE, looked: false, gone: false };
    let start = inner.releases.with(|waiting| {
        waiting.pods.insert(sandbox, pod);
        !std::mem::replace(&mut waiting.task_runs, true)
    });
    if start {
        tokio::spawn(look_after(Arc::clone(inner)));
    } else {
        inner.releases.wake.notify_one();
    }
}

/// Ends when nobody is waiting any more.
async fn look_after(inner: Arc<Inner>) {
    let mut events = LinkEvents::subscribe().map_err(deaf).ok();
    loop {
        for (sandbox, record) in due(&inner.releases, events.is_some()) {
            release(&inner, &sandbox, &record).await;
        }
        let next = inner.releases.with(|waiting| {
            let earliest = waiting.pods.values().map(|pod| pod.deadline).min();
            waiting.task_runs = earliest.is_some();
            earliest
        });
        let Some(deadline) = next else { return };
        // cancel safety: events keep what was not returned, a notification stays until taken, time passes anyway
        tokio::select! {
            news = hear(&mut events) => match news {
                Ok(news) => inner.releases.with(|waiting| waiting.note(&news)),
                Err(error) => {
                    deaf(error);
                    events = None;
                }
            },
            () = inner.releases.wake.notified() => {}
            () = tokio::time::sleep_until(deadline) => {}
        }
    }
}

fn deaf(error: NetlinkError) {
    log::warn!(error = chain_of(&error).as_str(); "cannot hear of links that go, removing them one by one");
}

async fn hear(events: &mut Option<LinkEvents>) -> Result<News, NetlinkError> {
    match events {
        Some(events) => events.next().await,
        None => std::future::pending().await,
    }
}

impl Waiting {
    fn note(&mut self, news: &News) {
        for pod in self.pods.values_mut() {
            match news {
                News::Gone(links) => pod.gone |= links.contains(&pod.link),
                News::Lost => pod.looked = false,
            }
        }
    }
}

/// Pods whose link is gone, or has to go: all, if nothing can be heard.
fn due(releases: &Releases, hearing: bool) -> Vec<(String, Record)> {
    let mut socket = None;
    let now = Instant::now();
    releases.with(|waiting| {
        for pod in waiting.pods.values_mut().filter(|pod| !pod.looked && !pod.gone) {
            // what went before the events began to flow is not in them
            if socket.is_none() {
                socket = Socket::open().ok();
            }
            pod.looked = true;
            pod.gone = socket.as_mut().is_some_and(|socket| matches!(socket.link(&pod.link), Ok(None)));
        }
        let due = waiting.pods.iter().filter(|(_, pod)| pod.gone || pod.deadline <= now || !hearing);
        due.map(|(sandbox, pod)| (sandbox.clone(), pod.record.clone())).collect()
    })
}

async fn release(inner: &Arc<Inner>, sandbox: &str, record: &Record) {
    let own = Arc::new(inner.locks.lock(sandbox).await);
    // an ADD for the same sandbox may have come first, and have tidied up itself
    if !inner.releases.contains(sandbox) {
        return;
    }
    if let Err(error) = inner.undo(record, &own).await {
        // the record stays: the next sweep tries again
        log::warn!(sandbox = sandbox, error = chain_of(&error).as_str(); "cannot give an address back");
    }
    inner.releases.forget(sandbox);
}
