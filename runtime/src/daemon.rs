//! The application: built from its configuration, served until told to stop, drained.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use nodeagent_cri_api::VersionRequest;
use nodeagent_cri_api::runtime_service_client::RuntimeServiceClient;
use tokio::net::UnixStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tonic::transport::Endpoint;

use crate::cgroup::{CgroupError, Cgroups, Delegated};
use crate::config::{Config, ConfigError};
use crate::cri::Cri;
use crate::kernel::Kernel;
use crate::notify::Notifier;
use crate::server::{self, Limits, Listener, ServerError, Services};
use crate::telemetry::chain;

/// Everything the calls work on.
pub struct Node {
    /// As read at the start.
    pub config: Config,
    /// The host's cgroups.
    pub cgroups: Cgroups,
    /// The host's kernel.
    pub kernel: Kernel,
}

impl Node {
    /// Whether pods can be run, else reason and message.
    pub fn runtime_ready(&self) -> Result<(), (String, String)> {
        let shim = &self.config.shim;
        match fs::metadata(shim) {
            Ok(_) => Ok(()),
            Err(error) => Err(("ShimMissing".to_owned(), format!("{}: {error}", shim.display()))),
        }
    }

    /// Whether pods get a network, else reason and message.
    pub fn network_ready(&self) -> Result<(), (String, String)> {
        Ok(())
    }
}

/// Why the daemon ended.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The host lacks something.
    #[error("this host cannot run it")]
    Precondition(#[source] Precondition),
    /// The asynchronous runtime did not start.
    #[error("cannot start")]
    Start(#[source] io::Error),
    /// The socket is bound and does not answer.
    #[error("the socket does not answer")]
    Silent(#[source] tonic::transport::Error),
    /// The socket answers with an error.
    #[error("the socket answers with an error")]
    Unwell(#[source] Box<tonic::Status>),
}

/// What the host has to offer before anything can start.
#[derive(Debug, thiserror::Error)]
pub enum Precondition {
    /// A directory cannot be made.
    #[error("cannot make {path}")]
    Directory {
        /// The directory.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// `/proc` is not what it should be.
    #[error("cannot read {path}")]
    Proc {
        /// The file.
        path: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No cgroups.
    #[error("cgroups")]
    Cgroups(#[source] CgroupError),
    /// No socket.
    #[error("socket")]
    Socket(#[source] ServerError),
}

/// Runs until SIGTERM or SIGINT. `reload` reads the configuration again, for SIGHUP.
pub fn run(
    config: Config,
    reload: impl Fn() -> Result<Config, ConfigError>,
    notifier: &Notifier,
) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(Failure::Start)?;
    let result = runtime.block_on(serve(config, reload, notifier));
    // work that nobody waits for any more (a pull that was detached) must not hold up the end
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

async fn serve(
    config: Config,
    reload: impl Fn() -> Result<Config, ConfigError>,
    notifier: &Notifier,
) -> Result<(), Failure> {
    let mut signals = Signals::new().map_err(Failure::Start)?;
    let listeners = bind(&config).map_err(Failure::Precondition)?;
    let listen = config.listen.clone();
    let drain = Duration::from_secs(config.drain_seconds);
    let node = Arc::new(build(config).map_err(Failure::Precondition)?);
    let stop = CancellationToken::new();
    let cri = Cri::new(Arc::clone(&node));
    let services = Services { runtime: cri.clone(), image: cri.clone(), crio: Arc::new(cri) };
    let limits = Limits { drain, ..Limits::default() };
    let serving = tokio::spawn(server::serve(listeners, services, limits, stop.clone()));

    probe(&listen).await?;
    let status = format!("serving on {}", listen.display());
    log::info!("{status}");
    notifier.ready(&status);
    loop {
        match signals.next().await {
            Told::Stop => break,
            Told::Reload => {
                notifier.reloading(monotonic_usec());
                apply_reload(&node, reload());
                notifier.ready(&status);
            }
        }
    }
    notifier.stopping();
    log::info!("stopping");
    stop.cancel();
    if let Err(error) = serving.await {
        log::error!("the server ended badly: {error}");
    }
    Ok(())
}

/// Both sockets. One that cAdvisor wants but somebody else owns is done without.
fn bind(config: &Config) -> Result<Vec<Listener>, Precondition> {
    let mut listeners = vec![Listener::bind(&config.listen).map_err(Precondition::Socket)?];
    if config.compat_socket.as_os_str().is_empty() {
        return Ok(listeners);
    }
    match Listener::bind(&config.compat_socket) {
        Ok(listener) => listeners.push(listener),
        Err(error) => log::warn!("metrics will lack the labels of pods and containers: {}", chain(&error)),
    }
    Ok(listeners)
}

fn build(config: Config) -> Result<Node, Precondition> {
    for path in [&config.root, &config.state] {
        fs::create_dir_all(path)
            .map_err(|source| Precondition::Directory { path: path.display().to_string(), source })?;
    }
    let mountinfo = read_proc("/proc/self/mountinfo")?;
    // what systemd itself asks (sd_booted)
    let systemd = Path::new("/run/systemd/system").is_dir();
    let cgroups = Cgroups::detect(&mountinfo, config.cgroup_driver, systemd).map_err(Precondition::Cgroups)?;
    let own = read_proc("/proc/self/cgroup")?;
    let invocation = std::env::var("INVOCATION_ID").ok();
    let _delegated = Delegated::enter(cgroups.layout(), &own, invocation.as_deref()).map_err(Precondition::Cgroups)?;
    let kernel = Kernel::from_release(&read_proc("/proc/sys/kernel/osrelease")?);
    Ok(Node { config, cgroups, kernel })
}

fn read_proc(path: &'static str) -> Result<String, Precondition> {
    fs::read_to_string(path).map_err(|source| Precondition::Proc { path, source })
}

/// Asks our own socket for `Version`, through everything a client goes through.
async fn probe(socket: &Path) -> Result<(), Failure> {
    let socket = socket.to_owned();
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    let channel = Endpoint::from_static("http://localhost")
        .timeout(Duration::from_secs(10))
        .connect_with_connector(connector)
        .await
        .map_err(Failure::Silent)?;
    let answer = RuntimeServiceClient::new(channel).version(VersionRequest::default()).await;
    answer.map(drop).map_err(|status| Failure::Unwell(Box::new(status)))
}

/// What can change under running pods changes; for the rest, the log says what needs a restart.
fn apply_reload(node: &Node, config: Result<Config, ConfigError>) {
    let config = match config {
        Ok(config) => config,
        Err(error) => {
            log::error!("the configuration stays as it was: {}", chain(&error));
            return;
        }
    };
    log::set_max_level(config.log_level.into());
    let now = Config { log_level: node.config.log_level, ..config };
    if now == node.config {
        log::info!("configuration read again");
    } else {
        log::warn!("configuration read again; only log_level changes without a restart");
    }
}

fn monotonic_usec() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC);
    now.map_or(0, |time| Duration::from(time).as_micros().try_into().unwrap_or(u64::MAX))
}

enum Told {
    Stop,
    Reload,
}

struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    hangup: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Told {
        // cancel-safe: a signal that was not received yet is received by the next call
        tokio::select! {
            _ = self.terminate.recv() => Told::Stop,
            _ = self.interrupt.recv() => Told::Stop,
            _ = self.hangup.recv() => Told::Reload,
        }
    }
}
