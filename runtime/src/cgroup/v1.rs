//! cgroup v1: a directory in each hierarchy.

use std::fs;
use std::path::{Path, PathBuf};

use super::file::{self, Replaced, Setting};
use super::{CgroupError, CgroupPath, DeviceRule, Hierarchy, Resources};

pub(super) fn create(hierarchies: &[Hierarchy], path: &CgroupPath) -> Result<(), CgroupError> {
    for hierarchy in hierarchies {
        let dir = path.under(&hierarchy.mountpoint);
        if fs::create_dir(&dir).is_err() {
            make_with_parents(hierarchy, path)?;
        }
        if hierarchy.has("cpuset") {
            inherit_cpuset(&dir)?;
        }
    }
    Ok(())
}

fn make_with_parents(hierarchy: &Hierarchy, path: &CgroupPath) -> Result<(), CgroupError> {
    let mut dir = hierarchy.mountpoint.clone();
    for part in Path::new(path.parent()).components() {
        dir.push(part);
        file::make_dir(&dir)?;
        if hierarchy.has("cpuset") {
            inherit_cpuset(&dir)?;
        }
    }
    file::make_dir(&dir.join(path.name()))
}

/// A new cpuset is empty and takes no process until it has CPUs and memory nodes.
fn inherit_cpuset(dir: &Path) -> Result<(), CgroupError> {
    let Some(parent) = dir.parent() else { return Ok(()) };
    for name in ["cpuset.cpus", "cpuset.mems"] {
        let own = dir.join(name);
        if file::read(&own)?.trim().is_empty() {
            file::write(&own, file::read(&parent.join(name))?.trim())?;
        }
    }
    Ok(())
}

pub(super) fn apply(hierarchies: &[Hierarchy], path: &CgroupPath, resources: &Resources) -> Result<(), CgroupError> {
    write_all(hierarchies, path, resources, &mut file::set)
}

pub(super) fn update(hierarchies: &[Hierarchy], path: &CgroupPath, resources: &Resources) -> Result<(), CgroupError> {
    let mut replaced = Replaced::default();
    let result = write_all(hierarchies, path, resources, &mut |dir, setting| replaced.set(dir, setting));
    if result.is_err() {
        replaced.restore();
    }
    result
}

type Write<'a> = dyn FnMut(&Path, &Setting) -> Result<(), CgroupError> + 'a;

fn write_all(
    hierarchies: &[Hierarchy],
    path: &CgroupPath,
    resources: &Resources,
    write: &mut Write<'_>,
) -> Result<(), CgroupError> {
    resources.check()?;
    if let Some(name) = resources.unified.keys().next() {
        let message = format!("`{name}` needs cgroup v2, this host has v1");
        return Err(CgroupError::Limit { what: "unified".to_owned(), message });
    }
    let dir_of = |controller: &str| dir_of(hierarchies, path, controller);
    for (controller, settings) in plain_settings(resources) {
        for setting in settings {
            match dir_of(controller) {
                Some(dir) => write(&dir, &setting)?,
                None if setting.optional => {}
                None => return Err(no_controller(controller, &setting)),
            }
        }
    }
    if resources.cpu_quota != 0 || resources.cpu_period != 0 {
        bandwidth(
            &dir_of("cpu").ok_or_else(|| no_controller("cpu", &Setting::new("cpu.cfs_quota_us", "")))?,
            resources,
            write,
        )?;
    }
    if resources.memory != 0 || resources.memory_and_swap != 0 {
        let missing = || no_controller("memory", &Setting::new("memory.limit_in_bytes", ""));
        memory(&dir_of("memory").ok_or_else(missing)?, resources, write)?;
    }
    Ok(())
}

fn dir_of(hierarchies: &[Hierarchy], path: &CgroupPath, controller: &str) -> Option<PathBuf> {
    hierarchies.iter().find(|hierarchy| hierarchy.has(controller)).map(|hierarchy| path.under(&hierarchy.mountpoint))
}

fn no_controller(controller: &str, setting: &Setting) -> CgroupError {
    let message = format!("the {controller} controller is not mounted");
    CgroupError::Limit { what: setting.file.clone(), message }
}

