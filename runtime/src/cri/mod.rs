//! The Container Runtime Interface: unpack a request, call the domain, pack the answer.
//!
//! [`runtime_service`] and [`image_service`] list the calls; a group of calls has a module of its own. Errors of the
//! domain become gRPC codes in [`status`] and nowhere else.

mod container_status;
mod container_update;
mod containers;
mod convert;
mod disk;
mod events;
mod exec;
mod filter;
mod image_service;
mod images;
mod inspect;
mod links;
mod metrics;
mod node;
mod pod_status;
mod pods;
mod runtime_service;
mod stats;
mod status;

use std::future::Future;
use std::sync::Arc;
use std::time::Instant;

use nodeagent_cri_api::ContainerEventResponse;
use tonic::{Code, Response, Status};

use crate::container::ContainerError;
use crate::node::Node;
use crate::sandbox::{PodError, PodHandle};

/// Both services over one node; a cheap clone per connection.
#[derive(Clone)]
pub struct Cri {
    node: Arc<Node>,
    disk: disk::WritableLayers,
}

impl Cri {
    /// The services of that node.
    pub fn new(node: Arc<Node>) -> Self {
        Cri { node, disk: disk::WritableLayers::default() }
    }
}

impl Cri {
    fn pod(&self, id: &str) -> Result<PodHandle, Status> {
        self.node.pods.find(id).ok_or_else(|| status::pod(PodError::NotFound { id: id.to_owned() }))
    }

    /// The container's pod and its full id.
    fn container(&self, id: &str) -> Result<(PodHandle, String), Status> {
        let found = self.node.pods.find_container(id);
        found.ok_or_else(|| status::container(ContainerError::NotFound { id: id.to_owned() }))
    }
}

/// Items in one message of a stream. The largest item, a container with all its labels, stays below 100 KiB.
const BATCH: usize = 100;

/// A stream that sends prepared messages, each well below the limit of a message.
type Batches<T> = tokio_stream::Iter<std::vec::IntoIter<Result<T, Status>>>;

fn batches<T, M>(items: Vec<T>, message: impl Fn(Vec<T>) -> M) -> Batches<M> {
    let mut messages = Vec::with_capacity(items.len().div_ceil(BATCH));
    let mut items = items.into_iter().peekable();
    while items.peek().is_some() {
        messages.push(Ok(message(items.by_ref().take(BATCH).collect())));
    }
    tokio_stream::iter(messages)
}

/// What happens to containers, as it happens.
type EventStream = tokio_stream::wrappers::ReceiverStream<Result<ContainerEventResponse, Status>>;

/// Awaits the answer to a call, and logs what came of it.
async fn answer<T>(call: &str, work: impl Future<Output = Result<T, Status>>) -> Result<Response<T>, Status> {
    let start = Instant::now();
    let result = work.await;
    let micros = start.elapsed().as_micros();
    match &result {
        Ok(_) => log::debug!(call = call, micros = micros; "answered"),
        // what kubelet asks for in passing, and is answered by design
        Err(status) if matches!(status.code(), Code::NotFound | Code::Unimplemented) => {
            log::debug!(call = call, code:? = status.code(), micros = micros; "{}", status.message());
        }
        Err(status) => log::warn!(call = call, code:? = status.code(), micros = micros; "{}", status.message()),
    }
    result.map(Response::new)
}

#[cfg(test)]
mod tests {
    use tokio_stream::StreamExt;

    use super::*;

    #[tokio::test]
    async fn long_lists_are_cut_into_messages() {
        let sizes: Vec<usize> =
            batches((0..250).collect(), |batch: Vec<i32>| batch.len()).map(|m| m.unwrap()).collect().await;
        assert_eq!(sizes, [100, 100, 50]);
        let none: Vec<_> = batches(Vec::<i32>::new(), |batch| batch.len()).collect().await;
        assert!(none.is_empty());
    }
}
