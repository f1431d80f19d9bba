//! Packages: those of the host (`package/host`) and those of Kubernetes (`package/kubernetes`). Each is one query and, when
//! something is missing, one dnf transaction; a run that finds all of them starts no dnf.

use std::collections::BTreeMap;

use async_trait::async_trait;
use serde_json::{Value, json};

use super::repo::DeadRepositories;
use super::{Past, PlanContext, Resource, ResourceError};
use crate::config::kubernetes::KubernetesVersion;
use crate::config::settings::{KubeletMode, KubernetesSettings, PackageSource};
use crate::host::Host;
use crate::host::dnf::Installed;
use crate::plan::{Action, Change, Diff, DnfOp, Outcome, Reason, ResourceId};

/// Where we lock versions, they are locked against others.
const PAST_LOCKS: &str = "--disableplugin=versionlock";

/// A package that is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// As rpm knows it.
    pub name: String,
    /// As dnf is asked for it.
    pub spec: String,
    /// Which versions will do.
    pub version: Version,
}

/// Which versions of a package will do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Version {
    /// Any.
    Any,
    /// `1.36.2`, of any release.
    Exact(String),
    /// `1.36.`: anything that begins so.
    Series(String),
    /// `name-version-release` as given; what is installed has to begin so.
    Spec(String),
}

impl Version {
    fn accepts(&self, name: &str, installed: &Installed) -> bool {
        match self {
            Version::Any => true,
            Version::Exact(version) => installed.version == *version,
            Version::Series(series) => installed.version.starts_with(series.as_str()),
            Version::Spec(spec) => {
                let full = format!("{name}-{}", installed.evr());
                full.strip_prefix(spec.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with(['-', '.']))
            }
        }
    }
}

impl Wanted {
    /// A package of any version.
    pub fn any(name: &str) -> Wanted {
        Wanted { name: name.to_owned(), spec: name.to_owned(), version: Version::Any }
    }

    /// From the config: a name, or a name with version and release. Where the name ends is only told by what is installed or
    /// offered, so the first part that begins with a digit counts as the version.
    pub fn configured(spec: &str) -> Wanted {
        let end = spec
            .match_indices('-')
            .map(|(at, _)| at)
            .find(|at| spec[at + 1..].starts_with(|c: char| c.is_ascii_digit()));
        match end {
            Some(at) => {
                Wanted { name: spec[..at].to_owned(), spec: spec.to_owned(), version: Version::Spec(spec.to_owned()) }
            }
            None => Wanted::any(spec),
        }
    }

    /// A package of Kubernetes: of exactly this patch, or of any patch of the minor.
    pub fn kubernetes(name: &str, version: KubernetesVersion) -> Wanted {
        let (spec, version) = match version.patch() {
            Some(_) => (format!("{name}-{version}"), Version::Exact(version.to_string())),
            None => (format!("{name}-{version}.*"), Version::Series(format!("{version}."))),
        };
        Wanted { name: name.to_owned(), spec, version }
    }
}

/// A set of packages that is installed together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desired {
    /// Sorted by name.
    pub packages: Vec<Wanted>,
    /// Arguments of dnf.
    pub options: Vec<String>,
    /// Whether we may install.
    pub source: PackageSource,
}

/// What is installed, by name.
pub type Observed = BTreeMap<String, Installed>;

