//! The reference plugins `bridge` and `host-local` without processes: the same configuration, the same links, addresses
//! and routes, the same address files and the same results, by netlink from a short-lived thread.
//!
//! * [`conf`] says which lists (and which pods) they can do; all others go to the executables
//! * [`host_local`] gives out addresses
//! * [`bridge`] makes links

mod bridge;
mod conf;
mod host_local;
mod sysctl;

pub use bridge::BridgeError;
pub use host_local::AddressError;
pub use sysctl::SysctlError;

pub(super) use bridge::host_link_name;
pub(super) use conf::{BridgeNetwork, supported};

use super::{cache::Record, error::NetworkError, pod::INTERFACE, result::AddResult, sandbox_locks::SandboxGuard};
use std::{net::IpAddr, sync::Arc};

/// Why a thread did not answer: it ended without a word.
#[derive(Debug, thiserror::Error)]
#[error("the thread ended early")]
pub struct ThreadLost;

/// Gives a pod its network. `own` keeps the sandbox reserved until the thread is done, whatever happens to the caller.
pub(super) async fn add(
    network: BridgeNetwork,
    record: &Record,
    own: Arc<SandboxGuard>,
) -> Result<AddResult, NetworkError> {
    let (pod, list) = (record.pod.clone(), record.list.clone());
    let name = list.name.clone();
    let raw = on_thread(move || {
        let attached = bridge::attach(&network, &pod, list.version);
        drop(own);
        attached
    })
    .await
    .map_err(|source| NetworkError::Builtin { network: name, verb: "ADD", source })?;
    AddResult::from_value(raw).map_err(NetworkError::Recorded)
}

/// Whether a network could not be made for want of an address.
pub(super) fn is_exhausted(error: &NetworkError) -> bool {
    matches!(error, NetworkError::Builtin { source: BridgeError::Address(AddressError::Exhausted { .. }), .. })
}

/// Takes away what [`add`] made, or a part of it.
pub(super) async fn del(network: BridgeNetwork, record: &Record, own: Arc<SandboxGuard>) -> Result<(), NetworkError> {
    let pod = record.pod.clone();
    let name = record.list.name.clone();
    let known = addresses(record);
    on_thread(move || {
        let detached = bridge::detach(&network, &pod, &known);
        drop(own);
        detached
    })
    .await
    .map_err(|source| NetworkError::Builtin { network: name, verb: "DEL", source })
}

/// Looks whether a pod still has what [`add`] gave it.
pub(super) async fn check(network: BridgeNetwork, record: &Record, result: AddResult) -> Result<(), NetworkError> {
    let pod = record.pod.clone();
    let name = record.list.name.clone();
    on_thread(move || bridge::check(&network, &pod, &result)).await.map_err(|source| NetworkError::Builtin {
        network: name,
        verb: "CHECK",
        source,
    })
}

/// The addresses on record, so that their files are found without a search.
fn addresses(record: &Record) -> Vec<IpAddr> {
    let result = record.result.clone().and_then(|raw| AddResult::from_value(raw).ok());
    result.map(|result| result.pod_ips(INTERFACE)).unwrap_or_default()
}

/// Entering a namespace changes the thread, so each piece of work has one of its own, which ends with it.
async fn on_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BridgeError> + Send + 'static,
) -> Result<T, BridgeError> {
    let (send, receive) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name("pod-network".to_owned())
        .stack_size(256 * 1024)
        .spawn(move || {
            // nobody waits any more when the caller was dropped; the record says what there is to undo
            let _ = send.send(work());
        })
        .map_err(BridgeError::Thread)?;
    receive.await.unwrap_or(Err(BridgeError::ThreadLost(ThreadLost)))
}
