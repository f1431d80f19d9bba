//! Pod networks: standard CNI configurations, plugins run as executables or built in.
//!
//! ```text
//! add ─ conf_dir: which list ─ cache: record without result ─ chain or builtin ─ cache: record with result
//! del ─ cache: what add used ─ chain, in reverse, or builtin ─ cache: record removed
//! ```
//!
//! * [`conf`], [`conf_dir`]: configuration files, and which of them counts
//! * [`chain`], [`plugin`], [`exec`]: a verb on a list, on one plugin, as a process with bounds
//! * [`inputs`]: what plugins are told, and those that outlive a daemon
//! * [`builtin`], [`netlink`]: a bridge with addresses from host-local, without processes
//! * [`releases`]: addresses that return when their links are gone
//! * [`result`]: answers in the forms of all versions
//! * [`cache`]: what DEL needs to undo what ADD did
//! * [`netns`]: the namespaces' names under `/run/netns`

mod builtin;
mod cache;
mod chain;
mod conf;
mod conf_dir;
mod error;
mod exec;
mod inputs;
mod netlink;
pub mod netns;
mod plugin;
mod pod;
mod releases;
mod result;
mod sandbox_locks;
mod version;

pub use builtin::{AddressError, BridgeError, NatError, SysctlError};
pub use cache::CacheError;
pub use conf::ConfError;
pub use conf_dir::NotReady;
pub use error::{NetworkError, PluginError};
pub use exec::ExecError;
pub use netlink::NetlinkError;
pub use pod::{Bandwidth, Dns, INTERFACE, InvalidPod, PodNetwork, PortMapping};
pub use result::ResultError;
pub use version::{CniVersion, UnknownVersion};

use builtin::{BridgeNetwork, nat::Nat};
use cache::{By, Cache, Record};
use chain::Chain;
use conf::ConfList;
use conf_dir::ConfDir;
use inputs::Inputs;
use releases::Releases;
use result::AddResult;
use sandbox_locks::{SandboxGuard, SandboxLocks};
use serde_json::{Value, json};
use std::{
    net::IpAddr,
    path::PathBuf,
    sync::{Arc, Once},
    time::Duration,
};
use tokio::sync::{Semaphore, SemaphorePermit};

/// How long an ADD waits for addresses of deleted pods when its pool is full.
const RETURN_OF_ADDRESSES: Duration = Duration::from_secs(3);

/// Where things are and how long they may take.
#[derive(Debug, Clone)]
pub struct NetworkConfig {
    /// configurations
    pub conf_dir: PathBuf,
    /// executables, first match wins
    pub plugin_dirs: Vec<PathBuf>,
    /// records of attachments
    pub cache_dir: PathBuf,
    /// the only network that counts, by its name; the first usable file when absent
    pub network: Option<String>,
    /// name of the nftables tables with host ports and masquerading; no two daemons on a host may share one
    pub table: String,
    /// bridge, host-local and portmap without processes, where a list and a pod ask for nothing else
    pub builtin: bool,
    /// time for all plugins of an ADD together
    pub add_timeout: Duration,
    /// time for all plugins of a DEL together
    pub del_timeout: Duration,
    /// time for CHECK, GC and STATUS
    pub query_timeout: Duration,
    /// pods whose plugins run at a time; ADD and DEL count apart, so that hanging ADDs do not hold up deletion
    pub parallel: usize,
}

impl Default for NetworkConfig {
    fn default() -> Self {
        Self {
            conf_dir: "/etc/cni/net.d".into(),
            plugin_dirs: vec!["/opt/cni/bin".into(), "/usr/libexec/cni".into()],
            cache_dir: "/var/lib/nodeagent/containers/cni".into(),
            network: None,
            table: "nodeagent".to_owned(),
            builtin: true,
            // the kubelet waits 4 minutes for RunPodSandbox, and a failed ADD is followed by a DEL
            add_timeout: Duration::from_secs(120),
            // and 2 minutes for StopPodSandbox
            del_timeout: Duration::from_secs(60),
            query_timeout: Duration::from_secs(20),
            parallel: 16,
        }
    }
}

/// What a pod got.
#[derive(Debug, Clone, PartialEq)]
pub struct Attachment {
    /// addresses, primary first
    pub ips: Vec<IpAddr>,
    /// the last plugin's answer
    pub result: Value,
}

