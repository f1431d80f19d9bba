//! The node begins a cluster as its first control plane, once, by kubeadm.

use async_trait::async_trait;
use serde_json::{Value, json};

use super::cluster::{self, BEGAN, CERTIFICATE_KEY, MANIFEST, TOKEN, VERSION};
use super::runtime::{cgroup_driver, driver_word};
use super::{ObserveError, PlanContext, Resource, ResourceError};
use crate::config::init::InitSettings;
use crate::config::settings::{KubernetesSettings, Settings};
use crate::host::{Host, Platform};
use crate::plan::{Action, Change, Diff, KubeadmVerb, Outcome, Reason, ResourceId, Stage};

/// The cluster's administrator, written by an init that got so far.
const ADMIN_CONF: &str = "/etc/kubernetes/admin.conf";

/// What is there.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Observed {
    /// The API server's manifest, which kubelet runs.
    pub manifest: bool,
    /// The administrator's kubeconfig.
    pub admin: bool,
    /// An init of ours began and did not end well.
    pub began: bool,
    /// The clock is in step, or nobody has asked for that.
    pub time_is_right: bool,
}

/// Decides.
pub fn plan(id: &ResourceId, init: &InitSettings, config: &str, observed: &Observed) -> Outcome {
    if observed.manifest && observed.admin && !observed.began {
        return Outcome::converged();
    }
    if observed.manifest {
        return Outcome::Blocked {
            reason: format!("an init began and did not end: there is {MANIFEST}, but no cluster that is whole"),
            fix: Some("kubeadm reset, then `agent apply`".to_owned()),
        };
    }
    if !observed.time_is_right {
        return Outcome::Waiting { reason: "the clock is not in step yet: certificates would not be valid".to_owned() };
    }
    let name = init.control_plane_endpoint.as_ref().map_or("this host's address", |endpoint| endpoint.as_str());
    Outcome::Change(Change {
        id: id.clone(),
        reason: Reason::Missing,
        summary: format!("begin a cluster at {name}; there is no way back but a reset"),
        diffs: vec![Diff::Value { what: "cluster".to_owned(), old: None, new: Some(name.to_owned()) }],
        actions: vec![Action::Kubeadm {
            verb: KubeadmVerb::Init,
            config: config.to_owned(),
            token: init.token.clone(),
            certificate_key: init.certificate_key.clone(),
            seconds: init.timeout.duration().as_secs(),
        }],
        notify: Vec::new(),
        reboot: None,
    })
}

/// What kubeadm is told: the node, the cluster, and the kubelets of all its nodes.
pub fn render(
    settings: &Settings,
    kubernetes: &KubernetesSettings,
    init: &InitSettings,
    platform: &Platform,
) -> [Value; 3] {
    let api = cluster::api_version(kubernetes.version.minor());
    let mut node =
        json!({"apiVersion": api, "kind": "InitConfiguration", "nodeRegistration": cluster::registration(settings)});
    if init.token.is_some() {
        node["bootstrapTokens"] = json!([{"token": TOKEN}]);
    }
    if init.certificate_key.is_some() {
        node["certificateKey"] = CERTIFICATE_KEY.into();
    }
    if let Some(endpoint) = cluster::local_endpoint(settings) {
        node["localAPIEndpoint"] = endpoint;
    }
    let mut whole = json!({"apiVersion": api, "kind": "ClusterConfiguration", "kubernetesVersion": VERSION});
    let mut networking = serde_json::Map::new();
    for (field, value) in [
        ("podSubnet", init.pod_cidr.as_ref().map(|cidr| cidr.as_str())),
        ("serviceSubnet", init.service_cidr.as_ref().map(|cidr| cidr.as_str())),
        ("dnsDomain", init.dns_domain.as_ref().map(|name| name.as_str())),
    ] {
        networking.extend(value.map(|value| (field.to_owned(), value.into())));
    }
    if !networking.is_empty() {
        whole["networking"] = networking.into();
    }
    if let Some(endpoint) = &init.control_plane_endpoint {
        whole["controlPlaneEndpoint"] = endpoint.as_str().into();
    }
    if let Some(place) = &init.image_repository {
        whole["imageRepository"] = place.as_str().into();
    }
    if !init.cert_sans.is_empty() {
        let names: Vec<&str> = init.cert_sans.iter().map(|name| name.as_str()).collect();
        whole["apiServer"] = json!({"certSANs": names});
    }
    // kubeadm leaves it to all nodes; before 1.22 its own choice was cgroupfs
    let kubelets = json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "cgroupDriver": driver_word(cgroup_driver(&settings.runtime, platform)),
    });
    [node, whole, kubelets]
}

/// The cluster's first control plane.
pub struct Init {
    id: ResourceId,
    init: InitSettings,
    config: String,
    needs: Vec<ResourceId>,
    wait_for_time: bool,
}

