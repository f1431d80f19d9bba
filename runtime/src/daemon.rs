//! The application: built from its configuration, served until told to stop, drained.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper_util::rt::TokioIo;
use nodeagent_cri_api::VersionRequest;
use nodeagent_cri_api::runtime_service_client::RuntimeServiceClient;
use tokio::net::UnixStream;
use tokio::signal::unix::{SignalKind, signal};
use tonic::transport::Endpoint;

use crate::config::{Config, ConfigError};
use crate::cri::Cri;
use crate::image;
use crate::node::{Node, Precondition, image_socket};
use crate::notify::Notifier;
use crate::server::{self, Limits, Listener, ServerError, Services};
use crate::state::StateError;
use crate::sys;
use crate::telemetry::chain;

/// Why the daemon ended.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The host lacks something.
    #[error("this host cannot run it")]
    Precondition(#[source] Precondition),
    /// What an earlier daemon left cannot be read.
    #[error("cannot meet the pods of an earlier daemon")]
    Recover(#[source] StateError),
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

/// How long the socket of a predecessor may outlive it, and how often that is looked at.
const LAST_CHILD: Duration = Duration::from_secs(2);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Runs until SIGTERM or SIGINT. `reload` reads the configuration again, for SIGHUP.
pub fn run(
    config: Config,
    reload: impl Fn() -> Result<Config, ConfigError>,
    notifier: &Notifier,
) -> Result<(), Failure> {
    // what the starting program forgot to close is not for network plugins
    sys::close_inherited_on_exec();
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
    let listeners = bind(&config).await.map_err(Failure::Precondition)?;
    let listen = config.listen.clone();
    let drain = Duration::from_secs(config.drain_seconds);
    let node = Arc::new(Node::build(config).await.map_err(Failure::Precondition)?);
    // clients wait in the sockets' backlogs meanwhile: nobody is told of half the pods
    node.pods.recover().await.map_err(Failure::Recover)?;
    let stop = node.stop.clone();
    let cri = Cri::new(Arc::clone(&node));
    let services = Services { runtime: cri.clone(), image: cri.clone(), crio: Arc::new(cri) };
    let limits = Limits { drain, ..Limits::default() };
    let administered = image::admin::serve(node.images.clone(), &image_socket(&node.config), stop.clone());
    match administered {
        Ok(serving) => drop(tokio::spawn(serving)),
        Err(error) => log::warn!("`nodeagent-runtime image` will not work while the daemon runs: {error}"),
    }
    let serving = tokio::spawn(server::serve(listeners, services, limits, stop.clone()));

    probe(&listen).await?;
    let status = format!("serving on {}", listen.display());
    log::info!("{status}");
    notifier.ready(&status);
    let watched = notifier.watchdog().map(|period| tokio::spawn(stay_alive(notifier.clone(), listen, period)));
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
    if let Some(watched) = watched {
        watched.abort();
    }
    stop.cancel();
    if let Err(error) = serving.await {
        log::error!("the server ended badly: {error}");
    }
    node.images.shutdown().await;
    Ok(())
}

/// Both sockets. One that cAdvisor wants but somebody else owns is done without.
async fn bind(config: &Config) -> Result<Vec<Listener>, Precondition> {
    let mut listeners = vec![bind_own(&config.listen).await.map_err(Precondition::Socket)?];
    if config.compat_socket.as_os_str().is_empty() {
        return Ok(listeners);
    }
    match Listener::bind(&config.compat_socket) {
        Ok(listener) => listeners.push(listener),
        Err(error) => log::warn!("metrics will lack the labels of pods and containers: {}", chain(&error)),
    }
    Ok(listeners)
}

/// A child of a daemon that was killed holds its socket until it executes its program.
async fn bind_own(path: &Path) -> Result<Listener, ServerError> {
    let deadline = Instant::now() + LAST_CHILD;
    loop {
        match Listener::bind(path) {
            Err(ServerError::Occupied { .. }) if Instant::now() < deadline => tokio::time::sleep(LOOK_AGAIN).await,
            other => return other,
        }
    }
}

/// Tells systemd's watchdog that the socket answers, for as long as it does: a daemon that hangs is started anew.
async fn stay_alive(notifier: Notifier, listen: PathBuf, period: Duration) {
    let mut beat = tokio::time::interval(period);
    beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        beat.tick().await;
        match probe(&listen).await {
            Ok(()) => notifier.alive(),
            Err(error) => log::error!("{}", chain(&error)),
        }
    }
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
