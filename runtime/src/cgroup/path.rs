//! Names of cgroups, relative to the root of each hierarchy.

use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{CgroupError, Driver};

/// Where a pod goes that was given no parent.
const DEFAULT_PARENT: &str = "nodeagent";
const DEFAULT_SLICE: &str = "system.slice";

/// A cgroup of ours: parent and own name. cAdvisor knows it by `crio-<64 hex digits>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupPath {
    parent: String,
    name: String,
}

impl CgroupPath {
    pub(super) fn below(driver: Driver, parent: &str, id: &str) -> Result<Self, CgroupError> {
        let wrong = |message| CgroupError::Parent { parent: parent.to_owned(), message };
        if Path::new(parent).components().any(|part| matches!(part, Component::ParentDir | Component::CurDir)) {
            return Err(wrong("must not contain `.` or `..`"));
        }
        let trimmed = parent.trim_matches('/');
        match driver {
            Driver::Cgroupfs => {
                let parent = if trimmed.is_empty() { DEFAULT_PARENT } else { trimmed };
                Ok(CgroupPath { parent: parent.to_owned(), name: format!("crio-{id}") })
            }
            Driver::Systemd => {
                let slice = trimmed.rsplit('/').next().filter(|name| !name.is_empty()).unwrap_or(DEFAULT_SLICE);
                let parent = expand_slice(slice).ok_or_else(|| wrong("must be the name of a slice"))?;
                Ok(CgroupPath { parent, name: format!("crio-{id}.scope") })
            }
        }
    }

    /// The directory of this cgroup in the hierarchy mounted at `root`.
    pub fn under(&self, root: &Path) -> PathBuf {
        root.join(&self.parent).join(&self.name)
    }

    /// The parent's path, relative to the root.
    pub fn parent(&self) -> &str {
        &self.parent
    }

    /// The parent itself; none at the root.
    pub fn of_pod(&self) -> Option<Self> {
        let (parent, name) = self.parent.rsplit_once('/').unwrap_or(("", &self.parent));
        (!name.is_empty()).then(|| CgroupPath { parent: parent.to_owned(), name: name.to_owned() })
    }

    /// The own name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl std::fmt::Display for CgroupPath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "/{}/{}", self.parent, self.name)
    }
}

/// systemd nests slices by the dashes in their names: `a-b.slice` is in `a.slice`.
fn expand_slice(name: &str) -> Option<String> {
    let stem = name.strip_suffix(".slice")?;
    if stem == "-" {
        return Some(String::new());
    }
    if stem.is_empty() || stem.split('-').any(str::is_empty) {
        return None;
    }
    let ends = stem.match_indices('-').map(|(at, _)| at).chain([stem.len()]);
    let slices: Vec<String> = ends.map(|end| format!("{}.slice", stem.get(..end).unwrap_or(stem))).collect();
    Some(slices.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dir(driver: Driver, parent: &str) -> String {
        CgroupPath::below(driver, parent, "abc").map_or_else(|error| error.to_string(), |path| path.to_string())
    }

    #[test]
    fn a_container_of_cgroupfs_is_a_directory_in_the_parent() {
        assert_eq!(dir(Driver::Cgroupfs, "/kubepods/burstable/pod1"), "/kubepods/burstable/pod1/crio-abc");
        assert_eq!(dir(Driver::Cgroupfs, ""), "/nodeagent/crio-abc");
    }

    #[test]
    fn slices_are_nested_by_their_dashes() {
        let nested = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice/crio-abc.scope";
        assert_eq!(dir(Driver::Systemd, "kubepods-burstable-pod1_2.slice"), nested);
        assert_eq!(
            dir(Driver::Systemd, "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice"),
            nested
        );
        assert_eq!(dir(Driver::Systemd, "/test.slice"), "/test.slice/crio-abc.scope");
        assert_eq!(dir(Driver::Systemd, ""), "/system.slice/crio-abc.scope");
    }

    #[test]
    fn what_is_no_slice_or_leaves_the_tree_is_refused() {
        assert!(dir(Driver::Systemd, "/kubepods/pod1").contains("must be the name of a slice"));
        assert!(dir(Driver::Systemd, "a--b.slice").contains("must be the name of a slice"));
        assert!(dir(Driver::Cgroupfs, "/a/../../etc").contains("must not contain"));
    }
}
