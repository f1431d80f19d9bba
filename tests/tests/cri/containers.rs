//! Containers: their life and their ends.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nodeagent_cri_api::*;
use nodeagent_tests::image::Image;
use serde_json::json;
use tonic::Code;

use crate::node::{Node, container, idle, refused, script};
use crate::suite::Suite;

pub fn add(suite: &mut Suite) {
    suite.add("container: created, started, ended, removed, with a time for each", life);
    suite.add("container: exit codes are those of the program, 128 and the signal's number after a kill", exit_codes);
    suite.add("container: a program that is not there is an error, exit code 127 or 128, and a reason", no_program);
    suite.add("container: what may be started is only what was created", wrong_state);
    suite.add("container: StopContainer asks first and kills after its timeout", escalation);
    suite.add("container: StopContainer with timeout 0 kills at once, the whole container", kill_now);
    suite.add("container: a second, shorter stop shortens the first", shorter_stop);
    suite.add("container: the image's stop signal is the one that is sent", stop_signal);
    suite.add("container: stop and remove may be repeated, for unknown containers too", repeatable);
    suite.add("container: a running container is removed by force", forced);
    suite.add("container: the same request again gives the same container, after its end a new one", same_request);
    suite.add("container: lists filter by id, pod, state and labels", lists);
    suite.add("container: status repeats image, labels, annotations, mounts and log path", status);
}

type Shared = Arc<Node>;

/// A pod, and busybox.
pub async fn pod(node: &Node, name: &str) -> Result<(String, PodSandboxConfig, String)> {
    let config = node.pod(name);
    let image = node.busybox().await?;
    Ok((node.run(&config).await?, config, image))
}

/// Runs a shell script to its end; status and log.
pub async fn run(
    node: &Node,
    pod: &str,
    config: &PodSandboxConfig,
    wanted: &ContainerConfig,
) -> Result<(ContainerStatus, String)> {
    let id = node.launch(pod, config, wanted).await?;
    let status = node.exited(&id).await?;
    let log = fs::read_to_string(&status.log_path).with_context(|| format!("read {}", status.log_path))?;
    // the text alone: time, stream and tag are looked at elsewhere
    let text = log.lines().filter_map(|line| line.splitn(4, ' ').nth(3)).map(|line| format!("{line}\n")).collect();
    Ok((status, text))
}

/// Launches a script that says `armed` once its traps are set: before that, the kernel drops signals to a first process.
async fn armed(node: &Node, pod: &str, config: &PodSandboxConfig, wanted: &ContainerConfig) -> Result<String> {
    let id = node.launch(pod, config, wanted).await?;
    node.log_with(&node.status(&id).await?.log_path, "armed").await?;
    Ok(id)
}

pub fn security(config: &mut ContainerConfig) -> Result<&mut LinuxContainerSecurityContext> {
    let linux = config.linux.as_mut().context("no linux part")?;
    linux.security_context.as_mut().context("no security context")
}

async fn life(node: Shared) -> Result<()> {
    let (pod, config, image) = pod(&node, "life").await?;
    let id = node.create(&pod, &config, &script("c", &image, "exit 0")).await?;
    let created = node.status(&id).await?;
    ensure!(created.state() == ContainerState::ContainerCreated, "{created:?}");
    ensure!(created.started_at == 0 && created.finished_at == 0, "times before the start: {created:?}");
    node.start_container(&id).await?;
    let ended = node.exited(&id).await?;
    ensure!(ended.exit_code == 0 && ended.reason == "Completed", "{ended:?}");
    ensure!(ended.created_at == created.created_at, "created_at moved");
    ensure!(ended.created_at <= ended.started_at && ended.started_at <= ended.finished_at, "times: {ended:?}");
    node.remove_container(&id).await?;
    refused(node.status(&id).await, Code::NotFound)?;
    Ok(())
}

async fn exit_codes(node: Shared) -> Result<()> {
    let (pod, config, image) = pod(&node, "codes").await?;
    for (name, text, code) in [
        ("three", "exit 3", 3),
        ("max", "exit 255", 255),
        ("term", "kill -TERM $$; sleep 60", 143),
        ("kill", "kill -KILL $$; sleep 60", 137),
    ] {
        // as process 1 a shell is not ended by its own signals: one below it is
        let text = if code > 128 && code < 200 { format!("sh -c '{text}'; exit $?") } else { text.to_owned() };
        let (status, _) = run(&node, &pod, &config, &script(name, &image, &text)).await?;
        ensure!(status.exit_code == code && status.reason == "Error", "{name}: {} {}", status.exit_code, status.reason);
    }
    Ok(())
}

