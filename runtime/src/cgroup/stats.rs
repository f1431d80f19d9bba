//! What a cgroup used so far.

use std::fs;
use std::path::Path;

use super::file::read;
use super::{CgroupError, CgroupPath, Hierarchy};

/// Usage of one cgroup; what the kernel does not tell is 0 or none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stats {
    /// Nanoseconds on all CPUs together.
    pub cpu_nanos: u64,
    /// Bytes charged.
    pub memory_usage: u64,
    /// Bytes charged without page cache that could be dropped.
    pub memory_working_set: u64,
    /// Anonymous memory.
    pub memory_rss: u64,
    /// The limit, if there is one.
    pub memory_limit: Option<u64>,
    /// Page faults.
    pub page_faults: u64,
    /// Page faults that had to wait for a disk.
    pub major_page_faults: u64,
    /// Bytes swapped out.
    pub swap_usage: Option<u64>,
    /// Bytes that may be swapped out.
    pub swap_limit: Option<u64>,
    /// Processes.
    pub processes: u64,
}

impl Stats {
    /// Bytes that may still be used, if there is a limit.
    pub fn memory_available(&self) -> Option<u64> {
        self.memory_limit.map(|limit| limit.saturating_sub(self.memory_working_set))
    }
}

impl Stats {
    /// Adds what another cgroup used. Limits of several do not add up to one, so there is none.
    pub fn add(&mut self, other: &Stats) {
        self.cpu_nanos += other.cpu_nanos;
        self.memory_usage += other.memory_usage;
        self.memory_working_set += other.memory_working_set;
        self.memory_rss += other.memory_rss;
        self.page_faults += other.page_faults;
        self.major_page_faults += other.major_page_faults;
        self.processes += other.processes;
        self.memory_limit = None;
        self.swap_limit = None;
        self.swap_usage = match (self.swap_usage, other.swap_usage) {
            (None, other) => other,
            (own, None) => own,
            (Some(own), Some(other)) => Some(own + other),
        };
    }
}

/// Limits from here up mean "none" on v1, which rounds 2^63 down to whole pages.
const V1_UNLIMITED: u64 = 1 << 62;

pub(super) fn v2(dir: &Path) -> Result<Stats, CgroupError> {
    let cpu = read(&dir.join("cpu.stat"))?;
    let memory = optional(dir, "memory.stat");
    let memory_usage = number(dir, "memory.current").unwrap_or(0);
    Ok(Stats {
        cpu_nanos: field(&cpu, "usage_usec").saturating_mul(1000),
        memory_usage,
        memory_working_set: memory_usage.saturating_sub(field(&memory, "inactive_file")),
        memory_rss: field(&memory, "anon"),
        memory_limit: number(dir, "memory.max"),
        page_faults: field(&memory, "pgfault"),
        major_page_faults: field(&memory, "pgmajfault"),
        swap_usage: number(dir, "memory.swap.current"),
        swap_limit: number(dir, "memory.swap.max"),
        processes: number(dir, "pids.current").unwrap_or(0),
    })
}

pub(super) fn v1(hierarchies: &[Hierarchy], path: &CgroupPath) -> Result<Stats, CgroupError> {
    let dir = |controller: &str| {
        let found = hierarchies.iter().find(|hierarchy| hierarchy.has(controller));
        found.map(|hierarchy| path.under(&hierarchy.mountpoint)).unwrap_or_default()
    };
    let (cpu, memory, pids) = (dir("cpuacct"), dir("memory"), dir("pids"));
    let cpu_nanos = read(&cpu.join("cpuacct.usage"))?;
    let stat = optional(&memory, "memory.stat");
    let memory_usage = number(&memory, "memory.usage_in_bytes").unwrap_or(0);
    let limit = |file: &str| number(&memory, file).filter(|limit| *limit < V1_UNLIMITED);
    let memory_limit = limit("memory.limit_in_bytes");
    let both_usage = number(&memory, "memory.memsw.usage_in_bytes");
    let both_limit = limit("memory.memsw.limit_in_bytes");
    Ok(Stats {
        cpu_nanos: cpu_nanos.trim().parse().unwrap_or(0),
        memory_usage,
        memory_working_set: memory_usage.saturating_sub(field(&stat, "total_inactive_file")),
        memory_rss: field(&stat, "total_rss"),
        memory_limit,
        page_faults: field(&stat, "total_pgfault"),
        major_page_faults: field(&stat, "total_pgmajfault"),
        swap_usage: both_usage.map(|both| both.saturating_sub(memory_usage)),
        swap_limit: both_limit.zip(memory_limit).map(|(both, memory)| both.saturating_sub(memory)),
        processes: number(&pids, "pids.current").unwrap_or(0),
    })
}

pub(super) fn optional(dir: &Path, file: &str) -> String {
    fs::read_to_string(dir.join(file)).unwrap_or_default()
}

/// `max` is no number, and neither is a missing file.
pub(super) fn number(dir: &Path, file: &str) -> Option<u64> {
    optional(dir, file).trim().parse().ok()
}

pub(super) fn field(text: &str, name: &str) -> u64 {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn v2_files_become_statistics() {
        let dir = tempfile::tempdir().unwrap();
        let files = [
            ("cpu.stat", "usage_usec 1500\nuser_usec 1000\n"),
            ("memory.current", "1000\n"),
            ("memory.stat", "anon 600\nfile 400\ninactive_file 300\npgfault 7\npgmajfault 2\n"),
            ("memory.max", "max\n"),
            ("memory.swap.current", "5\n"),
            ("pids.current", "3\n"),
        ];
        for (name, text) in files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        let expected = Stats {
            cpu_nanos: 1_500_000,
            memory_usage: 1000,
            memory_working_set: 700,
            memory_rss: 600,
            page_faults: 7,
            major_page_faults: 2,
            swap_usage: Some(5),
            processes: 3,
            ..Stats::default()
        };
        assert_eq!(v2(dir.path()).unwrap(), expected);
    }

    #[test]
    fn v1_counts_the_whole_tree_and_knows_unlimited() {
        let root = tempfile::tempdir().unwrap();
        let path = CgroupPath::below(super::super::Driver::Cgroupfs, "p", "x").unwrap();
        let files = [
            ("cpuacct", "cpuacct.usage", "42\n"),
            ("memory", "memory.usage_in_bytes", "1000\n"),
            ("memory", "memory.stat", "rss 1\ntotal_rss 600\ntotal_inactive_file 300\ntotal_pgfault 9\n"),
            ("memory", "memory.limit_in_bytes", "9223372036854771712\n"),
        ];
        for (controller, name, text) in files {
            let dir = path.under(&root.path().join(controller));
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join(name), text).unwrap();
        }
        let hierarchies = ["cpuacct", "memory"]
            .map(|name| Hierarchy { mountpoint: root.path().join(name), controllers: vec![name.to_owned()] });
        let stats = v1(&hierarchies, &path).unwrap();
        assert_eq!((stats.cpu_nanos, stats.memory_working_set, stats.memory_rss), (42, 700, 600));
        assert_eq!((stats.memory_limit, stats.memory_available(), stats.page_faults), (None, None, 9));
    }

    #[test]
    fn what_is_left_is_the_limit_without_the_working_set() {
        let stats = Stats { memory_limit: Some(100), memory_working_set: 30, ..Stats::default() };
        assert_eq!(stats.memory_available(), Some(70));
    }
}
