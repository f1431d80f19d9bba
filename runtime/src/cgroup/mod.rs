//! Cgroups of pods and containers: made, limited, measured and removed by the daemon.
//!
//! Processes are attached by the shim's launcher, which gets the directories from [`Cgroups::attach_dirs`]. One type
//! serves cgroup v2 ([`v2`]) and v1 ([`v1`]); a hybrid host is v1, since its v2 tree has no controllers.

mod delegated;
mod details;
mod device;
mod device_filter;
mod file;
mod layout;
mod moves;
mod path;
mod present;
mod remove;
mod resources;
mod stats;
mod sys;
mod systemd;
mod v1;
mod v2;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use delegated::Delegated;
pub use details::{Details, Device};
pub use device::DeviceRule;
pub use layout::{Hierarchy, Layout};
pub use path::CgroupPath;
pub use present::Limited;
pub use resources::Resources;
pub use stats::Stats;

use crate::config::DriverChoice;
use moves::Moves;
use systemd::Scopes;

/// Who makes the directories.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    /// The daemon does.
    Cgroupfs,
    /// Parents are slices, containers are scopes below them.
    Systemd,
}

impl Driver {
    /// As configuration files spell it.
    pub fn name(self) -> &'static str {
        match self {
            Driver::Cgroupfs => "cgroupfs",
            Driver::Systemd => "systemd",
        }
    }
}

