//! Makes a node a plain host again: what the cluster left goes, then everything that the agent did is taken back.
//!
//! The cluster's part is one resource of a run in which nothing else is wanted, so that all the rest has left the config and is
//! taken back like any other [`super::leftover`]: journaled, last change first, and not what somebody else has changed since.

use async_trait::async_trait;
use serde_json::Value;

use crate::firstboot::seal::SEAL_PATH;
use crate::firstboot::{MARKER_PATH, STAMP_PATH};
use crate::host::Host;
use crate::host::mounts::mounts_below;
use crate::plan::{Action, Change, Diff, Outcome, Reason, ResourceId, Stage, UnitOp};
use crate::resource::unit::KUBELET;
use crate::resource::{ObserveError, PlanContext, Resource, ResourceError};

/// The kind of the resource; nothing is remembered of it but its journal.
pub const KIND: &str = "reset";

/// Where volumes of pods are mounted.
const KUBELET_DIR: &str = "/var/lib/kubelet";

/// What a cluster leaves, and what a node of another cluster must not find. Not /etc/cni/net.d: what is ours there is taken
/// back, and the rest is the network plugin's to remove.
const LEFT_BY_CLUSTER: [&str; 15] = [
    "/etc/kubernetes/admin.conf",
    "/etc/kubernetes/super-admin.conf",
    "/etc/kubernetes/kubelet.conf",
    "/etc/kubernetes/bootstrap-kubelet.conf",
    "/etc/kubernetes/controller-manager.conf",
    "/etc/kubernetes/scheduler.conf",
    "/etc/kubernetes/manifests/etcd.yaml",
    "/etc/kubernetes/manifests/kube-apiserver.yaml",
    "/etc/kubernetes/manifests/kube-controller-manager.yaml",
    "/etc/kubernetes/manifests/kube-scheduler.yaml",
    "/etc/kubernetes/pki",
    "/var/lib/etcd",
    KUBELET_DIR,
    "/var/lib/cni",
    "/var/lib/dockershim",
];

/// What is there of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Observed {
    /// The kubelet runs, or is about to again.
    pub kubelet_runs: bool,
    /// It starts at boot.
    pub kubelet_enabled: bool,
    /// A runtime answers on this socket, and may have pods.
    pub runtime: Option<String>,
    /// The program that asks it to remove pods is there.
    pub crictl: bool,
    /// Mount points of volumes.
    pub mounts: Vec<String>,
    /// What exists of the cluster's files.
    pub left: Vec<String>,
    /// The agent's own marks of the first boot.
    pub stamps: Vec<String>,
}

/// Decides.
pub fn plan(observed: &Observed) -> Outcome {
    if observed.runtime.is_some() && !observed.crictl {
        return Outcome::Blocked {
            reason: "pods are removed with crictl, which is not installed".to_owned(),
            fix: Some(
                "dnf install cri-tools; or stop nodeagent-runtime.service if its pods may stay behind".to_owned(),
            ),
        };
    }
    let (mut actions, mut diffs) = (Vec::new(), Vec::new());
    let mut add = |what: &str, old: &str, action: Action| {
        diffs.push(Diff::Value { what: what.to_owned(), old: Some(old.to_owned()), new: None });
        actions.push(action);
    };
    let unit = |op| Action::Unit { unit: KUBELET.to_owned(), op, wait: true };
    if observed.kubelet_runs {
        add(KUBELET, "running", unit(UnitOp::Stop));
    }
    if observed.kubelet_enabled {
        add(KUBELET, "started at boot", unit(UnitOp::Disable));
    }
    // pods before mounts and files: what runs holds them
    if let Some(socket) = &observed.runtime {
        add("all pods of this node", "as they run", Action::RemovePods { socket: socket.clone() });
    }
    if !observed.mounts.is_empty() {
        let what = format!("{} mounts below {KUBELET_DIR}", observed.mounts.len());
        add(&what, "mounted", Action::UnmountBelow { path: KUBELET_DIR.to_owned() });
    }
    for path in &observed.left {
        add(path, "there", Action::RemoveTree { path: path.clone() });
    }
    for path in &observed.stamps {
        add(path, "there", Action::RemoveFile { path: path.clone() });
    }
    if actions.is_empty() {
        return Outcome::converged();
    }
    Outcome::Change(Change {
        id: id(),
        reason: Reason::Unwanted,
        summary: "stop the kubelet, remove its pods, and delete what the cluster left; there is no way back from that"
            .to_owned(),
        diffs,
        actions,
        notify: Vec::new(),
        reboot: None,
    })
}

