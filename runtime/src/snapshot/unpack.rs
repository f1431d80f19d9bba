//! From an archive to an overlayfs layer.
//!
//! Whiteouts become what overlayfs understands: a character device 0:0 for a removed name, an extended attribute for
//! an opaque directory. Three things have to wait until the layers below are there (see [`super::settle`]):
//! directories that the archive takes for granted, hard links to files of lower layers, and directories' times, which
//! every entry made inside would change again.

use std::fs::File;
use std::io::{self, BufRead, Seek as _, SeekFrom, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, SFlag, fstatat, makedev, mkdirat, mknodat};
use nix::unistd::{UnlinkatFlags, linkat, symlinkat, unlinkat};

use super::SnapshotError;
use super::archive::{Archive, Entry, Extent, Kind};
use super::attributes::{self, Attributes};
use super::recipe::{self, Recipe};
use super::spool::Spool;
use super::tree::{Components, Dir, Made, Tree, components, is_whiteout, join, show};

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// What aufs, long ago, used for itself.
const AUFS: &[u8] = b".wh..wh.";
/// What a file system hands out at least.
const FS_BLOCK: u64 = 4096;

/// A layer on disk, not yet adjusted to the layers below.
#[derive(Debug)]
pub(super) struct Unpacked {
    /// Directories that had to be made although no entry describes them, and something behind those that have nothing
    /// to do with what is below.
    pub implied: Spool,
    /// Hard links whose target is not in this layer: target, own path.
    pub links: Spool,
    /// Directories and their times: seconds and nanoseconds, little-endian.
    pub times: Spool,
    pub bytes: u64,
    pub inodes: u64,
}

impl Unpacked {
    /// Nothing yet; `directory` is for what takes more memory than it may.
    fn new(directory: &Path) -> Unpacked {
        let spool = || Spool::new(directory);
        Unpacked { implied: spool(), links: spool(), times: spool(), bytes: 0, inodes: 0 }
    }

    fn implied(&mut self, path: &[u8], how: Made) -> Result<(), SnapshotError> {
        self.implied.push(path, if how == Made::New { b"" } else { b"new" })?;
        if how == Made::InPlaceOfWhiteout {
            self.inodes = self.inodes.saturating_sub(1);
        }
        self.count(FS_BLOCK);
        Ok(())
    }

    fn time(&mut self, path: &[u8], (seconds, nanoseconds): (i64, u32)) -> Result<(), SnapshotError> {
        let mut time = [0; 12];
        time[..8].copy_from_slice(&seconds.to_le_bytes());
        time[8..].copy_from_slice(&nanoseconds.to_le_bytes());
        self.times.push(path, &time)
    }

    fn count(&mut self, bytes: u64) {
        self.bytes += bytes.div_ceil(FS_BLOCK) * FS_BLOCK;
        self.inodes += 1;
    }
}

/// Unpacks a whole archive into the empty directory `root`. The reader is left behind the archive's end mark.
pub(super) fn unpack<R: BufRead>(
    input: R,
    root: &Path,
    max_entries: u64,
    recipe: Recipe,
) -> Result<(Unpacked, R, Recipe), SnapshotError> {
    let result = Unpacked::new(root.parent().unwrap_or(root));
    let beside = root.parent().unwrap_or(root).join(recipe::REPLACED);
    let replaced = Replaced { directory: beside, count: 0, news: Vec::new() };
    let mut unpacker = Unpacker { tree: Tree::open(root)?, result, root_given: false, replaced };
    let mut archive = Archive::with_listener(input, recipe);
    let mut entries = 0;
    while let Some(entry) = archive.next_entry()? {
        entries += 1;
        if entries > max_entries {
            return Err(SnapshotError::TooMuch { what: "entries", limit: max_entries });
        }
        unpacker.apply(&entry, &mut archive)?;
        unpacker.replaced.tell(archive.listener());
    }
    if !unpacker.root_given {
        unpacker.result.implied.push(b"", b"")?;
    }
    let (input, recipe) = archive.into_inner();
    Ok((unpacker.result, input, recipe))
}

