//! kill -9 of the daemon at each step that leaves a trace: the moment a file of that step appears or goes, it is dead.
//!
//! What was asked for is then asked for again under the same key, as kubelet does: it must work, and nothing may be left.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use nodeagent_cri_api::*;

use crate::node::{Node, idle};
use crate::suite::Suite;

/// How long a step that may not happen is waited for.
const STEP: Duration = Duration::from_secs(2);

pub fn add(suite: &mut Suite) {
    suite.add_own("killed: at each step of RunPodSandbox, and asked again", run_pod);
    suite.add_own("killed: at each step of CreateContainer, and asked again", create);
    suite.add_own("killed: at each step of StartContainer, and asked again", start);
    suite.add_own("killed: at each step of StopContainer and RemoveContainer, and asked again", stop_and_remove);
    suite.add_own("killed: at each step of StopPodSandbox and RemovePodSandbox, and asked again", remove_pod);
}

type Shared = Arc<Node>;

/// A directory below the daemon's, and which of the changes in it is the step.
type Step = (&'static str, usize);

/// Kills a process when something has changed in a directory for the nth time.
struct Trap {
    thread: JoinHandle<nix::Result<bool>>,
}

impl Trap {
    fn set(directory: &Path, nth: usize, pid: i32) -> Result<Self> {
        let watch = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        let changes = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_DELETE;
        watch.add_watch(directory, changes).with_context(|| format!("watch {}", directory.display()))?;
        let wait = move || {
            let (mut seen, deadline) = (0, Instant::now() + STEP);
            while Instant::now() < deadline {
                let mut fds = [PollFd::new(watch.as_fd(), PollFlags::POLLIN)];
                poll(&mut fds, PollTimeout::from(50u8))?;
                match watch.read_events() {
                    Ok(events) => seen += events.len(),
                    Err(nix::Error::EAGAIN) => {}
                    Err(error) => return Err(error),
                }
                if seen >= nth {
                    kill(Pid::from_raw(pid), Signal::SIGKILL)?;
                    return Ok(true);
                }
            }
            Ok(false)
        };
        Ok(Self { thread: thread::spawn(wait) })
    }

    /// Whether it came to that.
    fn sprung(self) -> Result<bool> {
        Ok(self.thread.join().map_err(|_| anyhow::anyhow!("the trap broke"))??)
    }
}

async fn trap(node: &Node, (directory, nth): Step) -> Result<Trap> {
    let daemon = node.own()?.lock().await;
    let pid = i32::try_from(daemon.pid().context("the daemon does not run")?)?;
    Trap::set(&daemon.directory().join(directory), nth, pid)
}

/// Starts the daemon again, if it was killed.
async fn again(node: &Node, sprung: bool) -> Result<()> {
    if sprung {
        let mut daemon = node.own()?.lock().await;
        daemon.kill()?;
        daemon.resume()?;
    }
    Ok(())
}

/// Every step: the first changes in each of the directories that the call touches.
fn steps(directories: &[&'static str], most: usize) -> Vec<Step> {
    directories.iter().flat_map(|directory| (1..=most).map(move |nth| (*directory, nth))).collect()
}

fn name(step: Step) -> String {
    format!("{}-{}", PathBuf::from(step.0).display().to_string().replace('/', "-"), step.1)
}

/// At least some of the traps have to spring, or the directories are not those of the daemon any more.
fn enough(sprung: usize, steps: usize) -> Result<()> {
    ensure!(sprung * 3 >= steps, "only {sprung} of {steps} steps left a trace");
    Ok(())
}

/// A pod with a host port, so that its network is more than a link.
fn mapped(node: &Node, step: Step) -> PodSandboxConfig {
    let mapping =
        PortMapping { protocol: Protocol::Tcp.into(), container_port: 80, host_port: 18090, host_ip: String::new() };
    PodSandboxConfig { port_mappings: vec![mapping], ..node.pod(&name(step)) }
}

async fn run_pod(node: Shared) -> Result<()> {
    let (mut count, steps) = (0, steps(&["root/pods", "state/shims", "state/pods", "netns", "root/cni"], 2));
    for step in &steps {
        let config = mapped(&node, *step);
        let trap = trap(&node, *step).await?;
        let first = node.try_run(&config).await;
        let sprung = trap.sprung()?;
        count += usize::from(sprung);
        again(&node, sprung).await?;
        let second = node.run(&config).await.with_context(|| format!("again, after {step:?}"))?;
        if let Ok(first) = first {
            ensure!(first == second, "{step:?}: a pod that was told of is another one now");
        }
        ensure!(node.pods_list(None).await?.len() == 1, "{step:?}: {:?}", node.pods_list(None).await?);
        node.stop_pod(&second).await?;
        node.remove_pod(&second).await?;
    }
    enough(count, steps.len())
}

async fn create(node: Shared) -> Result<()> {
    let image = node.busybox().await?;
    let config = node.pod("create");
    let pod = node.run(&config).await?;
    let (mut count, steps) = (0, steps(&["root/containers", "root/specs", "root/images/rootfs"], 2));
    for step in &steps {
        let wanted = idle(&name(*step), &image);
        let trap = trap(&node, *step).await?;
        let _ = node.try_create(&pod, &config, &wanted).await;
        let sprung = trap.sprung()?;
        count += usize::from(sprung);
        again(&node, sprung).await?;
        let id = node.create(&pod, &config, &wanted).await.with_context(|| format!("again, after {step:?}"))?;
        node.start_container(&id).await.with_context(|| format!("start, after {step:?}"))?;
        ensure!(node.containers(None).await?.len() == 1, "{step:?}: {:?}", node.containers(None).await?);
        node.stop_container(&id, 0).await?;
        node.remove_container(&id).await?;
    }
    enough(count, steps.len())
}

async fn start(node: Shared) -> Result<()> {
    let image = node.busybox().await?;
    let config = node.pod("start");
    let pod = node.run(&config).await?;
    let (mut count, steps) = (0, steps(&["root/containers"], 2));
    for step in &steps {
        let id = node.create(&pod, &config, &idle(&name(*step), &image)).await?;
        let trap = trap(&node, *step).await?;
        let first = node.start_container(&id).await;
        let sprung = trap.sprung()?;
        count += usize::from(sprung);
        again(&node, sprung).await?;
        // its supervisor started it in any case: the next daemon finds it running, or is asked again and joins
        if first.is_err() && node.status(&id).await?.state() == ContainerState::ContainerCreated {
            node.start_container(&id).await.with_context(|| format!("again, after {step:?}"))?;
        }
        let status = node.status(&id).await?;
        ensure!(status.state() == ContainerState::ContainerRunning, "{step:?}: {status:?}");
        node.output(&id, &["true"]).await?;
        node.stop_container(&id, 0).await?;
        node.remove_container(&id).await?;
    }
    enough(count, steps.len())
}

async fn stop_and_remove(node: Shared) -> Result<()> {
    let image = node.busybox().await?;
    let config = node.pod("stop");
    let pod = node.run(&config).await?;
    let (mut count, steps) = (0, steps(&["root/containers", "root/specs", "root/images/rootfs"], 2));
    for step in &steps {
        let id = node.launch(&pod, &config, &idle(&name(*step), &image)).await?;
        let trap = trap(&node, *step).await?;
        let _ = node.stop_container(&id, 10).await;
        let _ = node.remove_container(&id).await;
        let sprung = trap.sprung()?;
        count += usize::from(sprung);
        again(&node, sprung).await?;
        node.stop_container(&id, 10).await.with_context(|| format!("stop again, after {step:?}"))?;
        node.remove_container(&id).await.with_context(|| format!("remove again, after {step:?}"))?;
        ensure!(node.containers(None).await?.is_empty(), "{step:?}: {:?}", node.containers(None).await?);
    }
    enough(count, steps.len())
}

async fn remove_pod(node: Shared) -> Result<()> {
    let image = node.busybox().await?;
    let (mut count, steps) =
        (0, steps(&["root/pods", "state/shims", "state/pods", "netns", "root/cni", "root/containers"], 2));
    for step in &steps {
        let config = mapped(&node, *step);
        let pod = node.run(&config).await?;
        node.launch(&pod, &config, &idle("c", &image)).await?;
        let trap = trap(&node, *step).await?;
        let _ = node.stop_pod(&pod).await;
        let _ = node.remove_pod(&pod).await;
        let sprung = trap.sprung()?;
        count += usize::from(sprung);
        again(&node, sprung).await?;
        node.stop_pod(&pod).await.with_context(|| format!("stop again, after {step:?}"))?;
        node.remove_pod(&pod).await.with_context(|| format!("remove again, after {step:?}"))?;
        ensure!(node.pods_list(None).await?.is_empty(), "{step:?}: {:?}", node.pods_list(None).await?);
    }
    enough(count, steps.len())
}
