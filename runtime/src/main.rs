//! `nodeagent-runtime`: the CRI service of a node.
//!
//! Exit codes: 0 after a stop that was asked for, 1 for a failure, 2 for wrong flags, 10 for a configuration that
//! cannot be used, 11 when the host lacks what is needed (cgroups, a free socket, a writable directory).

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser};
use nodeagent_runtime::cli::Command;
use nodeagent_runtime::config::{self, Config, ConfigError, LogLevel};
use nodeagent_runtime::daemon::{self, Failure};
use nodeagent_runtime::notify::Notifier;
use nodeagent_runtime::telemetry;

// musl's own allocator takes one lock for all threads; built without its wish for huge pages
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const EXIT_CONFIG: u8 = 10;
const EXIT_PRECONDITION: u8 = 11;

/// Runs pods and containers for kubelet, over the Container Runtime Interface.
#[derive(Debug, Clone, Parser)]
#[command(name = "nodeagent-runtime", version)]
struct Flags {
    #[command(subcommand)]
    command: Option<Command>,
    /// Configuration file
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    /// Directory of what survives a reboot
    #[arg(long, value_name = "DIR", global = true)]
    root: Option<PathBuf>,
    /// Directory of what a reboot may forget
    #[arg(long, value_name = "DIR", global = true)]
    state: Option<PathBuf>,
    /// The CRI socket
    #[arg(long, value_name = "PATH")]
    listen: Option<PathBuf>,
    // no PathBuf: clap lets no empty one through
    /// Second socket, where cAdvisor looks for a runtime; empty for none
    #[arg(long, value_name = "PATH")]
    compat_socket: Option<OsString>,
    /// Directory of CNI configuration lists
    #[arg(long, value_name = "DIR")]
    cni_conf_dir: Option<PathBuf>,
    /// Directory of CNI plugins; may be given more than once
    #[arg(long, value_name = "DIR")]
    cni_plugin_dir: Vec<PathBuf>,
    /// The pod supervisor
    #[arg(long, value_name = "FILE")]
    shim: Option<PathBuf>,
    /// How much is logged
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<LogLevel>,
}

impl Flags {
    /// The file's settings, with the flags laid over them.
    fn settings(&self) -> Result<Config, ConfigError> {
        let path = self.config.clone().unwrap_or_else(|| config::DEFAULT_PATH.into());
        let mut settings = config::load(&path, self.config.is_some())?;
        let flags = self.clone();
        let set = |target: &mut PathBuf, flag: Option<PathBuf>| {
            if let Some(value) = flag {
                *target = value;
            }
        };
        set(&mut settings.root, flags.root);
        set(&mut settings.state, flags.state);
        set(&mut settings.listen, flags.listen);
        set(&mut settings.compat_socket, flags.compat_socket.map(PathBuf::from));
        set(&mut settings.network.conf_dir, flags.cni_conf_dir);
        set(&mut settings.shim, flags.shim);
        if !flags.cni_plugin_dir.is_empty() {
            settings.network.plugin_dirs = flags.cni_plugin_dir;
        }
        if let Some(level) = flags.log_level {
            settings.log_level = level;
        }
        Ok(settings)
    }
}

fn main() -> ExitCode {
    // one byte in use would cost 2 MiB, on every host that gives huge pages to all; only costs memory where it fails.
    // The supervisor of a pod takes it back for its containers
    let _ = nix::sys::prctl::set_thp_disable(true);
    let mut flags = Flags::parse();
    if let Some(command) = flags.command.take() {
        return command.run(Flags::command(), || flags.settings().map_err(|error| fail(&error, EXIT_CONFIG)));
    }
    let settings = match flags.settings() {
        Ok(settings) => settings,
        Err(error) => return fail(&error, EXIT_CONFIG),
    };
    if let Err(error) = telemetry::init(settings.log_level.into()) {
        return fail(&error, 1);
    }
    let variable = |name| std::env::var(name).ok();
    let notifier = Notifier::new(variable("NOTIFY_SOCKET"))
        .with_watchdog(variable("WATCHDOG_USEC").as_deref(), variable("WATCHDOG_PID").as_deref());
    let reload = move || flags.settings();
    match daemon::run(settings, reload, &notifier) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure @ Failure::Precondition(_)) => fail(&failure, EXIT_PRECONDITION),
        Err(failure) => fail(&failure, 1),
    }
}

fn fail(error: &dyn std::error::Error, code: u8) -> ExitCode {
    // before logging is set up, and for people who started it by hand
    eprintln!("nodeagent-runtime: {}", telemetry::chain(error));
    ExitCode::from(code)
}
