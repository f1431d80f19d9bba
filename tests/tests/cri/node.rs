//! One node: a daemon of its own (or a peer's socket), a client, and the calls that every trial makes.

use std::collections::HashMap;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nodeagent_cri_api::*;
use nodeagent_tests::client::Cri;
use nodeagent_tests::daemon::Daemon;
use nodeagent_tests::outside::run;
use nodeagent_tests::{leaks, place};
use tempfile::TempDir;
use tokio::time::sleep;

use crate::world::World;

/// How long anything that has no time of its own may take on a loaded machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The time between two looks at something: short at first, to lose none, then longer, since each look takes some of the processor
/// from what is waited for, which in an emulated machine is much.
pub struct Pause(Duration);

impl Default for Pause {
    fn default() -> Self {
        Self(Duration::from_millis(10))
    }
}

impl Pause {
    pub async fn take(&mut self) {
        sleep(self.0).await;
        self.0 = (self.0 * 3 / 2).min(Duration::from_millis(200));
    }
}

/// The socket of another runtime, when the suite is to be run on it.
pub fn peer() -> Option<PathBuf> {
    env::var_os("NODEAGENT_CRI_SOCKET").map(PathBuf::from)
}

/// Who makes the cgroups of a node's containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    Cgroupfs,
    // by the suite of scopes, which shares this file
    #[allow(dead_code)]
    Systemd,
}

impl Driver {
    /// That of a runtime.
    pub async fn of(socket: &Path) -> Result<Self> {
        let answer = Cri::new(socket)?.runtime.runtime_config(RuntimeConfigRequest {}).await;
        let answer = answer.with_context(|| format!("ask {} for its cgroup driver", socket.display()))?;
        let linux = answer.into_inner().linux.context("RuntimeConfig without a linux part")?;
        Ok(match linux.cgroup_driver() {
            CgroupDriver::Systemd => Driver::Systemd,
            CgroupDriver::Cgroupfs => Driver::Cgroupfs,
        })
    }
}

pub struct Node {
    pub world: Arc<World>,
    cri: Cri,
    daemon: Option<tokio::sync::Mutex<Daemon>>,
    pods: PathBuf,
    _directory: Option<TempDir>,
    name: String,
    cgroup_parent: String,
    ids: Mutex<Vec<String>>,
}

