//! Reading one file of an image that is not mounted yet: the layers, merged as overlayfs would merge them.
//!
//! Every step goes through a descriptor of the directory before it, links are read and followed here, `..` stops at the
//! image's root: nothing in an image can lead out of it.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstatat};

/// As the kernel allows.
const MAX_LINKS: usize = 40;

/// Reads a regular file, at most `limit` bytes of it; none when it does not exist. `layers`: topmost first.
pub(super) fn read(layers: &[PathBuf], path: &Path, limit: u64) -> io::Result<Option<Vec<u8>>> {
    let Found::File(layer, name) = find(layers, path)? else { return Ok(None) };
    let file = open_file(&layer, &name)?;
    let mut bytes = Vec::new();
    file.take(limit).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

/// Whether there is anything at that path.
pub(super) fn exists(layers: &[PathBuf], path: &Path) -> io::Result<bool> {
    find(layers, path).map(|found| !matches!(found, Found::Nothing))
}

enum Found {
    Nothing,
    Directory,
    /// A regular file of that layer's directory.
    File(OwnedFd, OsString),
    Other,
}

/// One directory of the image: its directories in those layers that have it, topmost first.
struct Merged(Vec<OwnedFd>);

enum Entry {
    Directory(Merged),
    Link(OsString),
    Other(OwnedFd, SFlag),
}

fn find(layers: &[PathBuf], path: &Path) -> io::Result<Found> {
    let mut trail = vec![root(layers)?];
    let mut steps: Vec<OsString> = steps_of(path);
    let mut links = 0;
    while let Some(name) = steps.pop() {
        if name == ".." {
            if trail.len() > 1 {
                trail.pop();
            }
            continue;
        }
        let Some(directory) = trail.last() else { return Ok(Found::Nothing) };
        match directory.entry(&name)? {
            None => return Ok(Found::Nothing),
            Some(Entry::Directory(next)) => trail.push(next),
            Some(Entry::Link(target)) => {
                links += 1;
                if links > MAX_LINKS {
                    return Err(Errno::ELOOP.into());
                }
                let target = Path::new(&target);
                if target.is_absolute() {
                    trail.truncate(1);
                }
                steps.extend(steps_of(target));
            }
            Some(Entry::Other(layer, kind)) => {
                return Ok(match (steps.is_empty(), kind) {
                    (true, SFlag::S_IFREG) => Found::File(layer, name),
                    (true, _) => Found::Other,
                    (false, _) => Found::Nothing,
                });
            }
        }
    }
    Ok(Found::Directory)
}

/// The names on the way, the next one last.
fn steps_of(path: &Path) -> Vec<OsString> {
    let names = path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    });
    let mut names: Vec<OsString> = names.collect();
    names.reverse();
    names
}

fn root(layers: &[PathBuf]) -> io::Result<Merged> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let dirs = layers.iter().map(|layer| open(layer, flags, Mode::empty()).map_err(io::Error::from));
    Ok(Merged(dirs.collect::<io::Result<_>>()?))
}

impl Merged {
    fn entry(&self, name: &OsStr) -> io::Result<Option<Entry>> {
        let mut directories = Vec::new();
        for layer in &self.0 {
            let stat = match fstatat(layer, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                Err(Errno::ENOENT | Errno::ENOTDIR) => continue,
                Err(errno) => return Err(errno.into()),
            };
            let kind = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT;
            if kind == SFlag::S_IFDIR {
                let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                directories.push(openat(layer, name, flags, Mode::empty())?);
                if is_opaque(layer, name) {
                    break;
                }
                continue;
            }
            if !directories.is_empty() || is_whiteout(&stat, kind) {
                // covered by the directories above, or deleted
                break;
            }
            if kind == SFlag::S_IFLNK {
                return Ok(Some(Entry::Link(readlinkat(layer, name)?)));
            }
            return Ok(Some(Entry::Other(layer.as_fd().try_clone_to_owned()?, kind)));
        }
        Ok((!directories.is_empty()).then_some(Entry::Directory(Merged(directories))))
    }
}

