//! Paths of a container, resolved inside its root whatever links the image or a volume holds.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2, readlinkat};
use nix::sys::stat::{Mode, SFlag, fstat, mkdirat};
use nix::unistd::{Gid, Uid, fchownat, setfsgid, setfsuid};

/// Links followed before a path counts as a loop, as in the kernel.
const MAX_LINKS: usize = 40;

/// What to make where nothing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Make {
    /// Nothing: `ENOENT`.
    Nothing,
    /// Directories, the last component included.
    Directory,
    /// Directories, and an empty file at the end.
    File,
}

/// The root directory of a container.
#[derive(Debug)]
pub struct Root {
    fd: OwnedFd,
    /// Who gets what is made in it, as the host sees them; none: root.
    owner: Option<(Uid, Gid)>,
}

impl Root {
    /// The root that `fd` stands for.
    pub fn new(fd: OwnedFd) -> Self {
        Self { fd, owner: None }
    }

    /// Gives what is made in it from now on to somebody else than root.
    pub fn owned_by(self, uid: u32, gid: u32) -> Self {
        Self { owner: Some((Uid::from_raw(uid), Gid::from_raw(gid))), ..self }
    }

    /// Opens what is at `path` as a place (`O_PATH`).
    pub fn open(&self, path: &str) -> nix::Result<OwnedFd> {
        let relative = path.trim_start_matches('/');
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        // openat2 gives EAGAIN when something was renamed meanwhile and it cannot tell; the walk below can
        match openat2(&self.fd, if relative.is_empty() { "." } else { relative }, how) {
            Err(Errno::ENOSYS | Errno::EAGAIN) => self.walk(path, Make::Nothing),
            result => result,
        }
    }

    /// As [`Self::open`], and makes what is missing.
    pub fn make(&self, path: &str, make: Make) -> nix::Result<OwnedFd> {
        match self.open(path) {
            Err(Errno::ENOENT) => self.walk(path, make),
            result => result,
        }
    }

    /// Opens the directory that holds the last component (making it when missing), and names that component.
    pub fn parent(&self, path: &str) -> nix::Result<(OwnedFd, OsString)> {
        let path = path.trim_end_matches('/');
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        if matches!(name, "" | "." | "..") {
            return Err(Errno::EINVAL);
        }
        Ok((self.make(parent, Make::Directory)?, name.into()))
    }

    /// Goes component by component, holding every directory it came through: `..` is a step back on that stack and
    /// links are text, so neither leads out of the root even while somebody renames directories.
    fn walk(&self, path: &str, make: Make) -> nix::Result<OwnedFd> {
        let mut todo = components(OsStr::new(path));
        let mut stack: Vec<OwnedFd> = Vec::new();
        let mut links = 0;
        while let Some(name) = todo.pop_front() {
            if name == ".." {
                stack.pop();
                continue;
            }
            let here = stack.last().map_or(self.fd.as_fd(), AsFd::as_fd);
            let found = match open_component(here, &name) {
                Err(Errno::ENOENT) if make != Make::Nothing => {
                    self.make_component(here, &name, make, todo.is_empty())?
                }
                result => result?,
            };
            if SFlag::from_bits_truncate(fstat(&found)?.st_mode) & SFlag::S_IFMT != SFlag::S_IFLNK {
                stack.push(found);
                continue;
            }
            links += 1;
            if links > MAX_LINKS {
                return Err(Errno::ELOOP);
            }
            let target = readlinkat(&found, "")?;
            if target.as_bytes().starts_with(b"/") {
                stack.clear();
            }
            for name in components(&target).into_iter().rev() {
                todo.push_front(name);
            }
        }
        match stack.pop() {
            Some(found) => Ok(found),
            None => openat(&self.fd, ".", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()),
        }
    }