impl Node {
    pub fn start(world: Arc<World>, driver: Driver, settings: &str) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("test{}-{}", env::var(place::RUN).unwrap_or_default(), NEXT.fetch_add(1, Ordering::Relaxed));
        let (driver, cgroup_parent) = match driver {
            Driver::Cgroupfs => ("cgroupfs", format!("/nodeagent-{name}")),
            // dashes would nest it
            Driver::Systemd => ("systemd", format!("/nodeagent{}.slice", name.replace('-', "_"))),
        };
        let (daemon, directory, socket, pods) = match peer() {
            Some(socket) => {
                let directory = tempfile::tempdir()?;
                let pods = directory.path().to_owned();
                (None, Some(directory), socket, pods)
            }
            None => {
                let daemon = Daemon::start(&format!("cgroup_driver = {driver:?}\n{settings}"))?;
                let (socket, pods) = (daemon.socket(), daemon.pods());
                (Some(tokio::sync::Mutex::new(daemon)), None, socket, pods)
            }
        };
        // built lazily, but a channel wants to know its runtime
        let cri = Cri::new(&socket)?;
        Ok(Self { world, cri, daemon, pods, _directory: directory, name, cgroup_parent, ids: Mutex::default() })
    }

    pub fn cri(&self) -> Cri {
        self.cri.clone()
    }

    pub fn daemon(&self) -> Option<&tokio::sync::Mutex<Daemon>> {
        self.daemon.as_ref()
    }

    /// The daemon, in trials that a peer does not take part in.
    pub fn own(&self) -> Result<&tokio::sync::Mutex<Daemon>> {
        self.daemon().context("not for another runtime")
    }

    /// Directory for logs and volumes.
    pub fn pods(&self) -> &PathBuf {
        &self.pods
    }

    pub fn cgroup_parent(&self) -> &str {
        &self.cgroup_parent
    }

    /// Every pod and container that there was.
    pub fn known_ids(&self) -> Vec<String> {
        self.ids.lock().map(|ids| ids.clone()).unwrap_or_default()
    }

    fn know(&self, id: &str) {
        if let Ok(mut ids) = self.ids.lock() {
            ids.push(id.to_owned());
        }
    }

    /// After a failure: nothing of this trial is to be in the way of others.
    pub fn purge(&self) {
        if let Some(mut daemon) = self.daemon.as_ref().and_then(|daemon| daemon.try_lock().ok()) {
            // its shims and containers are ended as nobody's
            let _ = daemon.kill();
            leaks::purge(&daemon, &self.cgroup_parent);
        }
    }

    /// The last lines of the daemon's log.
    pub fn log_tail(&self) -> String {
        let Some(daemon) = self.daemon.as_ref() else { return "(another runtime)".into() };
        let log = daemon.try_lock().map(|daemon| daemon.log()).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(80)..].join("\n")
    }

    /// At the end of a trial on another's socket: nothing may be left below the parent of its pods' cgroups, which was ours.
    pub fn remove_cgroup_parent(&self) -> Result<()> {
        let slice = self.cgroup_parent.trim_start_matches('/');
        let systemd = slice.ends_with(".slice");
        let mut left = leaks::cgroups(&self.cgroup_parent)?;
        // slices of pods are kubelet's to remove
        left.retain(|path| !systemd || path.extension().is_none_or(|kind| kind != "slice"));
        ensure!(left.is_empty(), "cgroups are left behind: {left:?}");
        if systemd {
            // made by systemd, which has no reason to end it
            return run("systemctl", ["stop", slice])?.silent("systemctl stop");
        }
        leaks::remove_cgroup_parent(&self.cgroup_parent)
    }

    // --- images

    pub async fn pull_as(&self, reference: &str, auth: Option<AuthConfig>) -> Result<String, tonic::Status> {
        let request = PullImageRequest { image: Some(image(reference)), auth, ..Default::default() };
        Ok(self.cri().images.pull_image(request).await?.into_inner().image_ref)
    }

    pub async fn pull(&self, reference: &str) -> Result<String> {
        self.pull_as(reference, None).await.with_context(|| format!("pull {reference}"))
    }

    /// Pulls the image that most trials run; its id.
    pub async fn busybox(&self) -> Result<String> {
        let (reference, _) = self.world.busybox()?;
        self.pull(&reference).await
    }

    pub async fn image_status(&self, reference: &str) -> Result<Option<Image>> {
        let request = ImageStatusRequest { image: Some(image(reference)), verbose: false };
        Ok(self.cri().images.image_status(request).await?.into_inner().image)
    }

    pub async fn images(&self) -> Result<Vec<Image>> {
        Ok(self.cri().images.list_images(ListImagesRequest::default()).await?.into_inner().images)
    }

    pub async fn remove_image(&self, reference: &str) -> Result<(), tonic::Status> {
        self.cri().images.remove_image(RemoveImageRequest { image: Some(image(reference)) }).await.map(|_| ())
    }

    // --- pods

    /// A pod as kubelet asks for one: labels, log directory, cgroup parent.
    pub fn pod(&self, name: &str) -> PodSandboxConfig {
        let uid = format!("{}-{name}-uid", self.name);
        let logs = self.pods.join(format!("logs_{name}_{uid}"));
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.into(),
                namespace: format!("ns-{}", self.name),
                uid: uid.clone(),
                attempt: 0,
            }),
            hostname: name.into(),
            log_directory: logs.display().to_string(),
            labels: HashMap::from([
                ("io.kubernetes.pod.name".into(), name.into()),
                ("io.kubernetes.pod.uid".into(), uid),
            ]),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: self.cgroup_parent.clone(),
                security_context: Some(LinuxSandboxSecurityContext {
                    namespace_options: Some(namespaces()),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    pub async fn try_run(&self, config: &PodSandboxConfig) -> Result<String, tonic::Status> {
        self.try_run_by(config, "").await
    }

    pub async fn run_by(&self, config: &PodSandboxConfig, handler: &str) -> Result<String> {
        self.try_run_by(config, handler).await.context("RunPodSandbox")
    }

    /// By a runtime handler.
    pub async fn try_run_by(&self, config: &PodSandboxConfig, handler: &str) -> Result<String, tonic::Status> {
        let request = RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: handler.into() };
        let id = self.cri().runtime.run_pod_sandbox(request).await?.into_inner().pod_sandbox_id;
        self.know(&id);
        Ok(id)
    }

    pub async fn run(&self, config: &PodSandboxConfig) -> Result<String> {
        self.try_run(config).await.context("RunPodSandbox")
    }

    pub async fn pod_status(&self, id: &str) -> Result<PodSandboxStatus, tonic::Status> {
        let request = PodSandboxStatusRequest { pod_sandbox_id: id.into(), verbose: false };
        let answer = self.cri().runtime.pod_sandbox_status(request).await?.into_inner();
        answer.status.ok_or_else(|| tonic::Status::internal("an answer without a status"))
    }

    /// The pod's address.
    pub async fn pod_ip(&self, id: &str) -> Result<String> {
        let status = self.pod_status(id).await.context("PodSandboxStatus")?;
        let ip = status.network.context("a pod without a network")?.ip;
        ensure!(!ip.is_empty(), "pod {id} has no address");
        Ok(ip)
    }

    pub async fn pods_list(&self, filter: Option<PodSandboxFilter>) -> Result<Vec<PodSandbox>> {
        Ok(self.cri().runtime.list_pod_sandbox(ListPodSandboxRequest { filter }).await?.into_inner().items)
    }

    pub async fn stop_pod(&self, id: &str) -> Result<(), tonic::Status> {
        let request = StopPodSandboxRequest { pod_sandbox_id: id.into() };
        self.cri().runtime.stop_pod_sandbox(request).await.map(|_| ())
    }

    pub async fn remove_pod(&self, id: &str) -> Result<(), tonic::Status> {
        let request = RemovePodSandboxRequest { pod_sandbox_id: id.into() };
        self.cri().runtime.remove_pod_sandbox(request).await.map(|_| ())
    }

    /// Stops and removes every pod of this trial.
    pub async fn remove_all(&self) -> Result<()> {
        let namespace = format!("ns-{}", self.name);
        for pod in self.pods_list(None).await? {
            if pod.metadata.as_ref().is_some_and(|metadata| metadata.namespace == namespace) {
                self.know(&pod.id);
                self.stop_pod(&pod.id).await.with_context(|| format!("stop pod {}", pod.id))?;
                self.remove_pod(&pod.id).await.with_context(|| format!("remove pod {}", pod.id))?;
            }
        }
        Ok(())
    }

    // --- containers

    pub async fn try_create(
        &self,
        pod: &str,
        pod_config: &PodSandboxConfig,
        config: &ContainerConfig,
    ) -> Result<String, tonic::Status> {
        let request = CreateContainerRequest {
            pod_sandbox_id: pod.into(),
            config: Some(config.clone()),
            sandbox_config: Some(pod_config.clone()),
        };
        let id = self.cri().runtime.create_container(request).await?.into_inner().container_id;
        self.know(&id);
        Ok(id)
    }

    pub async fn create(&self, pod: &str, pod_config: &PodSandboxConfig, config: &ContainerConfig) -> Result<String> {
        self.try_create(pod, pod_config, config).await.context("CreateContainer")
    }

    pub async fn start_container(&self, id: &str) -> Result<(), tonic::Status> {
        let request = StartContainerRequest { container_id: id.into() };
        self.cri().runtime.start_container(request).await.map(|_| ())
    }

    /// Create and start.
    pub async fn launch(&self, pod: &str, pod_config: &PodSandboxConfig, config: &ContainerConfig) -> Result<String> {
        let id = self.create(pod, pod_config, config).await?;
        self.start_container(&id).await.context("StartContainer")?;
        Ok(id)
    }

    pub async fn status(&self, id: &str) -> Result<ContainerStatus, tonic::Status> {
        let request = ContainerStatusRequest { container_id: id.into(), verbose: false };
        let answer = self.cri().runtime.container_status(request).await?.into_inner();
        answer.status.ok_or_else(|| tonic::Status::internal("an answer without a status"))
    }

    /// Waits, as kubelet's relist does, for a container's end.
    pub async fn exited(&self, id: &str) -> Result<ContainerStatus> {
        let deadline = Instant::now() + PATIENCE;
        let mut pause = Pause::default();
        loop {
            let status = self.status(id).await.context("ContainerStatus")?;
            if status.state() == ContainerState::ContainerExited {
                return Ok(status);
            }
            if Instant::now() > deadline {
                bail!("container {id} has not ended: {status:?}");
            }
            pause.take().await;
        }
    }

    pub async fn containers(&self, filter: Option<ContainerFilter>) -> Result<Vec<Container>> {
        Ok(self.cri().runtime.list_containers(ListContainersRequest { filter }).await?.into_inner().containers)
    }

    pub async fn stop_container(&self, id: &str, timeout: i64) -> Result<(), tonic::Status> {
        self.cri().runtime.stop_container(StopContainerRequest { container_id: id.into(), timeout }).await.map(|_| ())
    }

    pub async fn remove_container(&self, id: &str) -> Result<(), tonic::Status> {
        self.cri().runtime.remove_container(RemoveContainerRequest { container_id: id.into() }).await.map(|_| ())
    }

    pub async fn exec(&self, id: &str, command: &[&str], timeout: i64) -> Result<ExecSyncResponse, tonic::Status> {
        let request = ExecSyncRequest { container_id: id.into(), cmd: words(command), timeout };
        Ok(self.cri().runtime.exec_sync(request).await?.into_inner())
    }

    /// Standard output of a command that has to succeed.
    pub async fn output(&self, id: &str, command: &[&str]) -> Result<String> {
        let answer = self.exec(id, command, 20).await.with_context(|| format!("ExecSync {command:?}"))?;
        let (out, err) = (String::from_utf8_lossy(&answer.stdout), String::from_utf8_lossy(&answer.stderr));
        ensure!(answer.exit_code == 0, "{command:?} ended with {}: {out}{err}", answer.exit_code);
        Ok(out.into_owned())
    }

    /// Waits until no link hangs on the bridge and every address is back: the kernel takes its time over both.
    pub async fn network_gone(&self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let mut pause = Pause::default();
        loop {
            let (ports, addresses) = {
                let daemon = self.own()?.lock().await;
                (daemon.net().ports()?, daemon.net().addresses()?)
            };
            if ports.is_empty() && addresses.is_empty() {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "links {ports:?} and addresses {addresses:?} are left");
            pause.take().await;
        }
    }

    /// Lines of a container's log file once a line that contains `text` is there.
    pub async fn log_with(&self, path: &str, text: &str) -> Result<Vec<String>> {
        let deadline = Instant::now() + PATIENCE;
        let mut pause = Pause::default();
        loop {
            let lines: Vec<String> = fs::read_to_string(path).unwrap_or_default().lines().map(str::to_owned).collect();
            if lines.iter().any(|line| line.contains(text)) {
                return Ok(lines);
            }
            if Instant::now() > deadline {
                bail!("no line with {text:?} in {path}: {lines:?}");
            }
            pause.take().await;
        }
    }
}

