//! Limits of a container, and how those of an update are laid over them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::CgroupError;

/// Limits as the CRI gives them; zero and empty mean "not said".
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Resources {
    /// Weight, 2 to 262144.
    pub cpu_shares: u64,
    /// Microseconds in each period; -1 for no limit.
    pub cpu_quota: i64,
    /// Microseconds.
    pub cpu_period: u64,
    /// Bytes; -1 for no limit.
    pub memory: i64,
    /// Bytes of memory and swap together; -1 for no limit.
    pub memory_and_swap: i64,
    /// List of CPUs.
    pub cpuset_cpus: String,
    /// List of memory nodes.
    pub cpuset_mems: String,
    /// Page size (`2MB`), bytes.
    pub hugepages: BTreeMap<String, u64>,
    /// File of cgroup v2, value.
    pub unified: BTreeMap<String, String>,
    /// Most processes.
    pub pids: u64,
}

impl Resources {
    /// These limits with those of `update` laid over them: what it does not say stays.
    #[must_use]
    pub fn with(&self, update: &Resources) -> Resources {
        let mut merged = self.clone();
        let number = |old: u64, new: u64| if new == 0 { old } else { new };
        let signed = |old: i64, new: i64| if new == 0 { old } else { new };
        let text = |old: &str, new: &str| if new.is_empty() { old.to_owned() } else { new.to_owned() };
        merged.cpu_shares = number(self.cpu_shares, update.cpu_shares);
        merged.cpu_quota = signed(self.cpu_quota, update.cpu_quota);
        merged.cpu_period = number(self.cpu_period, update.cpu_period);
        merged.memory = signed(self.memory, update.memory);
        merged.memory_and_swap = signed(self.memory_and_swap, update.memory_and_swap);
        merged.cpuset_cpus = text(&self.cpuset_cpus, &update.cpuset_cpus);
        merged.cpuset_mems = text(&self.cpuset_mems, &update.cpuset_mems);
        merged.pids = number(self.pids, update.pids);
        merged.hugepages.extend(update.hugepages.clone());
        merged.unified.extend(update.unified.clone());
        merged
    }

    /// Refuses what no kernel would take, before anything is written.
    pub fn check(&self) -> Result<(), CgroupError> {
        let wrong = |what: &str, message: String| Err(CgroupError::Limit { what: what.to_owned(), message });
        if self.memory_and_swap > 0 && self.memory > 0 && self.memory_and_swap < self.memory {
            return wrong(
                "memory_swap_limit_in_bytes",
                format!("{} is below the memory limit of {}", self.memory_and_swap, self.memory),
            );
        }
        for name in self.unified.keys() {
            // the name becomes a path
            if name.contains('/') || !name.contains('.') || name.starts_with("cgroup.") {
                return wrong("unified", format!("`{name}` is no file of a controller"));
            }
        }
        for size in self.hugepages.keys() {
            if !size.chars().all(|c| c.is_ascii_alphanumeric()) {
                return wrong("hugepage_limits", format!("`{size}` is no page size"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_update_keeps_what_it_does_not_say() {
        let old = Resources { cpu_shares: 100, memory: 1 << 20, cpuset_cpus: "0-1".into(), ..Resources::default() };
        let new = old.with(&Resources { memory: 2 << 20, ..Resources::default() });
        assert_eq!((new.cpu_shares, new.memory, new.cpuset_cpus.as_str()), (100, 2 << 20, "0-1"));
    }

    #[test]
    fn unified_values_and_huge_pages_are_merged() {
        let one = |name: &str, value: &str| BTreeMap::from([(name.to_owned(), value.to_owned())]);
        let old = Resources { unified: one("memory.low", "1"), ..Resources::default() };
        let new = old.with(&Resources { unified: one("memory.high", "2"), ..Resources::default() });
        assert_eq!(new.unified.len(), 2);
    }

    #[test]
    fn impossible_limits_are_refused() {
        let swap = Resources { memory: 100, memory_and_swap: 50, ..Resources::default() };
        assert!(swap.check().is_err());
        for name in ["../memory.max", "cgroup.procs", "memory"] {
            let unified = BTreeMap::from([(name.to_owned(), "1".to_owned())]);
            assert!(Resources { unified, ..Resources::default() }.check().is_err(), "{name}");
        }
    }
}
