//! From the merged fragment to [`Settings`]: defaults that depend on other values, and values that contradict each other.

mod cluster;
mod runtime;
mod services;

use std::collections::BTreeMap;

use super::error::{ConfigError, Origin};
use super::fragment::{FileFragment, Fragment, KubernetesFragment, RepoFragment, SysctlFragment, UnitFragment};
use super::host::{HostSettings, LimitSettings};
use super::join::JoinMethod;
use super::kubernetes::{check_label_value, check_qualified_name};
use super::merge::identity;
use super::settings::{
    FileSettings, KernelSettings, KubeletMode, KubernetesSettings, NodeSettings, PackageSettings, PackageSource,
    ReconcileSettings, RemovedPolicy, RepoSettings, Role, RuntimeKind, SelinuxMode, Settings, SwapPolicy, SysctlRule,
    SysctlWant, UnitSettings, UnitState,
};
use super::tree::{Node, Value};
use super::value::{FileMode, HostPath, Secret, SysctlKey};

/// The first minor whose packages are on pkgs.k8s.io.
const FIRST_MINOR_ON_PKGS: u32 = 24;

/// Validates a merged config. `tree` is what it was decoded from: it knows the files.
pub fn check(merged: Fragment, tree: &Node) -> Result<Settings, Vec<ConfigError>> {
    let mut checker = Checker { tree, errors: Vec::new() };
    let settings = checker.settings(merged);
    match settings {
        Some(settings) if checker.errors.is_empty() => Ok(settings),
        _ => Err(checker.errors),
    }
}

struct Checker<'t> {
    tree: &'t Node,
    errors: Vec<ConfigError>,
}