/// What can go wrong with cgroups.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// Nothing is mounted.
    #[error("no cgroup hierarchy is mounted below /sys/fs/cgroup")]
    NoHierarchy,
    /// A directory could not be made.
    #[error("cannot make cgroup {}", path.display())]
    Make {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A control file could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A control file refused a value.
    #[error("cannot write `{value}` to {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What it refused.
        value: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A directory could not be removed.
    #[error("cannot remove cgroup {}", path.display())]
    Remove {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Processes of a cgroup do not die.
    #[error("processes in cgroup {} survive SIGKILL", path.display())]
    Unkillable {
        /// The directory.
        path: PathBuf,
    },
    /// A parent that leaves the tree, or is no slice where one is needed.
    #[error("cgroup parent `{parent}`: {message}")]
    Parent {
        /// As it was given.
        parent: String,
        /// What is wrong with it.
        message: &'static str,
    },
    /// The kernel does not take the filter of devices.
    #[error("cannot restrict the devices of cgroup {}", path.display())]
    DeviceFilter {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// systemd refused, or cannot be reached.
    #[error("systemd: cannot {call} {unit}")]
    Systemd {
        /// What was asked.
        call: &'static str,
        /// Of which unit.
        unit: String,
        /// Why.
        #[source]
        source: Box<zbus::Error>,
    },
    /// systemd said nothing.
    #[error("systemd: cannot {call} {unit}: no answer within {} s", after.as_secs())]
    SystemdSilent {
        /// What was asked.
        call: &'static str,
        /// Of which unit.
        unit: String,
        /// The deadline.
        after: Duration,
    },
    /// A job of systemd ended otherwise than it should.
    #[error("systemd: the job of {unit} ended with `{result}`")]
    Job {
        /// The unit.
        unit: String,
        /// systemd's word.
        result: String,
    },
    /// A limit that cannot be.
    #[error("{what}: {message}")]
    Limit {
        /// Its name.
        what: String,
        /// What is wrong with it.
        message: String,
    },
}

/// The host's cgroups.
#[derive(Debug, Clone)]
pub struct Cgroups {
    layout: Layout,
    driver: Driver,
    /// Who makes those of containers, where that is systemd.
    scopes: Option<Scopes>,
    moves: Moves,
}

impl Cgroups {
    /// Looks at the host. `mountinfo` is `/proc/self/mountinfo`, `systemd` says whether systemd runs the host.
    pub fn detect(mountinfo: &str, choice: DriverChoice, systemd: bool) -> Result<Self, CgroupError> {
        let layout = Layout::from_mountinfo(mountinfo)?;
        let driver = match choice {
            DriverChoice::Cgroupfs => Driver::Cgroupfs,
            DriverChoice::Systemd => Driver::Systemd,
            DriverChoice::Auto if systemd && matches!(layout, Layout::V2 { .. }) => Driver::Systemd,
            DriverChoice::Auto => Driver::Cgroupfs,
        };
        Ok(Cgroups::new(layout, driver))
    }

    /// Cgroups over that layout.
    pub fn new(layout: Layout, driver: Driver) -> Self {
        let version = if matches!(layout, Layout::V2 { .. }) { 2 } else { 1 };
        let scopes = (driver == Driver::Systemd).then(|| Scopes::new(version));
        Cgroups { layout, driver, scopes, moves: Moves::default() }
    }

    /// Who makes the directories.
    pub fn driver(&self) -> Driver {
        self.driver
    }

    /// 1 or 2.
    pub fn version(&self) -> u8 {
        match self.layout {
            Layout::V1 { .. } => 1,
            Layout::V2 { .. } => 2,
        }
    }

    /// The hierarchies, for mounts into containers.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Where the cgroup of the sandbox or container `id` is, below the parent that kubelet gave.
    pub fn path_of(&self, parent: &str, id: &str) -> Result<CgroupPath, CgroupError> {
        CgroupPath::below(self.driver, parent, id)
    }

    /// Says that a process will be moved into a cgroup soon: what that waits for begins now.
    pub fn expect_move(&self) {
        // on v2 without systemd, processes are born in their cgroup
        if self.made_by_systemd() || matches!(self.layout, Layout::V1 { .. }) {
            self.moves.begin(&self.layout);
        }
    }

    /// Makes a cgroup. It may exist; limits are set by [`Self::apply`].
    pub fn create(&self, path: &CgroupPath) -> Result<(), CgroupError> {
        match &self.layout {
            Layout::V1 { hierarchies } => v1::create(hierarchies, path),
            Layout::V2 { root } => v2::create(root, path),
        }
    }

    /// Sets the limits of a new cgroup.
    pub fn apply(&self, path: &CgroupPath, resources: &Resources) -> Result<(), CgroupError> {
        match &self.layout {
            Layout::V1 { hierarchies } => v1::apply(hierarchies, path, resources),
            Layout::V2 { root } => v2::apply(root, path, resources),
        }
    }

    /// Changes the limits of a living cgroup: all of them, or none when one is refused.
    pub fn update(&self, path: &CgroupPath, resources: &Resources) -> Result<(), CgroupError> {
        match &self.layout {
            Layout::V1 { hierarchies } => v1::update(hierarchies, path, resources),
            Layout::V2 { root } => v2::update(root, path, resources),
        }
    }

    /// Whether a container's cgroup is made with its process in it, by [`Self::place`], and not before.
    pub fn made_by_systemd(&self) -> bool {
        self.scopes.is_some()
    }

    /// Has systemd make a container's cgroup with that process in it, and limits it. Doing it again is fine.
    pub async fn place(
        &self,
        path: &CgroupPath,
        pid: i32,
        resources: &Resources,
        devices: &[DeviceRule],
    ) -> Result<(), CgroupError> {
        let Some(scopes) = &self.scopes else { return Ok(()) };
        resources.check()?;
        let number = pid.to_string();
        let is_there =
            |dir: &Path| file::read(&dir.join("cgroup.procs")).is_ok_and(|all| all.lines().any(|one| one == number));
        let made = match &self.layout {
            Layout::V2 { root } => is_there(&path.under(root)),
            Layout::V1 { .. } => false,
        };
        if !made {
            scopes.start(path, pid, resources).await?;
        }
        if let Layout::V1 { hierarchies } = &self.layout {
            // systemd makes them only in the trees that it manages itself
            v1::create(hierarchies, path)?;
            for dir in self.dirs(path).into_iter().filter(|dir| !is_there(dir)) {
                file::write(&dir.join("cgroup.procs"), &number)?;
            }
        }
        self.apply(path, resources)?;
        self.restrict_devices(path, devices)
    }

    /// Tells systemd of the limits that were written by [`Self::update`], if a scope is limited by them.
    pub async fn keep_in_step(&self, path: &CgroupPath, resources: &Resources) -> Result<(), CgroupError> {
        match &self.scopes {
            Some(scopes) => scopes.update(path, resources).await,
            None => Ok(()),
        }
    }

    /// Restricts the devices of a cgroup to those: v1 by files, v2 by a program.
    pub fn restrict_devices(&self, path: &CgroupPath, rules: &[DeviceRule]) -> Result<(), CgroupError> {
        match &self.layout {
            Layout::V1 { hierarchies } => v1::restrict_devices(hierarchies, path, rules),
            Layout::V2 { root } => device_filter::attach(&path.under(root), rules),
        }
    }

    /// The directories a process has to be attached to.
    pub fn attach_dirs(&self, path: &CgroupPath) -> Vec<String> {
        self.dirs(path).into_iter().map(|dir| dir.to_string_lossy().into_owned()).collect()
    }

    /// The directory of each hierarchy.
    fn dirs(&self, path: &CgroupPath) -> Vec<PathBuf> {
        match &self.layout {
            Layout::V1 { hierarchies } => {
                hierarchies.iter().map(|hierarchy| path.under(&hierarchy.mountpoint)).collect()
            }
            Layout::V2 { root } => vec![path.under(root)],
        }
    }

    /// What the cgroup used so far.
    pub fn stats(&self, path: &CgroupPath) -> Result<Stats, CgroupError> {
        match &self.layout {
            Layout::V1 { hierarchies } => stats::v1(hierarchies, path),
            Layout::V2 { root } => stats::v2(&path.under(root)),
        }
    }
}
