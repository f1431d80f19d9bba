//! The node becomes a member of its cluster, once, by kubeadm.

use async_trait::async_trait;
use serde_json::{Value, json};

use super::cluster::{self, CERTIFICATE_KEY, TOKEN};
use super::{ObserveError, PlanContext, Resource, ResourceError};
use crate::config::join::JoinSettings;
use crate::config::settings::Settings;
use crate::host::Host;
use crate::plan::{Action, Change, Diff, KubeadmVerb, Outcome, Reason, ResourceId, Stage};

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
    /// The clock is in step, or nobody has asked for that.
    pub time_is_right: bool,
}

/// Decides.
pub fn plan(id: &ResourceId, join: &JoinSettings, config: &str, observed: &Observed) -> Outcome {
    let endpoint = join.endpoint.as_str();
    if let Some(server) = &observed.server {
        let same = server.trim_start_matches("https://").trim_end_matches('/') == endpoint;
        return match same {
            true => Outcome::converged(),
            // a load balancer's name and its address are the same cluster: only a person knows
            false => Outcome::Converged {
                note: Some(format!("this node is a member of the cluster at {server}; join.endpoint is {endpoint}")),
            },
        };
    }
    if observed.half {
        return Outcome::Blocked {
            reason: format!("a join began and did not end: there is {BOOTSTRAP_CONF}, but no {KUBELET_CONF}"),
            fix: Some("kubeadm reset, then `agent apply`".to_owned()),
        };
    }
    if !observed.time_is_right {
        return Outcome::Waiting { reason: "the clock is not in step yet: certificates would not be valid".to_owned() };
    }
    Outcome::Change(Change {
        id: id.clone(),
        reason: Reason::Missing,
        summary: format!("join the cluster at {endpoint}; there is no way back but a reset"),
        diffs: vec![Diff::Value { what: "cluster".to_owned(), old: None, new: Some(endpoint.to_owned()) }],
        actions: vec![Action::Kubeadm {
            verb: KubeadmVerb::Join,
            config: config.to_owned(),
            token: Some(join.token.clone()),
            certificate_key: join.certificate_key.clone(),
            seconds: join.timeout.duration().as_secs(),
        }],
        notify: Vec::new(),
        reboot: None,
    })
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

/// The membership.
pub struct Join {
    id: ResourceId,
    join: JoinSettings,
    config: String,
    needs: Vec<ResourceId>,
    wait_for_time: bool,
}

impl Join {
    /// None where somebody else does it, or there is no kubelet of ours.
    pub fn new(settings: &Settings) -> Result<Option<Join>, ResourceError> {
        let (Some(join), Some(kubernetes)) = (&settings.join, &settings.kubernetes) else { return Ok(None) };
        let rendered = render(settings, kubernetes.version.minor(), join);
        let config = cluster::documents("join", &[rendered])?;
        let needs = cluster::needs(settings);
        let id = Join::resource_id();
        Ok(Some(Join { id, join: join.clone(), config, needs, wait_for_time: settings.host.time_sync }))
    }

    /// The name of the resource.
    pub fn resource_id() -> ResourceId {
        ResourceId::new("join", "kubeadm")
    }

    fn observe(&self, host: &Host) -> Result<Observed, ObserveError> {
        let text = host.root.read_text(KUBELET_CONF)?;
        let server = text.map(|text| {
            let line = text.lines().find_map(|line| line.trim().trim_start_matches("- ").strip_prefix("server:"));
            line.unwrap_or_default().trim().trim_matches(['"', '\'']).to_owned()
        });
        Ok(Observed {
            half: server.is_none() && host.root.exists(BOOTSTRAP_CONF)?,
            server,
            time_is_right: !self.wait_for_time || host.clock.is_synchronized(),
        })
    }
}

#[async_trait]
impl Resource for Join {
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
        Ok(plan(&self.id, &self.join, &self.config, &self.observe(host)?))
    }

    fn explain(&self) -> String {
        format!(
            "kubeadm joins this node to the cluster at {}, once: a node with {KUBELET_CONF} has joined. The token comes from a \
             credential of the agent's unit or a file that only root can read, and is in no journal. By hand: kubeadm join",
            self.join.endpoint.as_str()
        )
    }

    fn live_only(&self) -> bool {
        true
    }

    fn applied(&self) -> Value {
        json!({"endpoint": self.join.endpoint.as_str()})
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    fn settings(version: &str) -> Settings {
        let pin = "a".repeat(64);
        config::from_text(&format!(
            "[node]\nname = \"n1\"\n[kubernetes]\nversion = \"{version}\"\nrepo_baseurl = \"http://x/\"\n[join]\nmethod = \"kubeadm\"\n\
             endpoint = \"10.0.0.1:6443\"\nca_hashes = [\"sha256:{pin}\"]\ntoken = {{ credential = \"join-token\" }}\n"
        ))
        .unwrap()
    }

    fn decide(observed: &Observed) -> Outcome {
        let settings = settings("1.31");
        plan(&Join::resource_id(), settings.join.as_ref().unwrap(), "config", observed)
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
            let join = Join::new(&settings(version)).unwrap().unwrap();
            let config: Value = serde_saphyr::from_str(&join.config).unwrap();
            assert_eq!(config["apiVersion"], format!("kubeadm.k8s.io/{api}"), "{version}");
            assert_eq!(config["nodeRegistration"]["criSocket"], "unix:///run/nodeagent/cri.sock");
            assert_eq!(config["nodeRegistration"]["name"], "n1");
            assert_eq!(config["discovery"]["tlsBootstrapToken"], TOKEN, "the token itself is read at the last moment");
        }
    }

    #[test]
    fn a_node_joins_once_and_not_into_half_a_join() {
        let right = Observed { time_is_right: true, ..Observed::default() };
        let outcome = decide(&right);
        assert!(matches!(
            &outcome.change().unwrap().actions[..],
            [Action::Kubeadm { verb: KubeadmVerb::Join, seconds: 300, .. }]
        ));
        let joined = |server: &str| Observed { server: Some(server.to_owned()), ..right.clone() };
        assert_eq!(decide(&joined("https://10.0.0.1:6443")), Outcome::converged());
        assert!(matches!(decide(&joined("https://lb:6443")), Outcome::Converged { note: Some(_) }));
        assert!(matches!(decide(&Observed { half: true, ..right.clone() }), Outcome::Blocked { fix: Some(_), .. }));
        assert!(matches!(decide(&Observed { time_is_right: false, ..right }), Outcome::Waiting { .. }));
    }
}
