//! What is the pod's and no container's: its network.

use super::Sample;
use crate::cri::links;
use crate::sandbox::PodView;

pub(super) fn samples(view: &PodView) -> Vec<Sample> {
    let mut samples = vec![("container_last_seen", Vec::new(), crate::clock::now_seconds())];
    for links::Link { name, received, sent } in links::of_pod(view) {
        let values = [
            ("container_network_receive_bytes_total", received.bytes),
            ("container_network_receive_packets_total", received.packets),
            ("container_network_receive_errors_total", received.errors),
            ("container_network_receive_packets_dropped_total", received.dropped),
            ("container_network_transmit_bytes_total", sent.bytes),
            ("container_network_transmit_packets_total", sent.packets),
            ("container_network_transmit_errors_total", sent.errors),
            ("container_network_transmit_packets_dropped_total", sent.dropped),
        ];
        samples.extend(values.map(|(metric, value)| (metric, vec![name.clone()], value)));
    }
    samples
}
