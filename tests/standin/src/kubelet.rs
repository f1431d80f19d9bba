//! A kubelet's outside, for the test host: it judges flags and configuration by the tables of its version, refuses what a
//! kubelet of that version refuses, answers `/healthz`, and runs static pods over the CRI endpoint that it was given.
//!
//! What it is not: it talks to no API server. With a kubeconfig it behaves as a kubelet that has joined and has no pods.

mod configuration;
mod cri;
mod flags;
mod health;
mod manifest;
mod pods;
mod version;

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use nodeagent_cri_api as api;
use serde_json::{Map, Value};
use tokio::signal::unix::{SignalKind, signal};

use crate::cri::Client;
use crate::flags::Flags;
use crate::pods::Pods;
use crate::version::Version;

fn main() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = runtime.context("start").and_then(|runtime| runtime.block_on(run()));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("command failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> anyhow::Result<()> {
    let version = Version::installed()?;
    let flags = Flags::parse(version.flags, std::env::args().skip(1))?;
    if flags.get("version").is_some() {
        println!("Kubernetes v{}", version.text);
        return Ok(());
    }
    let config = configuration::load(version.fields, flags.get("config"), flags.get("config-dir"))?;
    refuse_what_cannot_work(&version, &flags, &config)?;

    let endpoint = endpoint(&flags, &config);
    let client = Client::connect(&endpoint, version.minor).await?;
    let driver = cgroup_driver(&client, &version, &flags, &config).await;
    let status: api::StatusResponse = client.runtime("Status", api::StatusRequest { verbose: false }).await?;
    for condition in status.status.unwrap_or_default().conditions {
        println!("runtime condition {} is {}: {}", condition.r#type, condition.status, condition.message);
    }
    println!("kubelet v{} on {endpoint}, cgroup driver {driver}", version.text);
    let healthz = config.get("healthzPort").and_then(Value::as_u64).unwrap_or(10248);
    health::serve(healthz).await?;
    run_pods(Pods::new(client, driver, node_name()?), static_pod_path(&flags, &config)).await
}

/// The checks that end a kubelet at its start.
fn refuse_what_cannot_work(version: &Version, flags: &Flags, config: &Map<String, Value>) -> anyhow::Result<()> {
    if version.minor < 24 && flags.get("container-runtime") != Some("remote") {
        bail!("failed to run Kubelet: the stand-in has no docker: --container-runtime=remote is missing");
    }
    let fail_on_swap = match flags.get("fail-swap-on") {
        Some(text) => text != "false",
        None => config.get("failSwapOn").and_then(Value::as_bool).unwrap_or(true),
    };
    let swaps = std::fs::read_to_string("/proc/swaps").unwrap_or_default();
    if fail_on_swap && swaps.lines().count() > 1 {
        bail!(
            "failed to run Kubelet: running with swap on is not supported, please disable swap or set --fail-swap-on flag to false"
        );
    }
    if let Some(kubeconfig) = flags.get("kubeconfig").filter(|path| !Path::new(path).exists()) {
        match flags.get("bootstrap-kubeconfig") {
            Some(bootstrap) if Path::new(bootstrap).exists() => {}
            Some(bootstrap) => bail!(
                "failed to run Kubelet: unable to load bootstrap kubeconfig: stat {bootstrap}: no such file or directory"
            ),
            None => bail!("failed to run Kubelet: invalid kubeconfig: stat {kubeconfig}: no such file or directory"),
        }
    }
    Ok(())
}

/// A flag beats the file; without either it is containerd's, as in a kubelet.
fn endpoint(flags: &Flags, config: &Map<String, Value>) -> String {
    flags
        .get("container-runtime-endpoint")
        .or_else(|| config.get("containerRuntimeEndpoint").and_then(Value::as_str))
        .unwrap_or("unix:///run/containerd/containerd.sock")
        .to_owned()
}

/// From 1.31 on the runtime's answer counts; before that, and where the runtime has none, the kubelet's own setting.
async fn cgroup_driver(client: &Client, version: &Version, flags: &Flags, config: &Map<String, Value>) -> String {
    let own = flags.get("cgroup-driver").or_else(|| config.get("cgroupDriver").and_then(Value::as_str));
    let own = own.unwrap_or("cgroupfs").to_owned();
    if version.minor < 31 {
        return own;
    }
    match client.runtime::<_, api::RuntimeConfigResponse>("RuntimeConfig", api::RuntimeConfigRequest {}).await {
        Ok(answer) => match answer.linux.map(|linux| linux.cgroup_driver()) {
            Some(api::CgroupDriver::Systemd) => "systemd".to_owned(),
            Some(api::CgroupDriver::Cgroupfs) => "cgroupfs".to_owned(),
            None => own,
        },
        Err(error) => {
            println!("falling back to the kubelet's own cgroup driver: {error:#}");
            own
        }
    }
}

fn static_pod_path(flags: &Flags, config: &Map<String, Value>) -> Option<String> {
    let path = flags.get("pod-manifest-path").or_else(|| config.get("staticPodPath").and_then(Value::as_str));
    path.filter(|path| !path.is_empty()).map(str::to_owned)
}

fn node_name() -> anyhow::Result<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").context("read the host's name")?;
    Ok(name.trim().to_lowercase())
}

/// Looks at the static pods each second until SIGTERM; pods stay when the kubelet goes.
async fn run_pods(pods: Pods, place: Option<String>) -> anyhow::Result<()> {
    let mut end = signal(SignalKind::terminate())?;
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    let mut said = String::new();
    loop {
        tokio::select! {
            _ = end.recv() => return Ok(()),
            _ = tick.tick() => {}
        }
        let Some(place) = &place else { continue };
        let loaded = match manifest::load(Path::new(place)) {
            Ok(loaded) => loaded,
            Err(error) => {
                say_once(&mut said, format!("{error:#}"));
                continue;
            }
        };
        for pod in loaded {
            match pods.sync(&pod).await {
                Ok(did) => did.iter().for_each(|line| println!("pod {}: {line}", pod.metadata.name)),
                Err(error) => say_once(&mut said, format!("pod {}: {error:#}", pod.metadata.name)),
            }
        }
    }
}

/// The same trouble each second is one line.
fn say_once(said: &mut String, line: String) {
    if *said != line {
        eprintln!("{line}");
        *said = line;
    }
}
