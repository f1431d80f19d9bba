//! The pod's network, IPC and UTS namespaces. The shim itself is in them, which is what keeps them.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::sethostname;

use crate::protocol::PodSetup;
use crate::sys::loopback_up;
use crate::user_namespace::{UserNamespace, UserNamespaceError};

/// What can go wrong with a pod's namespaces.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// A second call that asks for something else.
    #[error("the pod has been set up before, differently")]
    Again,
    /// A second call after one that failed half-way.
    #[error("the pod's namespaces could not be set up before: it needs a new shim")]
    Broken,
    /// The call is malformed.
    #[error("sysctl {name:?} is not one of a pod's own namespaces")]
    SysctlName { name: String },
    #[error("make namespaces {kinds:?}")]
    Unshare { kinds: CloneFlags, source: Errno },
    #[error(transparent)]
    User(#[from] UserNamespaceError),
    #[error("bring lo up")]
    Loopback { source: Errno },
    #[error("make {path}")]
    Place { path: String, source: io::Error },
    #[error("bind the network namespace on {path}")]
    Bind { path: String, source: Errno },
    #[error("set host name {name:?}")]
    Hostname { name: String, source: Errno },
    #[error("set sysctl {name} to {value:?}")]
    Sysctl { name: String, value: String, source: io::Error },
    #[error("go back to the host's network namespace")]
    Leave { source: Errno },
}

/// The namespaces.
#[derive(Debug)]
pub struct Namespaces {
    host_net: OwnedFd,
    user: Option<UserNamespace>,
    made: Made,
}

#[derive(Debug)]
enum Made {
    Nothing,
    /// The namespaces exist and something in them is missing.
    Half,
    All(PodSetup),
}

impl Namespaces {
    /// None made yet.
    pub fn new(host_net: OwnedFd) -> Self {
        Self { host_net, user: None, made: Made::Nothing }
    }

    /// Makes them and sets what belongs into them. The same call again is fine.
    pub fn set_up(&mut self, setup: &PodSetup) -> Result<(), SetupError> {
        match &self.made {
            Made::Nothing => {}
            Made::Half => return Err(SetupError::Broken),
            Made::All(made) if made == setup => return Ok(()),
            Made::All(_) => return Err(SetupError::Again),
        }
        let sysctls = setup
            .sysctls
            .iter()
            .map(|(name, value)| Ok((sysctl_path(name, setup)?, name, value)))
            .collect::<Result<Vec<_>, SetupError>>()?;
        let mut kinds = CloneFlags::empty();
        kinds.set(CloneFlags::CLONE_NEWNET, setup.new_net);
        kinds.set(CloneFlags::CLONE_NEWIPC, setup.new_ipc);
        kinds.set(CloneFlags::CLONE_NEWUTS, setup.new_uts);
        match &setup.user_namespace {
            Some(ids) => {
                self.made = Made::Half;
                self.user = Some(UserNamespace::make(ids, kinds)?);
            }
            None => unshare(kinds).map_err(|source| SetupError::Unshare { kinds, source })?,
        }
        self.made = Made::Half;
        if setup.new_net {
            loopback_up().map_err(|source| SetupError::Loopback { source })?;
            if let Some(path) = &setup.netns_path {
                bind(path)?;
            }
        }
        if let (true, Some(name)) = (setup.new_uts, &setup.hostname) {
            sethostname(name).map_err(|source| SetupError::Hostname { name: name.clone(), source })?;
        }
        for (path, name, value) in sysctls {
            fs::write(path, value).map_err(|source| SetupError::Sysctl {
                name: name.clone(),
                value: value.clone(),
                source,
            })?;
        }
        self.made = Made::All(setup.clone());
        Ok(())
    }

    /// The user namespace, in a pod that has one.
    pub fn user(&self) -> Option<&UserNamespace> {
        self.user.as_ref()
    }

    /// Goes back to the host's network, so that the pod's ends when its last name is unmounted.
    pub fn leave(&self) -> Result<(), SetupError> {
        setns(&self.host_net, CloneFlags::CLONE_NEWNET).map_err(|source| SetupError::Leave { source })
    }
}

fn bind(path: &str) -> Result<(), SetupError> {
    let failed = |source| SetupError::Place { path: path.into(), source };
    if let Some(parent) = Path::new(path).parent() {
        DirBuilder::new().recursive(true).mode(0o755).create(parent).map_err(failed)?;
    }
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o444)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
        .map_err(failed)?;
    let source = Some("/proc/self/ns/net");
    mount(source, path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .map_err(|source| SetupError::Bind { path: path.into(), source })
}

/// The file of a sysctl, if it is one that the pod's namespaces have for themselves.
///
/// As for sysctl(8): the first separator tells the form; in the form with dots a slash stands for a dot in a name
/// (`net.ipv4.conf.eth0/100.forwarding`), in the form with slashes dots are dots.
fn sysctl_path(name: &str, setup: &PodSetup) -> Result<String, SetupError> {
    let refused = || SetupError::SysctlName { name: name.into() };
    let path = match name.find(['.', '/']) {
        Some(at) if name.as_bytes()[at] == b'/' => name.to_owned(),
        Some(_) => name
            .chars()
            .map(|c| match c {
                '.' => '/',
                '/' => '.',
                other => other,
            })
            .collect(),
        None => return Err(refused()),
    };
    let clean = path.split('/').all(|part| {
        !matches!(part, "" | "." | "..")
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.' | b':' | b'@'))
    });
    let ipc = ["kernel/shm", "kernel/msg", "fs/mqueue/"].iter().any(|prefix| path.starts_with(prefix))
        || path == "kernel/sem";
    let own = setup.new_net && path.starts_with("net/")
        || setup.new_ipc && ipc
        || setup.new_uts && matches!(path.as_str(), "kernel/hostname" | "kernel/domainname");
    if clean && own { Ok(format!("/proc/sys/{path}")) } else { Err(refused()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sysctls_of_the_pods_own_namespaces_are_taken() {
        let all = PodSetup { new_net: true, new_ipc: true, new_uts: true, ..PodSetup::default() };
        for (name, path) in [
            ("net.ipv4.ip_unprivileged_port_start", "/proc/sys/net/ipv4/ip_unprivileged_port_start"),
            ("net/ipv4/conf/eth0.100/forwarding", "/proc/sys/net/ipv4/conf/eth0.100/forwarding"),
            ("net.ipv4.conf.eth0/100.forwarding", "/proc/sys/net/ipv4/conf/eth0.100/forwarding"),
            ("kernel.shm_rmid_forced", "/proc/sys/kernel/shm_rmid_forced"),
            ("kernel.sem", "/proc/sys/kernel/sem"),
            ("fs.mqueue.msg_max", "/proc/sys/fs/mqueue/msg_max"),
            ("kernel.domainname", "/proc/sys/kernel/domainname"),
        ] {
            assert_eq!(sysctl_path(name, &all).unwrap(), path);
            assert!(sysctl_path(name, &PodSetup::default()).is_err(), "{name} would be the host's");
        }
        for name in [
            "kernel.core_pattern",
            "vm.swappiness",
            "net/../kernel/core_pattern",
            "net.//.kernel.core_pattern",
            "net",
            "",
            "net.",
            "net.ipv4 .x",
        ] {
            assert!(sysctl_path(name, &all).is_err(), "{name}");
        }
    }
}
