//! Pods of one container, as kubelet makes them: alone, back to back; then many, some at a time; then idle; then away.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use nodeagent_cri_api::*;
use tokio::time::{interval, sleep};

use super::figures::{Durations, Figure};
use super::growth::Holdings;
use super::processes::{SLEEPS, Taken, WORKLOAD, taken};
use crate::client::Cri;

/// The row of making a container.
pub(super) const START: &str = "CreateContainer + StartContainer";

/// How much is done.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Pods one after the other.
    pub alone: usize,
    /// Pods one a second.
    pub apart: usize,
    /// Pods of the load.
    pub pods: usize,
    /// Of these, at a time.
    pub parallel: usize,
    /// How long the load stays idle, with a relist each second.
    pub idle: Duration,
    /// How often many pods come and go afterwards.
    pub rounds: usize,
    /// How many.
    pub crowd: usize,
}

/// One pod, and how long each call for it took.
struct Pod {
    sandbox: String,
    container: String,
    log: PathBuf,
    run: Duration,
    create: Duration,
    start: Duration,
}

/// The calls' durations while a pod goes.
struct Gone {
    stop: Duration,
    pod: Duration,
}

/// Makes pods on one runtime.
pub struct Workload {
    cri: Cri,
    image: String,
    logs: PathBuf,
    parent: String,
}

impl Workload {
    /// Pulls the image; pods log below `logs` and live in the cgroup `parent`.
    pub async fn new(cri: Cri, reference: &str, logs: &Path, parent: &str) -> Result<Self> {
        let request = PullImageRequest { image: Some(image(reference)), ..Default::default() };
        let id = cri.clone().images.pull_image(request).await.context("pull")?.into_inner().image_ref;
        Ok(Self { cri, image: id, logs: logs.to_owned(), parent: parent.to_owned() })
    }

    /// Everything, in the order of the report.
    pub async fn measure(&self, plan: Plan, daemon: u32, others: &[u32]) -> Result<Vec<Figure>> {
        let mut figures = Vec::new();
        // the first pod pays for what is set up once: bridge, caches, the peer's pause image
        self.gone(self.pod("warm", 0).await?).await?;
        figures.extend(self.one_by_one("alone", plan.alone, Duration::ZERO).await?);
        if plan.apart > 0 {
            figures.extend(self.one_by_one("one a second", plan.apart, Duration::from_secs(1)).await?);
        }
        let before = taken(daemon, others)?;
        figures.push(megabytes("daemon before the load, PSS", before.daemon as f64));

        let began = Instant::now();
        let pods: Vec<(Pod, Duration)> = stream::iter(0..plan.pods)
            .map(|number| async move {
                let began = Instant::now();
                let pod = self.pod("load", number).await?;
                anyhow::Ok((pod, began.elapsed()))
            })
            .buffer_unordered(plan.parallel)
            .try_collect()
            .await?;
        let name = format!("{} pods, {} at a time", plan.pods, plan.parallel);
        figures.push(Figure { name: name.clone(), unit: "s", value: began.elapsed().as_secs_f64() });
        let mut each = Durations::default();
        pods.iter().for_each(|(_, duration)| each.add(*duration));
        figures.extend(each.figures(&format!("{name}: each")));
        figures.extend(self.idle(plan, before, daemon, others).await?);

        let began = Instant::now();
        let gone = stream::iter(pods).map(|(pod, _)| self.gone(pod)).buffer_unordered(plan.parallel);
        gone.try_collect::<Vec<_>>().await?;
        figures.push(Figure { name: format!("{name}: teardown"), unit: "s", value: began.elapsed().as_secs_f64() });
        if plan.rounds > 1 {
            figures.extend(self.rounds(plan, daemon, others).await?);
        }
        Ok(figures)
    }

