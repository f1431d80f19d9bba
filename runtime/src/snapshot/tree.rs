//! Directories of a layer that is being unpacked, found safely whatever the archive wants.
//!
//! Two ways lead to a directory. The quick one is `openat2` with `RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS`, where the
//! kernel guarantees that the result is inside. Where symlinks of the layer itself are in the way, or the kernel has
//! no `openat2` (before 5.6), the path is walked one component at a time, never following anything: links are read
//! and continued from the layer's root, as they would be in a container. Nobody but us writes to the layer meanwhile.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2, readlinkat};
use nix::sys::stat::{Mode, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::{SnapshotError, attributes};

/// Open directories that are kept; archives list a directory's entries together.
const CACHE: usize = 256;
/// As many as the kernel follows.
const MAX_SYMLINKS: usize = 40;
/// Linux' own limits.
const MAX_PATH: usize = 4096;
const MAX_COMPONENT: usize = 255;

/// A path of an archive as components below the layer's root. Empty is the root itself.
pub(super) type Components<'a> = Vec<&'a [u8]>;

/// Splits an archive's path. Absolute paths start at the layer's root; one that climbs is an attack.
pub(super) fn components(path: &[u8]) -> Result<Components<'_>, SnapshotError> {
    let refuse = |why| SnapshotError::Path { path: show(path), why };
    if path.len() > MAX_PATH {
        return Err(refuse("is too long"));
    }
    if path.contains(&0) {
        return Err(refuse("has a NUL byte"));
    }
    let parts: Components<'_> = path.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b".")).collect();
    if parts.contains(&&b".."[..]) {
        return Err(refuse("leaves the layer"));
    }
    if parts.iter().any(|part| part.len() > MAX_COMPONENT) {
        return Err(refuse("has a name that is too long"));
    }
    Ok(parts)
}

/// A path for messages: readable, and not arbitrarily long.
pub(super) fn show(path: &[u8]) -> String {
    let cut = &path[..path.len().min(200)];
    String::from_utf8_lossy(cut).escape_debug().to_string()
}

/// A directory of the layer.
#[derive(Debug)]
pub(super) struct Dir {
    pub fd: OwnedFd,
    /// Its real place below the layer's root, symlinks resolved.
    pub path: Vec<u8>,
}

/// The layer's directories.
pub(super) struct Tree {
    root: Rc<Dir>,
    path: PathBuf,
    cache: HashMap<Vec<u8>, Rc<Dir>>,
    have_openat2: bool,
}

impl Tree {
    /// Opens the layer's root directory.
    pub(super) fn open(path: &Path) -> Result<Tree, SnapshotError> {
        Tree::open_with(path, true)
    }