/// Decides.
pub fn plan(id: &ResourceId, desired: &Desired, observed: &Observed, past: &Past) -> Outcome {
    let (mut diffs, mut specs, mut differs) = (Vec::new(), Vec::new(), false);
    for wanted in &desired.packages {
        let found = observed.get(&wanted.name);
        if found.is_some_and(|installed| wanted.version.accepts(&wanted.name, installed)) {
            continue;
        }
        differs |= found.is_some();
        specs.push(wanted.spec.clone());
        diffs.push(Diff::Value {
            what: format!("package {}", wanted.name),
            old: found.map(Installed::evr),
            new: Some(wanted.spec.clone()),
        });
    }
    if specs.is_empty() {
        return Outcome::converged();
    }
    if desired.source == PackageSource::Preinstalled {
        return Outcome::Blocked {
            reason: format!("packages.source is \"preinstalled\", and the image lacks {}", specs.join(", ")),
            fix: Some("add them to the image, or set packages.source = \"dnf\"".to_owned()),
        };
    }
    Outcome::Change(Change {
        id: id.clone(),
        reason: match past.reason(!differs) {
            Reason::Drifted { .. } => Reason::Drifted { last: None },
            other => other,
        },
        summary: format!("install {}", specs.join(", ")),
        diffs,
        actions: vec![Action::Dnf { op: DnfOp::Install, packages: specs, options: desired.options.clone() }],
        notify: Vec::new(),
        reboot: None,
    })
}

/// A set of packages.
pub struct Packages {
    id: ResourceId,
    desired: Desired,
    repos: Vec<ResourceId>,
}

impl Packages {
    /// Of the host. None when there is nothing to have.
    pub fn host(mut packages: Vec<Wanted>, source: PackageSource, repos: Vec<ResourceId>) -> Option<Packages> {
        if packages.is_empty() {
            return None;
        }
        packages.sort_by(|a, b| a.name.cmp(&b.name));
        packages.dedup_by(|a, b| a.name == b.name);
        let desired = Desired { packages, options: Vec::new(), source };
        Some(Packages { id: ResourceId::new("package", "host"), desired, repos })
    }

    /// These are installed past the locks, which are ours.
    pub fn past_locks(mut self) -> Packages {
        self.desired.options.push(PAST_LOCKS.to_owned());
        self
    }

    /// Of a runtime that is not ours.
    pub fn runtime(package: Wanted, source: PackageSource, repos: Vec<ResourceId>) -> Packages {
        let desired = Desired { packages: vec![package], options: Vec::new(), source };
        Packages { id: ResourceId::new("package", "runtime"), desired, repos }
    }

    /// Of Kubernetes. Ordinary updates are kept from these by the repository's exclude list, which is lifted here.
    pub fn kubernetes(
        kubernetes: &KubernetesSettings,
        source: PackageSource,
        repos: Vec<ResourceId>,
    ) -> Option<Packages> {
        let names: &[&str] = match kubernetes.kubelet_mode {
            KubeletMode::External => return None,
            KubeletMode::Agent => &["kubelet"],
            KubeletMode::Kubeadm => &["kubeadm", "kubectl", "kubelet"],
        };
        let desired = Desired {
            packages: names.iter().map(|name| Wanted::kubernetes(name, kubernetes.version)).collect(),
            options: vec![format!("--disableexcludes={}", super::repo::KUBERNETES)],
            source,
        };
        Some(Packages { id: ResourceId::new("package", "kubernetes"), desired, repos })
    }
}

#[async_trait]
impl Resource for Packages {
    fn id(&self) -> &ResourceId {
        &self.id
    }

    fn needs(&self) -> Vec<ResourceId> {
        match self.desired.source {
            PackageSource::Preinstalled => Vec::new(),
            PackageSource::Dnf => {
                let mut needs = self.repos.clone();
                needs.push(DeadRepositories::resource_id());
                needs
            }
        }
    }

    fn packages(&self) -> Vec<String> {
        self.desired.packages.iter().map(|wanted| wanted.name.clone()).collect()
    }

    async fn plan(&self, host: &Host, context: &PlanContext<'_>) -> Result<Outcome, ResourceError> {
        let observed = context.packages.answer(host).await?;
        Ok(plan(&self.id, &self.desired, observed, &context.past(&self.applied())))
    }

