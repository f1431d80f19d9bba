//! The limits that a cgroup has now.

use std::path::Path;

use super::{CgroupError, CgroupPath, Cgroups, Layout, Resources, file};

/// What a cgroup is limited by, besides its share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limited {
    /// Processor time in each period.
    pub cpu: bool,
    /// Memory.
    pub memory: bool,
}

/// Above what any machine has: the v1 files say so for "no limit".
const UNLIMITED: i64 = 1 << 60;

impl Cgroups {
    /// Whether a cgroup is limited, and its limits in the form in which they can be written back.
    pub fn present(&self, path: &CgroupPath) -> Result<(Limited, Resources), CgroupError> {
        let resources = match &self.layout {
            Layout::V2 { root } => v2(&path.under(root))?,
            Layout::V1 { .. } => v1(&self.dir_of(path, "cpu"), &self.dir_of(path, "memory"))?,
        };
        Ok((Limited { cpu: resources.cpu_quota > 0, memory: resources.memory > 0 }, resources))
    }
}

fn v2(dir: &Path) -> Result<Resources, CgroupError> {
    let max = file::read(&dir.join("cpu.max"))?;
    let mut words = max.split_whitespace();
    let (quota, period) = (words.next().unwrap_or("max"), words.next().unwrap_or("100000"));
    Ok(Resources {
        cpu_quota: quota.parse().unwrap_or(-1),
        cpu_period: period.parse().unwrap_or(100_000),
        memory: file::read(&dir.join("memory.max"))?.trim().parse().unwrap_or(-1),
        ..Resources::default()
    })
}

fn v1(cpu: &Path, memory: &Path) -> Result<Resources, CgroupError> {
    let number = |path: &Path| file::read(path).map(|text| text.trim().parse::<i64>().unwrap_or(-1));
    let memory = number(&memory.join("memory.limit_in_bytes"))?;
    Ok(Resources {
        cpu_shares: number(&cpu.join("cpu.shares"))?.try_into().unwrap_or(0),
        cpu_quota: number(&cpu.join("cpu.cfs_quota_us"))?,
        cpu_period: number(&cpu.join("cpu.cfs_period_us"))?.try_into().unwrap_or(0),
        memory: if memory >= UNLIMITED { -1 } else { memory },
        ..Resources::default()
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::{Driver, Hierarchy};
    use super::*;

    fn limits(layout: Layout, files: &[(&str, &str)]) -> (Limited, Resources) {
        let cgroups = Cgroups::new(layout, Driver::Cgroupfs);
        let path = cgroups.path_of("/pods/p", "c").unwrap().of_pod().unwrap();
        for dir in cgroups.dirs(&path) {
            fs::create_dir_all(&dir).unwrap();
            for (name, value) in files {
                fs::write(dir.join(name), value).unwrap();
            }
        }
        cgroups.present(&path).unwrap()
    }

    #[test]
    fn limits_are_read_as_they_were_written() {
        let root = tempfile::tempdir().unwrap();
        let v2 = |cpu, memory| {
            limits(Layout::V2 { root: root.path().join("v2") }, &[("cpu.max", cpu), ("memory.max", memory)])
        };
        let (limited, resources) = v2("50000 100000\n", "1048576\n");
        assert_eq!(limited, Limited { cpu: true, memory: true });
        assert_eq!((resources.cpu_quota, resources.cpu_period, resources.memory), (50_000, 100_000, 1 << 20));
        let (limited, resources) = v2("max 100000\n", "max\n");
        assert_eq!(limited, Limited { cpu: false, memory: false });
        assert_eq!((resources.cpu_quota, resources.memory), (-1, -1));

        let hierarchies = ["cpu", "memory"]
            .map(|name| Hierarchy { mountpoint: root.path().join(name), controllers: vec![name.to_owned()] });
        let v1 = |quota, memory| {
            let files = [
                ("cpu.shares", "512\n"),
                ("cpu.cfs_quota_us", quota),
                ("cpu.cfs_period_us", "100000\n"),
                ("memory.limit_in_bytes", memory),
            ];
            limits(Layout::V1 { hierarchies: hierarchies.to_vec() }, &files)
        };
        let (limited, resources) = v1("-1\n", "9223372036854771712\n");
        assert_eq!(limited, Limited { cpu: false, memory: false });
        assert_eq!((resources.cpu_shares, resources.cpu_quota, resources.memory), (512, -1, -1));
        assert_eq!(v1("7000\n", "4096\n").0, Limited { cpu: true, memory: true });
    }
}