/// Those that do not depend on each other.
fn plain_settings(resources: &Resources) -> Vec<(&'static str, Vec<Setting>)> {
    let mut cpu = Vec::new();
    if resources.cpu_shares > 0 {
        cpu.push(Setting::new("cpu.shares", resources.cpu_shares));
    }
    let mut cpuset = Vec::new();
    if !resources.cpuset_cpus.is_empty() {
        cpuset.push(Setting::new("cpuset.cpus", &resources.cpuset_cpus));
    }
    if !resources.cpuset_mems.is_empty() {
        cpuset.push(Setting::new("cpuset.mems", &resources.cpuset_mems));
    }
    let mut pids = Vec::new();
    if resources.pids > 0 {
        pids.push(Setting::new("pids.max", resources.pids));
    }
    let huge = resources.hugepages.iter().map(|(size, limit)| {
        // kubelet sends a zero for every page size of the node, also where the controller is off
        let setting = if *limit == 0 { Setting::optional } else { Setting::new };
        setting(format!("hugetlb.{size}.limit_in_bytes"), limit.to_string())
    });
    vec![("cpu", cpu), ("cpuset", cpuset), ("pids", pids), ("hugetlb", huge.collect())]
}

/// Quota and period are refused while their ratio is above the parent's, so one order or the other works.
fn bandwidth(dir: &Path, resources: &Resources, write: &mut Write<'_>) -> Result<(), CgroupError> {
    let period = (resources.cpu_period > 0).then(|| Setting::new("cpu.cfs_period_us", resources.cpu_period));
    let quota = (resources.cpu_quota != 0).then(|| Setting::new("cpu.cfs_quota_us", resources.cpu_quota));
    let (Some(period), Some(quota)) = (&period, &quota) else {
        return period.iter().chain(&quota).try_for_each(|setting| write(dir, setting));
    };
    match write(dir, period) {
        Ok(()) => write(dir, quota),
        Err(error) if file::is_invalid(&error) => {
            write(dir, quota)?;
            write(dir, period)
        }
        Err(error) => Err(error),
    }
}

/// The limit of memory may never exceed that of memory and swap: growing, the latter goes first.
fn memory(dir: &Path, resources: &Resources, write: &mut Write<'_>) -> Result<(), CgroupError> {
    let memory = (resources.memory != 0).then(|| Setting::new("memory.limit_in_bytes", resources.memory));
    // absent without swap accounting
    let both = (resources.memory_and_swap != 0)
        .then(|| Setting::optional("memory.memsw.limit_in_bytes", resources.memory_and_swap));
    let current = fs::read_to_string(dir.join("memory.memsw.limit_in_bytes"));
    let current: Option<u64> = current.ok().and_then(|text| text.trim().parse().ok());
    let grows = match (current, u64::try_from(resources.memory)) {
        (Some(now), Ok(new)) => new > now,
        (Some(_), Err(_)) => true,
        (None, _) => false,
    };
    let (first, second) = if grows { (both, memory) } else { (memory, both) };
    first.iter().chain(&second).try_for_each(|setting| write(dir, setting))
}

