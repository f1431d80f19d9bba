//! Clients that are older than today's: the socket's path as `:authority`, and v1alpha2.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Result, ensure};
use nodeagent_cri_api::*;
use nodeagent_tests::raw;

use crate::node::{Node, peer};
use crate::suite::Suite;

pub fn add(suite: &mut Suite) {
    suite.add_own("service: a client that sends the socket's path as :authority is let in", path_as_authority);
    suite.add_own("service: v1alpha2 answers under its own name", v1alpha2);
}

type Shared = Arc<Node>;

async fn socket(node: &Node) -> Result<PathBuf> {
    match peer() {
        Some(socket) => Ok(socket),
        None => Ok(node.own()?.lock().await.socket()),
    }
}

async fn path_as_authority(node: Shared) -> Result<()> {
    let socket = socket(&node).await?;
    // grpc-go before 1.57 sends the first, others the rest
    let path = socket.display().to_string();
    for authority in [path.clone(), format!("unix://{path}"), path.replace('/', "%2F"), "localhost".into()] {
        let (socket, name) = (socket.clone(), authority.clone());
        let answer: VersionResponse = tokio::task::spawn_blocking(move || {
            let request = VersionRequest { version: "0.1.0".into() };
            raw::call(&socket, &name, "/runtime.v1.RuntimeService/Version", &request)
        })
        .await??;
        ensure!(answer.runtime_api_version == "v1", "{authority}: {answer:?}");
    }
    Ok(())
}

async fn v1alpha2(node: Shared) -> Result<()> {
    let socket = socket(&node).await?;
    let service = "/runtime.v1alpha2.RuntimeService";
    let pod = node.run(&node.pod("old-kubelet")).await?;
    let (version, list) = tokio::task::spawn_blocking(move || {
        let version: VersionResponse =
            raw::call(&socket, "localhost", &format!("{service}/Version"), &VersionRequest::default())?;
        let list: ListPodSandboxResponse =
            raw::call(&socket, "localhost", &format!("{service}/ListPodSandbox"), &ListPodSandboxRequest::default())?;
        Ok::<_, anyhow::Error>((version, list))
    })
    .await??;
    ensure!(version.runtime_api_version == "v1alpha2", "{version:?}");
    ensure!(list.items.iter().any(|item| item.id == pod), "{list:?}");
    Ok(())
}
