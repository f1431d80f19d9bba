//! Pods over a shim that speaks the real protocol: life, idempotence, recovery.

mod fake;
mod lives;
mod survival;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use nodeagent_cri_api::{
    ContainerConfig, ContainerMetadata, ImageSpec, LinuxContainerConfig, LinuxContainerSecurityContext,
    LinuxPodSandboxConfig, LinuxSandboxSecurityContext, NamespaceMode, NamespaceOption, PodSandboxConfig,
    PodSandboxMetadata,
};

use self::fake::{Ground, IMAGE};
use super::{PodHandle, PodView, Pods};
use crate::container::{ContainerRecord, Phase};

/// Far longer than anything takes that works.
const PATIENCE: Duration = Duration::from_secs(20);

fn namespaces(network: NamespaceMode) -> NamespaceOption {
    // the host's /dev/shm: mounting one takes root
    NamespaceOption {
        network: network.into(),
        ipc: NamespaceMode::Node.into(),
        pid: NamespaceMode::Container.into(),
        ..NamespaceOption::default()
    }
}

fn pod_config(name: &str) -> PodSandboxConfig {
    let options = Some(namespaces(NamespaceMode::Pod));
    let context = LinuxSandboxSecurityContext { namespace_options: options, ..Default::default() };
    PodSandboxConfig {
        metadata: Some(PodSandboxMetadata { name: name.into(), uid: "u".into(), namespace: "n".into(), attempt: 0 }),
        linux: Some(LinuxPodSandboxConfig { security_context: Some(context), ..Default::default() }),
        ..PodSandboxConfig::default()
    }
}

fn container_config(name: &str) -> ContainerConfig {
    let options = Some(namespaces(NamespaceMode::Pod));
    let context = LinuxContainerSecurityContext { namespace_options: options, ..Default::default() };
    ContainerConfig {
        metadata: Some(ContainerMetadata { name: name.into(), attempt: 0 }),
        image: Some(ImageSpec { image: IMAGE.into(), ..ImageSpec::default() }),
        linux: Some(LinuxContainerConfig { security_context: Some(context), ..Default::default() }),
        ..ContainerConfig::default()
    }
}

async fn run(pods: &Pods, name: &str) -> PodHandle {
    let id = pods.run(pod_config(name), String::new()).await.unwrap();
    pods.find(&id).unwrap()
}

/// A running container in a pod of its own.
async fn running(pods: &Pods) -> (PodHandle, String) {
    let pod = run(pods, "p").await;
    let id = pods.create_container(&pod, container_config("c")).await.unwrap();
    pod.start(&id).await.unwrap();
    (pod, id)
}

fn record(pod: &PodHandle, id: &str) -> Arc<ContainerRecord> {
    Arc::clone(&pod.view().container(id).unwrap().record)
}

async fn until(pod: &PodHandle, condition: impl FnMut(&Arc<PodView>) -> bool) {
    let mut view = pod.view.clone();
    tokio::time::timeout(PATIENCE, view.wait_for(condition)).await.expect("in time").expect("while the pod lives");
}

async fn until_exited(pod: &PodHandle, id: &str) {
    until(pod, |view| view.phase(id) == Some(Phase::Exited)).await;
}

#[tokio::test]
async fn the_same_request_gives_the_same_pod() {
    let ground = Ground::new();
    let pods = ground.daemon("b").await;
    let (one, other) = tokio::join!(run(&pods, "p"), run(&pods, "p"));
    let again = run(&pods, "p").await;
    assert_eq!(one.view().sandbox.id, other.view().sandbox.id);
    assert_eq!(one.view().sandbox.id, again.view().sandbox.id);
    assert_eq!(ground.fakes.shims.launched.load(Ordering::SeqCst), 1);
    assert_eq!(ground.fakes.network.attached.load(Ordering::SeqCst), 1);
    assert!(one.view().sandbox.ready());
}

