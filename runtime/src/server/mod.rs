//! The daemon's face: unix sockets on which three dialects are spoken.
//!
//! ```text
//! accept ─ first bytes ─┬─ "PRI * HTTP/2.0" ─ authority filter ─ hyper HTTP/2 ─ v1alpha2 path ─ generated services
//!                       └─ anything else ──────────────────────── hyper HTTP/1 ─ CRI-O's inspection answers
//! ```
//!
//! Kubelet and crictl speak gRPC (CRI v1 or v1alpha2); the cAdvisor inside the kubelet speaks HTTP/1.1 on a path that
//! is a constant of its code, which is why the same server listens on more than one socket.

mod authority;
mod connection;
mod crio;
mod error;
mod socket;
mod v1alpha2;

pub use crio::{ContainerJson, CrioInspect, InfoJson};
pub use error::ServerError;
pub use socket::Listener;
pub use v1alpha2::ApiVersion;

use connection::Dialects;
use nodeagent_cri_api::{image_service_server::ImageService, runtime_service_server::RuntimeService};
use std::{sync::Arc, time::Duration};
use tokio::sync::Semaphore;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Largest message taken from a client. The kubelet's own limit for answers, so nothing larger could be returned either.
pub const MAX_RECEIVE_MESSAGE: usize = 16 * 1024 * 1024;
/// Largest message sent to a client: what the kubelet accepts.
pub const MAX_SEND_MESSAGE: usize = 16 * 1024 * 1024;

/// Wait after a failed accept (out of descriptors, most likely): trying again at once would only burn CPU.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Bounds on what clients may take.
#[derive(Debug, Clone)]
pub struct Limits {
    /// connections served at a time; further ones wait in the sockets' backlogs
    pub connections: usize,
    /// calls that one connection may have under way
    pub streams: u32,
    /// time from accept to the first bytes that tell the dialect
    pub greeting: Duration,
    /// time that calls under way get to finish after the stop signal
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            // clients have been seen that leave two behind for each thing they do
            connections: 1024,
            // kubelet stops all containers of a full node in parallel, and each exec probe holds one
            streams: 1000,
            greeting: Duration::from_secs(10),
            drain: Duration::from_secs(10),
        }
    }
}

/// What is served.
pub struct Services<R, I> {
    /// CRI runtime service
    pub runtime: R,
    /// CRI image service
    pub image: I,
    /// answers for cAdvisor
    pub crio: Arc<dyn CrioInspect>,
}

/// Serves until `stop` is cancelled, then takes no more connections, lets calls under way finish within
/// `limits.drain`, cuts those that do not, and returns. The listeners' paths are removed as soon as the stop is heard.
pub async fn serve<R, I>(listeners: Vec<Listener>, services: Services<R, I>, limits: Limits, stop: CancellationToken)
where
    R: RuntimeService,
    I: ImageService,
{
    let dialects = Arc::new(Dialects::new(services, &limits));
    let places = Arc::new(Semaphore::new(limits.connections));
    // cancelled when the drain time is over; connections end at once then
    let cut = CancellationToken::new();
    let connections = TaskTracker::new();
    let acceptors = TaskTracker::new();
    for listener in listeners {
        let accepting = accept(
            listener,
            Arc::clone(&dialects),
            Arc::clone(&places),
            connections.clone(),
            stop.clone(),
            cut.clone(),
        );
        acceptors.spawn(accepting);
    }
    acceptors.close();
    acceptors.wait().await;
    stop.cancelled().await;
    connections.close();
    if tokio::time::timeout(limits.drain, connections.wait()).await.is_err() {
        log::warn!(connections = connections.len(), seconds = limits.drain.as_secs(); "cutting connections that did not finish in time");
        cut.cancel();
        connections.wait().await;
    }
}

async fn accept(
    listener: Listener,
    dialects: Arc<Dialects>,
    places: Arc<Semaphore>,
    connections: TaskTracker,
    stop: CancellationToken,
    cut: CancellationToken,
) {
    log::info!(socket = listener.path().display().to_string().as_str(); "listening");
    // cancel safety: a permit or an accepted stream that loses against `stop` is dropped, which is what stopping means
    while let Some(accepted) = stop.run_until_cancelled(next(&listener, &places)).await {
        match accepted {
            Ok((stream, place)) => {
                let dialects = Arc::clone(&dialects);
                let (stop, cut) = (stop.clone(), cut.clone());
                connections.spawn(async move {
                    cut.run_until_cancelled(dialects.serve(stream, &stop)).await;
                    drop(place);
                });
            }
            Err(error) => {
                log::warn!(socket = listener.path().display().to_string().as_str(), error = error.to_string().as_str(); "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn next(
    listener: &Listener,
    places: &Arc<Semaphore>,
) -> std::io::Result<(tokio::net::UnixStream, tokio::sync::OwnedSemaphorePermit)> {
    let place = Arc::clone(places).acquire_owned().await.map_err(std::io::Error::other)?;
    Ok((listener.accept().await?, place))
}
