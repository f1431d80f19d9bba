//! A daemon that was killed and started again: it knows every pod, and what has happened meanwhile.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use nodeagent_cri_api::*;
use nodeagent_tests::http;
use tokio::time::sleep;

use crate::node::{Node, idle, namespaces, script};
use crate::pods::serve;
use crate::suite::Suite;

pub fn add(suite: &mut Suite) {
    suite.add_own("recovery: pods, containers and images are the same after kill -9", everything);
    suite.add_own(
        "recovery: a container that ends while there is no daemon has its exit code afterwards",
        ended_meanwhile,
    );
    suite.add_own("recovery: a container that ends after the restart is seen", ended_afterwards);
    suite.add_own("recovery: exec, logs and stop go on as before", goes_on);
    suite.add_own("recovery: killed ten times among ten pods, nothing is lost and nothing left", again_and_again);
    suite.add_own("recovery: killed while pods are made, every one of them can be removed", in_the_middle);
    suite.add_own("recovery: SIGTERM ends the daemon and no container", asked_to_stop);
    suite.add_own("recovery: a shim that is killed takes its pod down, visibly", shim_killed);
    suite.add_own("recovery: a shim that is slow to answer a new daemon keeps its pod", shim_slow);
    suite.add_own("recovery: a pod whose shim hangs is stopped and removed, and nothing stays", shim_hangs);
}

type Shared = Arc<Node>;

async fn restart(node: &Node) -> Result<()> {
    let mut daemon = node.own()?.lock().await;
    daemon.kill()?;
    daemon.resume()
}

async fn everything(node: Shared) -> Result<()> {
    let config = node.pod("survivor");
    let (pod, ip) = serve(&node, &config).await?;
    let image = node.busybox().await?;
    let created = node.create(&pod, &config, &idle("created", &image)).await?;
    let done = node.launch(&pod, &config, &script("done", &image, "exit 5")).await?;
    node.exited(&done).await?;
    let stopped = node.run(&node.pod("stopped")).await?;
    node.stop_pod(&stopped).await?;
    let before = (node.pods_list(None).await?, node.containers(None).await?, node.images().await?);
    let statuses = (node.pod_status(&pod).await?, node.status(&created).await?, node.status(&done).await?);
    restart(&node).await?;
    let after = (node.pods_list(None).await?, node.containers(None).await?, node.images().await?);
    ensure!(before.0 == after.0, "pods were {:?}, are {:?}", before.0, after.0);
    ensure!(before.1 == after.1, "containers were {:?}, are {:?}", before.1, after.1);
    ensure!(before.2 == after.2, "images were {:?}, are {:?}", before.2, after.2);
    let now = (node.pod_status(&pod).await?, node.status(&created).await?, node.status(&done).await?);
    ensure!(statuses == now, "statuses were {statuses:?}, are {now:?}");
    let answer = http::get(format!("{ip}:8080").parse()?, "/index.html")?.expect_status(200)?;
    ensure!(answer.text() == "hello from the pod\n", "{answer:?}");
    node.start_container(&created).await.context("what was created before can be started")?;
    Ok(())
}

/// A container that ends with 9 as soon as there is a file `go` in its volume; its id and that file.
async fn on_command(node: &Node) -> Result<(String, std::path::PathBuf)> {
    let config = node.pod("command");
    let image = node.busybox().await?;
    let pod = node.run(&config).await?;
    let volume = node.pods().join("command");
    fs::create_dir_all(&volume)?;
    let mut wanted = script("c", &image, "until [ -e /v/go ]; do usleep 5000; done; echo gone > /v/done; exit 9");
    wanted.mounts =
        vec![Mount { container_path: "/v".into(), host_path: volume.display().to_string(), ..Default::default() }];
    Ok((node.launch(&pod, &config, &wanted).await?, volume))
}

async fn ended_meanwhile(node: Shared) -> Result<()> {
    let (id, volume) = on_command(&node).await?;
    node.own()?.lock().await.kill()?;
    fs::write(volume.join("go"), "")?;
    node.log_with(&volume.join("done").display().to_string(), "gone").await?;
    node.own()?.lock().await.resume()?;
    let status = node.exited(&id).await?;
    ensure!(status.exit_code == 9 && status.reason == "Error", "{status:?}");
    Ok(())
}

async fn ended_afterwards(node: Shared) -> Result<()> {
    let (id, volume) = on_command(&node).await?;
    restart(&node).await?;
    ensure!(node.status(&id).await?.state() == ContainerState::ContainerRunning, "not running after the restart");
    fs::write(volume.join("go"), "")?;
    let status = node.exited(&id).await?;
    ensure!(status.exit_code == 9 && status.started_at > 0 && status.finished_at >= status.started_at, "{status:?}");
    Ok(())
}

async fn goes_on(node: Shared) -> Result<()> {
    let config = node.pod("goes-on");
    let image = node.busybox().await?;
    let pod = node.run(&config).await?;
    let text = "trap 'echo bye; exit 0' TERM; n=0; while :; do n=$((n + 1)); echo line $n; usleep 2000; done";
    let id = node.launch(&pod, &config, &script("c", &image, text)).await?;
    let path = node.status(&id).await?.log_path;
    node.log_with(&path, "line 3").await?;
    node.own()?.lock().await.kill()?;
    let meanwhile = fs::read_to_string(&path)?.lines().count();
    node.log_with(&path, &format!("line {}", meanwhile + 50)).await.context("the log stands still without a daemon")?;
    node.own()?.lock().await.resume()?;
    ensure!(node.output(&id, &["echo", "inside"]).await? == "inside\n", "exec");
    node.stop_container(&id, 10).await?;
    ensure!(node.status(&id).await?.exit_code == 0, "{:?}", node.status(&id).await?);
    let log = fs::read_to_string(&path)?;
    ensure!(log.lines().last().is_some_and(|line| line.ends_with("bye")), "its last word is missing");
    Ok(())
}

