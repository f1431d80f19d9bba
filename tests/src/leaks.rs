//! What a daemon has left on the machine when every pod is removed.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::daemon::Daemon;
use crate::outside::run;

/// Everything that is still there of these pods and containers, one line each.
pub fn find(daemon: &Daemon, ids: &[String], cgroup_parent: &str) -> Result<Vec<String>> {
    let mut found = processes(daemon, ids);
    found.extend(mounts(daemon.directory())?);
    found.extend(cgroups(cgroup_parent)?.into_iter().map(|path| format!("cgroup {}", path.display())));
    found.extend(daemon.net().ports()?.into_iter().map(|link| format!("link {link}")));
    found.extend(daemon.net().addresses()?.into_iter().map(|address| format!("address {address} is taken")));
    for folder in ["root", "state", "netns"] {
        files(&daemon.directory().join(folder), ids, &mut found)?;
    }
    found.extend(firewall(ids, &daemon.net().prefix())?);
    Ok(found)
}

/// Shims and containers: they have the daemon's log, or a pod's, open, or name a pod on their command line.
fn processes(daemon: &Daemon, ids: &[String]) -> Vec<String> {
    let held = holders(daemon);
    let named = all_processes(daemon).into_iter().filter(|(_, line)| ids.iter().any(|id| line.contains(id)));
    let mut found: Vec<(u32, String)> = held.into_iter().chain(named).collect();
    found.sort();
    found.dedup();
    found.into_iter().map(|(pid, line)| format!("process {pid}: {line}")).collect()
}

/// Processes but ourselves and the daemon: number and command line.
fn all_processes(daemon: &Daemon) -> Vec<(u32, String)> {
    let own = [Some(std::process::id()), daemon.pid()];
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let others = pids.filter(|pid| !own.contains(&Some(*pid)));
    // a process that ends meanwhile is none
    let lines = others.filter_map(|pid| Some((pid, fs::read(format!("/proc/{pid}/cmdline")).ok()?)));
    lines.map(|(pid, line)| (pid, String::from_utf8_lossy(&line).replace('\0', " "))).collect()
}

/// Those that have a file of the daemon's open.
fn holders(daemon: &Daemon) -> Vec<(u32, String)> {
    let holds = |pid: u32| {
        let mut fds = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        fds.any(|fd| fs::read_link(fd.path()).is_ok_and(|to| to.starts_with(daemon.directory())))
    };
    all_processes(daemon).into_iter().filter(|(pid, _)| holds(*pid)).collect()
}

fn mounts(directory: &Path) -> Result<Vec<String>> {
    let directory = directory.display().to_string();
    let lines = fs::read_to_string("/proc/self/mountinfo")?;
    Ok(lines.lines().filter(|line| line.contains(&directory)).map(|line| format!("mount {line}")).collect())
}

/// Cgroups below one that is given to pods as their parent, in every hierarchy.
pub fn cgroups(parent: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for top in parents(parent)? {
        below(&top, &mut found)?;
    }
    Ok(found)
}

/// Ends and removes everything that a daemon which failed a test has left: shims, containers, mounts, cgroups. What
/// resists stays, to be seen.
pub fn purge(daemon: &Daemon, cgroup_parent: &str) {
    let trees = cgroups(cgroup_parent).unwrap_or_default();
    let inside = trees.iter().filter_map(|tree| fs::read_to_string(tree.join("cgroup.procs")).ok());
    let mut pids: Vec<i32> = inside
        .flat_map(|all| all.lines().map(str::to_owned).collect::<Vec<_>>())
        .filter_map(|pid| pid.parse().ok())
        .collect();
    pids.extend(holders(daemon).into_iter().filter_map(|(pid, _)| i32::try_from(pid).ok()));
    for pid in pids.into_iter().filter(|pid| *pid > 1) {
        // it may have ended by itself
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
    }
    unmount_below(daemon.directory());
    for tree in parents(cgroup_parent).unwrap_or_default() {
        remove_tree(&tree);
    }
}