async fn no_program(node: Shared) -> Result<()> {
    let (pod, config, image) = pod(&node, "missing").await?;
    for (name, program) in [("name", "no-such-program"), ("path", "/no/such/program")] {
        let id = node.create(&pod, &config, &container(name, &image, &[program])).await?;
        let error = match node.start_container(&id).await {
            Err(error) => error,
            Ok(()) => bail!("{program} was started"),
        };
        ensure!(error.message().contains(program), "which program? {}", error.message());
        let status = node.status(&id).await?;
        ensure!(status.state() == ContainerState::ContainerExited, "{status:?}");
        ensure!([127, 128].contains(&status.exit_code), "exit code {}", status.exit_code);
        ensure!(!status.reason.is_empty() && status.message.contains(program), "{status:?}");
    }
    Ok(())
}

async fn wrong_state(node: Shared) -> Result<()> {
    let (pod, config, image) = pod(&node, "states").await?;
    let id = node.launch(&pod, &config, &idle("c", &image)).await?;
    refused(node.start_container(&id).await, Code::FailedPrecondition).context("a running one")?;
    node.stop_container(&id, 5).await?;
    refused(node.start_container(&id).await, Code::FailedPrecondition).context("an ended one")?;
    refused(node.start_container(&"a".repeat(64)).await, Code::NotFound).context("an unknown one")?;
    refused(node.exec(&id, &["true"], 5).await, Code::FailedPrecondition).context("exec in an ended one")?;
    Ok(())
}

async fn escalation(node: Shared) -> Result<()> {
    let (pod, config, image) = pod(&node, "stop").await?;
    let text = "trap 'exit 7' TERM; echo armed; while :; do sleep 1000 & wait $!; done";
    let polite = armed(&node, &pod, &config, &script("polite", &image, text)).await?;
    let began = Instant::now();
    node.stop_container(&polite, 60).await?;
    let status = node.status(&polite).await?;
    ensure!(status.state() == ContainerState::ContainerExited && status.exit_code == 7, "{status:?}");
    ensure!(began.elapsed() < Duration::from_secs(30), "it was not told");
    let text = "trap '' TERM; echo armed; while :; do sleep 1; done";
    let stubborn = armed(&node, &pod, &config, &script("stubborn", &image, text)).await?;
    let began = Instant::now();
    node.stop_container(&stubborn, 1).await?;
    ensure!(began.elapsed() >= Duration::from_secs(1), "killed before its time: {:?}", began.elapsed());
    let status = node.status(&stubborn).await?;
    ensure!(status.state() == ContainerState::ContainerExited && status.exit_code == 137, "{status:?}");
    Ok(())
}

async fn kill_now(node: Shared) -> Result<()> {
    let (pod, config, image) = pod(&node, "now").await?;
    let text = "trap '' TERM; setsid sleep 4321 & echo armed; while :; do sleep 1; done";
    let id = armed(&node, &pod, &config, &script("c", &image, text)).await?;
    let began = Instant::now();
    node.stop_container(&id, 0).await?;
    ensure!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    ensure!(node.status(&id).await?.exit_code == 137, "{:?}", node.status(&id).await?);
    Ok(())
}

async fn shorter_stop(node: Shared) -> Result<()> {
    let (pod, config, image) = pod(&node, "shorter").await?;
    let text = "trap '' TERM; echo armed; while :; do sleep 1; done";
    let id = armed(&node, &pod, &config, &script("c", &image, text)).await?;
    let (patient, same) = (node.clone(), id.clone());
    let first = tokio::spawn(async move { patient.stop_container(&same, 600).await });
    node.stop_container(&id, 0).await?;
    tokio::time::timeout(Duration::from_secs(30), first).await.context("the first stop goes on")???;
    Ok(())
}

async fn stop_signal(node: Shared) -> Result<()> {
    let registry = node.world.open()?;
    Image::busybox()?.set("StopSignal", json!("SIGUSR1")).push(&registry, "stopsignal", "1")?;
    let image = node.pull(&registry.reference("stopsignal:1")).await?;
    let config = node.pod("usr1");
    let pod = node.run(&config).await?;
    let text = "trap 'exit 11' USR1; trap 'exit 12' TERM; echo armed; while :; do sleep 1000 & wait $!; done";
    let id = armed(&node, &pod, &config, &script("c", &image, text)).await?;
    node.stop_container(&id, 20).await?;
    ensure!(node.status(&id).await?.exit_code == 11, "{:?}", node.status(&id).await?);
    Ok(())
}

async fn repeatable(node: Shared) -> Result<()> {
    let (pod, config, image) = pod(&node, "again").await?;
    let id = node.launch(&pod, &config, &idle("c", &image)).await?;
    for _ in 0..2 {
        node.stop_container(&id, 5).await.context("stop")?;
    }
    for _ in 0..2 {
        node.remove_container(&id).await.context("remove")?;
    }
    node.stop_container(&"e".repeat(64), 1).await.context("stop of an unknown one")?;
    node.remove_container(&"e".repeat(64)).await.context("removal of an unknown one")?;
    Ok(())
}

