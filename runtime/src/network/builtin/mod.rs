//! The reference plugins `bridge`, `host-local` and `portmap` without processes: the same configuration, the same links,
//! addresses and routes, the same address files and the same results, by netlink from a short-lived thread.
//!
//! * [`conf`] says which lists (and which pods) they can do; all others go to the executables
//! * [`host_local`] gives out addresses
//! * [`bridge`] makes links
//! * [`nat`] has host ports and masquerading, in nftables

mod bridge;
mod conf;
mod host_local;
pub(super) mod nat;
mod sysctl;

pub use bridge::BridgeError;
pub use host_local::AddressError;
pub use nat::NatError;
pub use sysctl::SysctlError;

pub(super) use bridge::host_link_name;
pub(super) use conf::{BridgeNetwork, is_built_in, supported};

use super::{
    cache::{By, Record},
    error::NetworkError,
    netlink::link::Prefix,
    pod::INTERFACE,
    result::AddResult,
    sandbox_locks::SandboxGuard,
};
use nat::{Claim, Nat};
use std::{net::IpAddr, sync::Arc};

/// Why a thread did not answer: it ended without a word.
#[derive(Debug, thiserror::Error)]
#[error("the thread ended early")]
pub struct ThreadLost;

/// Gives a pod its network. `own` keeps the sandbox reserved until the thread is done, whatever happens to the caller.
pub(super) async fn add(
    network: BridgeNetwork,
    record: &Record,
    nat: Arc<Nat>,
    own: Arc<SandboxGuard>,
) -> Result<AddResult, NetworkError> {
    let (pod, list, since) = (record.pod.clone(), record.list.clone(), record.added);
    let name = list.name.clone();
    let raw = on_thread(move || {
        let claim = |addresses| match Claim::new(since, &network, addresses) {
            Some(claim) => nat.claim(&pod.sandbox_id, claim),
            None => Ok(()),
        };
        let attached = bridge::attach(&network, &pod, list.version, claim);
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

/// Closes a pod's host ports, which must not wait until its link is gone.
pub(super) async fn close(network: &BridgeNetwork, record: &Record, nat: Arc<Nat>) -> Result<(), NetworkError> {
    if !network.wants_nat() {
        return Ok(());
    }
    let sandbox = record.pod.sandbox_id.clone();
    let name = record.list.name.clone();
    on_thread(move || Ok(nat.release(&sandbox)?)).await.map_err(|source| NetworkError::Builtin {
        network: name,
        verb: "DEL",
        source,
    })
}

/// Brings host ports and masquerading to what the records say.
pub(super) async fn restore(nat: Arc<Nat>) -> Result<(), NetworkError> {
    on_thread(move || Ok(nat.ensure()?)).await.map_err(NetworkError::Restore)
}

/// What a pod that is on record wants of [`nat`], by its configuration and its result.
fn claim_of(record: &Record) -> Option<Claim> {
    if record.by != By::Builtin || record.deleted {
        return None;
    }
    let network = supported(&record.list, &record.pod).filter(BridgeNetwork::wants_nat)?;
    let result = AddResult::from_value(record.result.clone()?).ok()?;
    let addresses = result.ips.iter().map(|address| Prefix { ip: address.ip, length: address.prefix }).collect();
    Claim::new(record.added, &network, addresses)
}

/// Takes away what [`add`] made, or a part of it.
pub(super) async fn del(
    network: BridgeNetwork,
    record: &Record,
    nat: Arc<Nat>,
    own: Arc<SandboxGuard>,
) -> Result<(), NetworkError> {
    let pod = record.pod.clone();
    let name = record.list.name.clone();
    let known = addresses(record);
    on_thread(move || {
        let closed = if network.wants_nat() { nat.release(&pod.sandbox_id) } else { Ok(()) };
        let detached = closed.map_err(BridgeError::from).and_then(|()| bridge::detach(&network, &pod, &known));
        drop(own);
        detached
    })
    .await
    .map_err(|source| NetworkError::Builtin { network: name, verb: "DEL", source })
}

/// Looks whether a pod still has what [`add`] gave it.
pub(super) async fn check(
    network: BridgeNetwork,
    record: &Record,
    nat: Arc<Nat>,
    result: AddResult,
) -> Result<(), NetworkError> {
    let pod = record.pod.clone();
    let name = record.list.name.clone();
    let look = move || {
        if network.wants_nat() {
            nat.check(&pod.sandbox_id)?;
        }
        bridge::check(&network, &pod, &result)
    };
    on_thread(look).await.map_err(|source| NetworkError::Builtin { network: name, verb: "CHECK", source })
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
