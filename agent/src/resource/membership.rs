//! The node comes into its cluster, once, by kubeadm: by joining it ([`super::join`]) or as its first control plane
//! ([`super::init`]). What both have in common as a resource.

use async_trait::async_trait;
use serde_json::{Value, json};

use super::cluster::{self, Standing};
use super::{ObserveError, PlanContext, Resource, ResourceError, init, join};
use crate::config::init::InitSettings;
use crate::config::join::JoinSettings;
use crate::config::settings::Settings;
use crate::host::{Host, Platform};
use crate::plan::{Action, Change, Diff, KubeadmVerb, Outcome, Reason, ResourceId, Stage};

/// By which way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// Into a cluster that there is.
    Join(JoinSettings),
    /// Into one that begins with it.
    Init(InitSettings),
}

impl Way {
    fn verb(&self) -> KubeadmVerb {
        match self {
            Way::Join(_) => KubeadmVerb::Join,
            Way::Init(_) => KubeadmVerb::Init,
        }
    }

    /// Address of the API server, for people.
    fn endpoint(&self) -> &str {
        match self {
            Way::Join(join) => join.endpoint.as_str(),
            Way::Init(init) => init.control_plane_endpoint.as_ref().map_or("this host's address", |it| it.as_str()),
        }
    }

    fn summary(&self) -> String {
        let what = match self {
            Way::Join(_) => "join the cluster",
            Way::Init(_) => "begin a cluster",
        };
        format!("{what} at {}; there is no way back but a reset", self.endpoint())
    }

    fn action(&self, config: &str) -> Action {
        let (token, certificate_key, timeout) = match self {
            Way::Join(join) => (Some(&join.token), &join.certificate_key, join.timeout),
            Way::Init(init) => (init.token.as_ref(), &init.certificate_key, init.timeout),
        };
        Action::Kubeadm {
            verb: self.verb(),
            config: config.to_owned(),
            token: token.cloned(),
            certificate_key: certificate_key.clone(),
            seconds: timeout.duration().as_secs(),
        }
    }
}

/// Decides.
pub fn plan(id: &ResourceId, way: &Way, config: &str, standing: Standing, time_is_right: bool) -> Outcome {
    match standing {
        Standing::Member { note } => return Outcome::Converged { note },
        Standing::Half { reason } => {
            return Outcome::Blocked { reason, fix: Some("kubeadm reset, then `agent apply`".to_owned()) };
        }
        Standing::Outside => {}
    }
    if !time_is_right {
        return Outcome::Waiting { reason: "the clock is not in step yet: certificates would not be valid".to_owned() };
    }
    let endpoint = Some(way.endpoint().to_owned());
    Outcome::Change(Change {
        id: id.clone(),
        reason: Reason::Missing,
        summary: way.summary(),
        diffs: vec![Diff::Value { what: "cluster".to_owned(), old: None, new: endpoint }],
        actions: vec![way.action(config)],
        notify: Vec::new(),
        reboot: None,
    })
}

/// The membership.
pub struct Membership {
    id: ResourceId,
    way: Way,
    config: String,
    needs: Vec<ResourceId>,
    wait_for_time: bool,
}

impl Membership {
    /// None where somebody else does it, or there is no kubelet of ours.
    pub fn new(settings: &Settings, platform: &Platform) -> Result<Option<Membership>, ResourceError> {
        let Some(kubernetes) = &settings.kubernetes else { return Ok(None) };
        let (way, documents) = match (&settings.join, &settings.init) {
            (Some(join), _) => {
                (Way::Join(join.clone()), vec![join::render(settings, kubernetes.version.minor(), join)])
            }
            (None, Some(init)) => {
                (Way::Init(init.clone()), init::render(settings, kubernetes, init, platform).to_vec())
            }
            (None, None) => return Ok(None),
        };
        Ok(Some(Membership {
            id: Membership::resource_id(way.verb()),
            config: cluster::documents(way.verb().word(), &documents)?,
            way,
            needs: cluster::needs(settings),
            wait_for_time: settings.host.time_sync,
        }))
    }

