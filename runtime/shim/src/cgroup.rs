//! A container's cgroups as far as the shim needs them: who is in there, end them, was memory short.
//!
//! The daemon makes and removes them. One directory on v2, one per controller on v1, all naming the container.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use std::os::fd::{AsFd, OwnedFd};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use nix::sys::uio::pread;

use crate::io::open_path;
use crate::sys;

/// Levels of cgroups below a container's that are looked at; programs inside may make their own.
const MAX_DEPTH: usize = 16;

/// The directories of one container or one exec.
#[derive(Debug, Clone, Default)]
pub struct Cgroup {
    directories: Vec<Directory>,
}

#[derive(Debug, Clone)]
struct Directory {
    path: PathBuf,
    v2: bool,
}

impl Directory {
    fn new(path: PathBuf) -> Self {
        // one that systemd is still to make is of the kind of its parent
        let found = path.ancestors().find_map(|place| statfs(place).ok());
        let v2 = found.is_some_and(|found| found.filesystem_type() == CGROUP2_SUPER_MAGIC);
        Self { path, v2 }
    }

    /// Whether it is one of the v1 hierarchies of that name.
    fn of(&self, hierarchy: &str) -> bool {
        !self.v2 && self.path.components().any(|part| part.as_os_str() == hierarchy)
    }
}

impl Cgroup {
    /// Those directories. Each must name `id` in its last component, or it is not the container's alone, and killing
    /// all that is in it would kill others.
    pub fn new(directories: &[String], id: &str) -> Result<Self, String> {
        for directory in directories {
            let path = Path::new(directory);
            let own = path.file_name().is_some_and(|name| name.to_string_lossy().contains(id));
            if !path.is_absolute() || !own || directory.contains("/../") {
                return Err(format!("cgroup {directory}: not an absolute path whose last component names {id}"));
            }
        }
        Ok(Self { directories: directories.iter().map(|path| Directory::new(path.into())).collect() })
    }

    /// The directories, as given.
    pub fn paths(&self) -> Vec<PathBuf> {
        self.directories.iter().map(|directory| directory.path.clone()).collect()
    }

    /// Where that is one v2 cgroup: its directory, for a process to be born into.
    pub fn birthplace(&self) -> Option<OwnedFd> {
        match self.directories.as_slice() {
            [only] if only.v2 => open_path(only.path.to_str()?).ok(),
            _ => None,
        }
    }

    /// The v2 cgroup that `pid`, a process of the container, is in: the container's or one below.
    pub fn of_process(&self, pid: i32) -> Option<PathBuf> {
        let directory = self.directories.iter().find(|directory| directory.v2)?;
        let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        let path = text.lines().find_map(|line| line.strip_prefix("0::"))?;
        Some(directory.path.join(below(path, directory.path.file_name()?.to_str()?)?))
    }

    /// Kills every process in there. True when none is left.
    pub fn kill(&self) -> bool {
        let mut empty = true;
        for directory in &self.directories {
            // 5.14: atomic, and reaches what is below
            let kill = OpenOptions::new().write(true).open(directory.path.join("cgroup.kill"));
            if directory.v2 && kill.and_then(|mut file| file.write_all(b"1")).is_ok() {
                empty &= !populated(&directory.path);
            } else {
                empty &= signal_tree(&directory.path, libc::SIGKILL, 0);
            }
        }
        empty
    }

    /// Sends a signal to every process in there, once.
    pub fn signal(&self, signal: i32) {
        // every process is in each of the hierarchies
        if let Some(directory) = self.directories.first() {
            signal_tree(&directory.path, signal, 0);
        }
    }

    /// Whether the kernel killed a process in there for want of memory.
    pub fn oom_killed(&self) -> bool {
        self.directories.iter().filter(|directory| directory.v2 || directory.of("memory")).any(|directory| {
            let file = if directory.v2 { "memory.events" } else { "memory.oom_control" };
            fs::read_to_string(directory.path.join(file)).is_ok_and(|text| counts_oom_kills(&text))
        })
    }

    /// Where v2 counts what became of a lack of memory. It can be waited for: `EPOLLPRI` says that a number has changed.
    pub fn memory_events(&self) -> Option<OwnedFd> {
        let directory = self.directories.iter().find(|directory| directory.v2)?;
        File::open(directory.path.join("memory.events")).ok().map(OwnedFd::from)
    }

    /// Whether the numbers in a file of [`Self::memory_events`] say that the kernel killed a process. None when the
    /// cgroup is gone.
    pub fn events_of_kills<Fd: AsFd>(file: Fd) -> Option<bool> {
        // a dozen lines
        let mut buffer = [0; 1024];
        let length = pread(file, &mut buffer, 0).ok()?;
        Some(counts_oom_kills(&String::from_utf8_lossy(&buffer[..length])))
    }

