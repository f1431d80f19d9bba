//! What is left when a shim, a daemon or the host ends.

use super::fake::Ground;
use super::{container_config, record, run, running, until, until_exited};
use crate::container::{ContainerRecord, ImageSource, Phase, Reason};
use crate::sandbox::{SandboxRecord, SandboxState};
use crate::state::{Kind, Store};

#[tokio::test]
async fn without_its_shim_a_pod_is_over() {
    let ground = Ground::new();
    let pods = ground.daemon("b").await;
    let (pod, id) = running(&pods).await;
    ground.fakes.shims.of(&pod.view().sandbox.id).die();
    until(&pod, |view| !view.sandbox.ready() && !view.sandbox.network_owed).await;
    let exit = record(&pod, &id).exit.clone().unwrap();
    assert_eq!((exit.code, exit.reason), (255, Reason::ShimLost));
    pod.remove_pod().await.unwrap();
    assert_eq!(ground.files(), Vec::<std::path::PathBuf>::new());
}

/// A pod with a running container, made by a daemon that is killed then: what was known of both.
async fn left_behind(ground: &Ground, boot: &str) -> (SandboxRecord, ContainerRecord, Store) {
    let first = ground.mortal(boot).await;
    let pods = first.pods.clone();
    let store = pods.environment().store.clone();
    let (sandbox, container) = first
        .does(async move {
            let (pod, id) = running(&pods).await;
            ((*pod.view().sandbox).clone(), (*record(&pod, &id)).clone())
        })
        .await;
    first.kill().await;
    (sandbox, container, store)
}

#[tokio::test]
async fn a_new_daemon_knows_every_pod_and_hears_every_end() {
    let ground = Ground::new();
    let (sandbox, container, _) = left_behind(&ground, "b").await;
    let pods = ground.daemon("b").await;
    let pod = pods.find(&sandbox.id).unwrap();
    assert_eq!(*pod.view().sandbox, sandbox);
    assert_eq!(*record(&pod, &container.id), container);
    assert_eq!(pod.view().container(&container.id).unwrap().spec.process.args, ["/entry"]);
    let later = pods.create_container(&pod, container_config("later")).await.unwrap();
    pod.start(&later).await.unwrap();
    ground.fakes.shims.of(&sandbox.id).end(&container.id, 3, true);
    until_exited(&pod, &container.id).await;
    assert_eq!(record(&pod, &container.id).exit.clone().unwrap().reason, Reason::OOMKilled);
    assert_eq!(run(&pods, "p").await.view().sandbox.id, sandbox.id, "the same request gives the same pod");
}

#[tokio::test]
async fn what_happened_between_two_daemons_is_learned_from_the_shim() {
    let ground = Ground::new();
    let (sandbox, container, store) = left_behind(&ground, "b").await;
    // the daemon died between the shim's answer and its own note
    let mut stale = container.clone();
    (stale.phase, stale.pid, stale.started_at) = (Phase::Created, 0, 0);
    store.write(Kind::Container, &container.id, &stale).unwrap();
    let second = ground.mortal("b").await;
    assert_eq!(record(&second.pods.find(&sandbox.id).unwrap(), &container.id).phase, Phase::Running);
    second.kill().await;
    store.write(Kind::Container, &container.id, &stale).unwrap();
    ground.fakes.shims.of(&sandbox.id).end(&container.id, 4, false);
    let third = ground.daemon("b").await;
    let exit = record(&third.find(&sandbox.id).unwrap(), &container.id).exit.clone().unwrap();
    assert_eq!((exit.code, exit.reason), (4, Reason::Error));
}

#[tokio::test]
async fn a_shim_that_died_between_two_daemons_ends_its_pod() {
    let ground = Ground::new();
    let (sandbox, container, _) = left_behind(&ground, "b").await;
    ground.fakes.shims.of(&sandbox.id).die();
    let pods = ground.daemon("b").await;
    let pod = pods.find(&sandbox.id).unwrap();
    assert!(!pod.view().sandbox.ready());
    assert_eq!(record(&pod, &container.id).exit.clone().unwrap().reason, Reason::ShimLost);
    // its network is taken down without anybody asking
    until(&pod, |view| !view.sandbox.network_owed).await;
}

#[tokio::test]
async fn after_a_boot_nothing_runs() {
    let ground = Ground::new();
    let (sandbox, container, _) = left_behind(&ground, "boot-1").await;
    ground.fakes.shims.of(&sandbox.id).die();
    let pods = ground.daemon("boot-2").await;
    let pod = pods.find(&sandbox.id).unwrap();
    assert!(!pod.view().sandbox.ready());
    let exit = record(&pod, &container.id).exit.clone().unwrap();
    assert_eq!((exit.code, exit.reason), (255, Reason::HostRestarted));
    assert_ne!(run(&pods, "p").await.view().sandbox.id, sandbox.id);
    assert_eq!(pods.views().len(), 1);
}

#[tokio::test]
async fn what_was_never_finished_is_undone() {
    let ground = Ground::new();
    let (mut half, _, store) = left_behind(&ground, "b").await;
    half.state = SandboxState::Creating;
    store.write(Kind::Pod, &half.id, &half).unwrap();
    let pods = ground.daemon("b").await;
    assert!(pods.views().is_empty());
    assert!(ground.fakes.shims.of(&half.id).is_dead());
    assert!(ground.fakes.images.holders().is_empty());
    assert_eq!(ground.files(), Vec::<std::path::PathBuf>::new());
}

#[tokio::test]
async fn a_container_that_was_never_finished_is_undone_and_its_pod_kept() {
    let ground = Ground::new();
    let (sandbox, mut half, store) = left_behind(&ground, "b").await;
    half.phase = Phase::Creating;
    store.write(Kind::Container, &half.id, &half).unwrap();
    let pods = ground.daemon("b").await;
    let pod = pods.find(&sandbox.id).unwrap();
    assert!(pod.view().sandbox.ready() && pod.view().containers.is_empty());
    assert!(ground.fakes.images.holders().is_empty());
}

#[tokio::test]
async fn what_belongs_to_nobody_is_swept() {
    let ground = Ground::new();
    let (sandbox, _, store) = left_behind(&ground, "b").await;
    store.remove(Kind::Pod, &sandbox.id).unwrap();
    let pods = ground.daemon("b").await;
    assert!(pods.views().is_empty());
    assert!(ground.fakes.shims.of(&sandbox.id).is_dead());
    assert!(ground.fakes.images.holders().is_empty());
    assert_eq!(ground.files(), Vec::<std::path::PathBuf>::new());
}
