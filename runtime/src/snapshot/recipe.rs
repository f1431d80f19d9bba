//! How to make a layer's archive again, byte by byte, from the unpacked files: everything of it that is not the data
//! of a file, and where that data is. Without it, an image could not leave the node under the digests it came with.
//!
//! A zstd stream of pieces: `1`, length, bytes of the archive; `2`, length and path below the layer's root, number of
//! extents, and offset and length of each; `3`, length and path of what a later entry took the place of, and the name
//! under which it is kept in `replaced/`. Numbers are little-endian, 32 bits for the first length, 64 for the others.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use nix::fcntl::OFlag;

use super::SnapshotError;
use super::archive::{Extent, Listener};
use super::tree::open_plain;

/// Beside the layer's root.
pub(super) const NAME: &str = "archive.zst";
/// Beside it, when there is something: files that the archive has and the layer has not.
pub(super) const REPLACED: &str = "replaced";

const STRUCTURE: u8 = 1;
const FILE: u8 = 2;
const MOVED: u8 = 3;
/// Pieces are collected up to this size.
const PIECE: usize = 32 << 10;
/// Headers repeat themselves within a short distance, and more would be memory for each layer on its way.
const WINDOW_LOG: u32 = 15;
const LEVEL: i32 = -1;
/// A path in an archive, and extents of a sparse file: both were checked when they were written.
const MAX_PATH: u64 = 8192;
const MAX_EXTENTS: u64 = 1 << 20;

/// Written while an archive is unpacked.
pub(super) struct Recipe {
    output: zstd::stream::write::Encoder<'static, File>,
    pending: Vec<u8>,
    /// The first failure; told at the end, because the archive itself has no interest in it.
    failed: Option<io::Error>,
}

impl Recipe {
    pub(super) fn create(directory: &Path) -> Result<Recipe, SnapshotError> {
        let path = directory.join(NAME);
        let made = File::create_new(&path).and_then(|file| {
            let mut output = zstd::stream::write::Encoder::new(file, LEVEL)?;
            output.window_log(WINDOW_LOG)?;
            Ok(output)
        });
        let output = made.map_err(SnapshotError::disk("create", path))?;
        Ok(Recipe { output, pending: Vec::with_capacity(PIECE + 1024), failed: None })
    }

    /// The data of a file comes next, as many bytes as the extents have together.
    pub(super) fn file(&mut self, path: &[u8], extents: &[Extent]) {
        self.flush();
        let mut piece = vec![FILE];
        piece.extend((path.len() as u64).to_le_bytes());
        piece.extend(path);
        piece.extend((extents.len() as u64).to_le_bytes());
        for extent in extents {
            piece.extend(extent.offset.to_le_bytes());
            piece.extend(extent.length.to_le_bytes());
        }
        self.write(&piece);
    }

    /// What was at a path, a file or a directory, is in [`REPLACED`] from now on.
    pub(super) fn moved(&mut self, path: &[u8], name: u64) {
        self.flush();
        let mut piece = vec![MOVED];
        piece.extend((path.len() as u64).to_le_bytes());
        piece.extend(path);
        piece.extend(name.to_le_bytes());
        self.write(&piece);
    }

    /// Ends it; the number of bytes on disk.
    pub(super) fn finish(mut self, directory: &Path) -> Result<u64, SnapshotError> {
        self.flush();
        let ended = match self.failed {
            Some(error) => Err(error),
            None => self.output.finish().and_then(|file| Ok(file.metadata()?.len())),
        };
        ended.map_err(SnapshotError::disk("write", directory.join(NAME)))
    }

    fn flush(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        let mut head = [STRUCTURE, 0, 0, 0, 0];
        // at most a piece and what came last, both far below 32 bits
        head[1..].copy_from_slice(&u32::try_from(self.pending.len()).unwrap_or(u32::MAX).to_le_bytes());
        let pending = std::mem::take(&mut self.pending);
        self.write(&head);
        self.write(&pending);
        self.pending = pending;
        self.pending.clear();
    }

    fn write(&mut self, bytes: &[u8]) {
        if self.failed.is_none()
            && let Err(error) = self.output.write_all(bytes)
        {
            self.failed = Some(error);
        }
    }
}

