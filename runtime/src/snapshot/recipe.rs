//! How to make a layer's archive again, byte by byte, from the unpacked files: everything of it that is not the data
//! of a file, and where that data is. Without it, an image could not leave the node under the digests it came with.
//!
//! A zstd stream of pieces: `1`, length, bytes of the archive; `2`, length and path below the layer's root, number of
//! extents, and offset and length of each. Numbers are little-endian, 32 bits for the first length, 64 for the others.

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

const STRUCTURE: u8 = 1;
const FILE: u8 = 2;
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

/// Writes the archive of a finished layer to `output`; the number of bytes. Without an output they are only counted,
/// which reads no files.
pub(super) fn replay(snapshot: &Path, mut output: Option<&mut dyn Write>) -> Result<u64, SnapshotError> {
    let path = snapshot.join(NAME);
    let fail = |source| SnapshotError::disk("read", &path)(source);
    let root = snapshot.join("fs");
    let root_fd = File::open(&root).map_err(SnapshotError::disk("open", &root))?;
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
                let place = root.join(std::ffi::OsStr::from_bytes(&name));
                let data = match &output {
                    None => None,
                    Some(_) => {
                        let opened = open_plain(&root_fd, &name, OFlag::O_RDONLY);
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
