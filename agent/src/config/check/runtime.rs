//! Checks of the runtime: which one, and what is said about another one.

use super::Checker;
use crate::config::BUILT_IN_FILE;
use crate::config::fragment::RuntimeFragment;
use crate::config::host::RegistrySettings;
use crate::config::kubernetes::KubernetesVersion;
use crate::config::settings::{PackageSource, RuntimeKind, RuntimeSettings};
use crate::config::value::{HostPath, Span};

/// The first minor of CRI-O in the place where its maintainers put packages now.
const FIRST_CRIO: u32 = 31;

impl Checker<'_> {
    pub(super) fn runtime(
        &mut self,
        fragment: RuntimeFragment,
        version: Option<KubernetesVersion>,
        source: PackageSource,
    ) -> Option<RuntimeSettings> {
        let kind = fragment.kind.unwrap_or(RuntimeKind::Embedded);
        let path = |key: &'static str| ["runtime", key];
        if kind == RuntimeKind::Embedded {
            for key in ["repo_baseurl", "repo_gpgkey"] {
                self.contradiction(&path("kind"), &path(key), "the embedded runtime comes with this agent");
            }
        } else {
            for key in ["root", "crio_compat_socket"] {
                if self.is_written(&path(key)) {
                    self.contradiction(&path("kind"), &path(key), "this is a setting of the embedded runtime");
                }
            }
        }
        if kind == RuntimeKind::Crio && fragment.repo_baseurl.is_none() && source == PackageSource::Dnf {
            match version.map(KubernetesVersion::minor) {
                None => {
                    let problem = "CRI-O has the minor of Kubernetes, and kubernetes.version is not given".to_owned();
                    self.hinted(&path("kind"), problem, "give kubernetes.version, or runtime.repo_baseurl");
                }
                Some(minor) if minor < FIRST_CRIO => {
                    let problem = format!("its maintainers offer no packages of CRI-O 1.{minor} any more");
                    self.hinted(&path("kind"), problem, "give runtime.repo_baseurl");
                }
                Some(_) => {}
            }
        }
        let own_socket: HostPath = kind.socket().parse().ok()?;
        let socket = fragment.socket.filter(|_| self.is_written(&path("socket"))).unwrap_or(own_socket);
        Some(RuntimeSettings {
            kind,
            repo_baseurl: fragment.repo_baseurl,
            repo_gpgkey: fragment.repo_gpgkey,
            socket,
            root: fragment.root?,
            cgroup_driver: fragment.cgroup_driver,
            pause_image: fragment.pause_image?,
            crio_compat_socket: kind == RuntimeKind::Embedded && fragment.crio_compat_socket.unwrap_or(true),
            ready_timeout: fragment.ready_timeout.unwrap_or(Span::seconds(120)),
        })
    }

    /// containerd has one file for each host of a registry: there is no place for more than that.
    pub(super) fn registries_of_containerd(&mut self, registries: &[RegistrySettings]) {
        for registry in registries {
            let prefix = registry.prefix.as_str().to_owned();
            if prefix.contains(['/', '*']) {
                let problem = "runtime.kind is \"containerd\", which knows registries by their host alone";
                self.named("registries", &prefix, "prefix", problem.to_owned());
            }
            if registry.blocked {
                let problem = "runtime.kind is \"containerd\", which cannot block a registry";
                self.named("registries", &prefix, "blocked", problem.to_owned());
            }
        }
    }

    /// Given by a person, and not by the built-in layer.
    fn is_written(&self, keys: &[&str]) -> bool {
        self.tree.at(keys).is_some_and(|node| node.origin.file.as_ref() != BUILT_IN_FILE)
    }
}
