//! The only code that touches the machine.
//!
//! A [`Host`] is a root directory and a few narrow seams. The running system, a tree under `--root` and the fake that tests use
//! differ in what stands behind the seams; everything above them is the same code.

pub mod action;
pub mod clock;
pub mod command;
pub mod dnf;
mod facts;
#[cfg(any(test, feature = "testing"))]
pub mod fake;
pub mod firewall;
pub mod kernel;
mod kubeadm;
pub mod labels;
pub mod ledger;
pub mod mounts;
pub mod platform;
pub mod root;
mod sys;
pub mod systemd;
pub mod watch;

use std::path::Path;
use std::sync::Arc;

pub use action::{ActionError, Executed};
pub use clock::Clock;
pub use command::CommandRunner;
pub use kernel::Kernel;
pub use ledger::Ledger;
pub use platform::{Platform, PlatformError};
pub use root::{Root, RootError};
pub use systemd::Systemd;

/// Whether the root is the running system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// It is.
    Live,
    /// It is a tree: an image, or an installed system before its first boot.
    Offline,
}

/// Everything outside of this process.
#[derive(Clone)]
pub struct Host {
    /// Files.
    pub root: Root,
    /// Parameters, modules, SELinux.
    pub kernel: Kernel,
    /// Units.
    pub systemd: Arc<dyn Systemd>,
    /// firewalld, where it runs.
    pub firewall: Arc<dyn firewall::Firewall>,
    /// Programs.
    pub commands: Arc<dyn CommandRunner>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Running or not.
    pub mode: Mode,
    /// This process runs in a systemd unit, which others may restart.
    pub inside_unit: bool,
    /// What this process has changed.
    pub ledger: Ledger,
}

impl Host {
    /// The running system. Connects to nothing yet.
    pub fn live() -> Result<Host, RootError> {
        let ledger = Ledger::default();
        let root = Root::live(ledger.clone())?;
        let commands: Arc<dyn CommandRunner> = Arc::new(command::Programs::new(ledger.clone()));
        let release = platform::running_kernel(&root)?;
        Ok(Host {
            kernel: Kernel::new(root.clone(), commands.clone(), Arc::new(kernel::RealSwap), &release),
            systemd: Arc::new(systemd::bus::Bus::live(ledger.clone())),
            firewall: Arc::new(firewall::bus::FirewallBus::live(ledger.clone())),
            commands,
            clock: Arc::new(clock::SystemClock),
            mode: Mode::Live,
            // systemd gives this to the processes of units, and to nothing else
            inside_unit: std::env::var_os("INVOCATION_ID").is_some() && platform::run_by_systemd(&root)?,
            root,
            ledger,
        })
    }

    /// A tree that does not run. Nothing in it is executed, and nothing outside of it is changed.
    pub fn offline(root: &Path) -> Result<Host, RootError> {
        let ledger = Ledger::default();
        let root = Root::offline(root, ledger.clone())?;
        let commands: Arc<dyn CommandRunner> = Arc::new(command::NoCommands);
        let release = platform::newest_kernel(&root)?.unwrap_or_default();
        Ok(Host {
            kernel: Kernel::new(root.clone(), commands.clone(), Arc::new(kernel::RealSwap), &release),
            systemd: Arc::new(systemd::offline::Offline::new(root.clone())),
            // never asked: a tree has only files
            firewall: Arc::new(firewall::bus::FirewallBus::live(ledger.clone())),
            commands,
            clock: Arc::new(clock::SystemClock),
            mode: Mode::Offline,
            inside_unit: false,
            root,
            ledger,
        })
    }

    /// True for a tree that does not run.
    pub fn is_offline(&self) -> bool {
        self.mode == Mode::Offline
    }
}
