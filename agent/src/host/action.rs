//! Carries out the actions of a plan, and takes them back.
//!
//! This is all that ever changes a host. Undo data is captured before an action, so that it describes the host as it was; an
//! action whose effect is there already writes nothing, which makes every action safe to repeat after a crash.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::Host;
use super::command::{Command, CommandError};
use super::dnf::{self, DnfError};
use super::firewall::{FirewallEntry, FirewallError};
use super::kernel::{KernelError, Parameter};
use super::kubeadm::{self, KubeadmError};
use super::mounts::unmount_below;
use super::root::{Kind, Ownership, RootError};
use super::systemd::{JobKind, SystemdError};
use crate::plan::{Action, SavedFile, Undo, UnitOp};

/// Brought by the packages of Kubernetes.
pub const CRICTL: &str = "/usr/bin/crictl";

/// Each pod may take its grace period.
const REMOVE_PODS: Duration = Duration::from_secs(15 * 60);

/// Why an action, its capture or its undo failed.
#[derive(Debug, thiserror::Error)]
pub enum ActionError {
    /// A file.
    #[error("change files")]
    File(#[from] RootError),
    /// The kernel.
    #[error("change the kernel's state")]
    Kernel(#[from] KernelError),
    /// A unit.
    #[error("change units")]
    Systemd(#[from] SystemdError),
    /// A program.
    #[error("run a program")]
    Command(#[from] CommandError),
    /// firewalld.
    #[error("change the firewall")]
    Firewall(#[from] FirewallError),
    /// The cluster.
    #[error("become a member of the cluster")]
    Kubeadm(#[from] KubeadmError),
    /// Packages.
    #[error("change packages")]
    Dnf(#[from] DnfError),
    /// Something is in the way of a file.
    #[error("{path} is {found}: it is not replaced by a file")]
    NotAFile {
        /// Path on the host.
        path: String,
        /// What it is.
        found: &'static str,
    },
    /// The module was loaded and nothing came of it.
    #[error("modprobe {name} ended well, but the module is not there: {because}")]
    NoEffect {
        /// Module.
        name: String,
        /// What is known about it.
        because: String,
    },
    /// The kernel took a value and shows another.
    #[error("kernel parameter {key} is {got:?} after {want:?} was written")]
    NotTaken {
        /// Dotted name.
        key: String,
        /// What was written.
        want: String,
        /// What is read back.
        got: String,
    },
    /// Undo data that cannot be used.
    #[error("undo data of {path} is damaged")]
    Damaged {
        /// Path on the host.
        path: String,
        /// Why.
        #[source]
        source: base64::DecodeError,
    },
    /// It cannot be taken back.
    #[error("cannot be undone: {reason}")]
    Impossible {
        /// Why.
        reason: String,
    },
}

/// What an action left beside its effect.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Executed {
    /// Undo data that only exists afterwards (dnf's number of the transaction); it replaces what was captured.
    pub undo: Option<Undo>,
    /// Something to report.
    pub note: Option<String>,
}

impl Host {
    /// What would take the action back, from the host as it is now.
    pub async fn capture(&self, action: &Action) -> Result<Undo, ActionError> {
        Ok(match action {
            Action::WriteFile { path, .. } => {
                let path = self.root.end_of_links(path)?;
                Undo::RestoreFile { previous: self.save(&path)?, path }
            }
            Action::RemoveFile { path } | Action::Symlink { path, .. } => {
                Undo::RestoreFile { previous: self.save(path)?, path: path.clone() }
            }
            Action::MakeDirectory { path, .. } => match self.root.link_metadata(path)? {
                None => Undo::RemoveDirectory { path: path.clone() },
                Some(_) => Undo::Nothing,
            },
            Action::WriteSysctl { key, .. } => match self.kernel.sysctl(&Parameter::parse(key)?)? {
                Some(value) => Undo::WriteSysctl { key: key.clone(), value },
                None => Undo::Nothing,
            },
            Action::SetEnforce { .. } => match self.kernel.enforcing()? {
                Some(enforcing) => Undo::SetEnforce { enforcing },
                None => Undo::Nothing,
            },
            Action::SetBoolean { name, .. } => self.capture_boolean(name)?,
            Action::Relabel { paths } => self.capture_labels(paths.iter())?,
            Action::Unit { unit, op, .. } => self.capture_unit(unit, *op).await?,
            Action::Swapoff { device } => Undo::Swapon { device: device.clone() },
            Action::Dnf { .. } => Undo::Impossible { reason: "dnf had not finished its transaction".to_owned() },
            // A module may be in use by the time of the undo, and does no harm: it goes with the next boot.
            Action::LoadModule { .. }
            | Action::DaemonReload
            | Action::ReloadUdev
            | Action::DnfCleanMetadata
            | Action::ProbeRepository { .. } => Undo::Nothing,
            Action::OpenFirewall { entry } => match self.is_open(entry).await? {
                true => Undo::Nothing,
                false => Undo::CloseFirewall { entry: entry.clone() },
            },
            Action::DefaultZone { .. } => Undo::DefaultZone { zone: self.firewall.default_zone().await? },
            Action::Kubeadm { .. } => {
                Undo::Impossible { reason: "`agent reset` takes a node out of its cluster".to_owned() }
            }
            Action::RemovePods { .. } => Undo::Impossible { reason: "the pods are gone".to_owned() },
            Action::UnmountBelow { .. } => Undo::Nothing,
            Action::RemoveTree { path } => match self.root.link_metadata(path)? {
                Some(_) => Undo::Impossible { reason: format!("{path} is deleted") },
                None => Undo::Nothing,
            },
            Action::TakeBack { undo } => self.capture_undo(undo).await?,
        })
    }

    /// What would take back the taking back.
    async fn capture_undo(&self, undo: &Undo) -> Result<Undo, ActionError> {
        Ok(match undo {
            Undo::RestoreFile { path, .. } => Undo::RestoreFile { previous: self.save(path)?, path: path.clone() },
            Undo::WriteSysctl { key, .. } => match self.kernel.sysctl(&Parameter::parse(key)?)? {
                Some(value) => Undo::WriteSysctl { key: key.clone(), value },
                None => Undo::Nothing,
            },
            Undo::SetEnforce { .. } => match self.kernel.enforcing()? {
                Some(enforcing) => Undo::SetEnforce { enforcing },
                None => Undo::Nothing,
            },
            Undo::SetBoolean { name, .. } => self.capture_boolean(name)?,
            Undo::SetLabels { labels } => self.capture_labels(labels.keys())?,
            Undo::Unit { unit, op } => self.capture_unit(unit, *op).await?,
            Undo::DnfUndo { .. } => Undo::Impossible { reason: "dnf had not finished its transaction".to_owned() },
            Undo::Swapon { device } => Undo::Swapoff { device: device.clone() },
            Undo::Swapoff { device } => Undo::Swapon { device: device.clone() },
            Undo::CloseFirewall { entry } => match self.is_open(entry).await? {
                true => Undo::OpenFirewall { entry: entry.clone() },
                false => Undo::Nothing,
            },
            Undo::OpenFirewall { entry } => Undo::CloseFirewall { entry: entry.clone() },
            Undo::DefaultZone { .. } => Undo::DefaultZone { zone: self.firewall.default_zone().await? },
            // a directory comes back with the files in it
            Undo::RemoveDirectory { .. } | Undo::Impossible { .. } | Undo::Nothing => Undo::Nothing,
        })
    }

    /// Carries the action out.
    pub async fn execute(&self, action: &Action) -> Result<Executed, ActionError> {
        match action {
            Action::WriteFile { path, content, mode, uid, gid, secret: _ } => {
                let path = self.root.end_of_links(path)?;
                self.put(&path, content.as_bytes(), Ownership { mode: *mode, uid: *uid, gid: *gid })?;
            }
            Action::RemoveFile { path } => {
                self.root.remove(path)?;
            }
            Action::Symlink { path, target } => {
                if self.root.link_target(path)?.as_ref() != Some(target) {
                    self.root.symlink(path, target)?;
                }
            }
            Action::MakeDirectory { path, mode, uid, gid } => self.make_directory(path, *mode, *uid, *gid)?,
            Action::LoadModule { name } => self.load_module(name).await?,
            Action::WriteSysctl { key, value } => self.write_sysctl(key, value)?,
            Action::SetEnforce { enforcing } => {
                if self.kernel.enforcing()?.is_some_and(|now| now != *enforcing) {
                    self.kernel.set_enforcing(*enforcing)?;
                }
            }
            Action::SetBoolean { name, on } => self.set_boolean(name, *on).await?,
            Action::Relabel { paths } => self.relabel(paths).await?,
            Action::Unit { unit, op, wait } => self.unit_operation(unit, *op, *wait).await?,
            // nothing to reload in a tree that does not run
            Action::DaemonReload if self.is_offline() => {}
            Action::DaemonReload => self.systemd.daemon_reload().await?,
            Action::ReloadUdev if self.is_offline() => {}
            Action::ReloadUdev => {
                let command = Command::new("/usr/bin/udevadm", Duration::from_secs(60)).args(["control", "--reload"]);
                self.commands.run(&command).await?.success(&command)?;
            }
            Action::DnfCleanMetadata => dnf::clean_metadata(self).await?,
            Action::Dnf { op, packages, options } => {
                let transaction = dnf::transaction(self, *op, packages, options).await?;
                return Ok(Executed { undo: Some(transaction.undo()), note: transaction.note() });
            }
            Action::Swapoff { device } => self.swapoff(device).await?,
            Action::ProbeRepository { repo } => dnf::probe(self, repo).await?,
            Action::OpenFirewall { entry } => self.firewall.add(entry).await?,
            Action::DefaultZone { zone } => self.set_default_zone(zone).await?,
            Action::Kubeadm { verb, config, token, certificate_key, seconds } => {
                let secrets = kubeadm::Secrets { token: token.as_ref(), certificate_key: certificate_key.as_ref() };
                kubeadm::run(self, *verb, config, secrets, Duration::from_secs(*seconds)).await?;
            }
            Action::RemovePods { socket } => self.remove_pods(socket).await?,
            Action::UnmountBelow { path } => unmount_below(&self.root, path)?,
            Action::RemoveTree { path } => drop(self.root.remove_tree(path)?),
            Action::TakeBack { undo: Undo::DnfUndo { transaction } } => {
                let back = dnf::undo(self, *transaction).await?;
                return Ok(Executed { undo: Some(back.undo()), note: back.note() });
            }
            Action::TakeBack { undo } => self.undo(undo).await?,
        }
        Ok(Executed::default())
    }

    /// Takes one action back.
    pub async fn undo(&self, undo: &Undo) -> Result<(), ActionError> {
        match undo {
            Undo::RestoreFile { path, previous: None } => {
                self.root.remove(path)?;
            }
            Undo::RestoreFile { path, previous: Some(SavedFile::Link { target }) } => {
                if self.root.link_target(path)?.as_ref() != Some(target) {
                    self.root.symlink(path, target)?;
                }
            }
            Undo::RestoreFile { path, previous: Some(saved @ SavedFile::Regular { mode, uid, gid, .. }) } => {
                let content = saved.bytes().map_err(|source| ActionError::Damaged { path: path.clone(), source })?;
                self.put(path, &content, Ownership { mode: *mode, uid: *uid, gid: *gid })?;
            }
            Undo::RemoveDirectory { path } => {
                self.root.remove_empty_directory(path)?;
            }
            Undo::WriteSysctl { key, value } => self.write_sysctl(key, value)?,
            Undo::SetEnforce { enforcing } => {
                self.kernel.set_enforcing(*enforcing)?;
            }
            Undo::SetBoolean { name, on } => self.set_boolean(name, *on).await?,
            Undo::SetLabels { labels } => self.put_labels(labels)?,
            Undo::Unit { unit, op } => self.unit_operation(unit, *op, true).await?,
            Undo::DnfUndo { transaction } => {
                dnf::undo(self, *transaction).await?;
            }
            Undo::Swapoff { device } => self.swapoff(device).await?,
            Undo::Swapon { device } => {
                if !self.kernel.swaps()?.iter().any(|swap| swap.device == *device) {
                    self.kernel.swapon(device).await?;
                }
            }
            Undo::CloseFirewall { entry } => self.firewall.remove(entry).await?,
            Undo::OpenFirewall { entry } => self.firewall.add(entry).await?,
            Undo::DefaultZone { zone } => self.set_default_zone(zone).await?,
            Undo::Impossible { reason } => return Err(ActionError::Impossible { reason: reason.clone() }),
            Undo::Nothing => {}
        }
        Ok(())
    }

    fn capture_boolean(&self, name: &str) -> Result<Undo, ActionError> {
        let boolean = self.kernel.selinux_boolean(name)?;
        Ok(boolean.map_or(Undo::Nothing, |on| Undo::SetBoolean { name: name.to_owned(), on }))
    }

    /// By setsebool, which writes it into the policy store that the next boot loads.
    async fn set_boolean(&self, name: &str, on: bool) -> Result<(), ActionError> {
        if self.kernel.selinux_boolean(name)? == Some(on) {
            return Ok(());
        }
        let value = if on { "1" } else { "0" };
        // the whole policy is built anew, which takes a while
        let command = Command::new("/usr/sbin/setsebool", Duration::from_secs(180)).args(["-P", name, value]);
        self.commands.run(&command).await?.success(&command)?;
        Ok(())
    }

    async fn is_open(&self, entry: &FirewallEntry) -> Result<bool, ActionError> {
        let (FirewallEntry::Source { zone, .. } | FirewallEntry::Port { zone, .. }) = entry;
        Ok(self.firewall.zone(zone).await?.entries.contains(entry))
    }

    async fn set_default_zone(&self, zone: &str) -> Result<(), ActionError> {
        if self.firewall.default_zone().await? != zone {
            self.firewall.set_default_zone(zone).await?;
        }
        Ok(())
    }

    /// Asked as people would: a client of our own for one call would be the largest part of the agent.
    async fn remove_pods(&self, socket: &str) -> Result<(), ActionError> {
        let endpoint = format!("unix://{socket}");
        let command = Command::new(CRICTL, REMOVE_PODS).args([
            "--runtime-endpoint",
            endpoint.as_str(),
            "--timeout",
            "60s",
            "rmp",
            "--all",
            "--force",
        ]);
        self.commands.run(&command).await?.success(&command)?;
        Ok(())
    }

    async fn swapoff(&self, device: &str) -> Result<(), ActionError> {
        if self.kernel.swaps()?.iter().any(|swap| swap.device == device) {
            self.kernel.swapoff(device).await?;
        }
        Ok(())
    }

    fn save(&self, path: &str) -> Result<Option<SavedFile>, ActionError> {
        let Some(found) = self.root.link_metadata(path)? else { return Ok(None) };
        match found.kind {
            Kind::Link => Ok(self.root.link_target(path)?.map(|target| SavedFile::Link { target })),
            Kind::File => Ok(self.root.read(path)?.map(|bytes| SavedFile::Regular {
                content: BASE64.encode(bytes),
                mode: found.mode,
                uid: found.uid,
                gid: found.gid,
            })),
            Kind::Directory | Kind::Other => {
                Err(ActionError::NotAFile { path: path.to_owned(), found: found.kind.in_words() })
            }
        }
    }

    /// Writes at the name itself, and only what differs.
    fn put(&self, path: &str, content: &[u8], owner: Ownership) -> Result<(), ActionError> {
        let found = self.root.link_metadata(path)?;
        if let Some(found) = found
            && found.kind == Kind::File
            && self.root.read(path)?.as_deref() == Some(content)
        {
            if (Ownership { mode: found.mode, uid: found.uid, gid: found.gid }) != owner {
                self.root.set_ownership(path, owner)?;
            }
            return Ok(());
        }
        Ok(self.root.write(path, content, owner)?)
    }

    fn make_directory(&self, path: &str, mode: u32, uid: u32, gid: u32) -> Result<(), ActionError> {
        let found = self.root.link_metadata(path)?;
        let there = found.is_some_and(|found| {
            found.kind == Kind::Directory && (found.mode, found.uid, found.gid) == (mode, uid, gid)
        });
        if !there {
            self.root.make_directory(path, Ownership { mode, uid, gid })?;
        }
        Ok(())
    }

    async fn load_module(&self, name: &str) -> Result<(), ActionError> {
        if self.kernel.module(name)?.present() {
            return Ok(());
        }
        self.kernel.load_module(name).await?;
        let facts = self.kernel.module(name)?;
        if facts.present() {
            return Ok(());
        }
        let because = facts.barred.unwrap_or_else(|| "neither its effect nor /sys/module shows it".to_owned());
        Err(ActionError::NoEffect { name: name.to_owned(), because })
    }

    fn write_sysctl(&self, key: &str, value: &str) -> Result<(), ActionError> {
        let parameter = Parameter::parse(key)?;
        let same = |a: &str, b: &str| a.split_whitespace().eq(b.split_whitespace());
        if self.kernel.sysctl(&parameter)?.is_some_and(|now| same(&now, value)) {
            return Ok(());
        }
        self.kernel.set_sysctl(&parameter, value)?;
        match self.kernel.sysctl(&parameter)? {
            Some(got) if !same(&got, value) => {
                Err(ActionError::NotTaken { key: key.to_owned(), want: value.to_owned(), got })
            }
            // some parameters can only be written
            _ => Ok(()),
        }
    }

    async fn capture_unit(&self, unit: &str, op: UnitOp) -> Result<Undo, ActionError> {
        let status = self.systemd.unit(unit).await?;
        let back = match op {
            UnitOp::Enable if !status.is_enabled() => UnitOp::Disable,
            UnitOp::Disable if status.is_enabled() => UnitOp::Enable,
            UnitOp::Mask if !status.is_masked() => UnitOp::Unmask,
            UnitOp::Unmask if status.is_masked() => UnitOp::Mask,
            UnitOp::Start | UnitOp::Restart if !status.is_active() => UnitOp::Stop,
            UnitOp::Stop if status.is_active() => UnitOp::Start,
            _ => return Ok(Undo::Nothing),
        };
        Ok(Undo::Unit { unit: unit.to_owned(), op: back })
    }

    async fn unit_operation(&self, unit: &str, op: UnitOp, wait: bool) -> Result<(), ActionError> {
        let systemd = &self.systemd;
        let job = match op {
            UnitOp::Enable => return Ok(systemd.enable(unit).await.map(drop)?),
            UnitOp::Disable => return Ok(systemd.disable(unit).await.map(drop)?),
            UnitOp::Mask => return Ok(systemd.mask(unit).await.map(drop)?),
            UnitOp::Unmask => return Ok(systemd.unmask(unit).await.map(drop)?),
            UnitOp::Start => JobKind::Start,
            UnitOp::Stop => JobKind::Stop,
            UnitOp::Restart => JobKind::Restart,
            UnitOp::TryRestart => JobKind::TryRestart,
            UnitOp::TryReload => JobKind::TryReload,
        };
        let done = if wait { systemd.run_job(job, unit).await } else { systemd.enqueue(job, unit).await };
        Ok(done?)
    }
}