/// Takes off every mount below a directory, the last one first.
pub fn unmount_below(directory: &Path) {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let places: Vec<&Path> = text.lines().filter_map(|line| line.split(' ').nth(4)).map(Path::new).collect();
    for place in places.into_iter().rev().filter(|place| place.starts_with(directory)) {
        let _ = nix::mount::umount2(place, nix::mount::MntFlags::MNT_DETACH);
    }
}

/// The processes in it are dead or dying: looked at until the kernel lets go, which it tells nobody.
#[allow(clippy::disallowed_methods)]
fn remove_tree(tree: &Path) {
    let deadline = Instant::now() + Duration::from_secs(5);
    let mut all = Vec::new();
    if below(tree, &mut all).is_err() {
        return;
    }
    all.push(tree.to_owned());
    for folder in all {
        while fs::remove_dir(&folder).is_err_and(|error| error.kind() == std::io::ErrorKind::ResourceBusy)
            && Instant::now() < deadline
        {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Removes the parent itself everywhere; fails where something is left below it.
pub fn remove_cgroup_parent(parent: &str) -> Result<()> {
    for top in parents(parent)? {
        fs::remove_dir(top)?;
    }
    Ok(())
}

/// Removes a cgroup with everything below it; nothing runs there any more.
pub fn remove_cgroup_tree(parent: &str) -> Result<()> {
    for top in parents(parent)? {
        let mut found = Vec::new();
        // deepest first
        below(&top, &mut found)?;
        found.push(top);
        for group in found {
            fs::remove_dir(&group).with_context(|| format!("remove {}", group.display()))?;
        }
    }
    Ok(())
}

fn parents(parent: &str) -> Result<Vec<PathBuf>> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let trees = mounts.lines().filter(|line| line.contains(" - cgroup")).filter_map(|line| line.split(' ').nth(4));
    let mut found: Vec<PathBuf> =
        trees.map(|tree| Path::new(tree).join(parent.trim_start_matches('/'))).filter(|path| path.is_dir()).collect();
    found.sort();
    found.dedup();
    Ok(found)
}

/// What is in a folder; nothing when it has just gone, which is no leak.
fn entries(folder: &Path) -> Result<Vec<fs::DirEntry>> {
    match fs::read_dir(folder).and_then(Iterator::collect) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        found => found.with_context(|| format!("list {}", folder.display())),
    }
}

fn below(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in entries(folder)? {
        if entry.file_type()?.is_dir() {
            below(&entry.path(), found)?;
            found.push(entry.path());
        }
    }
    Ok(())
}

/// Files and folders that carry an id in their name.
fn files(folder: &Path, ids: &[String], found: &mut Vec<String>) -> Result<()> {
    for entry in entries(folder)? {
        let name = entry.file_name().to_string_lossy().into_owned();
        if ids.iter().any(|id| name.contains(id)) {
            found.push(format!("file {}", entry.path().display()));
        } else if entry.file_type()?.is_dir() {
            files(&entry.path(), ids, found)?;
        }
    }
    Ok(())
}

/// Rules that name a pod: the portmap plugin writes ids into comments, what is built in has the pods' addresses as elements.
/// The network's own address, which ends with 0, stays in its chains.
fn firewall(ids: &[String], prefix: &str) -> Result<Vec<String>> {
    let rules = run("nft", ["list", "ruleset"])?.ok("nft list ruleset")?;
    let of_pod = |line: &str| {
        let mut numbers = line.match_indices(prefix).filter_map(|(at, found)| line.get(at + found.len()..));
        numbers.any(|rest| !rest.starts_with('0')) || ids.iter().any(|id| line.contains(id))
    };
    Ok(rules.lines().filter(|line| of_pod(line)).map(|line| format!("rule {line}")).collect())
}
