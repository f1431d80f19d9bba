//! Checks of how the node comes into a cluster: by joining one, or by being its first control plane.

use super::Checker;
use crate::config::init::{InitFragment, InitMethod, InitSettings};
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
            self.without_method("join", &["endpoint", "ca_hashes", "token", "certificate_key", "timeout"]);
            return None;
        }
        self.wants_kubeadm("join", kubernetes);
        let ca_hashes = fragment.ca_hashes.unwrap_or_default();
        if ca_hashes.is_empty() {
            let problem = "is missing: without a pin anybody on the way could pose as the cluster";
            self.wrong(&["join", "ca_hashes"], problem.to_owned());
        }
        let token = self.secret(&["join", "token"], fragment.token.unwrap_or_default());
        let certificate_key = match (role, fragment.certificate_key) {
            (Role::ControlPlane, None) => {
                let problem = "is missing: a control plane joins with the key that the cluster's certificates were left under \
                               (`kubeadm init phase upload-certs --upload-certs` prints one)";
                self.wrong(&["join", "certificate_key"], problem.to_owned());
                None
            }
            (_, None) => None,
            (Role::ControlPlane, Some(fragment)) => self.secret(&["join", "certificate_key"], fragment),
            (Role::Worker | Role::Standalone, Some(_)) => {
                let problem = "is for control planes, and this node's role is another; leave it out";
                self.wrong(&["join", "certificate_key"], problem.to_owned());
                None
            }
        };
        let Some(endpoint) = fragment.endpoint else {
            self.wrong(&["join", "endpoint"], "is missing: the address of the API server, \"HOST:PORT\"".to_owned());
            return None;
        };
        let timeout = fragment.timeout.unwrap_or(Span::seconds(300));
        Some(JoinSettings { endpoint, ca_hashes, token: token?, certificate_key, timeout })
    }

    pub(super) fn init(
        &mut self,
        fragment: InitFragment,
        role: Role,
        kubernetes: Option<&KubernetesSettings>,
        joins: bool,
    ) -> Option<InitSettings> {
        if fragment.method.unwrap_or_default() == InitMethod::None {
            self.without_method(
                "init",
                &[
                    "control_plane_endpoint",
                    "pod_cidr",
                    "service_cidr",
                    "dns_domain",
                    "cert_sans",
                    "image_repository",
                    "token",
                    "certificate_key",
                    "timeout",
                ],
            );
            return None;
        }
        self.wants_kubeadm("init", kubernetes);
        if role != Role::ControlPlane {
            self.wrong(&["init", "method"], "needs node.role = \"control-plane\"".to_owned());
        }
        if joins {
            let why = "a node either joins a cluster or is its first control plane";
            self.contradiction(&["join", "method"], &["init", "method"], why);
        }
        if fragment.certificate_key.is_some() && fragment.control_plane_endpoint.is_none() {
            let problem =
                "is for further control planes, which need init.control_plane_endpoint to reach each other by";
            self.wrong(&["init", "certificate_key"], problem.to_owned());
        }
        let token = fragment.token.and_then(|token| self.secret(&["init", "token"], token));
        let certificate_key = fragment.certificate_key.and_then(|key| self.secret(&["init", "certificate_key"], key));
        Some(InitSettings {
            control_plane_endpoint: fragment.control_plane_endpoint,
            pod_cidr: fragment.pod_cidr,
            service_cidr: fragment.service_cidr,
            dns_domain: fragment.dns_domain,
            cert_sans: fragment.cert_sans.unwrap_or_default(),
            image_repository: fragment.image_repository,
            token,
            certificate_key,
            timeout: fragment.timeout.unwrap_or(Span::seconds(600)),
        })
    }

    fn without_method(&mut self, table: &str, keys: &[&str]) {
        for key in keys {
            if self.is_given(&[table, key]) {
                self.wrong(&[table, key], format!("has no effect unless {table}.method is \"kubeadm\""));
            }
        }
    }

    fn wants_kubeadm(&mut self, table: &str, kubernetes: Option<&KubernetesSettings>) {
        let problem = match kubernetes {
            None => "needs kubernetes.version: without a kubelet there is no cluster",
            Some(kubernetes) if kubernetes.kubelet_mode != KubeletMode::Kubeadm => {
                "needs kubernetes.kubelet_mode = \"kubeadm\""
            }
            Some(_) => return,
        };
        self.wrong(&[table, "method"], problem.to_owned());
    }

    /// Where a secret is.
    fn secret(&mut self, path: &[&str], fragment: TokenFragment) -> Option<TokenSource> {
        match fragment {
            TokenFragment { credential: Some(name), file: None } => {
                let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
                if name.is_empty() || name.starts_with('.') || !name.bytes().all(plain) {
                    let path = [path, &["credential"]].concat();
                    self.wrong(&path, format!("{name:?} is no name of a credential"));
                }
                Some(TokenSource::Credential(name))
            }
            TokenFragment { credential: None, file: Some(path) } => Some(TokenSource::File(path.as_str().to_owned())),
            _ => {
                let problem =
                    "want either { credential = \"NAME\" } or { file = \"PATH\" }; the secret itself stays out of here";
                self.wrong(path, problem.to_owned());
                None
            }
        }
    }
}