/// An image by reference or id.
pub fn image(reference: &str) -> ImageSpec {
    ImageSpec { image: reference.into(), ..Default::default() }
}

/// What kubelet asks for unless a pod says otherwise; the interface's own default is a PID namespace for the whole pod.
pub fn namespaces() -> NamespaceOption {
    NamespaceOption { pid: NamespaceMode::Container.into(), ..Default::default() }
}

/// A container that runs a command.
pub fn container(name: &str, image_id: &str, command: &[&str]) -> ContainerConfig {
    ContainerConfig {
        metadata: Some(ContainerMetadata { name: name.into(), attempt: 0 }),
        image: Some(image(image_id)),
        command: words(command),
        log_path: format!("{name}/0.log"),
        labels: HashMap::from([("io.kubernetes.container.name".into(), name.into())]),
        linux: Some(LinuxContainerConfig {
            security_context: Some(LinuxContainerSecurityContext {
                namespace_options: Some(namespaces()),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// A container that runs a shell script.
pub fn script(name: &str, image_id: &str, text: &str) -> ContainerConfig {
    container(name, image_id, &["sh", "-c", text])
}

/// A container that stays until it is told to go, and then goes at once.
pub fn idle(name: &str, image_id: &str) -> ContainerConfig {
    script(name, image_id, "trap 'exit 0' TERM; while :; do sleep 1000 & wait $!; done")
}

fn words(command: &[&str]) -> Vec<String> {
    command.iter().map(|word| (*word).to_owned()).collect()
}

/// Fails unless a call failed with that code; the status otherwise.
pub fn refused<T: std::fmt::Debug>(result: Result<T, tonic::Status>, code: tonic::Code) -> Result<tonic::Status> {
    match result {
        Err(status) if status.code() == code => Ok(status),
        Err(status) => bail!("refused with {:?}, not {code:?}: {}", status.code(), status.message()),
        Ok(value) => bail!("not refused: {value:?}"),
    }
}
