//! `kubeadm join`: what it leaves on a node, and what it is told.

use serde_json::{Value, json};

use super::ObserveError;
use super::cluster::{self, CERTIFICATE_KEY, Standing, TOKEN};
use crate::config::join::JoinSettings;
use crate::config::settings::Settings;
use crate::host::Host;

/// What a join leaves: who the node is.
const KUBELET_CONF: &str = "/etc/kubernetes/kubelet.conf";

/// Written at the begin of a join, and gone at its end.
const BOOTSTRAP_CONF: &str = "/etc/kubernetes/bootstrap-kubelet.conf";

/// What is there.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Observed {
    /// Address of the API server in the kubelet's own kubeconfig; empty when it has none.
    pub server: Option<String>,
    /// A join began and did not end.
    pub half: bool,
}

/// Looks.
pub fn observe(host: &Host) -> Result<Observed, ObserveError> {
    let text = host.root.read_text(KUBELET_CONF)?;
    let server = text.map(|text| {
        let line = text.lines().find_map(|line| line.trim().trim_start_matches("- ").strip_prefix("server:"));
        line.unwrap_or_default().trim().trim_matches(['"', '\'']).to_owned()
    });
    Ok(Observed { half: server.is_none() && host.root.exists(BOOTSTRAP_CONF)?, server })
}

/// How far it is.
pub fn standing(join: &JoinSettings, observed: &Observed) -> Standing {
    let endpoint = join.endpoint.as_str();
    match &observed.server {
        Some(server) if server.trim_start_matches("https://").trim_end_matches('/') == endpoint => {
            Standing::Member { note: None }
        }
        // a load balancer's name and its address are the same cluster: only a person knows
        Some(server) => Standing::Member {
            note: Some(format!("this node is a member of the cluster at {server}; join.endpoint is {endpoint}")),
        },
        None if observed.half => Standing::Half {
            reason: format!("a join began and did not end: there is {BOOTSTRAP_CONF}, but no {KUBELET_CONF}"),
        },
        None => Standing::Outside,
    }
}

/// What kubeadm is told.
pub fn render(settings: &Settings, minor: u32, join: &JoinSettings) -> Value {
    let pins: Vec<&str> = join.ca_hashes.iter().map(|hash| hash.as_str()).collect();
    let mut config = json!({
        "apiVersion": cluster::api_version(minor),
        "kind": "JoinConfiguration",
        "discovery": {
            "bootstrapToken": {
                "apiServerEndpoint": join.endpoint.as_str(),
                "token": TOKEN,
                "caCertHashes": pins,
            },
            "tlsBootstrapToken": TOKEN,
        },
        "nodeRegistration": cluster::registration(settings),
    });
    if join.certificate_key.is_some() {
        config["controlPlane"] = json!({"certificateKey": CERTIFICATE_KEY});
        if let Some(endpoint) = cluster::local_endpoint(settings) {
            config["controlPlane"]["localAPIEndpoint"] = endpoint;
        }
    }
    config
}

/// What it does, and how that is seen.
pub fn explain(join: &JoinSettings) -> String {
    format!(
        "kubeadm joins this node to the cluster at {}, once: a node with {KUBELET_CONF} has joined.",
        join.endpoint.as_str()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use crate::host::Platform;
    use crate::host::platform::CgroupMode;
    use crate::resource::membership::Membership;

    fn settings(version: &str) -> Settings {
        let pin = "a".repeat(64);
        config::from_text(&format!(
            "[node]\nname = \"n1\"\n[kubernetes]\nversion = \"{version}\"\nrepo_baseurl = \"http://x/\"\n[join]\nmethod = \"kubeadm\"\n\
             endpoint = \"10.0.0.1:6443\"\nca_hashes = [\"sha256:{pin}\"]\ntoken = {{ credential = \"join-token\" }}\n"
        ))
        .unwrap()
    }

    #[test]
    fn the_api_changes_at_its_minors_and_the_socket_is_always_named() {
        for (version, api) in [
            ("1.18", "v1beta2"),
            ("1.21", "v1beta2"),
            ("1.22", "v1beta3"),
            ("1.30", "v1beta3"),
            ("1.31", "v1beta4"),
            ("1.37", "v1beta4"),
        ] {
            let platform = Platform::example("9", CgroupMode::V2);
            let membership = Membership::new(&settings(version), &platform).unwrap().unwrap();
            let config: Value = serde_saphyr::from_str(membership.config()).unwrap();
            assert_eq!(config["apiVersion"], format!("kubeadm.k8s.io/{api}"), "{version}");
            assert_eq!(config["nodeRegistration"]["criSocket"], "unix:///run/nodeagent/cri.sock");
            assert_eq!(config["nodeRegistration"]["name"], "n1");
            assert_eq!(config["discovery"]["tlsBootstrapToken"], TOKEN, "the token itself is read at the last moment");
        }
    }

    #[test]
    fn who_has_joined_is_told_by_the_kubelets_own_kubeconfig() {
        let join = settings("1.31").join.unwrap();
        let joined = |server: &str| standing(&join, &Observed { server: Some(server.to_owned()), half: false });
        assert_eq!(joined("https://10.0.0.1:6443"), Standing::Member { note: None });
        assert!(matches!(joined("https://lb:6443"), Standing::Member { note: Some(_) }));
        assert!(matches!(standing(&join, &Observed { server: None, half: true }), Standing::Half { .. }));
        assert_eq!(standing(&join, &Observed::default()), Standing::Outside);
    }
}
