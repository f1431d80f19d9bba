//! cgroup v2: one directory, all controllers.

use std::fs;
use std::path::Path;

use super::file::{self, Replaced, Setting};
use super::{CgroupError, CgroupPath, Resources};

/// What containers are limited by; those the kernel has are switched on for them.
const CONTROLLERS: [&str; 6] = ["cpuset", "cpu", "io", "memory", "hugetlb", "pids"];

const DEFAULT_PERIOD: u64 = 100_000;

pub(super) fn create(root: &Path, path: &CgroupPath) -> Result<(), CgroupError> {
    let parent = root.join(path.parent());
    if !has_all_controllers(root, &parent) {
        let mut dir = root.to_owned();
        enable_controllers(&dir);
        for part in Path::new(path.parent()).components() {
            dir.push(part);
            file::make_dir(&dir)?;
            enable_controllers(&dir);
        }
    }
    file::make_dir(&path.under(root))
}

fn has_all_controllers(root: &Path, parent: &Path) -> bool {
    let words = |path: &Path| fs::read_to_string(path).unwrap_or_default();
    let available = words(&root.join("cgroup.controllers"));
    let enabled = words(&parent.join("cgroup.subtree_control"));
    parent.is_dir()
        && CONTROLLERS
            .iter()
            .filter(|name| available.split_whitespace().any(|word| word == **name))
            .all(|name| enabled.split_whitespace().any(|word| word == *name))
}

/// One by one, since a controller that cannot be switched on here must not keep the others off. Whoever needs a missing
/// one is told by the limit that cannot be written.
fn enable_controllers(dir: &Path) {
    let available = fs::read_to_string(dir.join("cgroup.controllers")).unwrap_or_default();
    let wanted: Vec<String> = CONTROLLERS
        .iter()
        .filter(|name| available.split_whitespace().any(|word| word == **name))
        .map(|name| format!("+{name}"))
        .collect();
    let control = dir.join("cgroup.subtree_control");
    if file::write(&control, &wanted.join(" ")).is_err() {
        for one in wanted {
            if let Err(error) = file::write(&control, &one) {
                log::debug!("{}", crate::telemetry::chain(&error));
            }
        }
    }
}

pub(super) fn apply(root: &Path, path: &CgroupPath, resources: &Resources) -> Result<(), CgroupError> {
    resources.check()?;
    let dir = path.under(root);
    settings(resources).iter().try_for_each(|setting| file::set(&dir, setting))
}

pub(super) fn update(root: &Path, path: &CgroupPath, resources: &Resources) -> Result<(), CgroupError> {
    resources.check()?;
    let dir = path.under(root);
    let mut replaced = Replaced::default();
    let result = settings(resources).iter().try_for_each(|setting| replaced.set(&dir, setting));
    if result.is_err() {
        replaced.restore();
    }
    result
}

/// The files to be written, in this order.
fn settings(resources: &Resources) -> Vec<Setting> {
    let mut settings = Vec::new();
    if resources.cpu_shares > 0 {
        settings.push(Setting::new("cpu.weight", weight(resources.cpu_shares)));
    }
    if resources.cpu_quota != 0 || resources.cpu_period != 0 {
        let quota = if resources.cpu_quota > 0 { resources.cpu_quota.to_string() } else { "max".to_owned() };
        let period = if resources.cpu_period > 0 { resources.cpu_period } else { DEFAULT_PERIOD };
        settings.push(Setting::new("cpu.max", format!("{quota} {period}")));
    }
    if resources.memory != 0 {
        settings.push(Setting::new("memory.max", or_max(resources.memory)));
    }
    if let Some(swap) = swap(resources) {
        // absent without CONFIG_SWAP or with swapaccount=0
        settings.push(Setting::optional("memory.swap.max", or_max(swap)));
    }
    if !resources.cpuset_cpus.is_empty() {
        settings.push(Setting::new("cpuset.cpus", &resources.cpuset_cpus));
    }
    if !resources.cpuset_mems.is_empty() {
        settings.push(Setting::new("cpuset.mems", &resources.cpuset_mems));
    }
    if resources.pids > 0 {
        settings.push(Setting::new("pids.max", resources.pids));
    }
    for (size, limit) in &resources.hugepages {
        // kubelet sends a zero for every page size of the node, also where the controller is off
        let setting = if *limit == 0 { Setting::optional } else { Setting::new };
        settings.push(setting(format!("hugetlb.{size}.max"), limit.to_string()));
        settings.push(Setting::optional(format!("hugetlb.{size}.rsvd.max"), limit));
    }
    // last: what is said in the kernel's own words wins
    settings.extend(resources.unified.iter().map(|(file, value)| Setting::new(file, value)));
    settings
}