    fn explain(&self) -> String {
        let specs: Vec<&str> = self.desired.packages.iter().map(|wanted| wanted.spec.as_str()).collect();
        let names: Vec<&str> = self.desired.packages.iter().map(|wanted| wanted.name.as_str()).collect();
        format!(
            "These packages are installed: {}. What is missing is installed in one dnf transaction, which `dnf history undo` \
             takes back. By hand: rpm -q {}; dnf {} install …",
            specs.join(", "),
            names.join(" "),
            self.desired.options.join(" ")
        )
    }

    fn live_only(&self) -> bool {
        true
    }

    fn applied(&self) -> Value {
        json!({"packages": self.desired.packages.iter().map(|wanted| wanted.spec.clone()).collect::<Vec<_>>()})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn have(packages: &[(&str, &str, &str)]) -> Observed {
        let installed = |(name, version, release): &(&str, &str, &str)| {
            let package = Installed { version: (*version).into(), release: (*release).into(), arch: "x86_64".into() };
            ((*name).to_owned(), package)
        };
        packages.iter().map(installed).collect()
    }

    fn decide(packages: Vec<Wanted>, source: PackageSource, observed: &Observed) -> Outcome {
        let desired = Desired { packages, options: vec!["--disableexcludes=kubernetes".into()], source };
        plan(&ResourceId::new("package", "host"), &desired, observed, &Past::Unknown)
    }

    fn kubelet(version: &str) -> Vec<Wanted> {
        vec![Wanted::kubernetes("kubelet", version.parse().unwrap())]
    }

    #[test]
    fn only_what_is_missing_is_installed_in_one_transaction() {
        let wanted = vec![Wanted::any("iproute-tc"), Wanted::any("socat"), Wanted::any("tar")];
        let outcome = decide(wanted, PackageSource::Dnf, &have(&[("socat", "1.7", "1")]));
        let actions = &outcome.change().unwrap().actions;
        assert!(
            matches!(&actions[..], [Action::Dnf { packages, .. }] if *packages == ["iproute-tc", "tar"]),
            "{actions:?}"
        );
    }

    #[test]
    fn a_minor_takes_every_patch_and_a_patch_only_itself() {
        for (want, version, right) in [
            ("1.36", "1.36.2", true),
            ("1.36", "1.35.9", false),
            ("1.3.1", "1.36.2", false),
            ("1.36.2", "1.36.2", true),
            ("1.36.2", "1.36.20", false),
        ] {
            let Ok(parsed) = want.parse() else { continue };
            let wanted = vec![Wanted::kubernetes("kubelet", parsed)];
            let outcome = decide(wanted, PackageSource::Dnf, &have(&[("kubelet", version, "150500.1.1")]));
            assert_eq!(outcome == Outcome::converged(), right, "{want} {version}");
        }
    }

    #[test]
    fn a_spec_with_a_version_is_told_from_a_name_with_dashes() {
        let wanted = Wanted::configured("container-selinux");
        assert_eq!((wanted.name.as_str(), &wanted.version), ("container-selinux", &Version::Any));
        let wanted = Wanted::configured("conntrack-tools-1.4.7-2.el9");
        assert_eq!(wanted.name, "conntrack-tools");
        let outcome =
            |release| decide(vec![wanted.clone()], PackageSource::Dnf, &have(&[("conntrack-tools", "1.4.7", release)]));
        assert_eq!(outcome("2.el9"), Outcome::converged());
        assert!(outcome("3.el9").change().is_some());
    }

    #[test]
    fn an_image_that_lacks_what_it_should_have_is_blocked() {
        let outcome = decide(kubelet("1.36"), PackageSource::Preinstalled, &have(&[]));
        let Outcome::Blocked { reason, .. } = outcome else { panic!() };
        assert!(reason.contains("kubelet-1.36.*"), "{reason}");
    }

    #[test]
    fn another_version_is_a_difference_and_not_a_gap() {
        let outcome = decide(kubelet("1.36"), PackageSource::Dnf, &have(&[("kubelet", "1.35.0", "1")]));
        assert_eq!(outcome.change().unwrap().reason, Reason::Different);
    }
}
