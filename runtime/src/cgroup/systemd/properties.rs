//! Limits as properties of a unit: what systemd writes into the control files itself, and again whenever it likes.

use std::path::Path;

use zbus::zvariant::Value;

use super::super::v2::{swap, weight};
use super::super::{CgroupPath, Resources};

/// Name and value of a property.
pub(super) type Property = (&'static str, Value<'static>);

const INFINITY: u64 = u64::MAX;
const DEFAULT_PERIOD: u64 = 100_000;
const SECOND: u64 = 1_000_000;
/// systemd takes quotas in hundredths of a CPU.
const QUOTA_STEP: u64 = 10_000;

/// What makes a scope one of ours.
pub(super) fn of_scope(path: &CgroupPath, pid: i32) -> Vec<Property> {
    let slice =
        Path::new(path.parent()).file_name().map_or("-.slice".into(), |name| name.to_string_lossy().into_owned());
    vec![
        ("Description", Value::from(format!("nodeagent container {}", path.name()))),
        ("Slice", Value::from(slice)),
        ("PIDs", Value::from(vec![pid.unsigned_abs()])),
        // what is below is ours: execs have cgroups of their own
        ("Delegate", Value::from(true)),
        // else it would be stopped before everything else at shutdown, and kubelet's grace with it
        ("DefaultDependencies", Value::from(false)),
        // nothing is left of one whose processes were killed
        ("CollectMode", Value::from("inactive-or-failed")),
    ]
}

/// The limits that systemd knows. What it does not know (huge pages, rarer files of v2) stays as it was written.
pub(super) fn of_resources(resources: &Resources, version: u8) -> Vec<Property> {
    let mut all = Vec::new();
    let two = version == 2;
    if resources.cpu_shares > 0 {
        all.push(match two {
            true => ("CPUWeight", Value::from(weight(resources.cpu_shares))),
            false => ("CPUShares", Value::from(resources.cpu_shares.clamp(2, 262_144))),
        });
    }
    if resources.cpu_quota != 0 || resources.cpu_period != 0 {
        let period = if resources.cpu_period > 0 { resources.cpu_period } else { DEFAULT_PERIOD };
        all.push(("CPUQuotaPerSecUSec", Value::from(per_second(resources.cpu_quota, period))));
        if two {
            // since 242; v1 hosts have older ones
            all.push(("CPUQuotaPeriodUSec", Value::from(period)));
        }
    }
    if resources.memory != 0 {
        all.push((if two { "MemoryMax" } else { "MemoryLimit" }, Value::from(or_infinity(resources.memory))));
    }
    if two {
        if let Some(swap) = swap(resources) {
            all.push(("MemorySwapMax", Value::from(or_infinity(swap))));
        }
        for (name, list) in [("AllowedCPUs", &resources.cpuset_cpus), ("AllowedMemoryNodes", &resources.cpuset_mems)] {
            if let Some(mask) = mask(list) {
                all.push((name, Value::from(mask)));
            }
        }
        all.extend(resources.unified.iter().filter_map(|(file, value)| of_file(file, value)));
    }
    if resources.pids > 0 {
        all.push(("TasksMax", Value::from(resources.pids)));
    }
    all
}

/// Microseconds of CPU in a second, rounded up so that systemd does not give less than was asked.
fn per_second(quota: i64, period: u64) -> u64 {
    match u64::try_from(quota) {
        Ok(quota) if quota > 0 => {
            let exact = u128::from(quota) * u128::from(SECOND) / u128::from(period.max(1));
            let most = INFINITY - QUOTA_STEP;
            u64::try_from(exact).unwrap_or(most).min(most).next_multiple_of(QUOTA_STEP)
        }
        _ => INFINITY,
    }
}

fn or_infinity(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(INFINITY)
}

/// `0-2,5` as bits, the first CPU being the lowest bit of the first byte. None for an empty list, or one that only the
/// kernel can judge.
fn mask(list: &str) -> Option<Vec<u8>> {
    /// More than any kernel is built for.
    const MOST: usize = 8192;
    let mut mask = Vec::new();
    for part in list.trim().split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        if first > last || last >= MOST {
            return None;
        }
        for number in first..=last {
            if mask.len() <= number / 8 {
                mask.resize(number / 8 + 1, 0u8);
            }
            mask[number / 8] |= 1 << (number % 8);
        }
    }
    (!mask.is_empty()).then_some(mask)
}