    /// Many pods with a host port each, up and down again and again: nothing of them may stay. The first round does not count:
    /// the daemon's threads and its allocator's pages become as many as a crowd takes, which they do not in one round (over
    /// eight, the heap was 17, 21, 23, 23, 24, 23, 22 and 21 MB).
    async fn rounds(&self, plan: Plan, daemon: u32, others: &[u32]) -> Result<Vec<Figure>> {
        let mut holdings: Vec<Holdings> = Vec::new();
        for round in 0..=plan.rounds {
            let pods = stream::iter(0..plan.crowd).map(|number| async move {
                let port = u16::try_from(20_000 + number % 10_000)?;
                self.pod_with(&format!("round{round}"), number, Some(port)).await
            });
            let pods: Vec<Pod> = pods.buffer_unordered(plan.parallel).try_collect().await?;
            let gone = stream::iter(pods).map(|pod| self.gone(pod)).buffer_unordered(plan.parallel);
            gone.try_collect::<Vec<_>>().await?;
            let now = self.settled(daemon, others, holdings.first().copied()).await?;
            eprintln!("after round {round}: {now:?}");
            if round > 0 {
                holdings.push(now);
            }
        }
        let name = format!("{} pods, {} times", plan.crowd, plan.rounds);
        match holdings.as_slice() {
            [first, .., last] => Holdings::compare(*first, *last, &name),
            _ => Ok(Vec::new()),
        }
    }

    /// What is there when the kernel has taken down what was removed: in the background, for network namespaces. What is
    /// there for a moment only, as a connection, is waited out: more than `most` for good is what is looked for.
    async fn settled(&self, daemon: u32, others: &[u32], most: Option<Holdings>) -> Result<Holdings> {
        let (mut before, deadline) = (None, Instant::now() + Duration::from_secs(60));
        loop {
            let now = Holdings::look(daemon, taken(daemon, others)?.daemon, &self.parent)?;
            let grown = most.is_some_and(|most| Holdings::compare(most, now, "settling").is_err());
            if before == Some(now.lasting()) && !grown || Instant::now() > deadline {
                return Ok(now);
            }
            before = Some(now.lasting());
            sleep(Duration::from_secs(1)).await;
        }
    }

    async fn one_by_one(&self, name: &str, count: usize, pause: Duration) -> Result<Vec<Figure>> {
        let [mut run, mut start, mut stop, mut remove] = <[Durations; 4]>::default();
        for number in 0..count {
            // the pause between pods is what is measured: the kernel answers later after quiet
            sleep(pause).await;
            let pod = self.pod(&name.replace(' ', "-"), number).await?;
            run.add(pod.run);
            start.add(pod.create + pod.start);
            self.armed(&pod).await?;
            let gone = self.gone(pod).await?;
            stop.add(gone.stop);
            remove.add(gone.pod);
        }
        let rows =
            [("RunPodSandbox", run), (START, start), ("StopContainer", stop), ("Stop- + RemovePodSandbox", remove)];
        Ok(rows.iter().flat_map(|(call, durations)| durations.figures(&format!("{call}, {name}"))).collect())
    }

    /// Memory of the loaded runtime, and its processor time under kubelet's relist.
    async fn idle(&self, plan: Plan, before: Taken, daemon: u32, others: &[u32]) -> Result<Vec<Figure>> {
        let loaded = taken(daemon, others)?;
        let per_pod = loaded.helpers.saturating_sub(before.helpers) as f64 / plan.pods.max(1) as f64;
        let (began, mut second) = (Instant::now(), interval(Duration::from_secs(1)));
        while began.elapsed() < plan.idle {
            second.tick().await;
            let mut cri = self.cri.clone();
            cri.runtime.list_pod_sandbox(ListPodSandboxRequest::default()).await.context("relist pods")?;
            cri.runtime.list_containers(ListContainersRequest::default()).await.context("relist containers")?;
        }
        let spent = taken(daemon, others)?.time.saturating_sub(loaded.time).as_secs_f64();
        Ok(vec![
            megabytes("daemon with the load, PSS", loaded.daemon as f64),
            megabytes("helpers per pod, PSS", per_pod),
            Figure {
                name: "helper processes per pod".into(),
                unit: "",
                value: (loaded.count - before.count) as f64 / plan.pods.max(1) as f64,
            },
            Figure {
                name: "idle load with a relist each second".into(),
                unit: "% of a core",
                value: 100.0 * spent / began.elapsed().as_secs_f64(),
            },
        ])
    }

    /// A pod's cgroup, below that of all: a slice below a slice, by whose name it is to be.
    fn cgroup_of(&self, number: usize) -> String {
        match self.parent.strip_prefix('/').and_then(|parent| parent.strip_suffix(".slice")) {
            Some(parent) => format!("/{parent}.slice/{parent}-pod{number}.slice"),
            None => format!("{}/pod{number}", self.parent),
        }
    }