pub(super) fn restrict_devices(
    hierarchies: &[Hierarchy],
    path: &CgroupPath,
    rules: &[DeviceRule],
) -> Result<(), CgroupError> {
    let Some(dir) = dir_of(hierarchies, path, "devices") else { return Ok(()) };
    if rules.contains(&DeviceRule::everything()) {
        return file::write(&dir.join("devices.allow"), "a");
    }
    file::write(&dir.join("devices.deny"), "a")?;
    let allow = dir.join("devices.allow");
    rules.iter().try_for_each(|rule| file::write(&allow, &rule.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Tree {
        root: tempfile::TempDir,
        hierarchies: Vec<Hierarchy>,
        path: CgroupPath,
    }

    /// Plain directories and files in the place of the kernel's.
    fn tree(files: &[(&str, &str, &str)]) -> Tree {
        let root = tempfile::tempdir().unwrap();
        let path = CgroupPath::below(super::super::Driver::Cgroupfs, "p", "x").unwrap();
        let mut hierarchies: Vec<Hierarchy> = Vec::new();
        for (controller, name, value) in files {
            let mountpoint = root.path().join(controller);
            let dir = path.under(&mountpoint);
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join(name), value).unwrap();
            if !hierarchies.iter().any(|h| h.has(controller)) {
                hierarchies.push(Hierarchy { mountpoint, controllers: vec![(*controller).to_owned()] });
            }
        }
        Tree { root, hierarchies, path }
    }

    impl Tree {
        fn order_of_writes(&self, resources: &Resources) -> Vec<String> {
            let mut order = Vec::new();
            write_all(&self.hierarchies, &self.path, resources, &mut |_, setting| {
                order.push(format!("{}={}", setting.file, setting.value));
                Ok(())
            })
            .unwrap();
            order
        }
    }

    #[test]
    fn each_limit_goes_to_its_hierarchy() {
        let tree = tree(&[("cpu", "cpu.shares", ""), ("pids", "pids.max", "")]);
        apply(&tree.hierarchies, &tree.path, &Resources { cpu_shares: 512, pids: 7, ..Resources::default() }).unwrap();
        let read = |name: &str| fs::read_to_string(tree.root.path().join(name)).unwrap();
        assert_eq!(read("cpu/p/crio-x/cpu.shares"), "512");
        assert_eq!(read("pids/p/crio-x/pids.max"), "7");
    }

    #[test]
    fn memory_is_shrunk_before_swap_and_grown_after_it() {
        let tree = tree(&[("memory", "memory.memsw.limit_in_bytes", "1000\n")]);
        let limits = |memory| Resources { memory, memory_and_swap: memory, ..Resources::default() };
        assert_eq!(
            tree.order_of_writes(&limits(500)),
            ["memory.limit_in_bytes=500", "memory.memsw.limit_in_bytes=500"]
        );
        assert_eq!(
            tree.order_of_writes(&limits(2000)),
            ["memory.memsw.limit_in_bytes=2000", "memory.limit_in_bytes=2000"]
        );
    }

    #[test]
    fn quota_goes_first_when_the_period_alone_is_refused() {
        let mut order = Vec::new();
        let limits = Resources { cpu_quota: 20_000, cpu_period: 50_000, ..Resources::default() };
        bandwidth(Path::new("/none"), &limits, &mut |dir, setting| {
            order.push(setting.file.clone());
            if order.len() == 1 {
                let source = std::io::Error::from(std::io::ErrorKind::InvalidInput);
                return Err(CgroupError::Write { path: dir.into(), value: setting.value.clone(), source });
            }
            Ok(())
        })
        .unwrap();
        assert_eq!(order, ["cpu.cfs_period_us", "cpu.cfs_quota_us", "cpu.cfs_period_us"]);
    }

    #[test]
    fn a_limit_without_its_controller_is_an_error() {
        let tree = tree(&[("cpu", "cpu.shares", "")]);
        let error = apply(&tree.hierarchies, &tree.path, &Resources { pids: 1, ..Resources::default() }).unwrap_err();
        assert_eq!(error.to_string(), "pids.max: the pids controller is not mounted");
    }

    #[test]
    fn values_for_v2_files_are_refused() {
        let unified = [("memory.high".to_owned(), "1".to_owned())].into();
        let error = write_all(&[], &tree(&[]).path, &Resources { unified, ..Resources::default() }, &mut file::set);
        assert!(error.unwrap_err().to_string().contains("needs cgroup v2"));
    }

    #[test]
    fn a_new_cpuset_inherits_from_its_parent() {
        let root = tempfile::tempdir().unwrap();
        let child = root.path().join("child");
        fs::create_dir(&child).unwrap();
        for (name, value) in [("cpuset.cpus", "0-3\n"), ("cpuset.mems", "0\n")] {
            fs::write(root.path().join(name), value).unwrap();
            fs::write(child.join(name), "\n").unwrap();
        }
        inherit_cpuset(&child).unwrap();
        assert_eq!(fs::read_to_string(child.join("cpuset.cpus")).unwrap(), "0-3");
    }
}