/// The node's pod network. Clones share everything.
#[derive(Debug, Clone)]
pub struct Network {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: NetworkConfig,
    conf_dir: ConfDir,
    cache: Cache,
    inputs: Inputs,
    locks: SandboxLocks,
    adding: Semaphore,
    deleting: Semaphore,
    releases: Releases,
    nat: Arc<Nat>,
    /// somebody hears of it when host ports are flushed
    watched: Once,
}

impl Network {
    /// Touches nothing yet.
    pub fn new(config: NetworkConfig) -> Self {
        let cache = Cache::new(config.cache_dir.clone());
        let inner = Inner {
            conf_dir: ConfDir::new(config.conf_dir.clone(), config.network.clone()),
            nat: Arc::new(Nat::new(cache.clone(), config.table.clone())),
            watched: Once::new(),
            inputs: Inputs::new(cache.inputs(), config.del_timeout),
            cache,
            locks: SandboxLocks::default(),
            adding: Semaphore::new(config.parallel.max(1)),
            deleting: Semaphore::new(config.parallel.max(1)),
            releases: Releases::default(),
            config,
        };
        Self { inner: Arc::new(inner) }
    }

    /// Whether a pod could be given a network now, as far as files tell: a usable configuration whose plugins are
    /// installed. Cheap enough to be asked for every `Status` call.
    pub fn ready(&self) -> Result<(), NotReady> {
        self.inner.usable_list().map(drop)
    }

    /// Like [`Network::ready`], and asks the plugins themselves where the configuration's version knows STATUS.
    pub async fn status(&self) -> Result<(), NetworkError> {
        let list = self.inner.usable_list()?;
        self.inner.chain(&list, self.inner.config.query_timeout).status().await
    }

    /// Gives a pod its network. When a plugin fails, all of them are told to clean up before the error is returned.
    /// What an earlier, interrupted or forgotten ADD for the same sandbox left is removed first.
    pub async fn add(&self, pod: &PodNetwork) -> Result<Attachment, NetworkError> {
        pod.validate()?;
        let inner = &*self.inner;
        let own = Arc::new(inner.locks.lock(&pod.sandbox_id).await);
        let list = inner.usable_list()?;
        let _place = place(&inner.adding).await;
        inner.releases.forget(&pod.sandbox_id);
        if let Some(stale) = inner.cache.load(&pod.sandbox_id)? {
            inner.undo(&stale, &own).await?;
        }
        let builtin = inner.builtin(&list, pod);
        let by = if builtin.is_some() { By::Builtin } else { By::Exec };
        let mut record = Record::new(by, pod.clone(), (*list).clone());
        inner.cache.store(&record)?;
        let added = match builtin {
            Some(network) => inner.add_builtin(network, &record, &own).await,
            None => inner.chain(&list, inner.config.add_timeout).add(pod).await,
        };
        let added = added.and_then(|result| {
            let attachment = attachment(result, &list.name)?;
            record.result = Some(attachment.result.clone());
            inner.cache.store(&record)?;
            Ok(attachment)
        });
        if added.is_err()
            && let Err(error) = inner.undo(&record, &own).await
        {
            // the record stays, so that a later DEL or GC tries again
            log::warn!(sandbox = pod.sandbox_id.as_str(), error = chain_of(&error).as_str(); "cannot undo a failed network");
        }
        added
    }

    /// Takes a pod's network away, with the configuration and the result of its ADD. Fine with a namespace that is
    /// gone, and with a pod that has no network (any more). What is built in goes with the pod's namespace, of which the
    /// caller removes the name after this; its address is free when the kernel says that the link is gone.
    pub async fn del(&self, pod: &PodNetwork) -> Result<(), NetworkError> {
        pod.validate()?;
        self.inner.del(pod).await
    }

    /// Asks the plugins whether a pod's network is still as they made it.
    pub async fn check(&self, pod: &PodNetwork) -> Result<(), NetworkError> {
        pod.validate()?;
        let inner = &*self.inner;
        let _own = inner.locks.lock(&pod.sandbox_id).await;
        let unknown = || NetworkError::Unknown(pod.sandbox_id.clone());
        let record = inner.cache.load(&pod.sandbox_id)?.filter(|record| !record.deleted).ok_or_else(unknown)?;
        let result = record.result.as_ref().ok_or_else(unknown)?;
        match record.by {
            By::Exec => inner.chain(&record.list, inner.config.query_timeout).check(&record.pod, result).await,
            By::Builtin => {
                let expected = AddResult::from_value(result.clone()).map_err(NetworkError::Recorded)?;
                builtin::check(of_record(&record)?, &record, Arc::clone(&inner.nat), expected).await
            }
        }
    }

