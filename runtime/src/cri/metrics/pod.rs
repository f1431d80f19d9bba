//! What is the pod's and no container's: its network.

use std::fs;

use super::Sample;
use crate::sandbox::SandboxRecord;

/// More links than any pod has.
const MOST_LINKS: usize = 256;

pub(super) fn samples(sandbox: &SandboxRecord) -> Vec<Sample> {
    let mut samples = vec![("container_last_seen", Vec::new(), crate::clock::now_seconds())];
    if sandbox.host_network() {
        // the node's, which is told elsewhere
        return samples;
    }
    // the supervisor is in the pod's network namespace
    let table = fs::read_to_string(format!("/proc/{}/net/dev", sandbox.shim_pid)).unwrap_or_default();
    samples.extend(network(&table));
    samples
}

/// `/proc/net/dev`: two lines of heading, then a link each: eight numbers of what came, eight of what went.
fn network(table: &str) -> Vec<Sample> {
    let mut samples = Vec::new();
    for line in table.lines().skip(2).take(MOST_LINKS) {
        let Some((name, numbers)) = line.split_once(':') else { continue };
        let name = name.trim();
        if name == "lo" {
            continue;
        }
        let numbers: Vec<u64> = numbers.split_whitespace().filter_map(|number| number.parse().ok()).collect();
        for (metric, at) in [
            ("container_network_receive_bytes_total", 0),
            ("container_network_receive_packets_total", 1),
            ("container_network_receive_errors_total", 2),
            ("container_network_receive_packets_dropped_total", 3),
            ("container_network_transmit_bytes_total", 8),
            ("container_network_transmit_packets_total", 9),
            ("container_network_transmit_errors_total", 10),
            ("container_network_transmit_packets_dropped_total", 11),
        ] {
            if let Some(value) = numbers.get(at) {
                samples.push((metric, vec![name.to_owned()], *value));
            }
        }
    }
    samples
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_link_but_the_loopback_has_eight_numbers() {
        let table = "Inter-|   Receive  |  Transmit\n face |bytes packets errs drop |bytes packets errs drop\n\
            lo: 9 9 9 9 0 0 0 0 9 9 9 9 0 0 0 0\n  eth0: 1 2 3 4 0 0 0 0 5 6 7 8 0 0 0 0\nbroken\n";
        let samples = network(table);
        let values: Vec<u64> = samples.iter().map(|(_, _, value)| *value).collect();
        assert_eq!(values, [1, 2, 3, 4, 5, 6, 7, 8]);
        assert!(samples.iter().all(|(_, labels, _)| *labels == ["eth0"]));
    }
}
