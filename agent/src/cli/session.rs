//! What every command that looks at a host starts with: which root, may it be touched, what is its config.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::unistd::Uid;

use super::Global;
use super::failure::Failure;
use crate::config::settings::RemovedPolicy;
use crate::config::{self, Config, Facts, source};
use crate::host::platform::run_by_systemd;
use crate::host::{Host, Ledger, Platform, PlatformError, Root};
use crate::reconcile::Engine;
use crate::resource;
use crate::telemetry::{JOURNAL_ONLY, event};

/// A host, what it is, and what it should be.
pub struct Session {
    /// The host.
    pub host: Host,
    /// What it is.
    pub platform: Platform,
    /// What it should be.
    pub config: Config,
}

/// Why a root is taken to be one that does not run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OfflineBecause {
    /// `--root`.
    Asked,
    /// `SYSTEMD_OFFLINE=1`, as image builders set it.
    Environment,
    /// This process sits in a chroot: what runs is another system.
    Chroot,
}

impl Session {
    /// Opens the host and its config. All that can be wrong with them is said here, before anything is touched.
    pub fn open(global: &Global) -> Result<Session, Failure> {
        let host = open_host(global)?;
        let platform = Platform::detect(&host)?;
        let running = Running { by_systemd: run_by_systemd(&host.root)?, as_root: Uid::effective().is_root() };
        may_manage(&platform, (!host.is_offline()).then_some(running))?;
        let config = load_config(&host, global)?;
        Ok(Session { host, platform, config })
    }

    /// Takes what a command line says about resources that have left the config.
    pub fn override_removed(&mut self, policy: Option<RemovedPolicy>) {
        let setting = &mut self.config.settings.reconcile.removed;
        *setting = policy.unwrap_or(*setting);
    }

    /// The engine over this host's resources.
    pub fn engine(&self) -> Result<Engine<'_>, Failure> {
        let resources = resource::registry(&self.config.settings, &self.platform)?;
        Ok(Engine::new(&self.host, &self.platform, &self.config.settings.reconcile, resources)?)
    }
}

/// What matters of a system that runs.
struct Running {
    by_systemd: bool,
    as_root: bool,
}

/// Whether a system may be managed at all; `running` is none for a tree that does not run.
fn may_manage(platform: &Platform, running: Option<Running>) -> Result<(), Failure> {
    platform.supported()?;
    match running {
        Some(Running { by_systemd: false, .. }) => Err(PlatformError::NoSystemd.into()),
        Some(Running { as_root: false, .. }) => {
            Err(Failure::precondition("this looks at and changes the system: run it as root"))
        }
        _ => Ok(()),
    }
}

/// The root that the command is about.
pub fn open_host(global: &Global) -> Result<Host, Failure> {
    match offline_root(global) {
        Some((root, because)) => {
            if because != OfflineBecause::Asked {
                log::info!("{} is not a running system ({because:?}): working offline", root.display());
            }
            Ok(Host::offline(&root)?)
        }
        None => Ok(Host::live()?),
    }
}

fn offline_root(global: &Global) -> Option<(PathBuf, OfflineBecause)> {
    if let Some(root) = &global.root {
        return Some((root.clone(), OfflineBecause::Asked));
    }
    let root = PathBuf::from("/");
    if std::env::var_os("SYSTEMD_OFFLINE").is_some_and(|value| value == "1" || value == "true") {
        return Some((root, OfflineBecause::Environment));
    }
    in_chroot(Path::new("/proc/1/root"), Path::new("/")).then_some((root, OfflineBecause::Chroot))
}

/// systemd's own test: the root of process 1 is another directory than ours. Where it cannot be read, the answer is no:
/// then a live run ends on its own preconditions.
fn in_chroot(init_root: &Path, our_root: &Path) -> bool {
    match (init_root.metadata(), our_root.metadata()) {
        (Ok(init), Ok(ours)) => (init.dev(), init.ino()) != (ours.dev(), ours.ino()),
        _ => false,
    }
}

/// Config of a host, or the one that was named.
pub fn load_config(host: &Host, global: &Global) -> Result<Config, Failure> {
    let sources = match &global.config {
        Some(path) => source::given(&Root::live(Ledger::default())?, path),
        None => source::of_host(&host.root),
    };
    if sources.is_empty() {
        return Err(Failure::new(
            crate::exit::Exit::ConfigInvalid,
            "there is no config: write /etc/nodeagent/config.toml or a file in /etc/nodeagent/config.d \
             (`agent explain` lists what it can ask for)",
        ));
    }
    config::resolve(&sources, &host.facts()?).map_err(|errors| {
        for error in &errors.0 {
            // people get the whole list from the command itself
            log::error!(target: JOURNAL_ONLY, MESSAGE_ID = event::CONFIG_INVALID; "config: {error}");
        }
        errors.into()
    })
}

/// Facts of this machine where they can be had; for looking at a config without touching a host.
pub fn facts_here() -> Facts {
    Host::live().and_then(|host| host.facts()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_system_is_13_and_a_system_without_systemd_or_root_is_11() {
        let platform = |id: &str, version: &str| Platform {
            id: id.to_owned(),
            id_like: Vec::new(),
            name: id.to_owned(),
            version: version.to_owned(),
            systemd: None,
            kernel: String::new(),
            arch: "x86_64",
            cgroups: crate::host::platform::CgroupMode::Unknown,
        };
        let running = |by_systemd, as_root| Some(Running { by_systemd, as_root });
        let code = |platform: &Platform, running| may_manage(platform, running).map_err(|failure| failure.exit_code);
        let (el, debian) = (platform("centos", "9"), platform("debian", "12"));
        assert_eq!(code(&el, running(true, true)), Ok(()));
        assert_eq!(code(&el, running(false, true)), Err(11));
        assert_eq!(code(&el, running(true, false)), Err(11));
        assert_eq!(code(&el, None), Ok(()), "a tree needs neither");
        for state in [running(true, true), running(false, false), None] {
            assert_eq!(code(&debian, state), Err(13));
        }
        assert_eq!(code(&platform("centos", "7"), None), Err(13));
    }

    #[test]
    fn a_root_other_than_that_of_process_1_is_a_chroot() {
        let dir = tempfile::tempdir().unwrap();
        assert!(in_chroot(dir.path(), Path::new("/")));
        assert!(!in_chroot(Path::new("/"), Path::new("/")));
        assert!(!in_chroot(&dir.path().join("missing"), Path::new("/")), "unknown is not offline");
    }
}
