//! The pod's user namespace, and the other namespaces that belong to it.
//!
//! The shim itself never enters it: it would lose its rights on the host. A helper is born into new namespaces, all of
//! which then belong to its user namespace; the shim gives that one its ids, opens the others, and lets the helper end.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::unistd::pipe2;

use crate::protocol::{IdMap, IdMaps};
use crate::sys;

/// What can go wrong with it.
#[derive(Debug, thiserror::Error)]
pub enum UserNamespaceError {
    #[error("make a user namespace")]
    Make { source: Errno },
    #[error("write {path}")]
    Map { path: String, source: io::Error },
    #[error("open {path}")]
    Open { path: String, source: io::Error },
    #[error("enter the new {kinds:?}")]
    Enter { kinds: CloneFlags, source: Errno },
}

/// The namespace, with its ids.
#[derive(Debug)]
pub struct UserNamespace {
    /// For [`setns`] and for mounts.
    pub fd: OwnedFd,
    /// Its ids.
    pub ids: IdMaps,
}

impl UserNamespace {
    /// Makes one, and namespaces of those kinds that belong to it; this process is then in the latter.
    pub fn make(ids: &IdMaps, kinds: CloneFlags) -> Result<Self, UserNamespaceError> {
        let failed = |source| UserNamespaceError::Make { source };
        let (wait, end) = pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(failed)?;
        let flags = (kinds | CloneFlags::CLONE_NEWUSER).bits();
        let Some(pid) = sys::clone_process(flags, None).map_err(failed)? else {
            drop(end);
            // ends with the last writing side: also when the shim dies
            let _ = nix::unistd::read(&wait, &mut [0]);
            sys::end_now(0);
        };
        // whatever comes of it, the helper ends when `end` is dropped; it is reaped like any orphan
        let made = adopt(pid, ids, kinds);
        drop(end);
        made
    }

    /// Becomes a member of it, with all rights inside and none outside.
    pub fn enter(&self) -> nix::Result<()> {
        setns(&self.fd, CloneFlags::CLONE_NEWUSER)
    }
}

fn adopt(pid: i32, ids: &IdMaps, kinds: CloneFlags) -> Result<UserNamespace, UserNamespaceError> {
    for (file, maps) in [("uid_map", &ids.uids), ("gid_map", &ids.gids)] {
        let path = format!("/proc/{pid}/{file}");
        fs::write(&path, lines(maps)).map_err(|source| UserNamespaceError::Map { path, source })?;
    }
    let open = |kind: &str| {
        let path = format!("/proc/{pid}/ns/{kind}");
        File::open(&path).map(OwnedFd::from).map_err(|source| UserNamespaceError::Open { path, source })
    };
    let fd = open("user")?;
    for (kind, name) in
        [(CloneFlags::CLONE_NEWNET, "net"), (CloneFlags::CLONE_NEWIPC, "ipc"), (CloneFlags::CLONE_NEWUTS, "uts")]
    {
        if kinds.contains(kind) {
            setns(open(name)?, kind).map_err(|source| UserNamespaceError::Enter { kinds: kind, source })?;
        }
    }
    Ok(UserNamespace { fd, ids: ids.clone() })
}

/// As the kernel reads them, in one write.
fn lines(maps: &[IdMap]) -> String {
    maps.iter().map(|map| format!("{} {} {}\n", map.inside, map.outside, map.length)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_found_in_their_range() {
        let map = |inside, outside, length| IdMap { inside, outside, length };
        let ids = IdMaps { uids: vec![map(0, 1000, 10), map(10, 5000, 1)], gids: vec![map(0, u32::MAX, 2)] };
        assert_eq!((ids.uid(0), ids.uid(9), ids.uid(10), ids.uid(11)), (Some(1000), Some(1009), Some(5000), None));
        assert_eq!((ids.gid(0), ids.gid(1)), (Some(u32::MAX), None));
        assert_eq!(lines(&ids.uids), "0 1000 10\n10 5000 1\n");
    }
}
