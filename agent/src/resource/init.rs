//! `kubeadm init`: what it leaves on the first control plane of a cluster, and what it is told.

use serde_json::{Value, json};

use super::ObserveError;
use super::cluster::{self, BEGAN, CERTIFICATE_KEY, MANIFEST, Standing, TOKEN, VERSION};
use super::runtime::{cgroup_driver, driver_word};
use crate::config::init::InitSettings;
use crate::config::settings::{KubernetesSettings, Settings};
use crate::host::{Host, Platform};

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
}

/// Looks.
pub fn observe(host: &Host) -> Result<Observed, ObserveError> {
    Ok(Observed {
        manifest: host.root.exists(MANIFEST)?,
        admin: host.root.exists(ADMIN_CONF)?,
        began: host.root.exists(BEGAN)?,
    })
}

/// How far it is. One that was refused at the door has left no manifest, and can be tried again.
pub fn standing(observed: &Observed) -> Standing {
    match observed {
        Observed { manifest: true, admin: true, began: false } => Standing::Member { note: None },
        Observed { manifest: true, .. } => Standing::Half {
            reason: format!("an init began and did not end: there is {MANIFEST}, but no cluster that is whole"),
        },
        Observed { manifest: false, .. } => Standing::Outside,
    }
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

/// What it does, and how that is seen.
pub fn explain() -> String {
    format!(
        "kubeadm begins a cluster with this node as its first control plane, once: a node with {MANIFEST} and {ADMIN_CONF} is \
         one. The pod network is for you to install."
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use crate::host::platform::CgroupMode;
    use crate::resource::membership::Membership;

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
            let platform = Platform::example("9", CgroupMode::V2);
            let membership = Membership::new(&settings, &platform).unwrap().unwrap();
            let documents: Vec<Value> = serde_saphyr::from_multiple(membership.config()).unwrap();
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
    fn half_a_cluster_is_told_from_a_whole_one_and_from_none() {
        let whole = Observed { manifest: true, admin: true, began: false };
        assert_eq!(standing(&whole), Standing::Member { note: None });
        for half in [Observed { began: true, ..whole.clone() }, Observed { admin: false, ..whole }] {
            assert!(matches!(standing(&half), Standing::Half { .. }), "{half:?}");
        }
        for none in [Observed::default(), Observed { began: true, ..Observed::default() }] {
            assert_eq!(standing(&none), Standing::Outside, "{none:?}");
        }
    }
}