async fn again_and_again(node: Shared) -> Result<()> {
    let image = node.busybox().await?;
    let mut expected = Vec::new();
    for number in 0..10 {
        let config = node.pod(&format!("p{number}"));
        let pod = node.run(&config).await?;
        expected.push((pod.clone(), node.launch(&pod, &config, &idle("c", &image)).await?));
        restart(&node).await?;
    }
    for (pod, container) in &expected {
        ensure!(node.pod_status(pod).await?.state() == PodSandboxState::SandboxReady, "pod {pod}");
        ensure!(node.output(container, &["echo", "here"]).await? == "here\n", "container {container}");
    }
    Ok(())
}

async fn in_the_middle(node: Shared) -> Result<()> {
    let image = node.busybox().await?;
    for round in 0..5 {
        let calls: Vec<_> = (0..4)
            .map(|number| {
                let (node, image) = (node.clone(), image.clone());
                tokio::spawn(async move {
                    let config = node.pod(&format!("r{round}p{number}"));
                    if let Ok(pod) = node.try_run(&config).await
                        && let Ok(id) = node.try_create(&pod, &config, &idle("c", &image)).await
                    {
                        // the daemon is killed under it: whether it comes to that is chance
                        let _ = node.start_container(&id).await;
                    }
                })
            })
            .collect();
        // somewhere on the way, each time at another place
        sleep(Duration::from_millis(7 * (round + 1))).await;
        restart(&node).await?;
        for call in calls {
            call.await?;
        }
        // a kubelet tries again, with the same names
        let config = node.pod(&format!("r{round}p0"));
        let pod = node.run(&config).await.context("a second try")?;
        let id = node.create(&pod, &config, &idle("c", &image)).await?;
        if node.status(&id).await?.state() == ContainerState::ContainerCreated {
            node.start_container(&id).await?;
        }
        node.remove_all().await?;
    }
    Ok(())
}

async fn asked_to_stop(node: Shared) -> Result<()> {
    let (pod, ip) = serve(&node, &node.pod("term")).await?;
    let status = node.own()?.lock().await.stop()?;
    ensure!(status.success(), "{status}");
    http::get(format!("{ip}:8080").parse()?, "/index.html")?.expect_status(200).context("without a daemon")?;
    node.own()?.lock().await.resume()?;
    ensure!(node.pod_status(&pod).await?.state() == PodSandboxState::SandboxReady, "after the restart");
    Ok(())
}

async fn shim_killed(node: Shared) -> Result<()> {
    let config = node.pod("shim");
    let image = node.busybox().await?;
    let pod = node.run(&config).await?;
    let id = node.launch(&pod, &config, &idle("c", &image)).await?;
    kill(shim_of(&pod)?, Signal::SIGKILL)?;
    let status = node.exited(&id).await?;
    ensure!(status.exit_code == 255 && status.reason == "ShimLost", "{} {}", status.exit_code, status.reason);
    let state = node.pod_status(&pod).await?.state();
    ensure!(state == PodSandboxState::SandboxNotready, "{state:?}");
    Ok(())
}

/// The process of a pod's shim.
fn shim_of(pod: &str) -> Result<Pid> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        if line.contains("nodeagent-shim") && line.contains(pod) {
            found.push(Pid::from_raw(pid));
        }
    }
    let [shim] = found[..] else { bail!("shims of pod {pod}: {found:?}") };
    Ok(shim)
}

async fn shim_hangs(node: Shared) -> Result<()> {
    let mut config = node.pod("hangs");
    let options = NamespaceOption { pid: NamespaceMode::Pod.into(), ..namespaces() };
    let security = LinuxSandboxSecurityContext { namespace_options: Some(options), ..Default::default() };
    config.linux.get_or_insert_default().security_context = Some(security);
    let pod = node.run(&config).await?;
    let id = node.launch(&pod, &config, &idle("c", &node.busybox().await?)).await?;
    kill(shim_of(&pod)?, Signal::SIGSTOP)?;
    node.stop_pod(&pod).await?;
    let state = node.status(&id).await?.state();
    ensure!(state == ContainerState::ContainerExited, "{state:?}");
    node.remove_pod(&pod).await?;
    // that nothing else is left, is seen after every trial
    ensure!(shim_of(&pod).is_err(), "its shim is still there");
    Ok(())
}

async fn shim_slow(node: Shared) -> Result<()> {
    let config = node.pod("slow");
    let image = node.busybox().await?;
    let pod = node.run(&config).await?;
    let id = node.launch(&pod, &config, &idle("c", &image)).await?;
    let shim = shim_of(&pod)?;
    kill(shim, Signal::SIGSTOP)?;
    let mut daemon = node.own()?.lock().await;
    daemon.kill()?;
    // longer than a request may take: a machine that swaps, or starts everything at once
    let goes_on = tokio::spawn(async move {
        sleep(Duration::from_secs(6)).await;
        kill(shim, Signal::SIGCONT)
    });
    // not in the place of those that let it go on
    let resumed = tokio::task::block_in_place(|| daemon.resume());
    drop(daemon);
    goes_on.await??;
    resumed?;
    let state = node.status(&id).await?.state();
    ensure!(state == ContainerState::ContainerRunning, "{state:?}");
    ensure!(node.pod_status(&pod).await?.state() == PodSandboxState::SandboxReady, "the pod is ready");
    ensure!(node.output(&id, &["echo", "here"]).await? == "here\n");
    Ok(())
}