    fn open_with(path: &Path, have_openat2: bool) -> Result<Tree, SnapshotError> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let fd = nix::fcntl::open(path, flags, Mode::empty())
            .map_err(|error| SnapshotError::disk("open", path)(error.into()))?;
        let root = Rc::new(Dir { fd, path: Vec::new() });
        Ok(Tree { root, path: path.to_owned(), cache: HashMap::new(), have_openat2 })
    }

    /// The directory that components name; those that are missing are made and reported to `made`. `None` when the
    /// layer itself removes one of them and `wanted` is false: then there is no reason to bring it back.
    pub(super) fn directory(
        &mut self,
        components: &[&[u8]],
        wanted: bool,
        made: &mut Report<'_>,
    ) -> Result<Option<Rc<Dir>>, SnapshotError> {
        if components.is_empty() {
            return Ok(Some(self.root.clone()));
        }
        let key = components.join(&b'/');
        if let Some(dir) = self.cache.get(&key) {
            return Ok(Some(dir.clone()));
        }
        let dir = match self.beneath(&key) {
            Some(fd) => Rc::new(Dir { fd, path: key.clone() }),
            None => match self.walk(components, Missing::Make { made, wanted })? {
                Some(dir) => dir,
                None => return Ok(None),
            },
        };
        self.remember(key, dir.clone());
        Ok(Some(dir))
    }

    /// A directory that exists, symlinks resolved inside the layer.
    pub(super) fn existing(&mut self, components: &[&[u8]]) -> Result<Rc<Dir>, SnapshotError> {
        let key = components.join(&b'/');
        if let Some(dir) = self.cache.get(&key) {
            return Ok(dir.clone());
        }
        match self.beneath(&key) {
            Some(fd) => Ok(Rc::new(Dir { fd, path: key })),
            None => self.walk(components, Missing::Refuse)?.ok_or_else(|| SnapshotError::Missing { path: show(&key) }),
        }
    }

    /// Keeps a directory that was just made.
    pub(super) fn remember(&mut self, key: Vec<u8>, dir: Rc<Dir>) {
        if self.cache.len() >= CACHE {
            self.cache.clear();
        }
        self.cache.insert(key, dir);
    }

    /// To be called when a directory or symlink goes away: paths may lead elsewhere now.
    pub(super) fn forget(&mut self) {
        self.cache.clear();
    }

    /// The absolute path of something in a directory.
    pub(super) fn path_of(&self, dir: &Dir, name: &[u8]) -> PathBuf {
        self.path.join(std::ffi::OsStr::from_bytes(&dir.path)).join(std::ffi::OsStr::from_bytes(name))
    }

    fn beneath(&mut self, path: &[u8]) -> Option<OwnedFd> {
        if !self.have_openat2 || path.is_empty() {
            return None;
        }
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
        match openat2(self.root.fd.as_fd(), path, how) {
            Ok(fd) => Some(fd),
            Err(error) => {
                self.have_openat2 = error != Errno::ENOSYS;
                None
            }
        }
    }

    fn walk(&self, components: &[&[u8]], mut missing: Missing<'_>) -> Result<Option<Rc<Dir>>, SnapshotError> {
        let whole = || show(&components.join(&b'/'));
        let mut todo: VecDeque<Vec<u8>> = components.iter().map(|part| part.to_vec()).collect();
        let mut stack = vec![self.root.clone()];
        let mut links = 0;
        while let Some(name) = todo.pop_front() {
            let Some(here) = stack.last().cloned() else { break };
            match name.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    // above the root is the root, as in any container
                    if stack.len() > 1 {
                        stack.pop();
                    }
                    continue;
                }
                _ => {}
            }
            let at = |source: Errno| SnapshotError::disk("open", self.path_of(&here, &name))(source.into());
            match open_directory(&here.fd, &name) {
                Ok(fd) => stack.push(Rc::new(Dir { fd, path: join(&here.path, &name) })),
                Err(Errno::ENOENT) => {
                    let Missing::Make { made, .. } = &mut missing else {
                        return Err(SnapshotError::Missing { path: whole() });
                    };
                    mkdirat(&here.fd, name.as_slice(), Mode::from_bits_truncate(0o755)).map_err(at)?;
                    let path = join(&here.path, &name);
                    made(&path, Made::New)?;
                    stack.push(Rc::new(Dir { fd: open_directory(&here.fd, &name).map_err(at)?, path }));
                }
                Err(Errno::ENOTDIR) if is_whiteout(&here.fd, &name) => {
                    let Missing::Make { made, wanted: true } = &mut missing else { return Ok(None) };
                    unlinkat(&here.fd, name.as_slice(), UnlinkatFlags::NoRemoveDir).map_err(at)?;
                    mkdirat(&here.fd, name.as_slice(), Mode::from_bits_truncate(0o755)).map_err(at)?;
                    attributes::set_opaque(&self.path_of(&here, &name))?;
                    let path = join(&here.path, &name);
                    made(&path, Made::InPlaceOfWhiteout)?;
                    stack.push(Rc::new(Dir { fd: open_directory(&here.fd, &name).map_err(at)?, path }));
                }
                Err(Errno::ENOTDIR | Errno::ELOOP) => {
                    let Ok(target) = readlinkat(&here.fd, name.as_slice()) else {
                        return Err(SnapshotError::Path {
                            path: whole(),
                            why: "leads through something that is no directory",
                        });
                    };
                    links += 1;
                    if links > MAX_SYMLINKS {
                        return Err(SnapshotError::Path { path: whole(), why: "goes through too many symlinks" });
                    }
                    let target = target.as_bytes();
                    if target.starts_with(b"/") {
                        stack.truncate(1);
                    }
                    for part in target.split(|byte| *byte == b'/').rev() {
                        todo.push_front(part.to_vec());
                    }
                }
                Err(error) => return Err(at(error)),
            }
        }
        Ok(stack.pop())
    }
}

/// How a directory came about that no entry describes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Made {
    /// It may be in a layer below, too.
    New,
    /// The layer removes what is below before it puts something in.
    InPlaceOfWhiteout,
}

/// Hears of a directory that was made, by its place below the layer's root.
pub(super) type Report<'a> = dyn FnMut(&[u8], Made) -> Result<(), SnapshotError> + 'a;

/// Whether overlayfs takes what is there for a name that was removed.
pub(super) fn is_whiteout(dir: &OwnedFd, name: &[u8]) -> bool {
    fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW)
        .is_ok_and(|there| there.st_mode & libc::S_IFMT == libc::S_IFCHR && there.st_rdev == 0)
}

