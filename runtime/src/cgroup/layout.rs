//! Which hierarchies are mounted where.

use std::path::{Path, PathBuf};

use super::CgroupError;

/// The host's cgroup file systems.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Layout {
    /// One tree with all controllers.
    V2 {
        /// Its mount point.
        root: PathBuf,
    },
    /// A tree per controller, or per group of them.
    V1 {
        /// In the order of their mounts.
        hierarchies: Vec<Hierarchy>,
    },
}

/// One tree of cgroup v1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    /// Where it is.
    pub mountpoint: PathBuf,
    /// `memory`, or `cpu` and `cpuacct`, or `name=systemd`.
    pub controllers: Vec<String>,
}

impl Hierarchy {
    /// Whether that controller is in it.
    pub fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|name| name == controller)
    }
}

impl Layout {
    /// Reads `/proc/self/mountinfo`.
    pub fn from_mountinfo(text: &str) -> Result<Self, CgroupError> {
        let mut hierarchies: Vec<Hierarchy> = Vec::new();
        let mut unified = None;
        for line in text.lines() {
            let Some(mount) = CgroupMount::parse(line) else { continue };
            if mount.fstype == "cgroup2" {
                // on a hybrid host it is mounted one level deeper and has no controllers
                if mount.mountpoint == Path::new("/sys/fs/cgroup") {
                    unified = Some(mount.mountpoint);
                }
            } else if !mount.controllers.is_empty()
                && !hierarchies.iter().any(|known| known.controllers == mount.controllers)
            {
                hierarchies.push(Hierarchy { mountpoint: mount.mountpoint, controllers: mount.controllers });
            }
        }
        match (unified, hierarchies.is_empty()) {
            (Some(root), _) => Ok(Layout::V2 { root }),
            (None, false) => Ok(Layout::V1 { hierarchies }),
            (None, true) => Err(CgroupError::NoHierarchy),
        }
    }
}

struct CgroupMount<'a> {
    mountpoint: PathBuf,
    fstype: &'a str,
    controllers: Vec<String>,
}

impl<'a> CgroupMount<'a> {
    /// `31 23 0:29 / /sys/fs/cgroup/cpu rw,relatime shared:9 - cgroup cgroup rw,cpu`
    fn parse(line: &'a str) -> Option<Self> {
        let (mount, filesystem) = line.split_once(" - ")?;
        let mountpoint = mount.split(' ').nth(4)?;
        let mut fields = filesystem.split(' ');
        let fstype = fields.next()?;
        let options = fields.nth(1)?;
        if !matches!(fstype, "cgroup" | "cgroup2") {
            return None;
        }
        let of_the_mount = ["rw", "ro", "xattr", "clone_children", "noprefix", "favordynmods", "seclabel"];
        let controllers = options
            .split(',')
            .filter(|option| !of_the_mount.contains(option) && !option.starts_with("release_agent="))
            .map(str::to_owned)
            .collect();
        Some(CgroupMount { mountpoint: PathBuf::from(mountpoint), fstype, controllers })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unified_host_is_v2() {
        let text =
            "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n";
        assert_eq!(Layout::from_mountinfo(text).unwrap(), Layout::V2 { root: "/sys/fs/cgroup".into() });
    }

    #[test]
    fn a_hybrid_host_is_v1_with_joined_controllers_and_the_named_tree() {
        let text = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
36 31 0:32 / /mnt/memory-again rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,release_agent=/usr/lib/systemd-agent,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";
        let Layout::V1 { hierarchies } = Layout::from_mountinfo(text).unwrap() else { panic!("v2") };
        let found: Vec<_> =
            hierarchies.iter().map(|h| (h.mountpoint.to_str().unwrap(), h.controllers.join(","))).collect();
        assert_eq!(
            found,
            [
                ("/sys/fs/cgroup/cpu,cpuacct", "cpu,cpuacct".to_owned()),
                ("/sys/fs/cgroup/memory", "memory".to_owned()),
                ("/sys/fs/cgroup/systemd", "name=systemd".to_owned()),
            ]
        );
        assert!(hierarchies[0].has("cpuacct"));
    }

    #[test]
    fn nothing_mounted_is_an_error() {
        assert!(matches!(Layout::from_mountinfo("1 0 8:1 / / rw - ext4 /dev/vda rw\n"), Err(CgroupError::NoHierarchy)));
    }
}