impl Listener for Recipe {
    fn structure(&mut self, bytes: &[u8]) {
        for bytes in bytes.chunks(PIECE) {
            self.pending.extend_from_slice(bytes);
            if self.pending.len() >= PIECE {
                self.flush();
            }
        }
    }
}

/// What later entries took the place of: by its path how many files had come before that entry, and its name now.
#[derive(Default)]
struct Moved(HashMap<Vec<u8>, Vec<(u64, u64)>>);

impl Moved {
    /// Where a file is that had this path, if it was moved, alone or with a directory.
    fn place_of(&self, file: u64, path: &[u8]) -> Option<Vec<u8>> {
        let slashes = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
        let found = slashes.chain([path.len()]).filter_map(|end| {
            let moves = self.0.get(&path[..end])?;
            moves.iter().find(|(files, _)| file < *files).map(|(_, name)| (*name, end))
        });
        // names are numbers in the order of the moves, and after the first it was somewhere else
        let (name, end) = found.min()?;
        Some([format!("{REPLACED}/{name}").as_bytes(), &path[end..]].concat())
    }
}

fn moved(path: &Path) -> io::Result<Moved> {
    let mut input = BufReader::new(zstd::stream::read::Decoder::new(File::open(path)?)?);
    let (mut found, mut files, mut kind) = (Moved::default(), 0, [0]);
    while input.read(&mut kind)? == 1 {
        match kind[0] {
            STRUCTURE => {
                let mut length = [0; 4];
                input.read_exact(&mut length)?;
                skip(&mut input, u64::from(u32::from_le_bytes(length)))?;
            }
            FILE => {
                bytes(&mut input, MAX_PATH)?;
                let extents = number(&mut input, MAX_EXTENTS)?;
                skip(&mut input, extents * 16)?;
                files += 1;
            }
            MOVED => {
                let path = bytes(&mut input, MAX_PATH)?;
                found.0.entry(path).or_default().push((files, number(&mut input, u64::MAX)?));
            }
            _ => return Err(io::Error::other("it has a piece of an unknown kind")),
        }
    }
    Ok(found)
}

