//! Every metric, once.

use nodeagent_cri_api::MetricType;

/// Labels that all of them have, in the order of their values.
pub(super) const LABELS: [&str; 5] = ["id", "image", "namespace", "pod", "container"];

/// A metric.
pub(super) struct Described {
    pub name: &'static str,
    pub help: &'static str,
    pub kind: MetricType,
    /// Beside [`LABELS`].
    pub labels: &'static [&'static str],
}

const fn counter(name: &'static str, help: &'static str, labels: &'static [&'static str]) -> Described {
    Described { name, help, kind: MetricType::Counter, labels }
}

const fn gauge(name: &'static str, help: &'static str, labels: &'static [&'static str]) -> Described {
    Described { name, help, kind: MetricType::Gauge, labels }
}

/// All of them, by name.
pub(super) const METRICS: [Described; 56] = [
    counter(
        "container_blkio_device_usage_total",
        "Bytes that passed a block device.",
        &["device", "major", "minor", "operation"],
    ),
    counter("container_cpu_cfs_periods_total", "Periods of CPU bandwidth that have elapsed.", &[]),
    counter("container_cpu_cfs_throttled_periods_total", "Periods in which the CPU quota was used up.", &[]),
    counter(
        "container_cpu_cfs_throttled_seconds_total",
        "Seconds for which processes waited for the next period.",
        &[],
    ),
    counter("container_cpu_system_seconds_total", "Seconds of CPU in the kernel.", &[]),
    counter("container_cpu_usage_seconds_total", "Seconds of CPU.", &["cpu"]),
    counter("container_cpu_user_seconds_total", "Seconds of CPU in user space.", &[]),
    gauge("container_file_descriptors", "Open file descriptors.", &[]),
    gauge("container_fs_inodes_free", "Free inodes of the file system of the writable layer.", &[]),
    gauge("container_fs_inodes_total", "Inodes of the file system of the writable layer.", &[]),
    gauge("container_fs_limit_bytes", "Size of the file system of the writable layer.", &[]),
    counter("container_fs_reads_bytes_total", "Bytes read from a block device.", &["device"]),
    counter("container_fs_reads_total", "Reads from a block device.", &["device"]),
    gauge("container_fs_usage_bytes", "Bytes in use on the file system of the writable layer.", &[]),
    counter("container_fs_writes_bytes_total", "Bytes written to a block device.", &["device"]),
    counter("container_fs_writes_total", "Writes to a block device.", &["device"]),
    gauge("container_hugetlb_max_usage_bytes", "Most bytes of huge pages that were in use.", &["pagesize"]),
    gauge("container_hugetlb_usage_bytes", "Bytes of huge pages in use.", &["pagesize"]),
    gauge("container_last_seen", "When the container was seen last, in seconds since the epoch.", &[]),
    gauge("container_memory_cache", "Bytes of page cache.", &[]),
    counter("container_memory_failcnt", "Times that the memory limit was hit.", &[]),
    counter("container_memory_failures_total", "Page faults.", &["failure_type", "scope"]),
    gauge("container_memory_kernel_usage", "Bytes of kernel memory.", &[]),
    gauge("container_memory_mapped_file", "Bytes of mapped files.", &[]),
    gauge("container_memory_max_usage_bytes", "Most bytes of memory that were in use.", &[]),
    gauge("container_memory_rss", "Bytes of anonymous memory.", &[]),
    gauge("container_memory_swap", "Bytes swapped out.", &[]),
    gauge("container_memory_usage_bytes", "Bytes of memory in use, whatever for.", &[]),
    gauge("container_memory_working_set_bytes", "Bytes of memory in use that cannot be dropped.", &[]),
    counter("container_network_receive_bytes_total", "Bytes received.", &["interface"]),
    counter("container_network_receive_errors_total", "Errors while packets were received.", &["interface"]),
    counter(
        "container_network_receive_packets_dropped_total",
        "Packets dropped while they were received.",
        &["interface"],
    ),
    counter("container_network_receive_packets_total", "Packets received.", &["interface"]),
    counter("container_network_transmit_bytes_total", "Bytes sent.", &["interface"]),
    counter("container_network_transmit_errors_total", "Errors while packets were sent.", &["interface"]),
    counter(
        "container_network_transmit_packets_dropped_total",
        "Packets dropped while they were sent.",
        &["interface"],
    ),
    counter("container_network_transmit_packets_total", "Packets sent.", &["interface"]),
    counter("container_oom_events_total", "Processes killed for want of memory.", &[]),
    counter("container_pressure_cpu_stalled_seconds_total", "Seconds in which every process waited for a CPU.", &[]),
    counter("container_pressure_cpu_waiting_seconds_total", "Seconds in which some process waited for a CPU.", &[]),
    counter(
        "container_pressure_io_stalled_seconds_total",
        "Seconds in which every process waited for input or output.",
        &[],
    ),
    counter(
        "container_pressure_io_waiting_seconds_total",
        "Seconds in which some process waited for input or output.",
        &[],
    ),
    counter(
        "container_pressure_memory_stalled_seconds_total",
        "Seconds in which every process waited for memory.",
        &[],
    ),
    counter("container_pressure_memory_waiting_seconds_total", "Seconds in which some process waited for memory.", &[]),
    gauge("container_processes", "Processes.", &[]),
    gauge("container_sockets", "Open sockets.", &[]),
    gauge("container_spec_cpu_period", "Period of the CPU quota in microseconds.", &[]),
    gauge("container_spec_cpu_quota", "CPU quota in microseconds; 0 for none.", &[]),
    gauge("container_spec_cpu_shares", "CPU shares.", &[]),
    gauge("container_spec_memory_limit_bytes", "Memory limit; 0 for none.", &[]),
    gauge("container_spec_memory_reservation_limit_bytes", "Memory below which nothing is reclaimed; 0 for none.", &[]),
    gauge("container_spec_memory_swap_limit_bytes", "Limit of swap; 0 for none.", &[]),
    gauge("container_start_time_seconds", "When the container was started, in seconds since the epoch.", &[]),
    gauge("container_threads", "Threads.", &[]),
    gauge("container_threads_max", "Most threads there may be; 0 for no limit.", &[]),
    gauge(
        "container_ulimits_soft",
        "Soft limits of the first process; -1 as the largest number for none.",
        &["ulimit"],
    ),
];
