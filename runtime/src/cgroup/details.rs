//! More of what a cgroup used: for metrics, which are asked for rarely.

use std::fs;
use std::path::{Path, PathBuf};

use super::stats::{field, number, optional};
use super::{CgroupPath, Cgroups, Layout, Stats};

/// Usage of a block device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Device {
    /// Major and minor.
    pub number: (u64, u64),
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Reads.
    pub reads: u64,
    /// Writes.
    pub writes: u64,
}

/// What the kernel tells beyond [`Stats`]; what it does not tell is 0 or none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Details {
    /// The usual.
    pub stats: Stats,
    /// In user space.
    pub cpu_user_micros: u64,
    /// In the kernel.
    pub cpu_system_micros: u64,
    /// Periods of the CPU quota.
    pub periods: u64,
    /// Those in which it was used up.
    pub throttled_periods: u64,
    /// Time that was waited for it.
    pub throttled_micros: u64,
    /// Page cache.
    pub memory_cache: u64,
    /// The most there was.
    pub memory_most: u64,
    /// Times the limit was hit.
    pub memory_failures: u64,
    /// Of the kernel.
    pub memory_kernel: u64,
    /// Mapped files.
    pub memory_mapped: u64,
    /// Processes killed for want of memory.
    pub oom_kills: u64,
    /// Page size, bytes in use, most bytes that were.
    pub huge_pages: Vec<(String, u64, u64)>,
    /// Block devices.
    pub devices: Vec<Device>,
    /// Of CPU, input and output, memory: microseconds in which some waited, in which all did.
    pub pressure: [Option<(u64, u64)>; 3],
    /// Processes in it and below.
    pub processes: Vec<i32>,
    /// Most threads there may be; 0 for no limit.
    pub threads_max: u64,
}

impl Cgroups {
    /// Everything that is known of a cgroup. One that has just ended used nothing that could be told.
    pub fn details(&self, path: &CgroupPath) -> Details {
        let stats = self.stats(path).unwrap_or_default();
        let details = match &self.layout {
            Layout::V2 { root } => v2(&path.under(root)),
            Layout::V1 { .. } => v1(|controller| self.dir_of(path, controller)),
        };
        let first = self.dirs(path).into_iter().next();
        let processes = first.map(|dir| super::remove::processes(&dir)).unwrap_or_default();
        Details { stats, processes, ..details }
    }

    pub(super) fn dir_of(&self, path: &CgroupPath, controller: &str) -> PathBuf {
        let Layout::V1 { hierarchies } = &self.layout else { return PathBuf::new() };
        let found = hierarchies.iter().find(|hierarchy| hierarchy.has(controller));
        found.map(|hierarchy| path.under(&hierarchy.mountpoint)).unwrap_or_default()
    }
}

fn v2(dir: &Path) -> Details {
    let (cpu, memory) = (optional(dir, "cpu.stat"), optional(dir, "memory.stat"));
    let (events, io) = (optional(dir, "memory.events"), optional(dir, "io.stat"));
    let usage = number(dir, "memory.current").unwrap_or(0);
    Details {
        cpu_user_micros: field(&cpu, "user_usec"),
        cpu_system_micros: field(&cpu, "system_usec"),
        periods: field(&cpu, "nr_periods"),
        throttled_periods: field(&cpu, "nr_throttled"),
        throttled_micros: field(&cpu, "throttled_usec"),
        memory_cache: field(&memory, "file"),
        // since 5.19
        memory_most: number(dir, "memory.peak").unwrap_or(usage),
        memory_failures: field(&events, "max"),
        memory_kernel: field(&memory, "kernel"),
        memory_mapped: field(&memory, "file_mapped"),
        oom_kills: field(&events, "oom_kill"),
        huge_pages: huge_pages(dir, ".current", ".max_usage"),
        devices: io.lines().filter_map(io_line).collect(),
        pressure: ["cpu.pressure", "io.pressure", "memory.pressure"].map(|file| pressure(&optional(dir, file))),
        threads_max: number(dir, "pids.max").unwrap_or(0),
        ..Details::default()
    }
}

fn v1(dir: impl Fn(&str) -> PathBuf) -> Details {
    let (cpu, account, memory, pids) = (dir("cpu"), dir("cpuacct"), dir("memory"), dir("pids"));
    let (stat, times) = (optional(&cpu, "cpu.stat"), optional(&account, "cpuacct.stat"));
    let (pages, oom) = (optional(&memory, "memory.stat"), optional(&memory, "memory.oom_control"));
    // ticks of a hundredth of a second, as everywhere
    let micros = |name: &str| field(&times, name).saturating_mul(10_000);
    Details {
        cpu_user_micros: micros("user"),
        cpu_system_micros: micros("system"),
        periods: field(&stat, "nr_periods"),
        throttled_periods: field(&stat, "nr_throttled"),
        throttled_micros: field(&stat, "throttled_time") / 1000,
        memory_cache: field(&pages, "total_cache"),
        memory_most: number(&memory, "memory.max_usage_in_bytes").unwrap_or(0),
        memory_failures: number(&memory, "memory.failcnt").unwrap_or(0),
        memory_kernel: number(&memory, "memory.kmem.usage_in_bytes").unwrap_or(0),
        memory_mapped: field(&pages, "total_mapped_file"),
        oom_kills: field(&oom, "oom_kill"),
        huge_pages: huge_pages(&dir("hugetlb"), ".usage_in_bytes", ".max_usage_in_bytes"),
        devices: throttled_devices(&dir("blkio")),
        threads_max: number(&pids, "pids.max").unwrap_or(0),
        ..Details::default()
    }
}

