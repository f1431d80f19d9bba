//! Limits of a container.

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
    fn impossible_limits_are_refused() {
        let swap = Resources { memory: 100, memory_and_swap: 50, ..Resources::default() };
        assert!(swap.check().is_err());
        for name in ["../memory.max", "cgroup.procs", "memory"] {
            let unified = BTreeMap::from([(name.to_owned(), "1".to_owned())]);
            assert!(Resources { unified, ..Resources::default() }.check().is_err(), "{name}");
        }
    }
}
