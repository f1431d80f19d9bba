//! What a container uses, and what it is limited to.

use std::fs;
use std::path::Path;

use nix::sys::statvfs::statvfs;

use super::Sample;
use crate::cgroup::{Cgroups, Details};
use crate::sandbox::ContainerView;

const NANOS: u64 = 1_000_000_000;
const MICROS: u64 = 1_000_000;

/// Processes whose descriptors are counted; a container with more is no place for such an effort.
const MOST_PROCESSES: usize = 1024;

fn one(name: &'static str, value: u64) -> Sample {
    (name, Vec::new(), value)
}

fn of(name: &'static str, label: &str, value: u64) -> Sample {
    (name, vec![label.to_owned()], value)
}

pub(super) fn samples(cgroups: &Cgroups, container: &ContainerView) -> Vec<Sample> {
    let record = &container.record;
    let details = cgroups.details(&record.cgroup);
    let mut samples = usage(&details);
    samples.extend(limits(&record.resources, details.threads_max));
    samples.extend(files(Path::new(&container.spec.rootfs.upper)));
    samples.extend(descriptors(&details.processes));
    samples.extend(ulimits(record.pid));
    samples.push(one("container_start_time_seconds", u64::try_from(record.started_at).unwrap_or(0) / NANOS));
    samples.push(one("container_last_seen", crate::clock::now_seconds()));
    samples
}

fn usage(details: &Details) -> Vec<Sample> {
    let stats = &details.stats;
    let mut samples = vec![
        of("container_cpu_usage_seconds_total", "total", stats.cpu_nanos / NANOS),
        one("container_cpu_user_seconds_total", details.cpu_user_micros / MICROS),
        one("container_cpu_system_seconds_total", details.cpu_system_micros / MICROS),
        one("container_cpu_cfs_periods_total", details.periods),
        one("container_cpu_cfs_throttled_periods_total", details.throttled_periods),
        one("container_cpu_cfs_throttled_seconds_total", details.throttled_micros / MICROS),
        one("container_memory_cache", details.memory_cache),
        one("container_memory_rss", stats.memory_rss),
        one("container_memory_swap", stats.swap_usage.unwrap_or(0)),
        one("container_memory_usage_bytes", stats.memory_usage),
        one("container_memory_max_usage_bytes", details.memory_most),
        one("container_memory_working_set_bytes", stats.memory_working_set),
        one("container_memory_failcnt", details.memory_failures),
        one("container_memory_kernel_usage", details.memory_kernel),
        one("container_memory_mapped_file", details.memory_mapped),
        one("container_oom_events_total", details.oom_kills),
        one("container_processes", u64::try_from(details.processes.len()).unwrap_or(0)),
        one("container_threads", stats.processes),
    ];
    for (kind, value) in [("pgfault", stats.page_faults), ("pgmajfault", stats.major_page_faults)] {
        samples.push(("container_memory_failures_total", vec![kind.to_owned(), "container".to_owned()], value));
    }
    for (size, now, most) in &details.huge_pages {
        samples.push(of("container_hugetlb_usage_bytes", size, *now));
        samples.push(of("container_hugetlb_max_usage_bytes", size, *most));
    }
    for device in &details.devices {
        let (major, minor) = device.number;
        let name = device_name(major, minor);
        for (operation, bytes) in [("Read", device.read_bytes), ("Write", device.written_bytes)] {
            let labels = vec![name.clone(), major.to_string(), minor.to_string(), operation.to_owned()];
            samples.push(("container_blkio_device_usage_total", labels, bytes));
        }
        samples.push(of("container_fs_reads_bytes_total", &name, device.read_bytes));
        samples.push(of("container_fs_writes_bytes_total", &name, device.written_bytes));
        samples.push(of("container_fs_reads_total", &name, device.reads));
        samples.push(of("container_fs_writes_total", &name, device.writes));
    }
    let names = [
        ("container_pressure_cpu_waiting_seconds_total", "container_pressure_cpu_stalled_seconds_total"),
        ("container_pressure_io_waiting_seconds_total", "container_pressure_io_stalled_seconds_total"),
        ("container_pressure_memory_waiting_seconds_total", "container_pressure_memory_stalled_seconds_total"),
    ];
    for ((waiting, stalled), pressure) in names.into_iter().zip(&details.pressure) {
        if let Some((some, full)) = pressure {
            samples.extend([one(waiting, some / MICROS), one(stalled, full / MICROS)]);
        }
    }
    samples
}

fn limits(resources: &nodeagent_cri_api::LinuxContainerResources, threads_max: u64) -> Vec<Sample> {
    let number = |value: i64| u64::try_from(value).unwrap_or(0);
    let memory = number(resources.memory_limit_in_bytes);
    let low = resources.unified.get("memory.low").and_then(|value| value.parse().ok()).unwrap_or(0);
    vec![
        one("container_spec_cpu_period", number(resources.cpu_period)),
        one("container_spec_cpu_quota", number(resources.cpu_quota)),
        one("container_spec_cpu_shares", number(resources.cpu_shares)),
        one("container_spec_memory_limit_bytes", memory),
        one("container_spec_memory_reservation_limit_bytes", low),
        one(
            "container_spec_memory_swap_limit_bytes",
            number(resources.memory_swap_limit_in_bytes).saturating_sub(memory),
        ),
        one("container_threads_max", threads_max),
    ]
}

/// Of the whole file system: what a single layer has would have to be counted file by file.
fn files(upper: &Path) -> Vec<Sample> {
    let Ok(found) = statvfs(upper) else { return Vec::new() };
    // wider than needed on some platforms, narrower on others
    #[allow(clippy::useless_conversion)]
    let (blocks, free, size) = (u64::from(found.blocks()), u64::from(found.blocks_free()), found.fragment_size());
    let (inodes, inodes_free) = (found.files(), found.files_free());
    vec![
        one("container_fs_inodes_free", inodes_free),
        one("container_fs_inodes_total", inodes),
        one("container_fs_limit_bytes", blocks.saturating_mul(size)),
        one("container_fs_usage_bytes", blocks.saturating_sub(free).saturating_mul(size)),
    ]
}

fn descriptors(processes: &[i32]) -> Vec<Sample> {
    let (mut all, mut sockets) = (0, 0);
    for pid in processes.iter().take(MOST_PROCESSES) {
        // one that ends meanwhile has none
        for entry in fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
            all += 1;
            sockets +=
                u64::from(fs::read_link(entry.path()).is_ok_and(|to| to.to_string_lossy().starts_with("socket:")));
        }
    }
    vec![one("container_file_descriptors", all), one("container_sockets", sockets)]
}

/// `/proc/<pid>/limits`, of which the number of open files is what people watch.
fn ulimits(pid: i32) -> Vec<Sample> {
    let text = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap_or_default();
    let soft = text.lines().find_map(|line| line.strip_prefix("Max open files")?.split_whitespace().next());
    let value = soft.map(|soft| if soft == "unlimited" { u64::MAX } else { soft.parse().unwrap_or(0) });
    value.map(|value| of("container_ulimits_soft", "max_open_files", value)).into_iter().collect()
}

fn device_name(major: u64, minor: u64) -> String {
    let link = fs::read_link(format!("/sys/dev/block/{major}:{minor}"));
    let name = link.ok().and_then(|link| link.file_name().map(|name| name.to_string_lossy().into_owned()));
    name.map_or_else(|| format!("{major}:{minor}"), |name| format!("/dev/{name}"))
}
