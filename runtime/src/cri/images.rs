//! The image service.

use std::collections::HashMap;

use nodeagent_cri_api::{
    AuthConfig, FilesystemIdentifier, FilesystemUsage, ImageFilter, ImageFsInfoRequest, ImageFsInfoResponse,
    ImageStatusRequest, ImageStatusResponse, ListImagesRequest, ListImagesResponse, PullImageRequest,
    PullImageResponse, RemoveImageRequest, RemoveImageResponse, StreamImagesRequest, StreamImagesResponse, UInt64Value,
};
use serde_json::json;
use tonic::Status;

use super::{Batches, Cri, batches, convert, status};
use crate::clock;
use crate::image::{Credentials, FsUsage};

fn list(cri: &Cri, filter: Option<ImageFilter>) -> Vec<nodeagent_cri_api::Image> {
    let name = filter.and_then(|filter| filter.image).map(|spec| spec.image).filter(|name| !name.is_empty());
    let images = match name {
        Some(name) => cri.node.images.find(&name).into_iter().collect(),
        None => cri.node.images.list(),
    };
    images.iter().map(|image| convert::image(image, cri.node.images.is_pinned(image))).collect()
}

pub(super) async fn list_images(cri: &Cri, request: ListImagesRequest) -> Result<ListImagesResponse, Status> {
    Ok(ListImagesResponse { images: list(cri, request.filter) })
}

pub(super) async fn stream_images(
    cri: &Cri,
    request: StreamImagesRequest,
) -> Result<Batches<StreamImagesResponse>, Status> {
    Ok(batches(list(cri, request.filter), |images| StreamImagesResponse { images }))
}

/// An image that is not here is no error, but no image either.
pub(super) async fn image_status(cri: &Cri, request: ImageStatusRequest) -> Result<ImageStatusResponse, Status> {
    let name = request.image.map(|spec| spec.image).unwrap_or_default();
    if name.is_empty() {
        return Err(status::missing("image"));
    }
    let Some(found) = cri.node.images.find(&name) else { return Ok(ImageStatusResponse::default()) };
    let mut info = HashMap::new();
    if request.verbose {
        let shown = json!({
            "imageConfig": found.config,
            "chainIDs": found.chain_ids.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "created": found.created,
            "platform": found.platform,
        });
        info.insert("info".to_owned(), shown.to_string());
    }
    Ok(ImageStatusResponse { image: Some(convert::image(&found, cri.node.images.is_pinned(&found))), info })
}

/// Goes on when the caller leaves, as long as somebody else waits for the same.
pub(super) async fn pull_image(cri: &Cri, request: PullImageRequest) -> Result<PullImageResponse, Status> {
    let name = request.image.map(|spec| spec.image).unwrap_or_default();
    if name.is_empty() {
        return Err(status::missing("image"));
    }
    let pulled = cri.node.images.pull(&name, request.auth.map(credentials)).await.map_err(status::image)?;
    Ok(PullImageResponse { image_ref: pulled.id.clone() })
}

fn credentials(auth: AuthConfig) -> Credentials {
    Credentials {
        username: auth.username,
        password: auth.password,
        auth: auth.auth,
        identity_token: auth.identity_token,
        registry_token: auth.registry_token,
        server_address: auth.server_address,
    }
}

pub(super) async fn remove_image(cri: &Cri, request: RemoveImageRequest) -> Result<RemoveImageResponse, Status> {
    let name = request.image.map(|spec| spec.image).unwrap_or_default();
    if name.is_empty() {
        return Err(status::missing("image"));
    }
    cri.node.images.remove(&name).await.map_err(status::image)?;
    Ok(RemoveImageResponse {})
}

pub(super) async fn image_fs_info(cri: &Cri, _: ImageFsInfoRequest) -> Result<ImageFsInfoResponse, Status> {
    Ok(ImageFsInfoResponse {
        image_filesystems: vec![usage(cri.node.images.usage())],
        container_filesystems: vec![usage(cri.node.images.container_usage())],
    })
}

fn usage(usage: FsUsage) -> FilesystemUsage {
    FilesystemUsage {
        timestamp: clock::now(),
        fs_id: Some(FilesystemIdentifier { mountpoint: usage.mountpoint.to_string_lossy().into_owned() }),
        used_bytes: Some(UInt64Value { value: usage.used_bytes }),
        inodes_used: Some(UInt64Value { value: usage.inodes_used }),
    }
}
