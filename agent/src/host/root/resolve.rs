//! Turns a path into a descriptor without ever leaving the root directory.
//!
//! `openat2(RESOLVE_IN_ROOT)` does it in one call. Kernels before 5.6 (EL 8 has 4.18) and some container filters lack it; there
//! the path is walked component by component with `O_NOFOLLOW`, and links are followed by hand. Both treat an absolute link
//! as relative to the root and `..` at the root as the root, which is what a process chrooted there would see.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2, readlinkat};
use nix::sys::stat::{Mode, SFlag, fstat, fstatat};

/// The kernel's own limit (`MAXSYMLINKS`), so that both ways refuse the same chains.
pub(super) const MAX_LINKS: usize = 40;

/// A rename during the lookup of `..` makes openat2 give up with EAGAIN; it succeeds on one of the next tries unless somebody
/// renames for ever.
const RACE_TRIES: usize = 32;

/// A directory that nothing below escapes from.
#[derive(Debug)]
pub(super) struct Resolver {
    root: OwnedFd,
    walk_by_hand: AtomicBool,
}

impl Resolver {
    pub(super) fn new(root: OwnedFd) -> Resolver {
        Resolver { root, walk_by_hand: AtomicBool::new(false) }
    }

    /// Behaves as on a kernel without openat2. For tests of the fallback.
    #[cfg(any(test, feature = "testing"))]
    pub(super) fn without_openat2(&self) {
        self.walk_by_hand.store(true, Ordering::Relaxed);
    }

    /// Opens an existing object; a final link is followed inside the root.
    pub(super) fn open(&self, path: &Path, flags: OFlag) -> Result<OwnedFd, Errno> {
        let flags = flags | OFlag::O_CLOEXEC;
        if !self.walk_by_hand.load(Ordering::Relaxed) {
            match self.open_by_kernel(path, flags) {
                // EPERM is how seccomp filters written before openat2 answer; a real EPERM comes back from the walk
                Err(Errno::ENOSYS | Errno::EPERM) => self.walk_by_hand.store(true, Ordering::Relaxed),
                other => return other,
            }
        }
        self.open_by_walk(path, flags)
    }

    fn open_by_kernel(&self, path: &Path, flags: OFlag) -> Result<OwnedFd, Errno> {
        let how =
            OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        for _ in 0..RACE_TRIES {
            match openat2(self.root.as_fd(), path, how) {
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                other => return other,
            }
        }
        Err(Errno::EAGAIN)
    }

    fn open_by_walk(&self, path: &Path, flags: OFlag) -> Result<OwnedFd, Errno> {
        let handle = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        // the directories above the current one: `..` pops, and so can never climb above the root
        let mut trail: Vec<OwnedFd> = Vec::new();
        let mut todo = components(path.as_os_str().as_bytes());
        let mut links = 0;
        loop {
            let Some(name) = todo.pop_front() else {
                return openat(trail.last().unwrap_or(&self.root), ".", flags, Mode::empty());
            };
            if name == b".." {
                trail.pop();
                continue;
            }
            let here = trail.last().unwrap_or(&self.root);
            let name = Path::new(std::ffi::OsStr::from_bytes(&name)).to_path_buf();
            let object = openat(here, &name, handle, Mode::empty())?;
            match SFlag::from_bits_truncate(fstat(&object)?.st_mode) & SFlag::S_IFMT {
                SFlag::S_IFLNK => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(Errno::ELOOP);
                    }
                    let target = readlinkat(&object, "")?;
                    if target.as_bytes().first() == Some(&b'/') {
                        trail.clear();
                    }
                    for part in components(target.as_bytes()).into_iter().rev() {
                        todo.push_front(part);
                    }
                }
                SFlag::S_IFDIR => trail.push(object),
                _ if todo.is_empty() => return openat(here, &name, flags | OFlag::O_NOFOLLOW, Mode::empty()),
                _ => return Err(Errno::ENOTDIR),
            }
        }
    }

    /// True when `directory` is one of `tops` (names right below the root) or lies in one. Climbs by identity, not by name:
    /// a link or a bind mount that leads there counts too.
    pub(super) fn is_within(&self, directory: &OwnedFd, tops: &[&str]) -> Result<bool, Errno> {
        let identity = |stat: nix::sys::stat::FileStat| (stat.st_dev, stat.st_ino);
        let top = identity(fstat(&self.root)?);
        let mut forbidden = Vec::new();
        for name in tops {
            match self.open(Path::new(name), OFlag::O_PATH | OFlag::O_DIRECTORY) {
                Ok(dir) => forbidden.push(identity(fstat(&dir)?)),
                Err(Errno::ENOENT | Errno::ENOTDIR) => {}
                Err(errno) => return Err(errno),
            }
        }
        let mut at = directory.try_clone().map_err(|_| Errno::EMFILE)?;
        loop {
            let here = identity(fstat(&at)?);
            if forbidden.contains(&here) {
                return Ok(true);
            }
            let above = fstatat(&at, "..", AtFlags::AT_SYMLINK_NOFOLLOW)?;
            if here == top || identity(above) == here {
                return Ok(false);
            }
            at = openat(&at, "..", OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
        }
    }
}

/// The names of a path in order; the empty ones and `.` mean nothing.
fn components(path: &[u8]) -> VecDeque<Vec<u8>> {
    path.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".").map(<[u8]>::to_vec).collect()
}