    /// Makes a cgroup below, to tell the processes of an exec from the others: on v2 that, on v1 one in a hierarchy
    /// where a new directory changes nothing for those in it. None where neither is.
    pub fn make_below(&self, name: &str) -> io::Result<Option<(Vec<PathBuf>, Self)>> {
        let harmless = |directory: &&Directory| {
            directory.v2 || ["freezer", "pids", "systemd"].iter().any(|hierarchy| directory.of(hierarchy))
        };
        let Some(chosen) = self.directories.iter().find(harmless) else { return Ok(None) };
        let below = chosen.path.join(name);
        fs::create_dir(&below)?;
        let replaced = |path: PathBuf| if path == chosen.path { below.clone() } else { path };
        let all = self.paths().into_iter().map(replaced).collect();
        Ok(Some((all, Self { directories: vec![Directory { path: below, v2: chosen.v2 }] })))
    }

    /// Removes a cgroup made by [`Self::make_below`]; false while something is in it.
    pub fn remove(&self) -> bool {
        self.directories.iter().all(|directory| match fs::remove_dir(&directory.path) {
            Ok(()) => true,
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        })
    }
}

/// What of a process's cgroup path comes after the container's own name, which is unique.
fn below<'a>(path: &'a str, own: &str) -> Option<&'a str> {
    let (_, rest) = path.split_once(own)?;
    let rest = rest.trim_start_matches('/');
    (!rest.split('/').any(|part| part == "..")).then_some(rest)
}

/// Whether the text of `memory.events` or `memory.oom_control` tells of a process killed.
fn counts_oom_kills(text: &str) -> bool {
    ["oom_kill", "oom_group_kill"].iter().any(|key| field(text, key).is_some_and(|count| count > 0))
}

/// The number after `key` in lines of `key number`.
fn field(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

fn populated(directory: &Path) -> bool {
    fs::read_to_string(directory.join("cgroup.events")).is_ok_and(|text| field(&text, "populated") == Some(1))
}

/// Signals all in the tree of cgroups; true when there was nobody.
fn signal_tree(directory: &Path, signal: i32, depth: usize) -> bool {
    let mut empty = signal_members(directory, signal);
    let Ok(entries) = fs::read_dir(directory) else { return empty };
    for entry in entries.flatten() {
        if depth < MAX_DEPTH && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            empty &= signal_tree(&entry.path(), signal, depth + 1);
        }
    }
    empty
}

/// Signals the members of one cgroup. Between reading an id and signalling it the process may end and its id be given
/// to another one anywhere: so each is held by a descriptor first, and must still be a member afterwards.
fn signal_members(directory: &Path, signal: i32) -> bool {
    let members = members(directory);
    if members.is_empty() {
        return true;
    }
    let held: Vec<_> = members.iter().map(|pid| (*pid, sys::pidfd_open(*pid))).collect();
    let still = self::members(directory);
    for (pid, pidfd) in held.iter().filter(|(pid, _)| still.contains(pid)) {
        let sent = match pidfd {
            Ok(pidfd) => sys::pidfd_signal(pidfd, signal),
            // before 5.3 there are only numbers
            Err(nix::errno::Errno::ENOSYS) => sys::send_signal(*pid, signal),
            Err(error) => Err(*error),
        };
        // gone meanwhile: what was wanted
        let _ = sent;
    }
    false
}

fn members(directory: &Path) -> Vec<i32> {
    let text = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    // 0 is a process that this PID namespace cannot see: kill(0) would be ourselves
    text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 1).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroup_that_does_not_name_the_container_is_refused() {
        for bad in ["/sys/fs/cgroup/memory", "sys/crio-abc", "/a/crio-abc/../../b/crio-abc", "/crio-abc/other"] {
            assert!(Cgroup::new(&[bad.into()], "abc").is_err(), "{bad}");
        }
        assert!(Cgroup::new(&["/sys/fs/cgroup/memory/pods/crio-abc".into()], "abc").is_ok());
    }

    #[test]
    fn the_cgroup_of_a_process_is_found_below_the_containers() {
        assert_eq!(below("/pods/crio-abc", "crio-abc"), Some(""));
        assert_eq!(below("/pods/crio-abc/init.scope", "crio-abc"), Some("init.scope"));
        assert_eq!(below("/../../crio-abc/a/b", "crio-abc"), Some("a/b"));
        assert_eq!(below("/crio-abc/../x", "crio-abc"), None);
        assert_eq!(below("/elsewhere", "crio-abc"), None);
    }

    #[test]
    fn oom_kills_are_read_from_both_versions() {
        for (text, expected) in [
            ("low 0\noom 1\noom_kill 1\noom_group_kill 0\n", true),
            ("low 0\noom 7\noom_kill 0\n", false),
            ("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n", true),
            ("oom_kill_disable 1\nunder_oom 1\noom_kill 0\n", false),
            ("", false),
        ] {
            assert_eq!(counts_oom_kills(text), expected, "{text}");
        }
    }
}