impl Checker<'_> {
    fn settings(&mut self, merged: Fragment) -> Option<Settings> {
        if let Some(schema) = merged.schema.filter(|schema| *schema != 1) {
            self.wrong(&["schema"], format!("this agent reads schema 1, not {schema}"));
        }
        let role = merged.node.role.unwrap_or(Role::Worker);
        let swap = merged.swap.policy.unwrap_or(SwapPolicy::Off);
        self.labels(&merged.node.labels);
        if role == Role::Standalone {
            for key in ["labels", "taints"] {
                self.contradiction(&["node", "role"], &["node", key], "a standalone node registers with no cluster");
            }
        }
        let packages = PackageSettings {
            source: merged.packages.source.unwrap_or(PackageSource::Dnf),
            install: merged.packages.install.unwrap_or_default(),
            update: merged.packages.update.unwrap_or_default(),
            lock: merged.packages.lock.unwrap_or(false),
        };
        if packages.source == PackageSource::Preinstalled {
            for key in ["update", "lock"] {
                let why = "packages that come with the image are the image's to update";
                self.contradiction(&["packages", "source"], &["packages", key], why);
            }
        }
        let kubernetes = self.kubernetes(merged.kubernetes, role, swap);
        let kernel = KernelSettings {
            modules: merged.kernel.modules.unwrap_or_default(),
            sysctl: merged.kernel.sysctl.into_iter().filter_map(|(key, rule)| self.sysctl(key, rule)).collect(),
        };
        let version = kubernetes.as_ref().map(|kubernetes| kubernetes.version);
        let runtime = self.runtime(merged.runtime, version, packages.source)?;
        let joins = merged.join.method == Some(JoinMethod::Kubeadm);
        let join = self.join(merged.join, role, kubernetes.as_ref());
        let init = self.init(merged.init, role, kubernetes.as_ref(), joins);
        let host = HostSettings {
            time_sync: merged.time.require_sync.unwrap_or(false),
            hostname: merged.hostname.name,
            unmanaged: merged.network.unmanaged_interfaces.unwrap_or_default(),
            disable_nm_cloud_setup: merged.network.disable_nm_cloud_setup.unwrap_or(true),
            firewall: self.firewall(merged.firewall),
            limits: LimitSettings {
                nofile: merged.limits.nofile,
                nproc: merged.limits.nproc,
                memlock: merged.limits.memlock,
                tasks: merged.limits.tasks,
            },
            registries: self.registries(merged.registries),
        };
        if runtime.kind == RuntimeKind::Containerd {
            self.registries_of_containerd(&host.registries);
        }
        let settings = Settings {
            node: NodeSettings {
                role,
                name: merged.node.name,
                labels: merged.node.labels,
                taints: merged.node.taints,
                ip: merged.node.ip,
                provider_id: merged.node.provider_id,
            },
            kernel,
            selinux: merged.selinux.mode.unwrap_or(SelinuxMode::Permissive),
            selinux_booleans: self.booleans(merged.selinux.booleans),
            swap,
            packages,
            kubernetes,
            runtime,
            join,
            init,
            host,
            repos: self.repos(merged.repo),
            files: self.files(merged.file),
            units: self.units(merged.unit),
            reconcile: ReconcileSettings {
                policy: merged.reconcile.policy?,
                overrides: merged.reconcile.overrides,
                max_repairs_per_hour: merged.reconcile.max_repairs_per_hour?,
                removed: merged.reconcile.removed.unwrap_or(RemovedPolicy::Report),
            },
        };
        Some(settings)
    }

    fn labels(&mut self, labels: &BTreeMap<String, String>) {
        for (name, value) in labels {
            for problem in [check_qualified_name(name), check_label_value(value)].into_iter().filter_map(Result::err) {
                self.wrong(&["node", "labels", name], problem.to_string());
            }
        }
    }

    fn sysctl(&mut self, key: SysctlKey, rule: SysctlFragment) -> Option<(SysctlKey, SysctlRule)> {
        let path = ["kernel", "sysctl", key.as_str()];
        let want = match (rule.value, rule.min) {
            (Some(value), None) => SysctlWant::Value(value.to_string()),
            (None, Some(min)) => SysctlWant::Min(min),
            (Some(_), Some(_)) => {
                let value = [path[0], path[1], path[2], "value"];
                let min = [path[0], path[1], path[2], "min"];
                self.contradiction(&value, &min, "a parameter has either an exact value or a minimum");
                return None;
            }
            (None, None) => {
                self.wrong(&path, "neither value nor min is given".to_owned());
                return None;
            }
        };
        Some((key, SysctlRule { want, optional: rule.optional.unwrap_or(false) }))
    }

    fn kubernetes(&mut self, fragment: KubernetesFragment, role: Role, swap: SwapPolicy) -> Option<KubernetesSettings> {
        let Some(version) = fragment.version else {
            for key in ["kubelet_mode", "repo_baseurl", "kubelet", "kubelet_args"] {
                if self.is_given(&["kubernetes", key]) {
                    self.wrong(&["kubernetes", key], "has no effect without kubernetes.version".to_owned());
                }
            }
            return None;
        };
        let mode = fragment.kubelet_mode.unwrap_or(match role {
            Role::Standalone => KubeletMode::Agent,
            Role::Worker | Role::ControlPlane => KubeletMode::Kubeadm,
        });
        let path = ["kubernetes", "kubelet_mode"];
        if role == Role::Standalone && mode == KubeletMode::Kubeadm {
            self.contradiction(&["node", "role"], &path, "a standalone node has no cluster for kubeadm to join");
        }
        if mode == KubeletMode::External {
            for key in ["kubelet", "kubelet_args"] {
                self.contradiction(&path, &["kubernetes", key], "an external kubelet is not configured from here");
            }
        }
        if version.minor() < FIRST_MINOR_ON_PKGS && fragment.repo_baseurl.is_none() {
            let problem =
                format!("packages of {version} are not on pkgs.k8s.io (that begins with 1.{FIRST_MINOR_ON_PKGS})");
            self.hinted(&["kubernetes", "version"], problem, "give kubernetes.repo_baseurl");
        }
        if swap == SwapPolicy::Limited && version.minor() < 22 {
            self.contradiction(
                &["swap", "policy"],
                &["kubernetes", "version"],
                "a kubelet can limit swap from 1.22 on",
            );
        }
        for (index, arg) in fragment.kubelet_args.iter().flatten().enumerate() {
            if !arg.starts_with("--") || arg.chars().any(char::is_control) {
                self.element(
                    &["kubernetes", "kubelet_args"],
                    index,
                    format!("{arg:?} is no flag; want \"--name=value\""),
                );
            }
        }
        Some(KubernetesSettings {
            version,
            kubelet_mode: mode,
            repo_baseurl: fragment.repo_baseurl,
            kubelet: fragment.kubelet,
            kubelet_args: fragment.kubelet_args.unwrap_or_default(),
        })
    }

    fn repos(&mut self, fragments: Vec<RepoFragment>) -> Vec<RepoSettings> {
        let mut repos: Vec<RepoSettings> = Vec::new();
        for fragment in fragments {
            let name = fragment.name.as_str().to_owned();
            let baseurl = fragment.baseurl.map(|urls| urls.0).unwrap_or_default();
            let gpgkey = fragment.gpgkey.map(|urls| urls.0).unwrap_or_default();
            let gpgcheck = fragment.gpgcheck.unwrap_or(true);
            if baseurl.is_empty() {
                self.named("repo", &name, "baseurl", "is missing: a repository without an address".to_owned());
            }
            if gpgcheck && gpgkey.is_empty() {
                let problem = "packages are to be checked, but no key is given; give gpgkey, or gpgcheck = false";
                self.named("repo", &name, "gpgkey", problem.to_owned());
            }
            if fragment.priority.is_some_and(|priority| !(1..=99).contains(&priority)) {
                self.named("repo", &name, "priority", "want 1 to 99".to_owned());
            }
            if name == "kubernetes" && self.is_given(&["kubernetes", "version"]) {
                let problem = "is written from kubernetes.version; use kubernetes.repo_baseurl to change its address";
                self.named("repo", &name, "name", problem.to_owned());
            }
            repos.push(RepoSettings {
                title: fragment.title.unwrap_or_else(|| name.clone()),
                name: fragment.name,
                baseurl,
                gpgkey,
                gpgcheck,
                repo_gpgcheck: fragment.repo_gpgcheck.unwrap_or(false),
                enabled: fragment.enabled.unwrap_or(true),
                exclude: fragment.exclude.unwrap_or_default(),
                priority: fragment.priority,
            });
        }
        repos.sort_by(|a, b| a.name.cmp(&b.name));
        repos
    }

    fn files(&mut self, fragments: Vec<FileFragment>) -> Vec<FileSettings> {
        let mut files: Vec<FileSettings> = Vec::new();
        for fragment in fragments {
            let path = fragment.path.as_str().to_owned();
            if let Some(problem) = not_ours(&fragment.path) {
                self.named("file", &path, "path", problem.to_owned());
            }
            let secret = fragment.secret.unwrap_or(false);
            let Some(content) = fragment.content else {
                self.named("file", &path, "content", "is missing: a file without its text".to_owned());
                continue;
            };
            let Ok(default_mode) = (if secret { "0600" } else { "0644" }).parse::<FileMode>() else { continue };
            let mode = fragment.mode.unwrap_or(default_mode);
            if secret && mode.bits() & 0o004 != 0 {
                let problem = "a secret file must not be readable for everybody".to_owned();
                self.named("file", &path, "mode", problem);
            }
            if let Some(sign) = &fragment.block {
                let plain = |c: char| c.is_ascii_punctuation();
                if sign.is_empty() || sign.len() > 3 || !sign.chars().all(plain) {
                    let problem = format!("{sign:?} is no comment sign of a file, such as \"#\", \";\" or \"//\"");
                    self.named("file", &path, "block", problem);
                }
                if [fragment.mode.is_some(), fragment.uid.is_some(), fragment.gid.is_some()].contains(&true) {
                    let problem = "mode, uid and gid are those of the file, of which only a block is ours".to_owned();
                    self.named("file", &path, "block", problem);
                }
                if !content.ends_with('\n') {
                    self.named("file", &path, "content", "a block is whole lines: end it with a line end".to_owned());
                }
            }
            files.push(FileSettings {
                path: fragment.path,
                content: Secret::new(content),
                block: fragment.block,
                secret,
                mode,
                uid: fragment.uid.unwrap_or(0),
                gid: fragment.gid.unwrap_or(0),
            });
        }
        files.sort_by(|a, b| a.path.cmp(&b.path));
        files
    }

    fn units(&mut self, fragments: Vec<UnitFragment>) -> Vec<UnitSettings> {
        let mut units: Vec<UnitSettings> = Vec::new();
        for fragment in fragments {
            let name = fragment.name.as_str().to_owned();
            let masked = fragment.masked == Some(true);
            for (other, contradicts) in
                [("enabled", fragment.enabled == Some(true)), ("state", fragment.state == Some(UnitState::Running))]
            {
                if masked && contradicts {
                    self.named_contradiction("unit", &name, "masked", other, "a masked unit cannot be started");
                }
            }
            if fragment.enabled.is_none() && fragment.masked.is_none() && fragment.state.is_none() {
                self.named("unit", &name, "name", "asks for nothing; give enabled, masked or state".to_owned());
            }
            units.push(UnitSettings {
                name: fragment.name,
                enabled: fragment.enabled,
                masked: fragment.masked,
                state: fragment.state,
            });
        }
        units.sort_by(|a, b| a.name.cmp(&b.name));
        units
    }

    fn is_given(&self, keys: &[&str]) -> bool {
        self.tree.at(keys).is_some_and(|node| !matches!(&node.value, Value::Table(table) if table.is_empty()))
    }

    fn origin(&self, keys: &[&str]) -> Origin {
        (0..=keys.len())
            .rev()
            .find_map(|length| self.tree.at(&keys[..length]))
            .map_or_else(|| self.tree.origin.clone(), |node| node.origin.clone())
    }

    fn wrong(&mut self, keys: &[&str], problem: String) {
        self.errors.push(ConfigError { origin: self.origin(keys), key: dotted(keys), problem, hint: None });
    }

    fn hinted(&mut self, keys: &[&str], problem: String, hint: &str) {
        let error = ConfigError { origin: self.origin(keys), key: dotted(keys), problem, hint: Some(hint.to_owned()) };
        self.errors.push(error);
    }

    /// Two values that cannot both hold, when both are given.
    fn contradiction(&mut self, one: &[&str], other: &[&str], why: &str) {
        if !self.is_given(one) || !self.is_given(other) {
            return;
        }
        let (one_origin, other_origin) = (self.origin(one), self.origin(other));
        let problem = format!("contradicts {} at {one_origin}: {why}", dotted(one));
        self.errors.push(ConfigError { origin: other_origin, key: dotted(other), problem, hint: None });
    }

    fn element(&mut self, keys: &[&str], index: usize, problem: String) {
        let origin = match self.tree.at(keys).map(|node| &node.value) {
            Some(Value::Array(nodes)) => nodes.get(index).map(|node| node.origin.clone()),
            _ => None,
        };
        let origin = origin.unwrap_or_else(|| self.origin(keys));
        let key = format!("{}[{}]", dotted(keys), index + 1);
        self.errors.push(ConfigError { origin, key, problem, hint: None });
    }

    /// The table called `name` of an array of tables.
    fn table(&self, array: &str, name: &str) -> Option<&Node> {
        match self.tree.get(array).map(|node| &node.value) {
            Some(Value::Array(nodes)) => nodes.iter().find(|node| identity(node) == Some(name)),
            _ => None,
        }
    }

    fn table_origin(&self, array: &str, name: &str, key: &str) -> Origin {
        let table = self.table(array, name);
        let node = table.and_then(|table| table.get(key)).or(table);
        node.map_or_else(|| self.origin(&[array]), |node| node.origin.clone())
    }

    fn named(&mut self, array: &str, name: &str, key: &str, problem: String) {
        let origin = self.table_origin(array, name, key);
        self.errors.push(ConfigError { origin, key: format!("{array}[{name}].{key}"), problem, hint: None });
    }

    fn named_contradiction(&mut self, array: &str, name: &str, one: &str, other: &str, why: &str) {
        let one_origin = self.table_origin(array, name, one);
        self.named(array, name, other, format!("contradicts {array}[{name}].{one} at {one_origin}: {why}"));
    }
}