/// What to do about directories that are not there.
enum Missing<'a> {
    Make { made: &'a mut Report<'a>, wanted: bool },
    Refuse,
}

fn open_directory(dir: impl AsFd, name: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(dir, name, flags, Mode::empty())
}

/// Opens something below `root` when no symlink is on the way.
pub(super) fn open_plain(root: &File, path: &[u8], flags: OFlag) -> io::Result<OwnedFd> {
    if !path.is_empty() {
        let how = OpenHow::new()
            .flags(flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
        match openat2(root, path, how) {
            // before Linux 5.6
            Err(Errno::ENOSYS) => {}
            other => return Ok(other?),
        }
    }
    open_parts(root, path, flags)
}

/// The same, one part after the other.
fn open_parts(root: &File, path: &[u8], flags: OFlag) -> io::Result<OwnedFd> {
    let mut parts = path.split(|byte| *byte == b'/').filter(|part| !part.is_empty()).peekable();
    let mut here: Option<OwnedFd> = None;
    while let Some(part) = parts.next() {
        let from = here.as_ref().map_or(root.as_fd(), |fd| fd.as_fd());
        if parts.peek().is_none() {
            return Ok(openat(from, part, flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())?);
        }
        here = Some(open_directory(from, part)?);
    }
    Ok(openat(root, ".", flags | OFlag::O_CLOEXEC, Mode::empty())?)
}

/// `directory/name`, without a slash in front.
pub(super) fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    if directory.is_empty() { name.to_vec() } else { [directory, b"/", name].concat() }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn find(tree: &mut Tree, path: &str) -> Result<String, SnapshotError> {
        let parts = components(path.as_bytes())?;
        let dir = tree.directory(&parts, true, &mut |_, _| Ok(()))?.unwrap();
        Ok(String::from_utf8(dir.path.clone()).unwrap())
    }

    #[test]
    fn symlinks_are_resolved_inside_the_layer_with_and_without_openat2() {
        for have_openat2 in [true, false] {
            let dir = tempfile::tempdir().unwrap();
            let root = dir.path().join("fs");
            std::fs::create_dir_all(root.join("usr/lib")).unwrap();
            symlink("usr/lib", root.join("lib")).unwrap();
            symlink("/usr", root.join("absolute")).unwrap();
            symlink("../../../..", root.join("usr/up")).unwrap();
            symlink("loop", root.join("loop")).unwrap();
            symlink(dir.path(), root.join("outside")).unwrap();
            std::fs::write(root.join("file"), b"").unwrap();
            let mut tree = Tree::open_with(&root, have_openat2).unwrap();
            assert_eq!(find(&mut tree, "lib/x").unwrap(), "usr/lib/x");
            assert_eq!(find(&mut tree, "absolute/lib").unwrap(), "usr/lib");
            assert_eq!(find(&mut tree, "usr/up/lib").unwrap(), "usr/lib");
            assert_eq!(find(&mut tree, "/./usr//lib/").unwrap(), "usr/lib");
            let inside = find(&mut tree, "outside/x").unwrap();
            assert!(root.join(&inside).is_dir());
            assert!(!dir.path().join("x").exists());
            assert!(find(&mut tree, "loop/x").is_err());
            assert!(find(&mut tree, "file/x").is_err());
            assert!(find(&mut tree, "usr/../../x").is_err());
        }
    }

    #[test]
    fn what_is_made_on_the_way_is_reported_with_its_real_place() {
        let dir = tempfile::tempdir().unwrap();
        symlink("a/b", dir.path().join("link")).unwrap();
        let mut tree = Tree::open(dir.path()).unwrap();
        let mut made = Vec::new();
        tree.directory(&[b"link", b"c"], true, &mut |path, how| {
            assert_eq!(how, Made::New);
            made.push(String::from_utf8(path.to_vec()).unwrap());
            Ok(())
        })
        .unwrap();
        assert_eq!(made, ["a", "a/b", "a/b/c"]);
        assert!(matches!(tree.existing(&[b"nothing"]), Err(SnapshotError::Missing { .. })));
    }

    #[test]
    fn paths_that_linux_cannot_have_are_refused() {
        assert!(components(&[b'a'; 5000]).is_err());
        assert!(components(&[b'a'; 256]).is_err());
        assert!(components(b"a\0b").is_err());
        assert!(components(b"a/../b").is_err());
        assert!(components(b"/").unwrap().is_empty());
        assert_eq!(components(b"//a/./b/").unwrap(), vec![b"a", b"b"]);
    }
}
