//! NetworkManager leaves the interfaces of pods alone.

use async_trait::async_trait;
use serde_json::{Value, json};

use super::super::owned_file::{FileNow, HEADER, OwnedFile};
use super::super::{PlanContext, Resource, ResourceError, digest, file};
use crate::config::host::Unmanaged;
use crate::host::Host;
use crate::plan::{Notify, Outcome, ResourceId};

/// Read by NetworkManager; ours is after the distribution's.
pub const FILE: &str = "/etc/NetworkManager/conf.d/90-nodeagent.conf";

/// There where NetworkManager is installed.
const INSTALLED: &str = "/etc/NetworkManager";

/// Its unit, which reads the files again when it is reloaded.
const UNIT: &str = "NetworkManager.service";

/// Interfaces of the usual pod networks: bridge and veths of our own, Calico, Flannel, Cilium, kube-proxy, node-local DNS.
const AUTO: [&str; 15] = [
    "cali*",
    "cilium*",
    "cni0",
    "flannel*",
    "kube-bridge",
    "kube-dummy-if",
    "kube-ipvs0",
    "lxc*",
    "nodelocaldns",
    "tunl*",
    "veth*",
    "vxlan-v6.calico",
    "vxlan.calico",
    "wg-v6.cali",
    "wireguard.cali",
];

/// The interfaces of pods, for NetworkManager.
pub struct UnmanagedInterfaces {
    id: ResourceId,
    file: OwnedFile,
}

impl UnmanagedInterfaces {
    /// None where the host keeps what it has.
    pub fn new(unmanaged: &Unmanaged) -> Option<UnmanagedInterfaces> {
        let names: Vec<String> = match unmanaged {
            Unmanaged::Keep => return None,
            Unmanaged::Auto => AUTO.map(str::to_owned).to_vec(),
            Unmanaged::Only(names) => names.clone(),
        };
        let list: Vec<String> = names.iter().map(|name| format!("interface-name:{name}")).collect();
        // += : what the distribution or an admin lists stays
        let content = format!("{HEADER}[keyfile]\nunmanaged-devices+={}\n", list.join(";"));
        Some(UnmanagedInterfaces {
            id: ResourceId::new("network", "unmanaged"),
            file: OwnedFile::public(FILE, content),
        })
    }
}

#[async_trait]
impl Resource for UnmanagedInterfaces {
    fn id(&self) -> &ResourceId {
        &self.id
    }

    async fn plan(&self, host: &Host, context: &PlanContext<'_>) -> Result<Outcome, ResourceError> {
        if !host.root.exists(INSTALLED)? {
            return Ok(Outcome::Converged { note: Some("NetworkManager is not installed".to_owned()) });
        }
        let desired = file::Desired { file: self.file.clone(), notify: vec![Notify::ReloadUnit(UNIT.to_owned())] };
        let observed = FileNow::observe(&host.root, FILE)?;
        Ok(file::plan(&self.id, &desired, &observed, &context.past(&self.applied())))
    }

    fn rivals(&self) -> &'static [&'static str] {
        &["cloud-init.service"]
    }

    fn explain(&self) -> String {
        format!(
            "{FILE} keeps NetworkManager from managing the interfaces of pods, whose addresses and routes it would take away. \
             By hand: nmcli device; NetworkManager --print-config"
        )
    }

    fn applied(&self) -> Value {
        json!({"digest": digest(&self.file.content)})
    }
}
