//! The daemon's own place: `daemon/` and `shims/` in the cgroup that systemd delegated to the service.

use std::fs;
use std::path::{Path, PathBuf};

use super::file::{make_dir, write};
use super::{CgroupError, Layout};

/// The service's own cgroup, divided. Shims live beside the daemon, so that its limits and its end are not theirs.
#[derive(Debug, Clone)]
pub struct Delegated {
    root: PathBuf,
}

impl Delegated {
    /// Divides the service's cgroup and moves this process into `daemon/`. None when systemd did not start us:
    /// `own` is `/proc/self/cgroup`, `invocation` the value of `INVOCATION_ID`.
    pub fn enter(layout: &Layout, own: &str, invocation: Option<&str>) -> Result<Option<Self>, CgroupError> {
        if invocation.is_none_or(str::is_empty) {
            return Ok(None);
        }
        let Some(root) = service_dir(layout, own) else { return Ok(None) };
        let delegated = Delegated { root };
        make_dir(&delegated.root.join("daemon"))?;
        make_dir(&delegated.root.join("shims"))?;
        write(&delegated.root.join("daemon/cgroup.procs"), &std::process::id().to_string())?;
        Ok(Some(delegated))
    }

    /// Moves a new shim to its fellows.
    pub fn adopt(&self, shim: i32) -> Result<(), CgroupError> {
        write(&self.root.join("shims/cgroup.procs"), &shim.to_string())
    }
}

/// The directory of the service's cgroup, in the tree that systemd manages.
fn service_dir(layout: &Layout, own: &str) -> Option<PathBuf> {
    let (mountpoint, path): (&Path, &str) = match layout {
        Layout::V2 { root } => (root, own.lines().find_map(|line| line.strip_prefix("0::"))?),
        Layout::V1 { hierarchies } => {
            let named = hierarchies.iter().find(|hierarchy| hierarchy.has("name=systemd"))?;
            (&named.mountpoint, own.lines().find_map(|line| line.split_once(":name=systemd:"))?.1)
        }
    };
    // a daemon that executes itself anew is in its leaf already
    let service = path.strip_suffix("/daemon").unwrap_or(path);
    // INVOCATION_ID is inherited: somebody's session is not ours to divide
    if !service.ends_with(".service") || service.contains("user.slice") {
        return None;
    }
    let dir = mountpoint.join(service.trim_start_matches('/'));
    fs::metadata(&dir).is_ok().then_some(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(service: &str) -> (tempfile::TempDir, Layout) {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join(service.trim_start_matches('/'))).unwrap();
        let layout = Layout::V2 { root: root.path().to_owned() };
        (root, layout)
    }

    #[test]
    fn the_service_is_found_from_its_root_and_from_its_leaf() {
        let (root, layout) = host("/system.slice/n.service");
        for own in ["0::/system.slice/n.service\n", "0::/system.slice/n.service/daemon\n"] {
            assert_eq!(service_dir(&layout, own), Some(root.path().join("system.slice/n.service")), "{own}");
        }
    }

    #[test]
    fn a_shell_is_left_alone() {
        let (_root, layout) = host("/user.slice/user-0.slice/session-1.scope");
        assert_eq!(service_dir(&layout, "0::/user.slice/user-0.slice/session-1.scope\n"), None);
        assert!(Delegated::enter(&layout, "0::/x.service\n", None).unwrap().is_none());
    }

    #[test]
    fn v1_uses_the_tree_of_systemd() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("system.slice/n.service")).unwrap();
        let named =
            super::super::Hierarchy { mountpoint: root.path().into(), controllers: vec!["name=systemd".into()] };
        let own = "5:memory:/system.slice/n.service\n1:name=systemd:/system.slice/n.service\n";
        let dir = service_dir(&Layout::V1 { hierarchies: vec![named] }, own);
        assert_eq!(dir, Some(root.path().join("system.slice/n.service")));
    }
}