/// `some avg10=0.00 … total=12` and `full … total=3`.
fn pressure(text: &str) -> Option<(u64, u64)> {
    let total = |kind: &str| {
        let line = text.lines().find(|line| line.starts_with(kind))?;
        line.split_whitespace().find_map(|word| word.strip_prefix("total=")?.parse().ok())
    };
    // all can wait for a CPU only since 5.13
    Some((total("some")?, total("full").unwrap_or(0)))
}

/// `254:0 rbytes=1 wbytes=2 rios=3 wios=4 …`
fn io_line(line: &str) -> Option<Device> {
    let mut words = line.split_whitespace();
    let number = device_number(words.next()?)?;
    let mut device = Device { number, ..Device::default() };
    for word in words {
        let Some((name, value)) = word.split_once('=') else { continue };
        let value = value.parse().unwrap_or(0);
        match name {
            "rbytes" => device.read_bytes = value,
            "wbytes" => device.written_bytes = value,
            "rios" => device.reads = value,
            "wios" => device.writes = value,
            _ => {}
        }
    }
    Some(device)
}

fn device_number(text: &str) -> Option<(u64, u64)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// v1: `254:0 Read 1` in one file of bytes and one of operations.
fn throttled_devices(dir: &Path) -> Vec<Device> {
    let mut devices: Vec<Device> = Vec::new();
    for (file, of_bytes) in [("blkio.throttle.io_service_bytes", true), ("blkio.throttle.io_serviced", false)] {
        for line in optional(dir, file).lines() {
            let mut words = line.split_whitespace();
            let (Some(number), Some(operation), Some(value)) =
                (words.next().and_then(device_number), words.next(), words.next().and_then(|word| word.parse().ok()))
            else {
                continue;
            };
            let at = devices.iter().position(|device| device.number == number).unwrap_or_else(|| {
                devices.push(Device { number, ..Device::default() });
                devices.len() - 1
            });
            let device = &mut devices[at];
            match (operation, of_bytes) {
                ("Read", true) => device.read_bytes = value,
                ("Write", true) => device.written_bytes = value,
                ("Read", false) => device.reads = value,
                ("Write", false) => device.writes = value,
                _ => {}
            }
        }
    }
    devices
}

/// The page sizes that there are files for: `hugetlb.2MB.current`.
fn huge_pages(dir: &Path, now: &str, most: &str) -> Vec<(String, u64, u64)> {
    let names = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.file_name());
    let sizes = names.filter_map(|name| Some(name.to_str()?.strip_prefix("hugetlb.")?.strip_suffix(now)?.to_owned()));
    let mut sizes: Vec<String> = sizes.filter(|size| !size.contains('.')).collect();
    sizes.sort();
    let value = |size: &str, file: &str| number(dir, &format!("hugetlb.{size}{file}")).unwrap_or(0);
    sizes.into_iter().map(|size| (size.clone(), value(&size, now), value(&size, most))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn v2_files_become_details() {
        let dir = tempfile::tempdir().unwrap();
        let files = [
            ("cpu.stat", "usage_usec 9\nuser_usec 5\nsystem_usec 4\nnr_periods 3\nnr_throttled 2\nthrottled_usec 1\n"),
            ("memory.stat", "file 7\nfile_mapped 6\nkernel 5\n"),
            ("memory.events", "low 0\nhigh 0\nmax 8\noom 1\noom_kill 1\n"),
            ("memory.peak", "99\n"),
            ("io.stat", "254:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0\nbroken\n"),
            ("cpu.pressure", "some avg10=0.00 avg60=0.00 avg300=0.00 total=12\nfull avg10=0.00 total=3\n"),
            ("hugetlb.2MB.current", "4096\n"),
            ("hugetlb.2MB.rsvd.current", "1\n"),
            ("pids.max", "max\n"),
        ];
        for (name, text) in files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        let details = v2(dir.path());
        assert_eq!((details.cpu_user_micros, details.periods, details.throttled_micros), (5, 3, 1));
        assert_eq!((details.memory_cache, details.memory_most, details.memory_failures), (7, 99, 8));
        assert_eq!((details.oom_kills, details.threads_max), (1, 0));
        assert_eq!(details.pressure, [Some((12, 3)), None, None]);
        assert_eq!(details.huge_pages, [("2MB".to_owned(), 4096, 0)]);
        let device = Device { number: (254, 0), read_bytes: 1, written_bytes: 2, reads: 3, writes: 4 };
        assert_eq!(details.devices, [device]);
    }

    #[test]
    fn v1_files_become_details() {
        let root = tempfile::tempdir().unwrap();
        for (name, text) in [
            ("cpu.stat", "nr_periods 3\nnr_throttled 2\nthrottled_time 5000\n"),
            ("cpuacct.stat", "user 7\nsystem 2\n"),
            ("memory.stat", "cache 1\ntotal_cache 2\ntotal_mapped_file 3\n"),
            ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 4\n"),
            ("memory.failcnt", "6\n"),
            ("blkio.throttle.io_service_bytes", "8:0 Read 1\n8:0 Write 2\n8:0 Total 3\nTotal 3\n"),
            ("blkio.throttle.io_serviced", "8:0 Read 4\n8:0 Write 5\n"),
            ("pids.max", "77\n"),
        ] {
            fs::write(root.path().join(name), text).unwrap();
        }
        let details = v1(|_| root.path().to_owned());
        assert_eq!((details.cpu_user_micros, details.throttled_micros), (70_000, 5));
        assert_eq!((details.memory_cache, details.memory_failures, details.oom_kills), (2, 6, 4));
        assert_eq!(details.threads_max, 77);
        let device = Device { number: (8, 0), read_bytes: 1, written_bytes: 2, reads: 4, writes: 5 };
        assert_eq!(details.devices, [device]);
    }
}
