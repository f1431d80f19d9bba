//! What a daemon has left on the machine when every pod is removed.

use std::fs;
use std::path::{Path, PathBuf};

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
    found.extend(firewall(ids)?);
    Ok(found)
}

/// Shims and containers: they have the daemon's log, or a pod's, open, or name a pod on their command line.
fn processes(daemon: &Daemon, ids: &[String]) -> Vec<String> {
    let own = [Some(std::process::id()), daemon.pid()];
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir("/proc") else { return found };
    for entry in entries.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        // a process that ends meanwhile is none
        let Ok(line) = fs::read(entry.path().join("cmdline")) else { continue };
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let holds = fs::read_dir(entry.path().join("fd")).is_ok_and(|fds| {
            fds.flatten().any(|fd| fs::read_link(fd.path()).is_ok_and(|to| to.starts_with(daemon.directory())))
        });
        if !own.contains(&Some(pid)) && (holds || ids.iter().any(|id| line.contains(id))) {
            found.push(format!("process {pid}: {line}"));
        }
    }
    found
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

fn below(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            below(&entry.path(), found)?;
            found.push(entry.path());
        }
    }
    Ok(())
}

/// Files and folders that carry an id in their name.
fn files(folder: &Path, ids: &[String], found: &mut Vec<String>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if ids.iter().any(|id| name.contains(id)) {
            found.push(format!("file {}", entry.path().display()));
        } else if entry.file_type()?.is_dir() {
            files(&entry.path(), ids, found)?;
        }
    }
    Ok(())
}

/// Rules that name a pod: the portmap plugin writes ids into comments.
fn firewall(ids: &[String]) -> Result<Vec<String>> {
    let rules = run("nft", ["list", "ruleset"])?.ok("nft list ruleset")?;
    Ok(rules.lines().filter(|line| ids.iter().any(|id| line.contains(id))).map(|line| format!("rule {line}")).collect())
}