fn dotted(keys: &[&str]) -> String {
    let steps: Vec<_> = keys.iter().map(|key| super::tree::Step::Key((*key).to_owned())).collect();
    super::tree::dotted(&steps)
}

/// Paths that `[[file]]` may not have, because something else in the agent or the kernel owns them.
fn not_ours(path: &HostPath) -> Option<&'static str> {
    let path = path.as_str();
    let below = |top: &str| path == top || path.strip_prefix(top).is_some_and(|rest| rest.starts_with('/'));
    if ["/proc", "/sys", "/dev", "/run"].into_iter().any(below) {
        return Some("is the kernel's or this boot's; a managed file has to outlive a reboot");
    }
    if below("/var/lib/nodeagent") {
        return Some("is the agent's own state");
    }
    const OWNED: [&str; 9] = [
        "/etc/modules-load.d/90-nodeagent.conf",
        "/etc/sysctl.d/99-zz-nodeagent.conf",
        "/etc/selinux/config",
        "/etc/yum.repos.d/kubernetes.repo",
        "/etc/NetworkManager/conf.d/90-nodeagent.conf",
        "/etc/containers/registries.conf.d/50-nodeagent.conf",
        "/etc/hostname",
        "/etc/kubernetes/kubelet.conf.d/50-nodeagent.conf",
        "/etc/systemd/system/kubelet.service.d/50-nodeagent.conf",
    ];
    OWNED.contains(&path).then_some("is written by another resource; use that resource's own keys")
}