    fn make_component(&self, here: BorrowedFd<'_>, name: &OsStr, make: Make, last: bool) -> nix::Result<OwnedFd> {
        let made = match (make_component(here, name, make, last), self.owner) {
            // on a mount with mapped ids the host's root is nobody, and nobody makes files
            (Err(Errno::EOVERFLOW), Some((uid, gid))) => {
                let before = (setfsuid(uid), setfsgid(gid));
                let made = make_component(here, name, make, last);
                setfsuid(before.0);
                setfsgid(before.1);
                made
            }
            (made, _) => made,
        }?;
        if let (true, Some((uid, gid))) = (made, self.owner) {
            fchownat(here, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)?;
        }
        open_component(here, name)
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn components(path: &OsStr) -> VecDeque<OsString> {
    path.as_bytes()
        .split(|byte| *byte == b'/')
        .filter(|name| !name.is_empty() && *name != b".")
        .map(|name| OsString::from_vec(name.to_vec()))
        .collect()
}

fn open_component(here: BorrowedFd<'_>, name: &OsStr) -> nix::Result<OwnedFd> {
    openat(here, name, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())
}

/// False when somebody else was faster.
fn make_component(here: BorrowedFd<'_>, name: &OsStr, make: Make, last: bool) -> nix::Result<bool> {
    if make == Make::File && last {
        let flags = OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_WRONLY | OFlag::O_NONBLOCK;
        return openat(here, name, flags, Mode::from_bits_truncate(0o644)).map(|_| true);
    }
    match mkdirat(here, name, Mode::from_bits_truncate(0o755)) {
        Err(Errno::EEXIST) => Ok(false),
        made => made.map(|()| true),
    }
}

/// The path by which system calls that know no descriptors reach an open file.
pub fn by_descriptor<Fd: AsFd>(fd: Fd) -> String {
    use std::os::fd::AsRawFd;
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, symlink};
    use std::path::Path;

    use super::*;

    use crate::io::open_path;

    fn root(path: &Path) -> Root {
        Root::new(open_path(path.to_str().unwrap()).unwrap())
    }

    fn identity(fd: &OwnedFd) -> (u64, u64) {
        let found = fstat(fd).unwrap();
        (found.st_dev, found.st_ino)
    }

    fn of(path: &Path) -> (u64, u64) {
        let found = fs::metadata(path).unwrap();
        (found.dev(), found.ino())
    }

    /// What both ways of opening must agree on: the path in the container, what it stands for.
    const CASES: [(&str, &str); 12] = [
        ("/", ""),
        ("", ""),
        ("/..", ""),
        ("/../../a", "a"),
        ("a/b", "a/b"),
        ("/a/./b//", "a/b"),
        ("/a/../a/b/..", "a"),
        ("/absolute", "a"),
        ("/absolute/b", "a/b"),
        ("/climbing/b", "a/b"),
        ("/chain/b/../b", "a/b"),
        ("/a/up", ""),
    ];

    fn tree() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("a/b")).unwrap();
        symlink("/a", dir.path().join("absolute")).unwrap();
        symlink("../../../../../a", dir.path().join("climbing")).unwrap();
        symlink("climbing", dir.path().join("chain")).unwrap();
        symlink("..", dir.path().join("a/up")).unwrap();
        symlink("loop", dir.path().join("loop")).unwrap();
        symlink("/nowhere/deep", dir.path().join("dangling")).unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        dir
    }

    #[test]
    fn the_kernel_and_the_walk_agree() {
        let dir = tree();
        let root = root(dir.path());
        for (path, expected) in CASES {
            let expected = of(&dir.path().join(expected));
            assert_eq!(identity(&root.open(path).unwrap()), expected, "open {path}");
            assert_eq!(identity(&root.walk(path, Make::Nothing).unwrap()), expected, "walk {path}");
        }
        for (path, expected) in
            [("loop", Errno::ELOOP), ("dangling", Errno::ENOENT), ("none", Errno::ENOENT), ("file/x", Errno::ENOTDIR)]
        {
            assert_eq!(root.open(path).unwrap_err(), expected, "open {path}");
            assert_eq!(root.walk(path, Make::Nothing).unwrap_err(), expected, "walk {path}");
        }
    }

    #[test]
    fn what_is_missing_is_made_inside_the_root() {
        let dir = tree();
        let root = root(dir.path());
        for (path, expected) in
            [("new/deep/dir", "new/deep/dir"), ("dangling/more", "nowhere/deep/more"), ("/climbing/../../../x", "x")]
        {
            let made = root.make(path, Make::Directory).unwrap();
            assert_eq!(identity(&made), of(&dir.path().join(expected)), "{path}");
        }
        symlink("/etc/elsewhere/f", dir.path().join("f")).unwrap();
        root.make("f", Make::File).unwrap();
        assert!(dir.path().join("etc/elsewhere/f").is_file());
        // a file in the way is not replaced
        assert_eq!(root.make("file/x", Make::Directory).unwrap_err(), Errno::ENOTDIR);
        assert_eq!(root.make("file", Make::Directory).map(|fd| identity(&fd)), Ok(of(&dir.path().join("file"))));
        let (parent, name) = root.parent("/p/q/r").unwrap();
        assert_eq!((identity(&parent), name), (of(&dir.path().join("p/q")), OsString::from("r")));
        for bad in ["/", "", "/a/..", "."] {
            assert_eq!(root.parent(bad).unwrap_err(), Errno::EINVAL, "{bad}");
        }
    }

    #[test]
    fn links_of_proc_are_text_and_lead_nowhere() {
        // /proc/self/root is a link that the kernel follows anywhere, whatever its text
        let root = root(Path::new("/proc"));
        assert!(matches!(root.open("/self/cwd"), Err(Errno::ELOOP | Errno::ENOENT | Errno::EXDEV)));
        let inside = root.walk("/self/root", Make::Nothing).unwrap();
        assert_eq!(identity(&inside), of(Path::new("/proc")), "its text is / and that is this root");
    }
}
