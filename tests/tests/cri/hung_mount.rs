//! A volume whose server does not answer: what touches it waits, and nothing else does.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use nodeagent_cri_api::*;
use nodeagent_tests::hung_mount::HungMount;
use tokio::time::{sleep, timeout};

use crate::node::{Node, PATIENCE, idle, script};
use crate::suite::Suite;

pub fn add(suite: &mut Suite) {
    suite.add_own("hung volume: its container waits, its pod's logs, probes and stops do not", program);
    suite.add_own("hung volume: a container that cannot even begin does not hold its pod up", launch);
    suite.add_own("hung volume: one that cannot be looked at holds up nobody but its own creation", create);
}

type Shared = Arc<Node>;

struct Scene {
    hung: HungMount,
    config: PodSandboxConfig,
    pod: String,
    image: String,
    well: String,
}

/// A pod with a container that is well, and a volume that is not.
async fn scene(node: &Node) -> Result<Scene> {
    let config = node.pod("hung");
    let image = node.busybox().await?;
    let pod = node.run(&config).await?;
    let ticks = script("well", &image, "trap 'exit 0' TERM; while :; do echo tick; sleep 0.1; done");
    let well = node.launch(&pod, &config, &ticks).await?;
    let hung = HungMount::new(&node.pods().join("hung-volume"))?;
    Ok(Scene { hung, config, pod, image, well })
}

impl Scene {
    fn with_volume(&self, node: &Node, mut config: ContainerConfig, below: &str) -> ContainerConfig {
        let source = node.pods().join("hung-volume").join(below);
        config.mounts = vec![Mount {
            container_path: "/hung".into(),
            host_path: source.display().to_string(),
            ..Default::default()
        }];
        config
    }

    /// Everything that kubelet does with the pod's other containers goes on.
    async fn goes_on(&self, node: &Node) -> Result<()> {
        let all = async {
            ensure!(node.output(&self.well, &["echo", "probe"]).await? == "probe\n", "the probe says something else");
            let log = node.status(&self.well).await?.log_path;
            let lines = || std::fs::read_to_string(&log).unwrap_or_default().lines().count();
            let before = lines();
            while lines() == before {
                sleep(std::time::Duration::from_millis(10)).await;
            }
            node.pod_status(&self.pod).await?;
            node.containers(None).await?;
            let more = node.launch(&self.pod, &self.config, &idle("more", &self.image)).await?;
            node.stop_container(&more, 10).await?;
            node.remove_container(&more).await?;
            anyhow::Ok(())
        };
        timeout(PATIENCE, all).await.context("the pod waits, too")?
    }

    /// The server answers at last, with an error.
    fn answered(self) -> String {
        drop(self.hung);
        self.pod
    }
}

async fn program(node: Shared) -> Result<()> {
    let scene = scene(&node).await?;
    let reads = script("stuck", &scene.image, "cat /hung/file; sleep 1000");
    let stuck = node.launch(&scene.pod, &scene.config, &scene.with_volume(&node, reads, "")).await?;
    scene.hung.waited_for_by(1).await?;
    scene.goes_on(&node).await?;
    ensure!(node.output(&stuck, &["echo", "probe"]).await? == "probe\n", "a probe beside it says something else");
    let stop = tokio::spawn({
        let (node, stuck) = (node.clone(), stuck.clone());
        async move { node.stop_container(&stuck, 0).await }
    });
    scene.goes_on(&node).await?;
    let pod = scene.answered();
    stop.await?.context("stop it when its volume answers")?;
    ensure!(node.status(&stuck).await?.state() == ContainerState::ContainerExited, "it is not over");
    node.stop_pod(&pod).await?;
    Ok(())
}

async fn launch(node: Shared) -> Result<()> {
    let scene = scene(&node).await?;
    let mut config = scene.with_volume(&node, idle("stuck", &scene.image), "");
    config.working_dir = "/hung/directory".into();
    let stuck = node.create(&scene.pod, &scene.config, &config).await?;
    let start = tokio::spawn({
        let (node, stuck) = (node.clone(), stuck.clone());
        async move { node.start_container(&stuck).await }
    });
    scene.hung.waited_for_by(1).await?;
    scene.goes_on(&node).await?;
    let pod = scene.answered();
    let failed = start.await?;
    ensure!(failed.is_err(), "it has a working directory that cannot be");
    node.stop_pod(&pod).await?;
    Ok(())
}

async fn create(node: Shared) -> Result<()> {
    let scene = scene(&node).await?;
    let config = scene.with_volume(&node, idle("stuck", &scene.image), "directory");
    let made = tokio::spawn({
        let (node, pod, pod_config) = (node.clone(), scene.pod.clone(), scene.config.clone());
        async move { node.try_create(&pod, &pod_config, &config).await }
    });
    scene.hung.waited_for_by(1).await?;
    scene.goes_on(&node).await?;
    let pod = scene.answered();
    let failed = made.await?;
    ensure!(failed.is_err(), "its volume cannot be there: {failed:?}");
    node.stop_pod(&pod).await?;
    Ok(())
}
