//! Services that answer just enough to see what the server does to calls.

use nodeagent_cri_api as api;
use nodeagent_cri_api::{image_service_server::ImageService, runtime_service_server::RuntimeService};
use nodeagent_runtime::server::{ApiVersion, ContainerJson, CrioInspect, InfoJson};
use std::{pin::Pin, sync::Arc};
use tokio::sync::{Notify, Semaphore};
use tokio_stream::Empty;
use tonic::{Request, Response, Status, async_trait};

/// Runtime service: `Version` names the dialect, `ExecSync` waits to be released, `Status` says what it received.
#[derive(Clone)]
pub struct Stub {
    /// told when a call of `ExecSync` has begun
    pub begun: Arc<Notify>,
    /// a permit lets one call of `ExecSync` finish
    pub release: Arc<Semaphore>,
}

impl Stub {
    pub fn new() -> Self {
        Self { begun: Arc::default(), release: Arc::new(Semaphore::new(0)) }
    }
}

// written out, since `async_trait` does not see into macro calls
macro_rules! unimplemented_calls {
    ($($name:ident($request:ident) -> $response:ident;)*) => {
        $(fn $name<'a, 'b>(&'a self, _: Request<api::$request>) -> Answer<'b, api::$response>
        where
            'a: 'b,
            Self: 'b,
        {
            Box::pin(async { Err(Status::unimplemented(stringify!($name))) })
        })*
    };
}

macro_rules! unimplemented_streams {
    ($($name:ident($request:ident) -> $stream:ident of $item:ident;)*) => {
        $(type $stream = Empty<Result<api::$item, Status>>;
        fn $name<'a, 'b>(&'a self, _: Request<api::$request>) -> Answer<'b, Self::$stream>
        where
            'a: 'b,
            Self: 'b,
        {
            Box::pin(async { Err(Status::unimplemented(stringify!($name))) })
        })*
    };
}

type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<Response<T>, Status>> + Send + 'a>>;

#[async_trait]
impl RuntimeService for Stub {
    async fn version(&self, request: Request<api::VersionRequest>) -> Result<Response<api::VersionResponse>, Status> {
        Ok(Response::new(api::VersionResponse {
            version: "0.1.0".into(),
            runtime_name: "stub".into(),
            runtime_version: request.get_ref().version.clone(),
            runtime_api_version: ApiVersion::of(&request).as_str().into(),
        }))
    }

    async fn exec_sync(&self, _: Request<api::ExecSyncRequest>) -> Result<Response<api::ExecSyncResponse>, Status> {
        self.begun.notify_one();
        self.release.acquire().await.unwrap().forget();
        Ok(Response::new(api::ExecSyncResponse { exit_code: 7, ..Default::default() }))
    }

    unimplemented_calls! {
        run_pod_sandbox(RunPodSandboxRequest) -> RunPodSandboxResponse;
        stop_pod_sandbox(StopPodSandboxRequest) -> StopPodSandboxResponse;
        remove_pod_sandbox(RemovePodSandboxRequest) -> RemovePodSandboxResponse;
        pod_sandbox_status(PodSandboxStatusRequest) -> PodSandboxStatusResponse;
        list_pod_sandbox(ListPodSandboxRequest) -> ListPodSandboxResponse;
        create_container(CreateContainerRequest) -> CreateContainerResponse;
        start_container(StartContainerRequest) -> StartContainerResponse;
        stop_container(StopContainerRequest) -> StopContainerResponse;
        remove_container(RemoveContainerRequest) -> RemoveContainerResponse;
        list_containers(ListContainersRequest) -> ListContainersResponse;
        container_status(ContainerStatusRequest) -> ContainerStatusResponse;
        update_container_resources(UpdateContainerResourcesRequest) -> UpdateContainerResourcesResponse;
        reopen_container_log(ReopenContainerLogRequest) -> ReopenContainerLogResponse;
        exec(ExecRequest) -> ExecResponse;
        attach(AttachRequest) -> AttachResponse;
        port_forward(PortForwardRequest) -> PortForwardResponse;
        container_stats(ContainerStatsRequest) -> ContainerStatsResponse;
        list_container_stats(ListContainerStatsRequest) -> ListContainerStatsResponse;
        pod_sandbox_stats(PodSandboxStatsRequest) -> PodSandboxStatsResponse;
        list_pod_sandbox_stats(ListPodSandboxStatsRequest) -> ListPodSandboxStatsResponse;
        update_runtime_config(UpdateRuntimeConfigRequest) -> UpdateRuntimeConfigResponse;
        status(StatusRequest) -> StatusResponse;
        checkpoint_container(CheckpointContainerRequest) -> CheckpointContainerResponse;
        checkpoint_pod(CheckpointPodRequest) -> CheckpointPodResponse;
        restore_pod(RestorePodRequest) -> RestorePodResponse;
        list_metric_descriptors(ListMetricDescriptorsRequest) -> ListMetricDescriptorsResponse;
        list_pod_sandbox_metrics(ListPodSandboxMetricsRequest) -> ListPodSandboxMetricsResponse;
        runtime_config(RuntimeConfigRequest) -> RuntimeConfigResponse;
        update_pod_sandbox_resources(UpdatePodSandboxResourcesRequest) -> UpdatePodSandboxResourcesResponse;
    }

    unimplemented_streams! {
        stream_pod_sandboxes(StreamPodSandboxesRequest) -> StreamPodSandboxesStream of StreamPodSandboxesResponse;
        stream_containers(StreamContainersRequest) -> StreamContainersStream of StreamContainersResponse;
        stream_container_stats(StreamContainerStatsRequest) -> StreamContainerStatsStream of StreamContainerStatsResponse;
        stream_pod_sandbox_stats(StreamPodSandboxStatsRequest) -> StreamPodSandboxStatsStream of StreamPodSandboxStatsResponse;
        stream_pod_sandbox_metrics(StreamPodSandboxMetricsRequest) -> StreamPodSandboxMetricsStream of StreamPodSandboxMetricsResponse;
        get_container_events(GetEventsRequest) -> GetContainerEventsStream of ContainerEventResponse;
    }
}

/// Image service: `ImageStatus` answers with an id as long as the number it was asked for.
#[derive(Clone)]
pub struct Images;

#[async_trait]
impl ImageService for Images {
    async fn image_status(
        &self,
        request: Request<api::ImageStatusRequest>,
    ) -> Result<Response<api::ImageStatusResponse>, Status> {
        let length = request.into_inner().image.and_then(|image| image.image.parse().ok()).unwrap_or(0);
        let image = api::Image { id: "i".repeat(length), ..Default::default() };
        Ok(Response::new(api::ImageStatusResponse { image: Some(image), ..Default::default() }))
    }

    unimplemented_calls! {
        list_images(ListImagesRequest) -> ListImagesResponse;
        pull_image(PullImageRequest) -> PullImageResponse;
        remove_image(RemoveImageRequest) -> RemoveImageResponse;
        image_fs_info(ImageFsInfoRequest) -> ImageFsInfoResponse;
    }

    unimplemented_streams! {
        stream_images(StreamImagesRequest) -> StreamImagesStream of StreamImagesResponse;
    }
}

/// cAdvisor's questions, for one container of id `c0ffee`.
pub struct Inspect;

impl CrioInspect for Inspect {
    fn info(&self) -> InfoJson {
        InfoJson { storage_driver: "overlay".into(), storage_root: "/graph".into(), storage_image: String::new() }
    }

    fn container(&self, id: &str) -> Option<ContainerJson> {
        (id == "c0ffee").then(|| ContainerJson { name: "k8s_c_p_n_u_0".into(), pid: 42, ..Default::default() })
    }
}
