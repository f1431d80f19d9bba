//! What happens to pods and containers, told as it happens.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use nodeagent_cri_api::*;
use tokio::time::timeout;

use crate::containers::pod;
use crate::node::{Node, PATIENCE, script};
use crate::suite::Suite;

pub fn add(suite: &mut Suite) {
    suite.add("events: each step of a container's life is told once, in order, with its status", life);
}

async fn life(node: Arc<Node>) -> Result<()> {
    let mut events = node.cri().runtime.get_container_events(GetEventsRequest {}).await?.into_inner();
    let (pod, config, image) = pod(&node, "told").await?;
    let id = node.launch(&pod, &config, &script("c", &image, "exit 3")).await?;
    node.exited(&id).await?;
    node.remove_container(&id).await?;
    let mut told = Vec::new();
    while told.last() != Some(&ContainerEventType::ContainerDeletedEvent) {
        let event = timeout(PATIENCE, events.message()).await.with_context(|| format!("after {told:?}"))??;
        let event = event.context("the stream has ended")?;
        // other trials on the same socket have theirs
        if event.container_id != id {
            continue;
        }
        ensure!(event.created_at > 0, "without a time: {event:?}");
        let of = event.pod_sandbox_status.as_ref().context("without its pod")?;
        ensure!(of.id == pod, "of pod {}", of.id);
        if event.container_event_type() == ContainerEventType::ContainerStoppedEvent {
            let status =
                event.containers_statuses.iter().find(|status| status.id == id).context("without its status")?;
            ensure!(status.exit_code == 3, "{status:?}");
        }
        told.push(event.container_event_type());
    }
    let all = [
        ContainerEventType::ContainerCreatedEvent,
        ContainerEventType::ContainerStartedEvent,
        ContainerEventType::ContainerStoppedEvent,
        ContainerEventType::ContainerDeletedEvent,
    ];
    ensure!(told == all, "{told:?}");
    Ok(())
}
