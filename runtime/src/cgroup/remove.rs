//! The end of a cgroup: its processes killed, its directories removed.

use std::fs;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::time::Instant;

use super::{CgroupError, CgroupPath, Cgroups, Layout};

/// How long the kernel may take to let go of a cgroup whose processes are gone.
const REMOVE_DEADLINE: Duration = Duration::from_secs(5);
/// How long killed processes may take to die; one in uninterruptible sleep takes longer and is reported.
const KILL_DEADLINE: Duration = Duration::from_secs(10);
/// v1 has no event for an empty cgroup: it is looked at again, less and less often.
const FIRST_LOOK: Duration = Duration::from_millis(1);
const LAST_LOOK: Duration = Duration::from_millis(100);

impl Cgroups {
    /// Kills every process in the cgroup and below, until none is left. A missing cgroup has none.
    pub async fn kill(&self, path: &CgroupPath) -> Result<(), CgroupError> {
        let Some(dir) = self.dirs(path).into_iter().find(|dir| dir.is_dir()) else { return Ok(()) };
        let deadline = Instant::now() + KILL_DEADLINE;
        let mut pause = FIRST_LOOK;
        loop {
            // cgroup.kill is atomic (5.14); without it, forks may escape one round and are met in the next
            if fs::write(dir.join("cgroup.kill"), "1").is_err() {
                kill_listed(&dir);
            }
            if processes(&dir).is_empty() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(CgroupError::Unkillable { path: dir });
            }
            wait_for_change(&dir, pause).await;
            pause = (pause * 2).min(LAST_LOOK);
        }
    }

    /// Removes the cgroup and what was made below it. A missing one is as good.
    pub async fn remove(&self, path: &CgroupPath) -> Result<(), CgroupError> {
        if let Some(scopes) = &self.scopes
            && self.dirs(path).iter().any(|dir| dir.is_dir())
            && let Err(error) = scopes.stop(path).await
        {
            // the directory can be removed all the same, and systemd notices that it is gone
            log::warn!("{}", crate::telemetry::chain(&error));
        }
        for dir in self.dirs(path) {
            remove_tree(&dir).await?;
        }
        Ok(())
    }

    /// Removes a parent that the daemon made, if nobody uses it.
    pub fn remove_empty_parent(&self, parent: &str) {
        let roots: Vec<&Path> = match &self.layout {
            Layout::V1 { hierarchies } => hierarchies.iter().map(|h| h.mountpoint.as_path()).collect(),
            Layout::V2 { root } => vec![root],
        };
        for root in roots {
            // fails while it has children or processes, which is the point
            let _ = fs::remove_dir(root.join(parent));
        }
    }

    /// Whether a directory of that parent exists already.
    pub fn has_parent(&self, parent: &str) -> bool {
        match &self.layout {
            Layout::V1 { hierarchies } => hierarchies.iter().any(|h| h.mountpoint.join(parent).is_dir()),
            Layout::V2 { root } => root.join(parent).is_dir(),
        }
    }
}

/// Processes in the cgroup and below. Unreadable means gone.
pub(super) fn processes(dir: &Path) -> Vec<i32> {
    let own = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    let mut pids: Vec<i32> = own.lines().filter_map(|line| line.trim().parse().ok()).collect();
    for child in children(dir) {
        pids.extend(processes(&child));
    }
    pids
}

fn children(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let is_dir = |entry: &fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir());
    entries.flatten().filter(is_dir).map(|entry| entry.path()).collect()
}

fn kill_listed(dir: &Path) {
    // 0 is a process outside our PID namespace, and kill(0) would hit ourselves
    for pid in processes(dir).into_iter().filter(|pid| *pid > 1) {
        // it may be gone already
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
}

async fn remove_tree(dir: &Path) -> Result<(), CgroupError> {
    let deadline = Instant::now() + REMOVE_DEADLINE;
    let mut pause = FIRST_LOOK;
    loop {
        match remove_now(dir) {
            Ok(()) => return Ok(()),
            Err(source) if source.raw_os_error() == Some(nix::libc::EBUSY) && Instant::now() < deadline => {
                wait_for_change(dir, pause).await;
                pause = (pause * 2).min(LAST_LOOK);
            }
            Err(source) => return Err(CgroupError::Remove { path: dir.to_owned(), source }),
        }
    }
}

fn remove_now(dir: &Path) -> io::Result<()> {
    match fs::remove_dir(dir) {
        Ok(()) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(_) => {}
    }
    for child in children(dir) {
        remove_now(&child)?;
    }
    match fs::remove_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Waits until the cgroup may have become empty: for the event of v2, else for that time.
async fn wait_for_change(dir: &Path, pause: Duration) {
    let events = dir.join("cgroup.events");
    let waited = tokio::task::spawn_blocking(move || wait_for_event(&events, pause)).await;
    if !matches!(waited, Ok(Ok(true))) {
        tokio::time::sleep(pause).await;
    }
}

/// True when something changed while processes were left.
fn wait_for_event(events: &Path, limit: Duration) -> io::Result<bool> {
    let mut file = fs::File::open(events)?;
    // reading arms the event; without it, poll reports the past at once
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    if text.lines().any(|line| line == "populated 0") {
        return Ok(false);
    }
    let timeout = PollTimeout::try_from(limit).unwrap_or(PollTimeout::ZERO);
    Ok(poll(&mut [PollFd::new(file.as_fd(), PollFlags::POLLPRI)], timeout)? > 0)
}

#[cfg(test)]
mod tests {
    use super::super::Driver;
    use super::*;

    #[tokio::test]
    async fn what_does_not_exist_is_killed_and_removed_already() {
        let root = tempfile::tempdir().unwrap();
        let cgroups = Cgroups::new(Layout::V2 { root: root.path().to_owned() }, Driver::Cgroupfs);
        let path = cgroups.path_of("p", "x").unwrap();
        cgroups.kill(&path).await.unwrap();
        cgroups.remove(&path).await.unwrap();
    }

    #[tokio::test]
    async fn cgroups_made_below_go_too() {
        let root = tempfile::tempdir().unwrap();
        let cgroups = Cgroups::new(Layout::V2 { root: root.path().to_owned() }, Driver::Cgroupfs);
        let path = cgroups.path_of("p", "x").unwrap();
        fs::create_dir_all(path.under(root.path()).join("init.scope/deeper")).unwrap();
        cgroups.remove(&path).await.unwrap();
        assert!(!path.under(root.path()).exists());
        cgroups.remove_empty_parent("p");
        assert!(!cgroups.has_parent("p"));
    }
}