async fn forced(node: Shared) -> Result<()> {
    let (pod, config, image) = pod(&node, "force").await?;
    let text = "trap '' TERM; echo armed; while :; do sleep 1; done";
    let id = armed(&node, &pod, &config, &script("c", &image, text)).await?;
    node.remove_container(&id).await?;
    refused(node.status(&id).await, Code::NotFound)?;
    ensure!(node.containers(None).await?.iter().all(|other| other.id != id), "still listed");
    Ok(())
}

async fn same_request(node: Shared) -> Result<()> {
    let (pod, config, image) = pod(&node, "retry").await?;
    let wanted = idle("c", &image);
    let first = node.create(&pod, &config, &wanted).await?;
    ensure!(node.create(&pod, &config, &wanted).await? == first, "a retry made another container");
    node.start_container(&first).await?;
    node.stop_container(&first, 5).await?;
    let second = node.create(&pod, &config, &wanted).await?;
    ensure!(second != first, "an ended container was given out as a new one");
    let mut other = wanted.clone();
    other.metadata = Some(ContainerMetadata { name: "c".into(), attempt: 1 });
    ensure!(node.create(&pod, &config, &other).await? != second, "another attempt is another container");
    Ok(())
}

async fn lists(node: Shared) -> Result<()> {
    let (pod, config, image) = pod(&node, "lists").await?;
    let running = node.launch(&pod, &config, &idle("running", &image)).await?;
    let ended = node.launch(&pod, &config, &script("ended", &image, "true")).await?;
    node.exited(&ended).await?;
    let created = node.create(&pod, &config, &idle("created", &image)).await?;
    let filter = |id: &str, state: Option<ContainerState>, name: &str| ContainerFilter {
        id: id.into(),
        state: state.map(|state| ContainerStateValue { state: state.into() }),
        pod_sandbox_id: pod.clone(),
        label_selector: match name {
            "" => HashMap::new(),
            name => HashMap::from([("io.kubernetes.container.name".to_owned(), name.to_owned())]),
        },
    };
    let cases = [
        (filter("", None, ""), vec![&created, &ended, &running]),
        (filter("", Some(ContainerState::ContainerRunning), ""), vec![&running]),
        (filter("", Some(ContainerState::ContainerExited), ""), vec![&ended]),
        (filter("", Some(ContainerState::ContainerCreated), ""), vec![&created]),
        (filter(&ended[..12], None, ""), vec![&ended]),
        (filter("", None, "running"), vec![&running]),
        (filter(&ended, None, "running"), vec![]),
    ];
    for (filter, expected) in cases {
        let found = node.containers(Some(filter.clone())).await?;
        ensure!(found.iter().map(|c| &c.id).eq(expected.iter().copied()), "{filter:?} gives {found:?}");
        for container in found {
            ensure!(container.image_id == image && !container.image_ref.is_empty(), "{container:?}");
        }
    }
    let elsewhere = ContainerFilter { pod_sandbox_id: "b".repeat(64), ..Default::default() };
    ensure!(node.containers(Some(elsewhere)).await?.is_empty(), "containers of a pod that is none");
    Ok(())
}

async fn status(node: Shared) -> Result<()> {
    let (pod, config, image) = pod(&node, "status").await?;
    let volume = node.pods().join("volume");
    fs::create_dir_all(&volume)?;
    let mut wanted = idle("c", &image);
    wanted.annotations = HashMap::from([("example.com/x".into(), "y".into())]);
    wanted.mounts =
        vec![Mount { container_path: "/data".into(), host_path: volume.display().to_string(), ..Default::default() }];
    if let Some(spec) = wanted.image.as_mut() {
        spec.user_specified_image = "busybox:1".into();
    }
    let id = node.launch(&pod, &config, &wanted).await?;
    let status = node.status(&id).await?;
    ensure!(status.metadata == wanted.metadata && status.labels == wanted.labels, "{status:?}");
    ensure!(status.annotations == wanted.annotations, "{status:?}");
    ensure!(status.mounts == wanted.mounts, "mounts {:?}, not {:?}", status.mounts, wanted.mounts);
    ensure!(status.image_id == image && !status.image_ref.is_empty(), "{status:?}");
    ensure!(status.image.as_ref().is_some_and(|spec| !spec.image.is_empty()), "{status:?}");
    let log = Path::new(&config.log_directory).join("c/0.log");
    ensure!(Path::new(&status.log_path) == log, "log path {}, not {}", status.log_path, log.display());
    Ok(())
}
