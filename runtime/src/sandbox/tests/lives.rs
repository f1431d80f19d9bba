//! Containers from creation to removal.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::fake::Ground;
use super::{PATIENCE, container_config, record, run, running, until_exited};
use crate::container::{ContainerError, ImageSource, Phase, Reason};
use crate::events::EventKind;

#[tokio::test]
async fn the_same_request_gives_the_same_container_until_it_is_started() {
    let ground = Ground::new();
    let pods = ground.daemon("b").await;
    let pod = run(&pods, "p").await;
    let create = |name: &'static str| pods.create_container(&pod, container_config(name));
    let (one, joined, other) = tokio::join!(create("c"), create("c"), create("d"));
    let (one, joined, other) = (one.unwrap(), joined.unwrap(), other.unwrap());
    assert_eq!(one, joined);
    assert_ne!(one, other);
    assert_eq!(create("c").await.unwrap(), one);
    pod.start(&one).await.unwrap();
    let fresh = create("c").await.unwrap();
    assert_ne!(fresh, one);
    assert!(pod.view().container(&one).is_none(), "the stale one is gone");
    assert_eq!(pod.view().containers.len(), 2);
}

#[tokio::test]
async fn a_container_lives_and_ends() {
    let ground = Ground::new();
    let pods = ground.daemon("b").await;
    let mut events = pods.environment().events.subscribe();
    let (pod, id) = running(&pods).await;
    let sandbox = pod.view().sandbox.id.clone();
    assert_eq!((record(&pod, &id).phase, record(&pod, &id).pid, record(&pod, &id).started_at), (Phase::Running, 77, 5));
    ground.fakes.shims.of(&sandbox).end(&id, 0, false);
    until_exited(&pod, &id).await;
    let exit = record(&pod, &id).exit.clone().unwrap();
    assert_eq!((exit.code, exit.reason, exit.at), (0, Reason::Completed, 9));
    pod.remove(&id).await.unwrap();
    assert!(pod.view().containers.is_empty());
    assert!(ground.fakes.images.holders().is_empty());
    let mut seen = Vec::new();
    while let Ok(event) = events.try_recv() {
        seen.push((event.kind, event.id == id));
    }
    let expected =
        [EventKind::Created, EventKind::Started, EventKind::Stopped, EventKind::Deleted].map(|kind| (kind, true));
    assert_eq!(seen.iter().copied().filter(|(_, own)| *own).collect::<Vec<_>>(), expected);
}

#[tokio::test]
async fn only_a_created_container_can_be_started() {
    let ground = Ground::new();
    let pods = ground.daemon("b").await;
    let (pod, id) = running(&pods).await;
    let Err(ContainerError::Shared(error)) = pod.start(&id).await else { panic!("started twice") };
    assert!(matches!(*error, ContainerError::WrongPhase { phase: Phase::Running, .. }));
    let Err(ContainerError::Shared(error)) = pod.start("none").await else { panic!("started nothing") };
    assert!(matches!(*error, ContainerError::NotFound { .. }));
}

#[tokio::test]
async fn a_program_that_is_not_there_is_a_start_error() {
    let ground = Ground::new();
    let pods = ground.daemon("b").await;
    ground.fakes.shims.broken.store(true, Ordering::SeqCst);
    let pod = run(&pods, "p").await;
    let id = pods.create_container(&pod, container_config("c")).await.unwrap();
    let error = pod.start(&id).await.unwrap_err();
    assert!(crate::telemetry::chain(&error).contains("\"/entry\": not found"));
    until_exited(&pod, &id).await;
    let exit = record(&pod, &id).exit.clone().unwrap();
    assert_eq!((exit.code, exit.reason), (127, Reason::StartError));
    assert!(exit.message.contains("not found"));
}

#[tokio::test]
async fn a_polite_stop_is_enough_for_a_polite_program() {
    let ground = Ground::new();
    let pods = ground.daemon("b").await;
    let (pod, id) = running(&pods).await;
    let begun = Instant::now();
    pod.stop(&id, Duration::from_secs(60)).await.unwrap();
    assert!(begun.elapsed() < PATIENCE);
    assert_eq!(record(&pod, &id).exit.clone().unwrap().code, 143);
    pod.stop(&id, Duration::ZERO).await.unwrap();
    pod.stop("none", Duration::ZERO).await.unwrap();
}

#[tokio::test]
async fn a_second_stop_shortens_the_first() {
    let ground = Ground::new();
    let pods = ground.daemon("b").await;
    ground.fakes.shims.stubborn.store(true, Ordering::SeqCst);
    let (pod, id) = running(&pods).await;
    let begun = Instant::now();
    let patient = tokio::spawn({
        let (pod, id) = (pod.clone(), id.clone());
        async move { pod.stop(&id, Duration::from_secs(600)).await }
    });
    pod.stop(&id, Duration::from_millis(50)).await.unwrap();
    patient.await.unwrap().unwrap();
    assert!(begun.elapsed() < PATIENCE);
    assert_eq!(record(&pod, &id).exit.clone().unwrap().code, 137);
}

#[tokio::test]
async fn a_running_container_is_killed_to_be_removed() {
    let ground = Ground::new();
    let pods = ground.daemon("b").await;
    ground.fakes.shims.stubborn.store(true, Ordering::SeqCst);
    let (pod, id) = running(&pods).await;
    let (one, other) = tokio::join!(pod.remove(&id), pod.remove(&id));
    assert!(one.is_ok() && other.is_ok());
    assert!(pod.view().containers.is_empty());
    pod.remove(&id).await.unwrap();
}

#[tokio::test]
async fn a_stopped_pod_has_no_running_container_and_takes_no_new_one() {
    let ground = Ground::new();
    let pods = ground.daemon("b").await;
    let (pod, id) = running(&pods).await;
    let (one, other) = tokio::join!(pod.stop_pod(), pod.stop_pod());
    assert!(one.is_ok() && other.is_ok());
    assert_eq!(record(&pod, &id).phase, Phase::Exited);
    let refused = pods.create_container(&pod, container_config("late")).await.unwrap_err();
    assert!(refused.to_string().contains("is not ready"), "{refused}");
    pod.remove_pod().await.unwrap();
    pod.remove_pod().await.unwrap();
    assert!(pods.views().is_empty() && ground.fakes.images.holders().is_empty());
    assert_eq!(ground.files(), Vec::<std::path::PathBuf>::new());
}

#[tokio::test]
async fn an_image_that_is_not_here_leaves_nothing() {
    let ground = Ground::new();
    let pods = ground.daemon("b").await;
    let pod = run(&pods, "p").await;
    let before = ground.files();
    let mut config = container_config("c");
    config.image.as_mut().unwrap().image = "sha256:none".into();
    let error = pods.create_container(&pod, config).await.unwrap_err();
    assert!(error.to_string().contains("sha256:none"));
    let mut outside = container_config("c");
    outside.log_path = "../../etc/cron.d/x".into();
    assert!(pods.create_container(&pod, outside).await.is_err());
    assert_eq!(ground.files(), before);
}
