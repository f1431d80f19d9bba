//! Requests that make no sense, and a host that is not as it should be: a clear error, nothing left, and the rest goes on.

use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use nodeagent_cri_api::*;
use serde_json::json;
use tonic::Code;

use crate::node::{Node, container, idle, refused};
use crate::suite::Suite;

pub fn add(suite: &mut Suite) {
    suite.add("bad input: a pod without a name, namespace or uid is refused", pod_metadata);
    suite.add("bad input: an unknown runtime handler is refused", handler);
    suite.add("bad input: a container for an unknown pod or image is NotFound", container_of_nothing);
    suite.add("bad input: a container without a name, or with a log path that leads out, is refused", container_config);
    suite.add("bad input: ids that are none are NotFound, not a file", ids);
    suite.add_own(
        "bad input: a broken CNI configuration fails the pod, names the file, and the next try works",
        broken_cni,
    );
    suite.add_own("bad input: a CNI plugin that is missing or fails leaves nothing behind", failing_plugin);
    suite.add_own("bad input: a sysctl that is no pod's is refused", sysctl);
}

type Shared = Arc<Node>;

fn error<T: std::fmt::Debug>(result: Result<T, tonic::Status>) -> Result<String> {
    match result {
        Err(status) => Ok(status.message().to_owned()),
        Ok(value) => bail!("not refused: {value:?}"),
    }
}

async fn pod_metadata(node: Shared) -> Result<()> {
    for missing in ["name", "namespace", "uid", "all"] {
        let mut config = node.pod("bad");
        match (missing, config.metadata.as_mut()) {
            ("name", Some(metadata)) => metadata.name.clear(),
            ("namespace", Some(metadata)) => metadata.namespace.clear(),
            ("uid", Some(metadata)) => metadata.uid.clear(),
            _ => config.metadata = None,
        }
        refused(node.try_run(&config).await, Code::InvalidArgument).with_context(|| format!("without {missing}"))?;
    }
    let empty = node.cri().runtime.run_pod_sandbox(RunPodSandboxRequest::default()).await;
    refused(empty, Code::InvalidArgument)?;
    Ok(())
}

async fn handler(node: Shared) -> Result<()> {
    let request = RunPodSandboxRequest { config: Some(node.pod("handler")), runtime_handler: "no-such-handler".into() };
    let message = error(node.cri().runtime.run_pod_sandbox(request).await)?;
    ensure!(message.contains("no-such-handler"), "which handler? {message}");
    Ok(())
}

async fn container_of_nothing(node: Shared) -> Result<()> {
    let image = node.busybox().await?;
    let config = node.pod("real");
    refused(node.try_create(&"9".repeat(64), &config, &idle("c", &image)).await, Code::NotFound)?;
    let pod = node.run(&config).await?;
    let absent = format!("sha256:{}", "1".repeat(64));
    let status = refused(node.try_create(&pod, &config, &idle("c", &absent)).await, Code::NotFound)?;
    ensure!(status.message().contains(&"1".repeat(12)), "which image? {}", status.message());
    Ok(())
}

async fn container_config(node: Shared) -> Result<()> {
    let image = node.busybox().await?;
    let config = node.pod("config");
    let pod = node.run(&config).await?;
    let mut nameless = idle("c", &image);
    nameless.metadata = None;
    refused(node.try_create(&pod, &config, &nameless).await, Code::InvalidArgument).context("without a name")?;
    let mut escaping = idle("escaping", &image);
    escaping.log_path = "../../outside.log".into();
    refused(node.try_create(&pod, &config, &escaping).await, Code::InvalidArgument).context("a log outside")?;
    let mut relative = idle("relative", &image);
    relative.mounts = vec![Mount { container_path: "data".into(), host_path: "/tmp".into(), ..Default::default() }];
    let message = error(node.try_create(&pod, &config, &relative).await);
    // some clients leave out the slash: taken as below the root, or refused, but never as something else
    if let Ok(message) = message {
        ensure!(message.contains("data"), "{message}");
    }
    let mut nothing = container("nothing", &image, &[]);
    nothing.image = None;
    refused(node.try_create(&pod, &config, &nothing).await, Code::InvalidArgument).context("without an image")?;
    Ok(())
}

async fn ids(node: Shared) -> Result<()> {
    for id in ["", "x", "../../../../etc/passwd", "A", &"0".repeat(4096)] {
        let what = || format!("id {:?}", &id[..id.len().min(30)]);
        for code in [
            node.status(id).await.map(|_| ()).err().map(|s| s.code()),
            node.pod_status(id).await.map(|_| ()).err().map(|s| s.code()),
            node.start_container(id).await.err().map(|s| s.code()),
        ] {
            ensure!(matches!(code, Some(Code::NotFound | Code::InvalidArgument)), "{}: {code:?}", what());
        }
    }
    Ok(())
}

async fn broken_cni(node: Shared) -> Result<()> {
    let config = node.pod("cni");
    let usual = {
        let daemon = node.own()?.lock().await;
        daemon.net().write_text("{ this is not JSON")?;
        daemon.net().usual()
    };
    let message = error(node.try_run(&config).await)?;
    ensure!(message.contains("10-test.conflist"), "which file? {message}");
    ensure!(node.pods_list(None).await?.is_empty(), "a pod is left");
    node.own()?.lock().await.net().write(&usual)?;
    node.run(&config).await.context("after the repair")?;
    Ok(())
}

async fn failing_plugin(node: Shared) -> Result<()> {
    let usual = node.own()?.lock().await.net().usual();
    let mut absent = usual.clone();
    absent["plugins"][1] = json!({"type": "no-such-plugin"});
    let mut failing = usual.clone();
    failing["plugins"][0]["ipam"]["ranges"] = json!([[{"subnet": "300.1.2.0/24"}]]);
    for (list, word) in [(absent, "no-such-plugin"), (failing, "300.1.2.0")] {
        node.own()?.lock().await.net().write(&list)?;
        let message = error(node.try_run(&node.pod("plugin")).await)?;
        ensure!(message.contains(word), "why? {message}");
        ensure!(node.pods_list(None).await?.is_empty(), "a pod is left");
    }
    // the bridge plugin stumbles over links that are about to go
    node.network_gone().await?;
    node.own()?.lock().await.net().write(&usual)?;
    node.run(&node.pod("plugin")).await.context("after the repair")?;
    Ok(())
}

async fn sysctl(node: Shared) -> Result<()> {
    for name in ["kernel.panic", "vm.overcommit_memory", "net/../kernel/panic"] {
        let mut config = node.pod("sysctl");
        if let Some(linux) = config.linux.as_mut() {
            linux.sysctls.insert(name.into(), "1".into());
        }
        let message = error(node.try_run(&config).await).with_context(|| name.to_owned())?;
        ensure!(message.contains(name) || message.contains(&name.replace('/', ".")), "which one? {message}");
    }
    Ok(())
}
