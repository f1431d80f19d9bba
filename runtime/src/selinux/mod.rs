//! SELinux: which labels pods and their files get.
//!
//! A process may do what its type may, and reaches files of its own categories alone. The types are the policy's
//! (`lxc_contexts`, as every container runtime reads them); the two categories that tell pods from each other are given out
//! here ([`levels`]), one pair to each pod, the same for all its containers and their files.
//!
//! Nothing of this happens on a host without SELinux.

mod label;
mod levels;
mod relabel;

use std::fs;
use std::path::Path;

use nodeagent_cri_api::SeLinuxOption;

pub use label::{Label, LabelError};
pub use levels::Levels;
pub use relabel::{RelabelError, relabel, relabel_each, relabel_tree};

/// Where the kernel shows that it is on.
const FILE_SYSTEM: &str = "/sys/fs/selinux/enforce";
/// The kernel refuses what is written here unless it is a label of the policy that is loaded.
const CHECK: &str = "/sys/fs/selinux/context";
const CONFIG: &str = "/etc/selinux/config";
/// Type of a process that is not to be confined.
const UNCONFINED: &str = "spc_t";

/// The labels of this host's policy, and the levels given out so far. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Selinux {
    process: Label,
    file: Label,
    /// Of what all containers may read and none may write.
    shared: Label,
    /// Levels of pods.
    pub levels: Levels,
}

/// What a pod or a container gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Labels {
    /// Of its processes.
    pub process: Label,
    /// Of its files.
    pub file: Label,
}

impl Selinux {
    /// None where SELinux is off, or its policy knows nothing of containers.
    pub fn detect() -> Option<Self> {
        if !Path::new(FILE_SYSTEM).exists() {
            return None;
        }
        let policy = policy(&fs::read_to_string(CONFIG).unwrap_or_default());
        let contexts = format!("/etc/selinux/{policy}/contexts/lxc_contexts");
        let selinux = Self::from_contexts(&fs::read_to_string(contexts).unwrap_or_default());
        // a file of names says nothing about the policy that is loaded: the kernel does
        match selinux.first_unknown(|label| fs::write(CHECK, label).is_ok()) {
            None => Some(selinux),
            Some(label) => {
                log::warn!(
                    label = label.as_str(), policy = policy.as_str();
                    "the SELinux policy has no such label, which container-selinux brings: containers are not labelled"
                );
                None
            }
        }
    }

    /// A label of pods that the policy does not have.
    fn first_unknown(&self, known: impl Fn(&str) -> bool) -> Option<String> {
        [&self.process, &self.file].into_iter().find_map(|label| {
            let label = Label { level: "s0:c1,c2".to_owned(), ..label.clone() }.to_string();
            (!known(&label)).then_some(label)
        })
    }

    /// With the labels of a policy's `lxc_contexts`; those that it does not have are container-selinux's.
    pub fn from_contexts(text: &str) -> Self {
        let of = |key: &str, usual: Label| {
            let lines = text.lines().filter_map(|line| line.split_once('='));
            let mut values =
                lines.filter(|(name, _)| name.trim() == key).map(|(_, value)| value.trim().trim_matches('"'));
            values.find_map(|value| value.parse().ok()).unwrap_or(usual)
        };
        Selinux {
            process: of("process", Label::usual("system_r", "container_t")),
            file: of("file", Label::usual("object_r", "container_file_t")),
            shared: of("ro_file", Label::usual("object_r", "container_ro_file_t")),
            levels: Levels::default(),
        }
    }

    /// Lets containers read what is below a directory, and what comes there later. The kernel asks for it beneath overlayfs too,
    /// when a program maps its files: without it, nothing that is linked dynamically would start.
    pub fn share(&self, directory: &Path) -> Result<(), RelabelError> {
        relabel_each(directory, &self.shared.to_string())
    }

