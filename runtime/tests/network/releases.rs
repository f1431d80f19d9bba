//! What happens between the DEL of a built-in network and the end of its link.

use super::node::{By, Node, isolated, links, run};
use nodeagent_runtime::network::{NetworkError, PodNetwork};

const BRIDGE: &str = r#"{"type":"bridge","bridge":"br0","ipam":{"type":"host-local","dataDir":"DIR",
    "ranges":[[{"subnet":"10.88.7.0/29"}]]}}"#;

fn end_namespace(pod: &PodNetwork) {
    run("ip", &["netns", "del", pod.netns.file_name().unwrap().to_str().unwrap()]);
}

fn veths() -> usize {
    links().iter().filter(|link| link.starts_with("veth")).count()
}

#[test]
fn an_address_is_in_use_until_its_link_is_gone() {
    isolated(|| async {
        let node = Node::new(By::Itself, "1.0.0", BRIDGE);
        let pod = node.pod("aa");
        node.network.add(&pod).await.unwrap();
        node.network.del(&pod).await.unwrap();
        assert_eq!((node.addresses().len(), veths()), (1, 1), "the namespace is still there");
        node.network.del(&pod).await.unwrap();
        assert_eq!(node.network.attachment("aa").unwrap(), None);
        assert!(matches!(node.network.check(&pod).await, Err(NetworkError::Unknown(_))));
        end_namespace(&pod);
        node.network.settled().await;
        assert_eq!((node.addresses().len(), veths()), (0, 0));
        node.network.settled().await;
    });
}

#[test]
fn a_namespace_that_somebody_keeps_loses_its_link() {
    isolated(|| async {
        let node = Node::new(By::Itself, "1.0.0", BRIDGE);
        let pod = node.pod("aa");
        node.network.add(&pod).await.unwrap();
        node.network.del(&pod).await.unwrap();
        node.network.settled().await;
        assert_eq!((node.addresses().len(), veths()), (0, 0));
        assert!(pod.netns.exists());
    });
}

#[test]
fn a_small_pool_filled_and_emptied_over_and_over_gives_no_address_twice_and_loses_none() {
    isolated(|| async {
        let node = Node::new(By::Itself, "1.0.0", BRIDGE);
        for round in 0..200 {
            let pods: Vec<_> = (0..5).map(|number| node.pod(&format!("r{round}p{number}"))).collect();
            // those of the round before are on their way back
            let added = futures_util::future::join_all(pods.iter().map(|pod| node.network.add(pod))).await;
            let ips: std::collections::HashSet<_> = added.into_iter().map(|added| added.unwrap().ips[0]).collect();
            assert_eq!(ips.len(), 5, "round {round}");
            for pod in &pods {
                node.network.del(pod).await.unwrap();
                end_namespace(pod);
            }
        }
        node.network.settled().await;
        assert_eq!((node.addresses().len(), veths()), (0, 0));
    });
}

#[test]
fn a_sandbox_may_be_added_again_while_its_first_link_is_still_there() {
    isolated(|| async {
        let node = Node::new(By::Itself, "1.0.0", BRIDGE);
        let pod = node.pod("aa");
        node.network.add(&pod).await.unwrap();
        node.network.del(&pod).await.unwrap();
        end_namespace(&pod);
        let pod = node.pod("aa");
        let attachment = node.network.add(&pod).await.unwrap();
        node.network.settled().await;
        assert_eq!(node.addresses(), [attachment.ips[0].to_string()]);
        assert_eq!(veths(), 1);
        node.network.check(&pod).await.unwrap();
    });
}

#[test]
fn what_a_dead_daemon_left_is_found_by_the_next() {
    isolated(|| async {
        let node = Node::new(By::Itself, "1.0.0", BRIDGE);
        let (removed, stopped, running) = (node.pod("aa"), node.pod("bb"), node.pod("cc"));
        // a runtime of its own, whose tasks end with it: the daemon that dies
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let daemon = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                daemon.block_on(async {
                    let network = node.with(By::Itself);
                    for pod in [&removed, &stopped, &running] {
                        network.add(pod).await.unwrap();
                    }
                    network.del(&stopped).await.unwrap();
                });
            });
        });
        end_namespace(&removed);
        let next = node.with(By::Itself);
        assert_eq!(node.addresses().len(), 3);
        assert_eq!(next.attachment("bb").unwrap(), None);
        next.gc(&["bb".to_owned(), "cc".to_owned()]).await.unwrap();
        end_namespace(&stopped);
        next.settled().await;
        assert_eq!((node.addresses().len(), veths()), (1, 1));
        assert!(next.attachment("cc").unwrap().is_some());
    });
}