    /// What a sandbox got, from its record: for a daemon that restarts.
    pub fn attachment(&self, sandbox_id: &str) -> Result<Option<Attachment>, NetworkError> {
        if !conf::is_name(sandbox_id) {
            return Ok(None);
        }
        let record = self.inner.cache.load(sandbox_id)?.filter(|record| !record.deleted);
        let Some((network, raw)) = record.and_then(|record| Some((record.list.name, record.result?))) else {
            return Ok(None);
        };
        let result = AddResult::from_value(raw).map_err(NetworkError::Recorded)?;
        attachment(result, &network).map(Some)
    }

    /// Waits until the addresses of all deleted pods are back in their pools: for an orderly stop. Those that are not by
    /// then are found by the next [`Network::gc`].
    pub async fn settled(&self) {
        self.inner.releases.settled().await;
    }

    /// Removes the network of every sandbox that is not in `valid`, then lets plugins (since version 1.1) clean up what
    /// they know of beyond that. Everything is tried; the first error is returned.
    pub async fn gc(&self, valid: &[String]) -> Result<(), NetworkError> {
        let inner = &self.inner;
        let mut first_error = None;
        for sandbox in inner.cache.sandboxes()? {
            // a pod may be known, and stopped: its network is gone but for what a daemon that died did not finish
            let deleted = || inner.cache.load(&sandbox).is_ok_and(|record| record.is_some_and(|record| record.deleted));
            if valid.contains(&sandbox) && !deleted() {
                continue;
            }
            let pod = PodNetwork { sandbox_id: sandbox.clone(), ..PodNetwork::default() };
            if let Err(error) = inner.del(&pod).await {
                log::warn!(sandbox = sandbox.as_str(), error = chain_of(&error).as_str(); "cannot remove a leftover network");
                first_error.get_or_insert(error);
            }
        }
        match builtin::restore(Arc::clone(&inner.nat)).await {
            Ok(()) => inner.watch_nat(),
            Err(error) => drop(first_error.get_or_insert(error)),
        }
        // without a usable configuration nobody is there to be asked
        if let Ok(list) = inner.usable_list() {
            let valid: Vec<_> = valid.iter().map(|id| json!({"containerID": id, "ifname": INTERFACE})).collect();
            if let Err(error) = inner.chain(&list, inner.config.query_timeout).gc(&valid).await {
                first_error.get_or_insert(error);
            }
        }
        first_error.map_or(Ok(()), Err)
    }
}

impl Inner {
    fn usable_list(&self) -> Result<Arc<ConfList>, NotReady> {
        let list = self.conf_dir.current()?;
        let directories = &self.config.plugin_dirs;
        // what is built in needs no executable
        let built_in = self.builtin(&list, &PodNetwork::default()).is_some();
        let is_built_in = |place: usize, plugin| built_in && (place == 0 || builtin::is_built_in(plugin));
        let needed = list.plugins.iter().enumerate().filter(|(place, plugin)| !is_built_in(*place, plugin));
        let mut needed = needed.map(|(_, plugin)| plugin);
        if let Some(missing) = needed.find(|each| plugin::find(&each.kind, directories).is_none()) {
            return Err(NotReady::PluginMissing {
                file: list.source.clone(),
                plugin: missing.kind.clone(),
                directories: directories.clone(),
            });
        }
        Ok(list)
    }

    /// The network, if this program itself is to make it for this pod.
    fn builtin(&self, list: &ConfList, pod: &PodNetwork) -> Option<BridgeNetwork> {
        if self.config.builtin { builtin::supported(list, pod) } else { None }
    }

    fn chain<'a>(&'a self, list: &'a ConfList, limit: Duration) -> Chain<'a> {
        Chain { list, directories: &self.config.plugin_dirs, inputs: &self.inputs, limit }
    }

