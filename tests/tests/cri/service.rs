//! The service itself: who it is and whether it is well.

use anyhow::{Context, Result, ensure};
use nodeagent_cri_api::*;
use tonic::Code;

use crate::node::refused;
use crate::suite::Suite;

pub fn add(suite: &mut Suite) {
    suite.add("service: Version has all that kubelet checks", |node| async move {
        let version = node.cri().runtime.version(VersionRequest { version: "0.1.0".into() }).await?.into_inner();
        ensure!(version.version == "0.1.0", "version {:?}", version.version);
        ensure!(version.runtime_api_version == "v1", "runtime_api_version {:?}", version.runtime_api_version);
        ensure!(!version.runtime_name.is_empty() && !version.runtime_version.is_empty(), "{version:?}");
        Ok(())
    });
    suite.add("service: Status says that runtime and network are ready", |node| async move {
        let status = status(&node, true).await?;
        for kind in ["RuntimeReady", "NetworkReady"] {
            let condition = condition(&status, kind)?;
            ensure!(condition.status, "{condition:?}");
        }
        // what kubeadm asks for before it pulls the pause image
        let config: serde_json::Value = serde_json::from_str(status.info.get("config").context("no info[config]")?)?;
        ensure!(config["sandboxImage"].is_string(), "info[config] without sandboxImage: {config}");
        Ok(())
    });
    suite.add_own(
        "service: without a CNI configuration the network is not ready, and it is when one comes",
        |node| async move {
            let daemon = node.own()?.lock().await;
            daemon.net().remove()?;
            eventually(&node, false).await?;
            daemon.net().write(&daemon.net().usual())?;
            eventually(&node, true).await
        },
    );
    suite.add_own("service: RuntimeConfig names the cgroup driver", |node| async move {
        let answer = node.cri().runtime.runtime_config(RuntimeConfigRequest {}).await?.into_inner();
        let driver = answer.linux.context("no linux in RuntimeConfig")?.cgroup_driver();
        ensure!(driver == CgroupDriver::Cgroupfs, "{driver:?}, but the configuration says cgroupfs");
        Ok(())
    });
    suite.add("service: UpdateRuntimeConfig is taken", |node| async move {
        let network_config = Some(NetworkConfig { pod_cidr: "10.244.7.0/24".into() });
        let request = UpdateRuntimeConfigRequest { runtime_config: Some(RuntimeConfig { network_config }) };
        node.cri().runtime.update_runtime_config(request).await?;
        Ok(())
    });
    suite.add("service: checkpoints, which there are none, are said to be unimplemented", |node| async move {
        let mut runtime = node.cri().runtime;
        refused(runtime.checkpoint_container(CheckpointContainerRequest::default()).await, Code::Unimplemented)?;
        refused(runtime.checkpoint_pod(CheckpointPodRequest::default()).await, Code::Unimplemented)?;
        refused(runtime.restore_pod(RestorePodRequest::default()).await, Code::Unimplemented)?;
        Ok(())
    });
}

async fn status(node: &crate::node::Node, verbose: bool) -> Result<StatusResponse> {
    Ok(node.cri().runtime.status(StatusRequest { verbose }).await?.into_inner())
}

fn condition<'a>(status: &'a StatusResponse, kind: &str) -> Result<&'a RuntimeCondition> {
    let conditions = &status.status.as_ref().context("an answer without a status")?.conditions;
    conditions.iter().find(|c| c.r#type == kind).with_context(|| format!("no condition {kind} in {conditions:?}"))
}

async fn eventually(node: &crate::node::Node, ready: bool) -> Result<()> {
    let deadline = std::time::Instant::now() + crate::node::PATIENCE;
    loop {
        let answer = status(node, false).await?;
        let condition = condition(&answer, "NetworkReady")?;
        if condition.status == ready {
            ensure!(ready || !condition.message.is_empty(), "not ready, and no word why: {condition:?}");
            return Ok(());
        }
        ensure!(std::time::Instant::now() < deadline, "NetworkReady is still {condition:?}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}
