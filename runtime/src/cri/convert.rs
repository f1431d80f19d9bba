//! Types of the domain as messages of the protocol.

use std::collections::HashMap;

use nodeagent_cri_api::{
    Container, ContainerResources, ContainerState, ContainerStatus, ContainerUser, Image, ImageSpec, Int64Value,
    LinuxContainerUser, LinuxPodSandboxStatus, Mount, Namespace, PodIp, PodSandbox, PodSandboxNetworkStatus,
    PodSandboxState, PodSandboxStatus,
};

use crate::container::spec::to_cri_signal;
use crate::container::{ContainerRecord, Phase};
use crate::sandbox::{PodView, SandboxRecord, SandboxState};

pub(super) fn sandbox_state(state: SandboxState) -> PodSandboxState {
    match state {
        SandboxState::Ready => PodSandboxState::SandboxReady,
        SandboxState::Creating | SandboxState::NotReady => PodSandboxState::SandboxNotready,
    }
}

pub(super) fn container_state(phase: Phase) -> ContainerState {
    match phase {
        Phase::Creating | Phase::Created => ContainerState::ContainerCreated,
        Phase::Running => ContainerState::ContainerRunning,
        Phase::Exited => ContainerState::ContainerExited,
    }
}

pub(super) fn sandbox(record: &SandboxRecord) -> PodSandbox {
    PodSandbox {
        id: record.id.clone(),
        metadata: record.config.metadata.clone(),
        state: sandbox_state(record.state).into(),
        created_at: record.created_at,
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
        runtime_handler: record.runtime_handler.clone(),
    }
}

pub(super) fn sandbox_status(record: &SandboxRecord) -> PodSandboxStatus {
    let mut ips = record.ips.iter().map(ToString::to_string);
    let network = PodSandboxNetworkStatus {
        ip: ips.next().unwrap_or_default(),
        additional_ips: ips.map(|ip| PodIp { ip }).collect(),
    };
    let namespaces = Namespace { options: Some(record.namespaces()) };
    PodSandboxStatus {
        id: record.id.clone(),
        metadata: record.config.metadata.clone(),
        state: sandbox_state(record.state).into(),
        created_at: record.created_at,
        network: Some(network),
        linux: Some(LinuxPodSandboxStatus { namespaces: Some(namespaces) }),
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
        runtime_handler: record.runtime_handler.clone(),
    }
}

pub(super) fn container(record: &ContainerRecord) -> Container {
    Container {
        id: record.id.clone(),
        pod_sandbox_id: record.sandbox.clone(),
        metadata: record.config.metadata.clone(),
        image: Some(image_of(record)),
        image_ref: record.image_ref.clone(),
        state: container_state(record.phase).into(),
        created_at: record.created_at,
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
        image_id: record.image_id.clone(),
    }
}

/// The image as the user named it, where kubelet told us.
fn image_of(record: &ContainerRecord) -> ImageSpec {
    let mut spec = record.config.image.clone().unwrap_or_default();
    if !spec.user_specified_image.is_empty() {
        spec.image.clone_from(&spec.user_specified_image);
    }
    spec
}

pub(super) fn container_status(record: &ContainerRecord) -> ContainerStatus {
    let exit = record.exit.as_ref();
    let signed = |id: u32| i64::from(id);
    let user = LinuxContainerUser {
        uid: signed(record.user.uid),
        gid: signed(record.user.gid),
        supplemental_groups: record.user.groups.iter().copied().map(signed).collect(),
    };
    ContainerStatus {
        id: record.id.clone(),
        metadata: record.config.metadata.clone(),
        state: container_state(record.phase).into(),
        created_at: record.created_at,
        started_at: record.started_at,
        finished_at: exit.map_or(0, |exit| exit.at),
        exit_code: exit.map_or(0, |exit| exit.code),
        image: Some(image_of(record)),
        image_ref: record.image_ref.clone(),
        reason: exit.map(|exit| exit.reason.as_str().to_owned()).unwrap_or_default(),
        message: exit.map(|exit| exit.message.clone()).unwrap_or_default(),
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
        mounts: mounts(record),
        log_path: record.log_path.clone(),
        resources: Some(ContainerResources { linux: Some(record.resources.clone()), windows: None }),
        image_id: record.image_id.clone(),
        user: Some(ContainerUser { linux: Some(user) }),
        stop_signal: to_cri_signal(record.stop_signal).into(),
    }
}

/// The mounts as they were asked for, and which image each of those that show one has got.
fn mounts(record: &ContainerRecord) -> Vec<Mount> {
    let mut mounts = record.config.mounts.clone();
    let shown = mounts.iter_mut().filter_map(|mount| mount.image.as_mut()).filter(|image| !image.image.is_empty());
    for (image, id) in shown.zip(&record.image_volumes) {
        image.image_ref.clone_from(id);
    }
    mounts
}

pub(super) fn container_statuses(view: &PodView) -> Vec<ContainerStatus> {
    view.containers.iter().map(|container| container_status(&container.record)).collect()
}

pub(super) fn image(image: &crate::image::Image, pinned: bool) -> Image {
    let (uid, username) = image_user(&image.config.user);
    Image {
        id: image.id.clone(),
        repo_tags: image.tags.clone(),
        repo_digests: image.digests.clone(),
        size: image.size,
        uid,
        username,
        spec: Some(ImageSpec { image: image.id.clone(), annotations: HashMap::new(), ..ImageSpec::default() }),
        pinned,
    }
}

/// Kubelet wants one of them set, to judge `runAsNonRoot`; no user means root.
fn image_user(user: &str) -> (Option<Int64Value>, String) {
    let user = user.split(':').next().unwrap_or_default();
    match (user.is_empty(), user.parse::<i64>()) {
        (true, _) => (Some(Int64Value { value: 0 }), String::new()),
        (false, Ok(value)) => (Some(Int64Value { value }), String::new()),
        (false, Err(_)) => (None, user.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_has_a_user_id_or_a_user_name() {
        assert_eq!(image_user(""), (Some(Int64Value { value: 0 }), String::new()));
        assert_eq!(image_user("1002:5"), (Some(Int64Value { value: 1002 }), String::new()));
        assert_eq!(image_user("www-data:www-data"), (None, "www-data".to_owned()));
    }
}