fn is_whiteout(stat: &FileStat, kind: SFlag) -> bool {
    kind == SFlag::S_IFCHR && stat.st_rdev == 0
}

/// Whether the directory hides those below it. Read through the descriptor: the name is known to be no link.
fn is_opaque(layer: &OwnedFd, name: &OsStr) -> bool {
    use std::os::fd::AsRawFd;
    let mut path = format!("/proc/self/fd/{}/", layer.as_raw_fd()).into_bytes();
    path.extend_from_slice(name.as_bytes());
    crate::sys::xattr(Path::new(OsStr::from_bytes(&path)), c"trusted.overlay.opaque").is_some_and(|value| value == b"y")
}

fn open_file(layer: &OwnedFd, name: &OsStr) -> io::Result<File> {
    // without O_NONBLOCK a FIFO put in the file's place would stop us here
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    Ok(File::from(openat(layer, name, flags, Mode::empty())?))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    struct Image {
        dir: tempfile::TempDir,
    }

    impl Image {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            for layer in ["top", "bottom"] {
                fs::create_dir_all(dir.path().join(layer).join("etc")).unwrap();
            }
            Image { dir }
        }

        fn write(&self, path: &str, text: &str) {
            fs::write(self.dir.path().join(path), text).unwrap();
        }

        fn read(&self, path: &str) -> Option<String> {
            let layers = ["top", "bottom"].map(|layer| self.dir.path().join(layer));
            read(&layers, Path::new(path), 100).unwrap().map(|bytes| String::from_utf8(bytes).unwrap())
        }
    }

    #[test]
    fn the_upper_layer_wins_and_the_lower_shines_through() {
        let image = Image::new();
        image.write("bottom/etc/passwd", "lower");
        image.write("bottom/etc/group", "group");
        image.write("top/etc/passwd", "upper");
        assert_eq!(image.read("/etc/passwd").as_deref(), Some("upper"));
        assert_eq!(image.read("/etc/group").as_deref(), Some("group"));
        assert_eq!(image.read("/etc/none"), None);
        assert_eq!(image.read("/etc"), None);
        let layers = ["top", "bottom"].map(|layer| image.dir.path().join(layer));
        for (path, there) in
            [("etc", true), ("/etc/group", true), ("", true), ("etc/none", false), ("etc/group/x", false)]
        {
            assert_eq!(exists(&layers, Path::new(path)).unwrap(), there, "{path}");
        }
    }

    #[test]
    fn links_stay_inside_and_loops_end() {
        let image = Image::new();
        image.write("bottom/real", "inside");
        symlink("../../../../real", image.dir.path().join("top/etc/passwd")).unwrap();
        assert_eq!(image.read("/etc/passwd").as_deref(), Some("inside"));
        symlink("/real", image.dir.path().join("top/etc/group")).unwrap();
        assert_eq!(image.read("/etc/group").as_deref(), Some("inside"));
        symlink("loop", image.dir.path().join("top/loop")).unwrap();
        let layers = [image.dir.path().join("top")];
        assert_eq!(read(&layers, Path::new("/loop"), 9).unwrap_err().raw_os_error(), Some(nix::libc::ELOOP));
    }

    #[test]
    fn a_file_hides_a_directory_below_it() {
        let image = Image::new();
        fs::create_dir(image.dir.path().join("bottom/x")).unwrap();
        image.write("bottom/x/file", "below");
        image.write("top/x", "a file now");
        assert_eq!(image.read("/x/file"), None);
    }

    #[test]
    fn size_is_bounded_and_what_is_no_file_is_not_read() {
        let image = Image::new();
        image.write("top/etc/passwd", &"x".repeat(500));
        assert_eq!(image.read("/etc/passwd").map(|text| text.len()), Some(100));
        nix::unistd::mkfifo(&image.dir.path().join("top/etc/fifo"), Mode::S_IRUSR).unwrap();
        assert_eq!(image.read("/etc/fifo"), None);
    }
}
