//! The Container Runtime Interface: unpack a request, call the domain, pack the answer.
//!
//! [`runtime_service`] and [`image_service`] list the calls; a group of calls has a module of its own. Errors of the
//! domain become gRPC codes in [`status`] and nowhere else.

mod image_service;
mod inspect;
mod node;
mod runtime_service;
mod status;

use std::future::Future;
use std::sync::Arc;
use std::time::Instant;

use nodeagent_cri_api::ContainerEventResponse;
use tonic::{Code, Response, Status};

use crate::daemon::Node;

/// Both services over one node; a cheap clone per connection.
#[derive(Clone)]
pub struct Cri {
    node: Arc<Node>,
}

impl Cri {
    /// The services of that node.
    pub fn new(node: Arc<Node>) -> Self {
        Cri { node }
    }
}

/// A stream that sends prepared messages, each well below the limit of a message.
type Batches<T> = tokio_stream::Iter<std::vec::IntoIter<Result<T, Status>>>;

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