struct Unpacker {
    tree: Tree,
    result: Unpacked,
    root_given: bool,
    replaced: Replaced,
}

/// Where those go that a later entry takes the place of: the archive is to be made again with them.
struct Replaced {
    directory: PathBuf,
    count: u64,
    /// Of which the recipe has not heard.
    news: Vec<(Vec<u8>, u64)>,
}

impl Replaced {
    /// Takes a file or directory out of the layer; true when it is the first one.
    fn take(&mut self, from: &Path, path: Vec<u8>) -> io::Result<bool> {
        let first = self.count == 0;
        if first {
            std::fs::create_dir(&self.directory)?;
        }
        std::fs::rename(from, self.directory.join(self.count.to_string()))?;
        self.news.push((path, self.count));
        self.count += 1;
        Ok(first)
    }

    fn tell(&mut self, recipe: &mut Recipe) {
        for (path, name) in self.news.drain(..) {
            recipe.moved(&path, name);
        }
    }
}

impl Unpacker {
    fn apply<R: BufRead>(&mut self, entry: &Entry, archive: &mut Archive<R, Recipe>) -> Result<(), SnapshotError> {
        let parts = components(&entry.path)?;
        let Some((name, parents)) = parts.split_last() else {
            return self.root(entry);
        };
        let removes = name.starts_with(WHITEOUT);
        // some builders remove a directory and what is in it as well
        let Some(dir) = self.parent(parents, !removes)? else { return Ok(()) };
        if removes {
            return self.whiteout(&dir, name, entry);
        }
        let at = |action: &'static str, tree: &Tree| {
            let path = tree.path_of(&dir, name);
            move |error: Errno| SnapshotError::disk(action, path)(error.into())
        };
        match &entry.kind {
            Kind::File { size, extents } => return self.file(&dir, name, entry, *size, extents.as_deref(), archive),
            Kind::Directory => return self.make_directory(&parts, &dir, name, entry),
            Kind::Link { target } => return self.link(&dir, name, target),
            Kind::Symlink { target } => {
                if target.is_empty() || target.contains(&0) {
                    return Err(SnapshotError::Path { path: show(&entry.path), why: "is a symlink to nothing" });
                }
                self.create(&dir, name, || symlinkat(target.as_slice(), &dir.fd, *name))
                    .map_err(at("create", &self.tree))?;
                self.result.count(0);
            }
            Kind::CharDevice { major, minor } => self.device(&dir, name, SFlag::S_IFCHR, (*major, *minor))?,
            Kind::BlockDevice { major, minor } => self.device(&dir, name, SFlag::S_IFBLK, (*major, *minor))?,
            Kind::Fifo => self.device(&dir, name, SFlag::S_IFIFO, (0, 0))?,
        }
        attributes::set_by_name(&dir, name, &self.tree.path_of(&dir, name), &Attributes::of(entry))
    }

    fn parent(&mut self, parents: &[&[u8]], wanted: bool) -> Result<Option<Rc<Dir>>, SnapshotError> {
        let result = &mut self.result;
        self.tree.directory(parents, wanted, &mut |made, how| result.implied(made, how))
    }

    fn root(&mut self, entry: &Entry) -> Result<(), SnapshotError> {
        if entry.kind != Kind::Directory {
            return Err(SnapshotError::Path { path: show(&entry.path), why: "is the layer itself" });
        }
        let dir = self.tree.existing(&[])?;
        let path = self.tree.path_of(&dir, b"");
        let fd = File::open(&path).map_err(SnapshotError::disk("open", &path))?;
        attributes::set(fd.as_fd(), &path, &Attributes::of(entry))?;
        self.root_given = true;
        self.result.time(b"", entry.mtime)
    }

    fn whiteout(&mut self, dir: &Dir, name: &[u8], entry: &Entry) -> Result<(), SnapshotError> {
        if name == OPAQUE {
            return attributes::set_opaque(&self.tree.path_of(dir, b""));
        }
        if name.starts_with(AUFS) {
            return Ok(());
        }
        let removed = &name[WHITEOUT.len()..];
        if matches!(removed, b"" | b"." | b"..") {
            return Err(SnapshotError::Path { path: show(&entry.path), why: "removes nothing" });
        }
        match fstatat(&dir.fd, removed, AtFlags::AT_SYMLINK_NOFOLLOW) {
            // a whiteout is about the layers below: what this layer has itself stays
            Ok(there) if there.st_mode & libc::S_IFMT == libc::S_IFDIR => {
                attributes::set_opaque(&self.tree.path_of(dir, removed))
            }
            Ok(_) => Ok(()),
            Err(Errno::ENOENT) => self.device(dir, removed, SFlag::S_IFCHR, (0, 0)),
            Err(error) => Err(SnapshotError::disk("examine", self.tree.path_of(dir, removed))(error.into())),
        }
    }

    fn make_directory(
        &mut self,
        parts: &Components<'_>,
        dir: &Dir,
        name: &[u8],
        entry: &Entry,
    ) -> Result<(), SnapshotError> {
        let path = self.tree.path_of(dir, name);
        let fail = |action| {
            let path = path.clone();
            move |error: Errno| SnapshotError::disk(action, path)(error.into())
        };
        let mode = Mode::from_bits_truncate(entry.mode & 0o777);
        let mut made = mkdirat(&dir.fd, name, mode);
        let mut was_whiteout = false;
        if made == Err(Errno::EEXIST) {
            let there = fstatat(&dir.fd, name, AtFlags::AT_SYMLINK_NOFOLLOW).map_err(fail("examine"))?;
            if there.st_mode & libc::S_IFMT != libc::S_IFDIR {
                was_whiteout = there.st_mode & libc::S_IFMT == libc::S_IFCHR && there.st_rdev == 0;
                self.clear(dir, name).map_err(fail("replace"))?;
                made = mkdirat(&dir.fd, name, mode);
            }
        }
        match made {
            Ok(()) => self.result.count(FS_BLOCK),
            Err(Errno::EEXIST) => {}
            Err(error) => return Err(fail("create")(error)),
        }
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let fd = openat(&dir.fd, name, flags, Mode::empty()).map_err(fail("open"))?;
        attributes::set(fd.as_fd(), &path, &Attributes::of(entry))?;
        if was_whiteout {
            // what is below stays removed, although the name is here again
            attributes::set_opaque(&path)?;
        }
        let place = join(&dir.path, name);
        self.result.time(&place, entry.mtime)?;
        self.tree.remember(parts.join(&b'/'), Rc::new(Dir { fd, path: place }));
        Ok(())
    }

    fn file<R: BufRead>(
        &mut self,
        dir: &Dir,
        name: &[u8],
        entry: &Entry,
        size: u64,
        extents: Option<&[Extent]>,
        archive: &mut Archive<R, Recipe>,
    ) -> Result<(), SnapshotError> {
        let path = self.tree.path_of(dir, name);
        let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        // as it will be, so that there is nothing to change; nobody else gets here yet
        let mode = Mode::from_bits_truncate(entry.mode & 0o777);
        let open = || openat(&dir.fd, name, flags, mode);
        let fd: OwnedFd =
            self.create(dir, name, open).map_err(|error| SnapshotError::disk("create", &path)(error.into()))?;
        let mut file = File::from(fd);
        let whole = [Extent { offset: 0, length: size }];
        let extents = extents.unwrap_or(&whole);
        self.replaced.tell(archive.listener());
        archive.listener().file(&join(&dir.path, name), extents);
        let written = write_data(&mut file, archive, extents, size, &path)?;
        attributes::set(file.as_fd(), &path, &Attributes::of(entry))?;
        attributes::set_times(file.as_fd(), &path, entry.mtime)?;
        self.result.count(written);
        Ok(())
    }

    fn link(&mut self, dir: &Dir, name: &[u8], target: &[u8]) -> Result<(), SnapshotError> {
        let parts = components(target)?;
        let path = self.tree.path_of(dir, name);
        let Some((target_name, parents)) = parts.split_last() else {
            return Err(SnapshotError::Path { path: show(target), why: "is linked to but is the layer itself" });
        };
        let linked = match self.tree.existing(parents) {
            Ok(from) if from.path == dir.path && *target_name == name => return Ok(()),
            // no AT_SYMLINK_FOLLOW: a link to a symlink is a second name for the symlink
            Ok(from) => {
                let there = fstatat(&from.fd, *target_name, AtFlags::AT_SYMLINK_NOFOLLOW);
                match there {
                    // its own whiteout hides the target, so there is nothing to link to
                    Ok(_) if is_whiteout(&from.fd, target_name) => {
                        return Err(SnapshotError::Missing { path: show(target) });
                    }
                    Ok(_) => self.create(dir, name, || linkat(&from.fd, *target_name, &dir.fd, name, AtFlags::empty())),
                    Err(error) => Err(error),
                }
            }
            Err(SnapshotError::Missing { .. }) => Err(Errno::ENOENT),
            Err(error) => return Err(error),
        };
        match linked {
            Ok(()) => Ok(()),
            Err(Errno::ENOENT) => self.result.links.push(&parts.join(&b'/'), &join(&dir.path, name)),
            Err(error) => Err(SnapshotError::disk("link", path)(error.into())),
        }
    }

    fn device(&mut self, dir: &Dir, name: &[u8], kind: SFlag, (major, minor): (u32, u32)) -> Result<(), SnapshotError> {
        let number = makedev(u64::from(major), u64::from(minor));
        self.create(dir, name, || mknodat(&dir.fd, name, kind, Mode::from_bits_truncate(0o600), number))
            .map_err(|error| SnapshotError::disk("create", self.tree.path_of(dir, name))(error.into()))?;
        self.result.count(0);
        Ok(())
    }

    /// Creates something, in place of what has that name already.
    fn create<T>(&mut self, dir: &Dir, name: &[u8], mut create: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
        match create() {
            Err(Errno::EEXIST) => {
                self.clear(dir, name)?;
                create()
            }
            other => other,
        }
    }

    /// Takes away what an earlier entry of the same archive made.
    fn clear(&mut self, dir: &Dir, name: &[u8]) -> Result<(), Errno> {
        let there = fstatat(&dir.fd, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        self.tree.forget();
        let kind = there.st_mode & libc::S_IFMT;
        if matches!(kind, libc::S_IFDIR | libc::S_IFREG) {
            // the path leads through real directories only
            let first = self.replaced.take(&self.tree.path_of(dir, name), join(&dir.path, name));
            if first.map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))? {
                self.result.count(FS_BLOCK);
            }
            return Ok(());
        }
        unlinkat(&dir.fd, name, UnlinkatFlags::NoRemoveDir)?;
        if there.st_nlink == 1 {
            self.result.inodes = self.result.inodes.saturating_sub(1);
        }
        Ok(())
    }
}

