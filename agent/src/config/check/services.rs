//! Checks of the join, the firewall and the registries.

use std::collections::BTreeMap;

use super::Checker;
use crate::config::host::{Cidr, FirewallFragment, FirewallMode, FirewallSettings, RegistryFragment, RegistrySettings};
use crate::config::join::{JoinFragment, JoinMethod, JoinSettings, TokenFragment, TokenSource};
use crate::config::settings::{KubeletMode, KubernetesSettings, Role};
use crate::config::value::Span;

impl Checker<'_> {
    pub(super) fn join(
        &mut self,
        fragment: JoinFragment,
        role: Role,
        kubernetes: Option<&KubernetesSettings>,
    ) -> Option<JoinSettings> {
        if fragment.method.unwrap_or_default() == JoinMethod::None {
            for key in ["endpoint", "ca_hashes", "token", "timeout"] {
                if self.is_given(&["join", key]) {
                    self.wrong(&["join", key], "has no effect unless join.method is \"kubeadm\"".to_owned());
                }
            }
            return None;
        }
        let path = ["join", "method"];
        match (role, kubernetes) {
            (_, None) => {
                self.wrong(&path, "needs kubernetes.version: without a kubelet there is nothing to join".to_owned())
            }
            (_, Some(kubernetes)) if kubernetes.kubelet_mode != KubeletMode::Kubeadm => {
                self.wrong(&path, "needs kubernetes.kubelet_mode = \"kubeadm\"".to_owned());
            }
            (Role::ControlPlane, _) => {
                let problem =
                    "joins workers only; run kubeadm by hand for a control plane, which needs its certificate key";
                self.wrong(&path, problem.to_owned());
            }
            _ => {}
        }
        let ca_hashes = fragment.ca_hashes.unwrap_or_default();
        if ca_hashes.is_empty() {
            let problem = "is missing: without a pin anybody on the way could pose as the cluster";
            self.wrong(&["join", "ca_hashes"], problem.to_owned());
        }
        let token = match fragment.token.unwrap_or_default() {
            TokenFragment { credential: Some(name), file: None } => {
                let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
                if name.is_empty() || name.starts_with('.') || !name.bytes().all(plain) {
                    self.wrong(&["join", "token", "credential"], format!("{name:?} is no name of a credential"));
                }
                Some(TokenSource::Credential(name))
            }
            TokenFragment { credential: None, file: Some(path) } => Some(TokenSource::File(path.as_str().to_owned())),
            _ => {
                let problem =
                    "want either { credential = \"NAME\" } or { file = \"PATH\" }; the token itself stays out of here";
                self.wrong(&["join", "token"], problem.to_owned());
                None
            }
        };
        let Some(endpoint) = fragment.endpoint else {
            self.wrong(&["join", "endpoint"], "is missing: the address of the API server, \"HOST:PORT\"".to_owned());
            return None;
        };
        let timeout = fragment.timeout.unwrap_or(Span::seconds(300));
        Some(JoinSettings { endpoint, ca_hashes, token: token?, timeout })
    }

    pub(super) fn booleans(&mut self, booleans: BTreeMap<String, bool>) -> BTreeMap<String, bool> {
        for name in booleans.keys() {
            let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
            if name.is_empty() || name.len() > 128 || !name.bytes().all(plain) {
                let problem = format!("{name:?} is no boolean of a policy (letters, digits and _)");
                self.wrong(&["selinux", "booleans", name], problem);
            }
        }
        booleans
    }

    pub(super) fn firewall(&mut self, fragment: FirewallFragment) -> FirewallSettings {
        let mode = fragment.mode.unwrap_or_default();
        if mode != FirewallMode::Manage {
            for key in ["pod_cidrs", "service_cidrs", "ports"] {
                if self.is_given(&["firewall", key]) {
                    let problem = "has no effect unless firewall.mode is \"manage\"".to_owned();
                    self.wrong(&["firewall", key], problem);
                }
            }
        }
        let mut sources: Vec<Cidr> = fragment.pod_cidrs.into_iter().chain(fragment.service_cidrs).flatten().collect();
        sources.sort();
        sources.dedup();
        FirewallSettings { mode, sources, ports: fragment.ports.unwrap_or_default() }
    }

    pub(super) fn registries(&mut self, fragments: Vec<RegistryFragment>) -> Vec<RegistrySettings> {
        let mut registries: Vec<RegistrySettings> = Vec::new();
        for fragment in fragments {
            let prefix = fragment.prefix.as_str().to_owned();
            let insecure = fragment.insecure.unwrap_or(false);
            if insecure && fragment.accept_insecure != Some(true) {
                let problem =
                    "what is pulled can then be changed on its way; say accept_insecure = true if that is meant";
                self.named("registries", &prefix, "insecure", problem.to_owned());
            }
            // as containers-registries.conf(5): a wildcard has no place of its own
            if prefix.contains('*') && (fragment.location.is_some() || !prefix.starts_with("*.")) {
                let problem = "a wildcard stands at the front (*.example.com) and needs no location".to_owned();
                self.named("registries", &prefix, "prefix", problem);
            }
            registries.push(RegistrySettings {
                prefix: fragment.prefix,
                location: fragment.location,
                insecure,
                blocked: fragment.blocked.unwrap_or(false),
                mirrors: fragment.mirrors.unwrap_or_default(),
            });
        }
        registries.sort_by(|a, b| a.prefix.cmp(&b.prefix));
        registries
    }
}