    async fn pod(&self, name: &str, number: usize) -> Result<Pod> {
        self.pod_with(name, number, None).await
    }

    async fn pod_with(&self, name: &str, number: usize, port: Option<u16>) -> Result<Pod> {
        let name = format!("{name}-{number}");
        let folder = self.logs.join(&name);
        let config = PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.clone(),
                namespace: "bench".into(),
                uid: format!("{name}-uid"),
                attempt: 0,
            }),
            hostname: name.clone(),
            log_directory: folder.display().to_string(),
            labels: HashMap::from([("io.kubernetes.pod.name".into(), name)]),
            port_mappings: port.map(port_mapping).into_iter().collect(),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: self.cgroup_of(number),
                security_context: Some(LinuxSandboxSecurityContext {
                    namespace_options: Some(namespaces()),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        };
        let mut runtime = self.cri.runtime.clone();
        let began = Instant::now();
        let request = RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: String::new() };
        let sandbox = runtime.run_pod_sandbox(request).await.context("RunPodSandbox")?.into_inner().pod_sandbox_id;
        let run = began.elapsed();
        let began = Instant::now();
        let request = CreateContainerRequest {
            pod_sandbox_id: sandbox.clone(),
            config: Some(self.container()),
            sandbox_config: Some(config),
        };
        let container = runtime.create_container(request).await.context("CreateContainer")?.into_inner().container_id;
        let create = began.elapsed();
        let began = Instant::now();
        let request = StartContainerRequest { container_id: container.clone() };
        runtime.start_container(request).await.context("StartContainer")?;
        Ok(Pod { sandbox, container, log: folder.join("0.log"), run, create, start: began.elapsed() })
    }

    /// A shell that obeys SIGTERM.
    fn container(&self) -> ContainerConfig {
        ContainerConfig {
            metadata: Some(ContainerMetadata { name: "c".into(), attempt: 0 }),
            image: Some(image(&self.image)),
            command: vec!["sh".into(), "-c".into(), script()],
            log_path: "0.log".into(),
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

    /// Waits until the container's shell has set its trap: a signal before that is dropped by the kernel.
    async fn armed(&self, pod: &Pod) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !tokio::fs::read_to_string(&pod.log).await.unwrap_or_default().contains("armed") {
            if Instant::now() > deadline {
                bail!("container {} says nothing in {}", pod.container, pod.log.display());
            }
            sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    async fn gone(&self, pod: Pod) -> Result<Gone> {
        self.armed(&pod).await?;
        let mut runtime = self.cri.runtime.clone();
        let began = Instant::now();
        let request = StopContainerRequest { container_id: pod.container, timeout: 10 };
        runtime.stop_container(request).await.context("StopContainer")?;
        let stop = began.elapsed();
        let began = Instant::now();
        let request = StopPodSandboxRequest { pod_sandbox_id: pod.sandbox.clone() };
        runtime.stop_pod_sandbox(request).await.context("StopPodSandbox")?;
        let request = RemovePodSandboxRequest { pod_sandbox_id: pod.sandbox };
        runtime.remove_pod_sandbox(request).await.context("RemovePodSandbox")?;
        Ok(Gone { stop, pod: began.elapsed() })
    }
}

/// What a container runs: a shell that obeys SIGTERM once it has said so.
pub(super) fn script() -> String {
    format!(": {WORKLOAD}; trap 'exit 0' TERM; echo armed; while :; do sleep {SLEEPS} & wait $!; done")
}

fn port_mapping(port: u16) -> PortMapping {
    PortMapping { protocol: Protocol::Tcp.into(), container_port: 80, host_port: port.into(), host_ip: String::new() }
}

fn megabytes(name: &str, bytes: f64) -> Figure {
    Figure { name: name.into(), unit: "MB", value: bytes / 1e6 }
}

fn image(reference: &str) -> ImageSpec {
    ImageSpec { image: reference.into(), ..Default::default() }
}

fn namespaces() -> NamespaceOption {
    NamespaceOption { pid: NamespaceMode::Container.into(), ..Default::default() }
}
