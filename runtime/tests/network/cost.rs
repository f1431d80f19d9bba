//! What a pod's network costs. Measurements, run on demand: `cargo test --test network cost -- --ignored --nocapture`.

use super::node::{Node, run, with_both};
use std::time::{Duration, Instant};

const BRIDGE: &str = r#"{"type":"bridge","bridge":"br0","isGateway":true,"ipam":{"type":"host-local","dataDir":"DIR",
    "ranges":[[{"subnet":"10.88.0.0/16"}]],"routes":[{"dst":"0.0.0.0/0"}]}}"#;
const PODS: usize = 105;

/// Least, median, and what 95 of 100 stay below.
fn figures(mut times: Vec<Duration>) -> [Duration; 3] {
    times.sort();
    [times[0], times[times.len() / 2], times[times.len() * 95 / 100]]
}

#[test]
#[ignore = "a measurement, not a check"]
fn add_and_del_alone_and_ten_at_a_time() {
    with_both(|by| async move {
        let node = Node::new(by, "1.0.0", BRIDGE);
        for at_once in [1, 10] {
            let pods: Vec<_> = (0..PODS).map(|number| node.pod(&format!("p{at_once}-{number}"))).collect();
            let started = Instant::now();
            let mut adds = Vec::new();
            for group in pods.chunks(at_once) {
                let timed = group.iter().map(|pod| async {
                    let started = Instant::now();
                    node.network.add(pod).await.unwrap();
                    started.elapsed()
                });
                adds.extend(futures_util::future::join_all(timed).await);
            }
            let all_added = started.elapsed();
            let started = Instant::now();
            let mut dels = Vec::new();
            for group in pods.chunks(at_once) {
                let timed = group.iter().map(|pod| async {
                    let started = Instant::now();
                    node.network.del(pod).await.unwrap();
                    started.elapsed()
                });
                dels.extend(futures_util::future::join_all(timed).await);
            }
            println!(
                "{by:?}, {at_once} at a time: ADD least/p50/p95 {:.1?}, all {all_added:.1?}; DEL {:.1?}, all {:.1?}",
                figures(adds),
                figures(dels),
                started.elapsed()
            );
            for pod in &pods {
                run("ip", &["netns", "del", pod.netns.file_name().unwrap().to_str().unwrap()]);
            }
            node.network.settled().await;
        }
    });
}