/// Files of v2 that are properties too.
fn of_file(file: &str, value: &str) -> Option<Property> {
    let name = match file {
        "memory.max" => "MemoryMax",
        "memory.high" => "MemoryHigh",
        "memory.low" => "MemoryLow",
        "memory.min" => "MemoryMin",
        "memory.swap.max" => "MemorySwapMax",
        "pids.max" => "TasksMax",
        "cpu.weight" => "CPUWeight",
        _ => return None,
    };
    let value = value.trim();
    let number = if value == "max" { INFINITY } else { value.parse().ok()? };
    Some((name, Value::from(number)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::Driver;

    fn lines(resources: &Resources, version: u8) -> Vec<String> {
        of_resources(resources, version).iter().map(|(name, value)| format!("{name}={value}")).collect()
    }

    #[test]
    fn a_scope_is_in_its_slice_with_the_process() {
        let path = CgroupPath::below(Driver::Systemd, "kubepods-pod1.slice", "abc").unwrap();
        let all = of_scope(&path, 42);
        let of = |wanted: &str| all.iter().find(|(name, _)| *name == wanted).unwrap().1.clone();
        assert_eq!(of("Slice"), Value::from("kubepods-pod1.slice"));
        assert_eq!(of("PIDs"), Value::from(vec![42u32]));
        assert_eq!(of("Delegate"), Value::from(true));
    }

    #[test]
    fn limits_are_properties_in_the_words_of_each_version() {
        let resources = Resources {
            cpu_shares: 1024,
            cpu_quota: 15_000,
            cpu_period: 100_000,
            memory: 100,
            memory_and_swap: 150,
            pids: 7,
            cpuset_cpus: "0-1,9".into(),
            unified: [("memory.low".to_owned(), "5".to_owned()), ("io.max".to_owned(), "x".to_owned())].into(),
            ..Resources::default()
        };
        let two = of_resources(&resources, 2);
        let of = |wanted: &str| two.iter().find(|(name, _)| *name == wanted).map(|(_, value)| value.clone());
        assert_eq!(of("CPUWeight"), Some(Value::from(100u64)));
        assert_eq!(of("CPUQuotaPerSecUSec"), Some(Value::from(150_000u64)));
        assert_eq!(of("CPUQuotaPeriodUSec"), Some(Value::from(100_000u64)));
        assert_eq!(of("MemoryMax"), Some(Value::from(100u64)));
        assert_eq!(of("MemorySwapMax"), Some(Value::from(50u64)));
        assert_eq!(of("MemoryLow"), Some(Value::from(5u64)));
        assert_eq!(of("TasksMax"), Some(Value::from(7u64)));
        assert_eq!(of("AllowedCPUs"), Some(Value::from(vec![3u8, 2])));
        assert_eq!(two.len(), 8);
        let one = lines(&resources, 1);
        assert!(one.iter().any(|line| line == "CPUShares=uint64 1024"), "{one:?}");
        assert!(one.iter().any(|line| line == "MemoryLimit=uint64 100"), "{one:?}");
        assert_eq!(one.len(), 4);
    }

    #[test]
    fn quotas_are_rounded_up_and_none_is_infinite() {
        assert_eq!(per_second(1_000, 100_000), 10_000);
        assert_eq!(per_second(33_333, 100_000), 340_000);
        assert_eq!(per_second(-1, 100_000), u64::MAX);
        assert_eq!(per_second(i64::MAX, 1), u64::MAX / QUOTA_STEP * QUOTA_STEP);
    }

    #[test]
    fn lists_of_cpus_become_bits() {
        assert_eq!(mask("0"), Some(vec![1]));
        assert_eq!(mask("0-7,8"), Some(vec![255, 1]));
        for none in ["", "x", "3-1", "0-9999999999999999999999", "0-99999"] {
            assert_eq!(mask(none), None, "{none}");
        }
    }
}