/// The name of the resource.
pub fn id() -> ResourceId {
    ResourceId::new(KIND, "cluster")
}

/// What the cluster left on this node.
pub struct ClusterReset {
    id: ResourceId,
    socket: String,
}

impl ClusterReset {
    /// With the socket of the runtime that has the pods.
    pub fn new(socket: &str) -> ClusterReset {
        ClusterReset { id: id(), socket: socket.to_owned() }
    }

    async fn observe(&self, host: &Host) -> Result<Observed, ObserveError> {
        let kubelet = host.systemd.unit(KUBELET).await?;
        let exists = |paths: &[&str]| -> Result<Vec<String>, ObserveError> {
            let mut found = Vec::new();
            for path in paths {
                if host.root.link_metadata(path)?.is_some() {
                    found.push((*path).to_owned());
                }
            }
            Ok(found)
        };
        let answers = host.root.accepts_connections(&self.socket)?;
        Ok(Observed {
            kubelet_runs: kubelet.exists() && !matches!(kubelet.active_state.as_str(), "inactive" | "failed"),
            kubelet_enabled: kubelet.is_enabled(),
            runtime: answers.then(|| self.socket.clone()),
            crictl: !exists(&[crate::host::action::CRICTL])?.is_empty(),
            mounts: mounts_below(&host.root, KUBELET_DIR)?,
            left: exists(&LEFT_BY_CLUSTER)?,
            stamps: exists(&[STAMP_PATH, MARKER_PATH, SEAL_PATH])?,
        })
    }
}

#[async_trait]
impl Resource for ClusterReset {
    fn id(&self) -> &ResourceId {
        &self.id
    }

    fn stage(&self) -> Stage {
        Stage::Activate
    }

    async fn plan(&self, host: &Host, _context: &PlanContext<'_>) -> Result<Outcome, ResourceError> {
        Ok(plan(&self.observe(host).await?))
    }

    fn explain(&self) -> String {
        format!("What a cluster leaves on a node is removed: {}", LEFT_BY_CLUSTER.join(", "))
    }

    fn live_only(&self) -> bool {
        true
    }

    fn is_leftover(&self) -> bool {
        true
    }

    fn applied(&self) -> Value {
        Value::Null
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kubelet_stops_before_pods_go_and_pods_before_mounts_and_files() {
        let observed = Observed {
            kubelet_runs: true,
            kubelet_enabled: true,
            runtime: Some("/run/cri.sock".into()),
            crictl: true,
            mounts: vec!["/var/lib/kubelet/pods/x".into()],
            left: vec!["/etc/kubernetes/pki".into()],
            stamps: vec![STAMP_PATH.into()],
        };
        let outcome = plan(&observed);
        let actions = &outcome.change().unwrap().actions;
        assert!(
            matches!(
                &actions[..],
                [
                    Action::Unit { op: UnitOp::Stop, .. },
                    Action::Unit { op: UnitOp::Disable, .. },
                    Action::RemovePods { .. },
                    Action::UnmountBelow { .. },
                    Action::RemoveTree { .. },
                    Action::RemoveFile { .. }
                ]
            ),
            "{actions:?}"
        );
        assert_eq!(plan(&Observed::default()), Outcome::converged());
        let without = Observed { crictl: false, ..observed };
        assert!(matches!(plan(&without), Outcome::Blocked { fix: Some(_), .. }), "pods are not left behind silently");
    }
}
