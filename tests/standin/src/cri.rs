//! The CRI as a kubelet calls it, in the dialect of its minor.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use nodeagent_cri_api as cri;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic_prost::ProstCodec;

/// A connection to the endpoint that the kubelet was given.
#[derive(Clone)]
pub struct Client {
    grpc: Grpc<Channel>,
    package: &'static str,
}

impl Client {
    /// Connects, and checks `Version` as a kubelet does before anything else.
    pub async fn connect(endpoint: &str, minor: u32) -> anyhow::Result<Client> {
        let Some(path) = endpoint.strip_prefix("unix://") else {
            bail!("endpoint {endpoint:?} is no unix:// address");
        };
        let path = PathBuf::from(path);
        // T of a kubelet: runtimeRequestTimeout, 2 minutes by default
        let channel = Endpoint::from_static("http://localhost")
            .timeout(Duration::from_secs(120))
            .connect_with_connector(tower::service_fn(move |_: Uri| {
                let path = path.clone();
                async move { tokio::net::UnixStream::connect(path).await.map(hyper_util::rt::TokioIo::new) }
            }))
            .await
            .with_context(|| format!("validate CRI API for endpoint {endpoint:?}"))?;
        // up to 1.22 there is only v1alpha2; from 1.23 on v1 comes first
        let package = if minor <= 22 { "runtime.v1alpha2" } else { "runtime.v1" };
        let client = Client { grpc: Grpc::new(channel), package };
        let version: cri::VersionResponse =
            client.runtime("Version", cri::VersionRequest { version: "0.1.0".into() }).await?;
        if version.version != "0.1.0" || version.runtime_name.is_empty() || version.runtime_api_version.is_empty() {
            bail!("the runtime's Version is not whole: {version:?}");
        }
        Ok(client)
    }

    /// A call of the runtime service.
    pub async fn runtime<Q, A>(&self, method: &str, request: Q) -> anyhow::Result<A>
    where
        Q: prost::Message + Send + Sync + 'static,
        A: prost::Message + Default + Send + Sync + 'static,
    {
        self.call("RuntimeService", method, request).await
    }

    /// A call of the image service.
    pub async fn image<Q, A>(&self, method: &str, request: Q) -> anyhow::Result<A>
    where
        Q: prost::Message + Send + Sync + 'static,
        A: prost::Message + Default + Send + Sync + 'static,
    {
        self.call("ImageService", method, request).await
    }

    async fn call<Q, A>(&self, service: &str, method: &str, request: Q) -> anyhow::Result<A>
    where
        Q: prost::Message + Send + Sync + 'static,
        A: prost::Message + Default + Send + Sync + 'static,
    {
        let mut grpc = self.grpc.clone();
        grpc.ready().await.with_context(|| format!("{method}: connection"))?;
        let path = PathAndQuery::try_from(format!("/{}.{service}/{method}", self.package))?;
        let answer = grpc.unary(tonic::Request::new(request), path, ProstCodec::<Q, A>::default()).await;
        Ok(answer
            .map_err(|status| anyhow::anyhow!("{method}: {:?}: {}", status.code(), status.message()))?
            .into_inner())
    }
}