/// Writes a file's data, leaving holes where there is none or only zeros. Returns what takes space.
fn write_data<R: BufRead>(
    file: &mut File,
    archive: &mut Archive<R, Recipe>,
    extents: &[Extent],
    size: u64,
    path: &Path,
) -> Result<u64, SnapshotError> {
    let failed = |source| SnapshotError::disk("write", path)(source);
    let (mut position, mut written) = (0u64, 0u64);
    for extent in extents {
        let mut offset = extent.offset;
        let mut left = extent.length;
        while left > 0 {
            let data = archive.data()?;
            let length = data.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            if length == 0 {
                break;
            }
            let data = &data[..length];
            if !is_hole(data) {
                if position != offset {
                    file.seek(SeekFrom::Start(offset)).map_err(failed)?;
                }
                file.write_all(data).map_err(failed)?;
                position = offset + length as u64;
                written += length as u64;
            }
            offset += length as u64;
            left -= length as u64;
            archive.consume(length);
        }
    }
    if position != size {
        file.set_len(size).map_err(failed)?;
    }
    Ok(written)
}

/// Whether a piece is worth a hole: a long run of zeros. A bomb of zeros then costs no disk.
fn is_hole(data: &[u8]) -> bool {
    // comparing a slice with itself, one byte on, is a single memcmp
    data.len() >= 16 << 10 && data[0] == 0 && data[1..] == data[..data.len() - 1]
}
