//! A CRI client on a unix socket.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use hyper_util::rt::TokioIo;
use nodeagent_cri_api::image_service_client::ImageServiceClient;
use nodeagent_cri_api::runtime_service_client::RuntimeServiceClient;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

/// Longer than anything but a hang.
const PATIENCE: Duration = Duration::from_secs(120);
/// What kubelet takes.
const LARGEST_MESSAGE: usize = 16 << 20;

/// Both services of one socket. The connection is made when it is needed, again after the server was restarted.
#[derive(Debug, Clone)]
pub struct Cri {
    /// Pods and containers.
    pub runtime: RuntimeServiceClient<Channel>,
    /// Images.
    pub images: ImageServiceClient<Channel>,
}

impl Cri {
    /// A client; nothing is sent yet.
    pub fn new(socket: &Path) -> Result<Self> {
        let path: PathBuf = socket.to_owned();
        let channel = Endpoint::try_from("http://localhost")
            .context("the endpoint's URI")?
            .timeout(PATIENCE)
            .connect_with_connector_lazy(service_fn(move |_| {
                let path = path.clone();
                async move { UnixStream::connect(path).await.map(TokioIo::new) }
            }));
        Ok(Self {
            runtime: RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(LARGEST_MESSAGE),
            images: ImageServiceClient::new(channel).max_decoding_message_size(LARGEST_MESSAGE),
        })
    }
}