fn or_max(value: i64) -> String {
    if value < 0 { "max".to_owned() } else { value.to_string() }
}

/// v2 counts swap alone, the CRI memory and swap together.
pub(super) fn swap(resources: &Resources) -> Option<i64> {
    match (resources.memory, resources.memory_and_swap) {
        (_, 0) => None,
        (_, -1) => Some(-1),
        (memory, both) if memory > 0 => Some(both - memory),
        _ => None,
    }
}

/// Shares (2 to 262144, usual 1024) as weight (1 to 10000, usual 100), so that the smallest, the usual and the largest
/// meet: the logarithmic mapping of runc 1.3 and crun 1.23, not the older linear one that made 1024 shares 39.
pub(super) fn weight(shares: u64) -> u64 {
    match shares {
        0..=2 => 1,
        262_144.. => 10_000,
        _ => {
            #[allow(clippy::cast_precision_loss)]
            let log = (shares as f64).log2();
            let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
            // between 1 and 10000 by construction
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            let weight = 10f64.powf(exponent).ceil() as u64;
            weight.clamp(1, 10_000)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn lines(resources: &Resources) -> Vec<String> {
        settings(resources).iter().map(|setting| format!("{}={}", setting.file, setting.value)).collect()
    }

    #[test]
    fn weights_meet_at_both_ends_and_in_the_middle() {
        let table = [(0, 1), (2, 1), (102, 17), (1024, 100), (2048, 174), (262_144, 10_000), (300_000, 10_000)];
        for (shares, expected) in table {
            assert_eq!(weight(shares), expected, "{shares} shares");
        }
    }

    #[test]
    fn cpu_quota_and_period_are_one_line() {
        let of = |cpu_quota, cpu_period| lines(&Resources { cpu_quota, cpu_period, ..Resources::default() });
        assert_eq!(of(50_000, 100_000), ["cpu.max=50000 100000"]);
        assert_eq!(of(50_000, 0), ["cpu.max=50000 100000"]);
        assert_eq!(of(-1, 0), ["cpu.max=max 100000"]);
        assert_eq!(of(0, 0), Vec::<String>::new());
    }

    #[test]
    fn swap_is_what_exceeds_memory() {
        let of = |memory, memory_and_swap| lines(&Resources { memory, memory_and_swap, ..Resources::default() });
        assert_eq!(of(100, 100), ["memory.max=100", "memory.swap.max=0"]);
        assert_eq!(of(100, 150), ["memory.max=100", "memory.swap.max=50"]);
        assert_eq!(of(100, -1), ["memory.max=100", "memory.swap.max=max"]);
        assert_eq!(of(-1, 0), ["memory.max=max"]);
    }

    #[test]
    fn unified_values_come_last() {
        let unified = BTreeMap::from([("memory.oom.group".to_owned(), "1".to_owned())]);
        assert_eq!(
            lines(&Resources { pids: 5, unified, ..Resources::default() }),
            ["pids.max=5", "memory.oom.group=1"]
        );
    }

    #[test]
    fn a_refused_update_leaves_the_old_values() {
        let root = tempfile::tempdir().unwrap();
        let path = CgroupPath::below(super::super::Driver::Cgroupfs, "p", "x").unwrap();
        let dir = path.under(root.path());
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("cpu.weight"), "100\n").unwrap();
        // pids.max is missing: the second write is refused
        let refused = Resources { cpu_shares: 2, pids: 9, ..Resources::default() };
        let error = update(root.path(), &path, &refused).unwrap_err();
        assert!(matches!(error, CgroupError::Write { path, .. } if path.ends_with("pids.max")));
        // the plain file keeps what is behind the shorter value, a control file does not
        assert!(fs::read_to_string(dir.join("cpu.weight")).unwrap().starts_with("100"));
    }
}
