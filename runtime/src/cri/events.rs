//! What happens to containers, streamed.

use nodeagent_cri_api::{ContainerEventResponse, ContainerEventType, GetEventsRequest};
use tokio::sync::{broadcast, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::{Cri, EventStream, convert};
use crate::clock;
use crate::container::Phase;
use crate::events::{ContainerEvent, EventKind};
use crate::sandbox::Pods;

/// Events on their way to one client; when it does not read, they wait in the hub, and then are summed up.
const BUFFER: usize = 64;

pub(super) async fn get_container_events(cri: &Cri, _: GetEventsRequest) -> Result<EventStream, Status> {
    let (sender, receiver) = mpsc::channel(BUFFER);
    let forwarding = forward(cri.node.pods.clone(), cri.node.events.subscribe(), sender);
    tokio::spawn(cri.node.stop.clone().run_until_cancelled_owned(forwarding));
    Ok(ReceiverStream::new(receiver))
}

async fn forward(
    pods: Pods,
    mut events: broadcast::Receiver<ContainerEvent>,
    client: mpsc::Sender<Result<ContainerEventResponse, Status>>,
) {
    loop {
        // cancel-safe: an event that was not received stays in the hub
        let received = tokio::select! {
            received = events.recv() => received,
            () = client.closed() => return,
        };
        let messages = match received {
            Ok(event) => vec![message(&event)],
            Err(broadcast::error::RecvError::Lagged(missed)) => {
                log::warn!(missed = missed; "a listener is too slow: it gets the present state");
                present(&pods)
            }
            Err(broadcast::error::RecvError::Closed) => return,
        };
        for message in messages {
            if client.send(Ok(message)).await.is_err() {
                return;
            }
        }
    }
}

fn message(event: &ContainerEvent) -> ContainerEventResponse {
    let kind = match event.kind {
        EventKind::Created => ContainerEventType::ContainerCreatedEvent,
        EventKind::Started => ContainerEventType::ContainerStartedEvent,
        EventKind::Stopped => ContainerEventType::ContainerStoppedEvent,
        EventKind::Deleted => ContainerEventType::ContainerDeletedEvent,
    };
    ContainerEventResponse {
        container_id: event.id.clone(),
        container_event_type: kind.into(),
        created_at: event.at,
        pod_sandbox_status: Some(convert::sandbox_status(&event.pod.sandbox)),
        containers_statuses: convert::container_statuses(&event.pod),
    }
}

/// One event per container and pod, as if it had just come into its present state.
fn present(pods: &Pods) -> Vec<ContainerEventResponse> {
    let mut messages = Vec::new();
    for pod in pods.views() {
        let mut add = |kind, id: &str| {
            messages.push(message(&ContainerEvent { kind, id: id.to_owned(), at: clock::now(), pod: pod.clone() }));
        };
        add(if pod.sandbox.ready() { EventKind::Started } else { EventKind::Stopped }, &pod.sandbox.id);
        for container in &pod.containers {
            let kind = match container.record.phase {
                Phase::Creating | Phase::Created => EventKind::Created,
                Phase::Running => EventKind::Started,
                Phase::Exited => EventKind::Stopped,
            };
            add(kind, &container.record.id);
        }
    }
    messages
}