#[tokio::test]
async fn a_pod_asked_for_differently_replaces_the_old_one() {
    let ground = Ground::new();
    let pods = ground.daemon("b").await;
    let old = run(&pods, "p").await.view().sandbox.id.clone();
    let mut config = pod_config("p");
    config.hostname = "other".into();
    let new = pods.run(config, String::new()).await.unwrap();
    assert_ne!(old, new);
    assert!(pods.find(&old).is_none() && pods.find(&new).is_some());
    assert!(ground.fakes.shims.of(&old).is_dead());
}

#[tokio::test]
async fn a_stopped_pod_is_not_served_again() {
    let ground = Ground::new();
    let pods = ground.daemon("b").await;
    let old = run(&pods, "p").await;
    old.stop_pod().await.unwrap();
    assert!(!old.view().sandbox.ready());
    let new = run(&pods, "p").await;
    assert_ne!(old.view().sandbox.id, new.view().sandbox.id);
    assert_eq!(pods.views().len(), 1);
}

#[tokio::test]
async fn a_pod_without_a_network_leaves_nothing() {
    let ground = Ground::new();
    let pods = ground.daemon("b").await;
    ground.fakes.network.refuse_attach.store(true, Ordering::SeqCst);
    let error = pods.run(pod_config("p"), String::new()).await.unwrap_err();
    assert!(crate::telemetry::chain(&error).contains("no address left"));
    assert!(pods.views().is_empty());
    assert_eq!(ground.files(), Vec::<std::path::PathBuf>::new());
    assert_eq!(ground.fakes.network.detached.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_network_that_would_not_go_does_not_keep_a_pod_from_stopping() {
    let ground = Ground::new();
    let pods = ground.daemon("b").await;
    let pod = run(&pods, "p").await;
    ground.fakes.network.refuse_detach.store(true, Ordering::SeqCst);
    pod.stop_pod().await.unwrap();
    assert!(!pod.view().sandbox.ready() && pod.view().sandbox.network_owed);
    let error = pod.remove_pod().await.unwrap_err();
    assert!(crate::telemetry::chain(&error).contains("plugin on strike"));
    ground.fakes.network.refuse_detach.store(false, Ordering::SeqCst);
    pod.remove_pod().await.unwrap();
    assert!(pods.views().is_empty());
    assert_eq!(ground.files(), Vec::<std::path::PathBuf>::new());
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_before_anything_is_touched() {
    let ground = Ground::new();
    let pods = ground.daemon("b").await;
    let mut no_uid = pod_config("p");
    no_uid.metadata.as_mut().unwrap().uid.clear();
    let mut no_address = pod_config("p");
    no_address.port_mappings = vec![nodeagent_cri_api::PortMapping {
        host_port: 80,
        container_port: 80,
        host_ip: "localhost".into(),
        ..Default::default()
    }];
    let refused = [(PodSandboxConfig::default(), ""), (no_uid, ""), (no_address, ""), (pod_config("p"), "kata")];
    for (config, handler) in refused {
        assert!(pods.run(config, handler.to_owned()).await.is_err());
    }
    assert_eq!(ground.fakes.shims.launched.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn pods_are_found_by_the_beginning_of_their_id_if_it_is_theirs_alone() {
    let ground = Ground::new();
    let pods = ground.daemon("b").await;
    let id = run(&pods, "p").await.view().sandbox.id.clone();
    assert!(pods.find(&id[..12]).is_some());
    assert!(pods.find("").is_none() && pods.find("zz").is_none());
    for name in ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "o", "q", "r", "s"] {
        run(&pods, name).await;
    }
    // eighteen ids begin with sixteen digits: two at least share theirs
    let ids: Vec<String> = pods.views().iter().map(|view| view.sandbox.id.clone()).collect();
    let shared = ids.iter().find(|id| ids.iter().filter(|other| other[..1] == id[..1]).count() > 1).unwrap();
    assert!(pods.find(&shared[..1]).is_none());
}