impl Init {
    /// None where somebody else does it, or there is no kubelet of ours.
    pub fn new(settings: &Settings, platform: &Platform) -> Result<Option<Init>, ResourceError> {
        let (Some(init), Some(kubernetes)) = (&settings.init, &settings.kubernetes) else { return Ok(None) };
        Ok(Some(Init {
            id: Init::resource_id(),
            config: cluster::documents("init", &render(settings, kubernetes, init, platform))?,
            init: init.clone(),
            needs: cluster::needs(settings),
            wait_for_time: settings.host.time_sync,
        }))
    }

    /// The name of the resource.
    pub fn resource_id() -> ResourceId {
        ResourceId::new("init", "kubeadm")
    }

    fn observe(&self, host: &Host) -> Result<Observed, ObserveError> {
        Ok(Observed {
            manifest: host.root.exists(MANIFEST)?,
            admin: host.root.exists(ADMIN_CONF)?,
            began: host.root.exists(BEGAN)?,
            time_is_right: !self.wait_for_time || host.clock.is_synchronized(),
        })
    }
}

#[async_trait]
impl Resource for Init {
    fn id(&self) -> &ResourceId {
        &self.id
    }

    fn needs(&self) -> Vec<ResourceId> {
        self.needs.clone()
    }

    fn stage(&self) -> Stage {
        Stage::Activate
    }

    async fn plan(&self, host: &Host, _context: &PlanContext<'_>) -> Result<Outcome, ResourceError> {
        Ok(plan(&self.id, &self.init, &self.config, &self.observe(host)?))
    }

    fn explain(&self) -> String {
        format!(
            "kubeadm begins a cluster with this node as its first control plane, once: a node with {MANIFEST} and {ADMIN_CONF} \
             is one. Secrets come from credentials of the agent's units or files that only root can read, and are in no \
             journal. The pod network is for you to install. By hand: kubeadm init"
        )
    }

    fn live_only(&self) -> bool {
        true
    }

    fn applied(&self) -> Value {
        json!({"endpoint": self.init.control_plane_endpoint})
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use crate::host::platform::CgroupMode;

    fn settings(version: &str, rest: &str) -> Settings {
        config::from_text(&format!(
            "[node]\nrole = \"control-plane\"\nname = \"n1\"\nip = \"10.0.0.5\"\n[kubernetes]\nversion = \"{version}\"\n\
             repo_baseurl = \"http://x/\"\n[init]\nmethod = \"kubeadm\"\npod_cidr = \"10.244.0.0/16\"\n{rest}"
        ))
        .unwrap()
    }

    #[test]
    fn the_cluster_is_what_the_config_says_in_the_words_of_the_minor() {
        for (version, api) in [("1.18", "v1beta2"), ("1.22", "v1beta3"), ("1.31", "v1beta4")] {
            let rest = "control_plane_endpoint = \"api:6443\"\ncert_sans = [\"api.example.com\", \"10.0.0.9\"]\n\
                token = { credential = \"t\" }\ncertificate_key = { credential = \"k\" }\n";
            let settings = settings(version, rest);
            let init = Init::new(&settings, &Platform::example("9", CgroupMode::V2)).unwrap().unwrap();
            let documents: Vec<Value> = serde_saphyr::from_multiple(&init.config).unwrap();
            let [node, whole, kubelets] = &documents[..] else { panic!("{documents:?}") };
            assert_eq!(node["apiVersion"], format!("kubeadm.k8s.io/{api}"));
            assert_eq!(node["nodeRegistration"]["criSocket"], "unix:///run/nodeagent/cri.sock");
            assert_eq!(node["localAPIEndpoint"]["advertiseAddress"], "10.0.0.5");
            assert_eq!(
                (&node["certificateKey"], &node["bootstrapTokens"][0]["token"]),
                (&json!(CERTIFICATE_KEY), &json!(TOKEN))
            );
            assert_eq!(whole["kubernetesVersion"], VERSION);
            assert_eq!(whole["networking"], json!({"podSubnet": "10.244.0.0/16"}));
            assert_eq!(whole["apiServer"]["certSANs"], json!(["api.example.com", "10.0.0.9"]));
            assert_eq!(kubelets["cgroupDriver"], "systemd");
        }
    }

    #[test]
    fn a_cluster_is_begun_once_and_not_over_half_a_one() {
        let settings = settings("1.36", "");
        let decide =
            |observed: &Observed| plan(&Init::resource_id(), settings.init.as_ref().unwrap(), "config", observed);
        let right = Observed { time_is_right: true, ..Observed::default() };
        let outcome = decide(&right);
        let actions = &outcome.change().unwrap().actions[..];
        assert!(matches!(actions, [Action::Kubeadm { verb: KubeadmVerb::Init, seconds: 600, .. }]), "{actions:?}");
        let whole = Observed { manifest: true, admin: true, ..right.clone() };
        assert_eq!(decide(&whole), Outcome::converged());
        for half in [Observed { began: true, ..whole.clone() }, Observed { admin: false, ..whole }] {
            assert!(matches!(decide(&half), Outcome::Blocked { fix: Some(_), .. }), "{half:?}");
        }
        let refused_at_the_door = Observed { began: true, ..right.clone() };
        assert!(decide(&refused_at_the_door).change().is_some());
        assert!(matches!(decide(&Observed { time_is_right: false, ..right }), Outcome::Waiting { .. }));
    }
}