fn skip(input: &mut impl Read, bytes: u64) -> io::Result<()> {
    let skipped = io::copy(&mut input.take(bytes), &mut io::sink())?;
    if skipped == bytes { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

/// Writes the archive of a finished layer to `output`; the number of bytes. Without an output they are only counted,
/// which reads no files.
pub(super) fn replay(snapshot: &Path, mut output: Option<&mut dyn Write>) -> Result<u64, SnapshotError> {
    let path = snapshot.join(NAME);
    let fail = |source| SnapshotError::disk("read", &path)(source);
    let root = snapshot.join("fs");
    let root_fd = File::open(&root).map_err(SnapshotError::disk("open", &root))?;
    // few layers have any, and those that do keep them in a directory
    let moved = if snapshot.join(REPLACED).exists() { moved(&path).map_err(fail)? } else { Moved::default() };
    let snapshot_fd = File::open(snapshot).map_err(SnapshotError::disk("open", snapshot))?;
    let mut files = 0;
    let file = File::open(&path).map_err(fail)?;
    let mut input = BufReader::new(zstd::stream::read::Decoder::new(file).map_err(fail)?);
    let (mut total, mut buffer) = (0, vec![0; 64 << 10]);
    let write = |output: &mut Option<&mut dyn Write>, bytes: &[u8]| {
        let written = output.as_mut().map_or(Ok(()), |output| output.write_all(bytes));
        written.map_err(SnapshotError::disk("write the archive of", snapshot))
    };
    let mut kind = [0];
    while input.read(&mut kind).map_err(fail)? == 1 {
        match kind[0] {
            STRUCTURE => {
                let mut length = [0; 4];
                input.read_exact(&mut length).map_err(fail)?;
                let mut left = u64::from(u32::from_le_bytes(length));
                total += left;
                while left > 0 {
                    let part = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
                    input.read_exact(&mut buffer[..part]).map_err(fail)?;
                    write(&mut output, &buffer[..part])?;
                    left -= part as u64;
                }
            }
            FILE => {
                let name = bytes(&mut input, MAX_PATH).map_err(fail)?;
                let extents = number(&mut input, MAX_EXTENTS).map_err(fail)?;
                let elsewhere = moved.place_of(files, &name);
                files += 1;
                let (from, place) = match &elsewhere {
                    Some(place) => (&snapshot_fd, snapshot.join(std::ffi::OsStr::from_bytes(place))),
                    None => (&root_fd, root.join(std::ffi::OsStr::from_bytes(&name))),
                };
                let data = match &output {
                    None => None,
                    Some(_) => {
                        let opened = open_plain(from, elsewhere.as_deref().unwrap_or(&name), OFlag::O_RDONLY);
                        Some(File::from(opened.map_err(SnapshotError::disk("open", &place))?))
                    }
                };
                for _ in 0..extents {
                    let offset = number(&mut input, u64::MAX).map_err(fail)?;
                    let mut left = number(&mut input, u64::MAX).map_err(fail)?;
                    let mut at = offset;
                    total += left;
                    let Some(data) = &data else { continue };
                    while left > 0 {
                        let part = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
                        std::os::unix::fs::FileExt::read_exact_at(data, &mut buffer[..part], at)
                            .map_err(SnapshotError::disk("read", &place))?;
                        write(&mut output, &buffer[..part])?;
                        left -= part as u64;
                        at += part as u64;
                    }
                }
            }
            MOVED => {
                bytes(&mut input, MAX_PATH).map_err(fail)?;
                number(&mut input, u64::MAX).map_err(fail)?;
            }
            _ => return Err(fail(io::Error::other("it has a piece of an unknown kind"))),
        }
    }
    Ok(total)
}

fn number(input: &mut impl Read, limit: u64) -> io::Result<u64> {
    let mut bytes = [0; 8];
    input.read_exact(&mut bytes)?;
    let value = u64::from_le_bytes(bytes);
    if value > limit { Err(io::Error::other("it has an impossible number")) } else { Ok(value) }
}

fn bytes(input: &mut impl Read, limit: u64) -> io::Result<Vec<u8>> {
    let length = number(input, limit)?;
    let mut bytes = vec![0; usize::try_from(length).unwrap_or(usize::MAX)];
    input.read_exact(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::unpack;

    /// Files of all sorts, a long name, a sparse file, padding in odd places and bytes after the end.
    fn archive() -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        let mut add = |kind, path: &str, data: &[u8]| {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_size(data.len() as u64);
            header.set_mode(0o644);
            builder.append_data(&mut header, path, data).unwrap();
        };
        add(tar::EntryType::Directory, "etc/", b"");
        add(tar::EntryType::Regular, "etc/empty", b"");
        add(tar::EntryType::Regular, "etc/file", &[7; 700]);
        add(tar::EntryType::Regular, "etc/zeros", &[0; 100_000]);
        add(tar::EntryType::Regular, &format!("etc/{}", "n".repeat(200)), b"long name");
        add(tar::EntryType::Regular, "etc/.wh.gone", b"");
        let mut archive = builder.into_inner().unwrap();
        archive.extend([1, 2, 3]);
        archive
    }

    fn unpacked(archive: &[u8], directory: &Path) {
        std::fs::create_dir(directory.join("fs")).unwrap();
        let recipe = Recipe::create(directory).unwrap();
        let (_, rest, mut recipe) = unpack::unpack(archive, &directory.join("fs"), 100, recipe).unwrap();
        recipe.structure(rest);
        assert!(recipe.finish(directory).unwrap() > 0);
    }

    #[test]
    fn an_archive_is_made_again_byte_by_byte() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let (dir, archive) = (tempfile::tempdir().unwrap(), archive());
        unpacked(&archive, dir.path());
        let mut again = Vec::new();
        assert_eq!(replay(dir.path(), Some(&mut again)).unwrap(), archive.len() as u64);
        assert_eq!(replay(dir.path(), None).unwrap(), archive.len() as u64);
        assert!(again == archive);
    }

    #[test]
    fn an_archive_that_names_a_file_twice_is_made_again_too() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let mut builder = tar::Builder::new(Vec::new());
        let mut add = |kind, path: &str, link: &str, data: &[u8]| {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_size(data.len() as u64);
            header.set_mode(0o644);
            if !link.is_empty() {
                header.set_link_name(link).unwrap();
            }
            builder.append_data(&mut header, path, data).unwrap();
        };
        for content in ["first", "second, longer", "third"] {
            add(tar::EntryType::Regular, "file", "", content.as_bytes());
        }
        // a directory with files that becomes a file, and one again
        add(tar::EntryType::Regular, "d/sub/a", "", b"in a directory");
        add(tar::EntryType::Regular, "d/sub/a", "", b"twice");
        add(tar::EntryType::Regular, "d/sub/.wh.b", "", b"");
        add(tar::EntryType::Regular, "d", "", b"a file");
        add(tar::EntryType::Directory, "d", "", b"");
        add(tar::EntryType::Regular, "d/sub/a", "", b"in a directory again");
        // the other name keeps what it had
        add(tar::EntryType::Link, "other", "file", b"");
        add(tar::EntryType::Symlink, "file", "d/sub/a", b"");
        let archive = builder.into_inner().unwrap();
        let dir = tempfile::tempdir().unwrap();
        unpacked(&archive, dir.path());
        let mut again = Vec::new();
        assert_eq!(replay(dir.path(), Some(&mut again)).unwrap(), archive.len() as u64);
        assert!(again == archive);
        let fs = dir.path().join("fs");
        assert_eq!(std::fs::read(fs.join("other")).unwrap(), b"third");
        assert_eq!(std::fs::read(fs.join("file")).unwrap(), b"in a directory again");
    }

    /// One of few names, so that they are taken again and again.
    fn entry((kind, path, other, size): &(u8, String, String, usize)) -> Vec<u8> {
        let kind = match kind {
            0..=2 => tar::EntryType::Regular,
            3 => tar::EntryType::Directory,
            4 => tar::EntryType::Link,
            _ => tar::EntryType::Symlink,
        };
        let data = if kind == tar::EntryType::Regular { vec![b'x'; *size] } else { Vec::new() };
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(data.len() as u64);
        header.set_mode(0o755);
        header.set_link_name(other).unwrap();
        let mut builder = tar::Builder::new(Vec::new());
        builder.append_data(&mut header, path, &data[..]).unwrap();
        builder.get_ref().clone()
    }

    /// Unpacks it and makes it again; `None` when it is refused, as a path through a file is.
    fn made_again(archive: &[u8]) -> Option<Vec<u8>> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("fs")).unwrap();
        let recipe = Recipe::create(dir.path()).unwrap();
        let (_, rest, mut recipe) = unpack::unpack(archive, &dir.path().join("fs"), 100, recipe).ok()?;
        recipe.structure(rest);
        recipe.finish(dir.path()).unwrap();
        let mut again = Vec::new();
        replay(dir.path(), Some(&mut again)).unwrap();
        Some(again)
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(24))]

        #[test]
        fn whatever_takes_the_place_of_what_an_archive_is_made_again(
            entries in proptest::collection::vec((0..6u8, "[ab](/[ab]){0,2}", "[ab](/[ab]){0,2}", 0..600usize), 1..16),
        ) {
            if !nix::unistd::geteuid().is_root() {
                return Ok(());
            }
            let mut archive = Vec::new();
            for one in &entries {
                let longer = [&archive[..], &entry(one)].concat();
                if let Some(again) = made_again(&longer) {
                    proptest::prop_assert!(again == longer, "{one:?}");
                    archive = longer;
                }
            }
        }
    }

    #[test]
    fn a_damaged_recipe_is_an_error() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        unpacked(&archive(), dir.path());
        let path = dir.path().join(NAME);
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        assert!(replay(dir.path(), Some(&mut io::sink())).is_err());
        std::fs::write(&path, &bytes).unwrap();
        std::fs::remove_file(dir.path().join("fs/etc/file")).unwrap();
        assert!(replay(dir.path(), Some(&mut io::sink())).unwrap_err().to_string().contains("etc/file"));
    }
}