    /// Labels of a container, or of a pod's own processes. What is asked for comes before what is usual; `level` is the
    /// pod's. One that is not to be confined has the type for that, unless it asks for another.
    pub fn labels(&self, asked: Option<&SeLinuxOption>, level: &str, confined: bool) -> Result<Labels, LabelError> {
        let mut process = self.process.clone();
        if !confined {
            UNCONFINED.clone_into(&mut process.kind);
        }
        level.clone_into(&mut process.level);
        if let Some(asked) = asked {
            let parts = [
                (&asked.user, &mut process.user),
                (&asked.role, &mut process.role),
                (&asked.r#type, &mut process.kind),
                (&asked.level, &mut process.level),
            ];
            for (wanted, part) in parts {
                if !wanted.is_empty() {
                    part.clone_from(wanted);
                }
            }
        }
        process.check()?;
        let file = Label { level: process.level.clone(), ..self.file.clone() };
        Ok(Labels { process, file })
    }
}

/// The policy's name, which is a directory's.
fn policy(config: &str) -> String {
    let mut lines = config.lines().filter_map(|line| line.trim().strip_prefix("SELINUXTYPE="));
    let name = lines.next_back().unwrap_or("targeted").trim();
    let plain = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'));
    if plain { name.to_owned() } else { "targeted".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(kind: &str, level: &str) -> SeLinuxOption {
        SeLinuxOption { r#type: kind.into(), level: level.into(), ..Default::default() }
    }

    #[test]
    fn types_are_the_policys_and_categories_the_pods() {
        let selinux = Selinux::from_contexts(
            "process = \"system_u:system_r:svirt_lxc_net_t:s0\"\nfile = \"system_u:object_r:svirt_sandbox_file_t:s0\"\n",
        );
        let labels = selinux.labels(None, "s0:c1,c2", true).unwrap();
        assert_eq!(labels.process.to_string(), "system_u:system_r:svirt_lxc_net_t:s0:c1,c2");
        assert_eq!(labels.file.to_string(), "system_u:object_r:svirt_sandbox_file_t:s0:c1,c2");
        let usual = Selinux::from_contexts("").labels(None, "s0:c1,c2", true).unwrap();
        assert_eq!(usual.process.to_string(), "system_u:system_r:container_t:s0:c1,c2");
        assert_eq!(usual.file.to_string(), "system_u:object_r:container_file_t:s0:c1,c2");
    }

    #[test]
    fn what_is_asked_for_replaces_its_part_alone() {
        let selinux = Selinux::from_contexts("");
        let labels = selinux.labels(Some(&asked("", "s0:c7,c8")), "s0:c1,c2", true).unwrap();
        assert_eq!(labels.process.to_string(), "system_u:system_r:container_t:s0:c7,c8");
        assert_eq!(labels.file.to_string(), "system_u:object_r:container_file_t:s0:c7,c8");
        let labels = selinux.labels(Some(&asked("container_init_t", "")), "s0:c1,c2", true).unwrap();
        assert_eq!(labels.process.to_string(), "system_u:system_r:container_init_t:s0:c1,c2");
        for (kind, level) in [("a:b", ""), ("a b", ""), ("", "s0\n"), ("t\"", "")] {
            assert!(selinux.labels(Some(&asked(kind, level)), "s0", true).is_err(), "{kind:?} {level:?}");
        }
    }

    #[test]
    fn what_is_not_to_be_confined_has_the_type_for_that() {
        let selinux = Selinux::from_contexts("");
        assert_eq!(selinux.labels(None, "s0:c1,c2", false).unwrap().process.kind, "spc_t");
        let own = selinux.labels(Some(&asked("my_t", "")), "s0", false).unwrap();
        assert_eq!(own.process.kind, "my_t");
    }

    #[test]
    fn a_policy_without_the_types_of_containers_is_told_by_the_label_that_it_lacks() {
        let selinux = Selinux::from_contexts("");
        assert_eq!(selinux.first_unknown(|_| true), None);
        let unknown = selinux.first_unknown(|label| !label.contains("container_file_t"));
        assert_eq!(unknown.as_deref(), Some("system_u:object_r:container_file_t:s0:c1,c2"));
    }

    #[test]
    fn the_policy_is_the_one_that_the_host_is_configured_for() {
        assert_eq!(policy("SELINUX=enforcing\nSELINUXTYPE=mls\n"), "mls");
        assert_eq!(policy("# SELINUXTYPE=x\n"), "targeted");
        assert_eq!(policy("SELINUXTYPE=../../tmp\n"), "targeted");
    }
}
