//! Repositories whose hosts are gone. dnf asks every enabled repository before it does anything, so one of them makes every
//! transaction fail, whatever it is about.

use async_trait::async_trait;
use serde_json::Value;

use super::super::{PlanContext, Resource, ResourceError};
use super::ini::Section;
use super::{DIR, all_sections};
use crate::host::Host;
use crate::plan::{Outcome, ResourceId};

/// Part of a URL, and what became of it.
const GONE: [(&str, &str); 6] = [
    ("packages.cloud.google.com/yum", "Google's Kubernetes repository was shut down on 2024-03-04"),
    ("yum.kubernetes.io", "Google's Kubernetes repository was shut down on 2024-03-04"),
    ("pkgs.k8s.io/addons:/cri-o", "CRI-O has left pkgs.k8s.io"),
    ("devel:/kubic:/libcontainers", "the kubic project has removed its packages for CentOS"),
    ("mirrorlist.centos.org", "the mirror list of CentOS Linux was switched off on 2024-07-01"),
    ("copr/rhcontainerbot/container-selinux", "EL has container-selinux itself since 8"),
];

/// Decides: each enabled repository that cannot answer, with its file.
pub fn plan(sections: &[(String, Section)], ours: &[String]) -> Outcome {
    let mut findings = Vec::new();
    for (file, section) in sections {
        // a file of ours is about to say something else
        if ours.contains(file) || !section.flag("enabled", true) || section.flag("skip_if_unavailable", false) {
            continue;
        }
        let urls = ["baseurl", "mirrorlist", "metalink"].into_iter().flat_map(|key| section.list(key));
        if let Some((_, what)) = urls.flat_map(|url| GONE.iter().filter(move |(part, _)| url.contains(part))).next() {
            findings.push(format!("[{}] in {file}: {what}", section.name));
        }
    }
    if findings.is_empty() {
        return Outcome::converged();
    }
    Outcome::Blocked {
        reason: format!("dnf cannot work with repositories that are gone: {}", findings.join("; ")),
        fix: Some("set enabled=0 there, or remove the file".to_owned()),
    }
}

/// Looks for repositories of others that keep dnf from working.
pub struct DeadRepositories {
    id: ResourceId,
    ours: Vec<String>,
}

impl DeadRepositories {
    /// The name of the resource.
    pub fn resource_id() -> ResourceId {
        ResourceId::single("repositories")
    }

    /// Leaves out files that the agent writes itself.
    pub fn new(ours: Vec<String>) -> DeadRepositories {
        DeadRepositories { id: DeadRepositories::resource_id(), ours }
    }
}

#[async_trait]
impl Resource for DeadRepositories {
    fn id(&self) -> &ResourceId {
        &self.id
    }

    async fn plan(&self, host: &Host, _context: &PlanContext<'_>) -> Result<Outcome, ResourceError> {
        let sections = all_sections(host)?;
        Ok(plan(&sections, &self.ours))
    }

    fn explain(&self) -> String {
        format!(
            "No enabled repository in {DIR} points to a host that is gone. Nothing is changed. By hand: dnf repolist -v"
        )
    }

    fn applied(&self) -> Value {
        Value::Null
    }
}

#[cfg(test)]
mod tests {
    use super::super::ini;
    use super::*;

    fn decide(text: &str) -> Outcome {
        let sections: Vec<_> =
            ini::parse(text).0.into_iter().map(|s| ("/etc/yum.repos.d/x.repo".to_owned(), s)).collect();
        plan(&sections, &["/etc/yum.repos.d/kubernetes.repo".to_owned()])
    }

    #[test]
    fn a_dead_repository_is_named_with_its_file() {
        let text = "[k8s]\nbaseurl=https://packages.cloud.google.com/yum/repos/kubernetes-el7-$basearch\n";
        let Outcome::Blocked { reason, .. } = decide(text) else { panic!() };
        assert!(reason.contains("[k8s] in /etc/yum.repos.d/x.repo") && reason.contains("2024-03-04"), "{reason}");
    }

    #[test]
    fn one_that_is_off_or_may_be_missing_hurts_nobody() {
        let url = "baseurl=https://packages.cloud.google.com/yum/x\n";
        assert_eq!(decide(&format!("[a]\n{url}enabled=0\n")), Outcome::converged());
        assert_eq!(decide(&format!("[a]\n{url}skip_if_unavailable=True\n")), Outcome::converged());
        assert_eq!(decide("[a]\nbaseurl=https://pkgs.k8s.io/core:/stable:/v1.36/rpm/\n"), Outcome::converged());
    }
}