    async fn del(self: &Arc<Self>, pod: &PodNetwork) -> Result<(), NetworkError> {
        let own = Arc::new(self.locks.lock(&pod.sandbox_id).await);
        if self.releases.contains(&pod.sandbox_id) {
            return Ok(());
        }
        let record = match self.cache.load(&pod.sandbox_id) {
            Ok(Some(record)) => record,
            // every ADD begins with a record: without one there is nothing to undo
            Ok(None) => return Ok(()),
            Err(error @ (CacheError::Decode { .. } | CacheError::Format { .. })) => {
                log::warn!(sandbox = pod.sandbox_id.as_str(), error = chain_of(&error).as_str(); "network record is unreadable, removing by today's configuration");
                match self.usable_list() {
                    // plugins find most of what is theirs by the sandbox's id
                    Ok(list) => {
                        let by = if self.builtin(&list, pod).is_some() { By::Builtin } else { By::Exec };
                        Record::new(by, pod.clone(), (*list).clone())
                    }
                    Err(_) => return Ok(self.cache.remove(&pod.sandbox_id)?),
                }
            }
            Err(error) => return Err(error.into()),
        };
        if record.by == By::Builtin {
            // on disk first: the next daemon must not take the pod's network for one that is in use
            let mut record = record;
            record.deleted = true;
            self.cache.store(&record)?;
            if let Ok(network) = of_record(&record) {
                builtin::close(&network, &record, Arc::clone(&self.nat)).await?;
            }
            releases::later(self, record);
            return Ok(());
        }
        let _place = place(&self.deleting).await;
        self.undo(&record, &own).await
    }

    /// A full pool may have addresses on their way back.
    async fn add_builtin(
        &self,
        network: BridgeNetwork,
        record: &Record,
        own: &Arc<SandboxGuard>,
    ) -> Result<AddResult, NetworkError> {
        let deadline = tokio::time::Instant::now() + RETURN_OF_ADDRESSES;
        let mut last = false;
        loop {
            match builtin::add(network.clone(), record, Arc::clone(&self.nat), Arc::clone(own)).await {
                Err(error) if builtin::is_exhausted(&error) && !last => {
                    match tokio::time::timeout_at(deadline, self.releases.progress()).await {
                        Ok(true) => {}
                        // nobody waits any more: the last ones may have come back since the pool was looked at
                        Ok(false) => last = true,
                        Err(_) => return Err(error),
                    }
                }
                added => {
                    self.watch_nat();
                    return added;
                }
            }
        }
    }

    /// Once there are host ports, somebody has to hear of it when others flush them.
    fn watch_nat(&self) {
        if self.nat.is_used() {
            self.watched.call_once(|| drop(tokio::spawn(builtin::nat::watch::watch(Arc::downgrade(&self.nat)))));
        }
    }

    /// DEL of what is on record, then the record itself.
    async fn undo(&self, record: &Record, own: &Arc<SandboxGuard>) -> Result<(), NetworkError> {
        let chain = self.chain(&record.list, self.config.del_timeout);
        match record.by {
            By::Exec => {
                self.inputs.settled(&record.pod.sandbox_id).await;
                chain.del(&record.pod, record.result.as_ref(), netns::is_namespace(&record.pod.netns)).await?;
            }
            By::Builtin => builtin::del(of_record(record)?, record, Arc::clone(&self.nat), Arc::clone(own)).await?,
        }
        Ok(self.cache.remove(&record.pod.sandbox_id)?)
    }
}

/// What was built in when the record was made, and still is: what is accepted only ever grows.
fn of_record(record: &Record) -> Result<BridgeNetwork, NetworkError> {
    builtin::supported(&record.list, &record.pod)
        .ok_or_else(|| NetworkError::NotBuiltin { network: record.list.name.clone() })
}

fn attachment(result: AddResult, network: &str) -> Result<Attachment, NetworkError> {
    let ips = result.pod_ips(INTERFACE);
    if ips.is_empty() {
        return Err(NetworkError::NoAddress { network: network.to_owned() });
    }
    Ok(Attachment { ips, result: result.raw })
}

/// A place among those that run; the semaphores are never closed.
async fn place(semaphore: &Semaphore) -> Option<SemaphorePermit<'_>> {
    semaphore.acquire().await.ok()
}

/// An error with its causes on one line.
fn chain_of(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