    /// The name of the resource.
    pub fn resource_id(verb: KubeadmVerb) -> ResourceId {
        ResourceId::new(verb.word(), "kubeadm")
    }

    /// What kubeadm is told, with marks in the places of secrets.
    pub fn config(&self) -> &str {
        &self.config
    }

    fn observe(&self, host: &Host) -> Result<Standing, ObserveError> {
        Ok(match &self.way {
            Way::Join(join) => join::standing(join, &join::observe(host)?),
            Way::Init(_) => init::standing(&init::observe(host)?),
        })
    }
}

#[async_trait]
impl Resource for Membership {
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
        let time_is_right = !self.wait_for_time || host.clock.is_synchronized();
        Ok(plan(&self.id, &self.way, &self.config, self.observe(host)?, time_is_right))
    }

    fn explain(&self) -> String {
        let what = match &self.way {
            Way::Join(join) => join::explain(join),
            Way::Init(_) => init::explain(),
        };
        format!(
            "{what} Secrets come from credentials of the agent's units or files that only root can read, and are in no \
             journal. By hand: kubeadm {}",
            self.way.verb().word()
        )
    }

    fn live_only(&self) -> bool {
        true
    }

    fn applied(&self) -> Value {
        json!({"endpoint": self.way.endpoint()})
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use crate::host::platform::CgroupMode;

    fn ways() -> [Way; 2] {
        let pin = "a".repeat(64);
        let node = "[node]\nrole = \"control-plane\"\n[kubernetes]\nversion = \"1.36\"\n";
        let join = config::from_text(&format!(
            "{node}[join]\nmethod = \"kubeadm\"\nendpoint = \"10.0.0.1:6443\"\nca_hashes = [\"sha256:{pin}\"]\n\
             token = {{ credential = \"t\" }}\ncertificate_key = {{ credential = \"k\" }}\n"
        ));
        let init = config::from_text(&format!("{node}[init]\nmethod = \"kubeadm\"\n"));
        [Way::Join(join.unwrap().join.unwrap()), Way::Init(init.unwrap().init.unwrap())]
    }

    #[test]
    fn a_node_comes_into_its_cluster_once_and_not_over_half_of_it() {
        for (way, wanted, limit) in ways().iter().zip(["join", "init"]).zip([300, 600]).map(|((a, b), c)| (a, b, c)) {
            let id = Membership::resource_id(way.verb());
            assert_eq!(id.as_str(), format!("{wanted}/kubeadm"));
            let decide = |standing, time_is_right| plan(&id, way, "config", standing, time_is_right);
            let outcome = decide(Standing::Outside, true);
            let actions = &outcome.change().unwrap().actions[..];
            assert!(
                matches!(actions, [Action::Kubeadm { verb, seconds, .. }] if verb.word() == wanted && *seconds == limit),
                "{actions:?}"
            );
            assert!(matches!(decide(Standing::Outside, false), Outcome::Waiting { .. }));
            let note = Some("elsewhere".to_owned());
            let elsewhere = Outcome::Converged { note: note.clone() };
            assert_eq!(decide(Standing::Member { note }, false), elsewhere, "a member's clock is no matter here");
            let half = decide(Standing::Half { reason: "half".into() }, true);
            assert!(
                matches!(&half, Outcome::Blocked { fix: Some(fix), .. } if fix.contains("kubeadm reset")),
                "{half:?}"
            );
        }
    }

    #[test]
    fn nobody_comes_into_a_cluster_without_being_told_to() {
        let settings = config::from_text("[kubernetes]\nversion = \"1.36\"\n").unwrap();
        assert!(Membership::new(&settings, &Platform::example("9", CgroupMode::V2)).unwrap().is_none());
    }
}
