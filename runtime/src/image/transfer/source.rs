//! Named files, in a directory or in an archive, whatever it is compressed with.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::TransferError;
use crate::content::disk;

/// Blobs of many images; more is an attack or an accident.
const MAX_ENTRIES: usize = 100_000;
/// Links from one name to another in the older archives of Docker.
const MAX_LINKS: usize = 8;

/// A file's bytes, and how many there are.
pub(super) type Counted = (Box<dyn Read + Send>, u64);

/// Where the files are.
#[derive(Debug)]
pub(super) enum Source {
    Directory(PathBuf),
    Archive { file: Arc<File>, entries: HashMap<String, Entry> },
}

#[derive(Debug)]
pub(super) enum Entry {
    Data { offset: u64, size: u64 },
    Link(String),
}

/// A program that keeps images in a directory of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Store {
    Docker,
    Containers,
    Containerd,
}

impl Store {
    /// What tells that a directory is one of these.
    const MARKS: [(&'static str, Store); 3] = [
        ("image/overlay2/repositories.json", Store::Docker),
        ("overlay-images/images.json", Store::Containers),
        ("io.containerd.metadata.v1.bolt", Store::Containerd),
    ];

    /// The program's name, and the command that writes an image to a file.
    pub(super) fn describe(self) -> (&'static str, &'static str) {
        match self {
            Store::Docker => ("Docker", "docker save -o FILE IMAGE"),
            Store::Containers => ("podman and CRI-O", "podman save -o FILE IMAGE"),
            Store::Containerd => ("containerd", "ctr -n k8s.io images export FILE IMAGE"),
        }
    }
}

impl Source {
    /// Whose directory this is, if it is another program's.
    pub(super) fn store(&self) -> Option<Store> {
        let Source::Directory(root) = self else { return None };
        Store::MARKS.iter().find(|(mark, _)| root.join(mark).exists()).map(|(_, store)| *store)
    }

    /// Opens a directory or an archive. A compressed one is unpacked to a nameless file in `temporary` first, because
    /// its parts are needed in another order than they come.
    pub(super) fn open(path: &Path, temporary: &Path, max_bytes: u64) -> Result<Source, TransferError> {
        let open = TransferError::disk("open");
        if std::fs::metadata(path).map_err(&open)?.is_dir() {
            return Ok(Source::Directory(path.to_owned()));
        }
        let mut file = File::open(path).map_err(&open)?;
        let mut magic = [0; 4];
        let length = file.read_at(&mut magic, 0).map_err(TransferError::disk("read"))?;
        let compressed = match &magic[..length] {
            [0x1f, 0x8b, ..] => {
                Some(Box::new(flate2::bufread::MultiGzDecoder::new(BufReader::new(file.try_clone().map_err(&open)?)))
                    as Box<dyn Read>)
            }
            [0x28, 0xb5, 0x2f, 0xfd] => {
                let decoder = zstd::stream::read::Decoder::new(file.try_clone().map_err(&open)?).map_err(&open)?;
                Some(Box::new(decoder) as Box<dyn Read>)
            }
            _ => None,
        };
        if let Some(decoder) = compressed {
            let unpack = TransferError::disk("decompress");
            let place = disk::unique(temporary);
            let mut plain = File::options().read(true).write(true).create_new(true).open(&place).map_err(&unpack)?;
            std::fs::remove_file(&place).map_err(&unpack)?;
            let copied = io::copy(&mut decoder.take(max_bytes + 1), &mut plain).map_err(&unpack)?;
            if copied > max_bytes {
                return Err(unpack(io::Error::other(format!("it has more than {max_bytes} bytes"))));
            }
            file = plain;
        }
        let entries = index(&file)?;
        Ok(Source::Archive { file: Arc::new(file), entries })
    }

    /// A whole small file; `None` when there is none of that name.
    pub(super) fn read(&self, name: &str, limit: u64) -> Result<Option<Vec<u8>>, TransferError> {
        let Some((reader, _)) = self.reader(name)? else { return Ok(None) };
        let mut bytes = Vec::new();
        reader.take(limit + 1).read_to_end(&mut bytes).map_err(TransferError::disk("read"))?;
        if bytes.len() as u64 > limit {
            let what = format!("it has more than {limit} bytes");
            return Err(TransferError::Document { name: name.to_owned(), what });
        }
        Ok(Some(bytes))
    }

    /// A file's bytes and how many there are.
    pub(super) fn reader(&self, name: &str) -> Result<Option<Counted>, TransferError> {
        match self {
            Source::Directory(root) => match File::open(root.join(clean(name, ""))) {
                Ok(file) => {
                    let size = file.metadata().map_err(TransferError::disk("read"))?.len();
                    Ok(Some((Box::new(file), size)))
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(error) => Err(TransferError::disk("read")(error)),
            },
            Source::Archive { file, entries } => {
                let mut name = name.to_owned();
                for _ in 0..MAX_LINKS {
                    match entries.get(&name) {
                        Some(Entry::Data { offset, size }) => {
                            let part = Part { file: file.clone(), at: *offset, end: offset + size };
                            return Ok(Some((Box::new(part), *size)));
                        }
                        Some(Entry::Link(target)) => name.clone_from(target),
                        None => return Ok(None),
                    }
                }
                Ok(None)
            }
        }
    }
}

fn index(file: &File) -> Result<HashMap<String, Entry>, TransferError> {
    let read = TransferError::disk("read");
    let mut file = file.try_clone().map_err(&read)?;
    file.rewind().map_err(&read)?;
    let mut archive = tar::Archive::new(file);
    let mut entries = HashMap::new();
    for entry in archive.entries_with_seek().map_err(&read)? {
        let entry = entry.map_err(&read)?;
        if entries.len() >= MAX_ENTRIES {
            return Err(read(io::Error::other(format!("it has more than {MAX_ENTRIES} entries"))));
        }
        let name = clean(&String::from_utf8_lossy(&entry.path_bytes()), "");
        let kind = entry.header().entry_type();
        let target = entry.link_name_bytes().map(|target| String::from_utf8_lossy(&target).into_owned());
        match (kind, target) {
            (tar::EntryType::Regular | tar::EntryType::Continuous, _) => {
                let data = Entry::Data { offset: entry.raw_file_position(), size: entry.size() };
                entries.insert(name, data);
            }
            (tar::EntryType::Symlink, Some(target)) => {
                let parent = name.rsplit_once('/').map_or("", |(parent, _)| parent).to_owned();
                entries.insert(name, Entry::Link(clean(&target, &parent)));
            }
            (tar::EntryType::Link, Some(target)) => {
                entries.insert(name, Entry::Link(clean(&target, "")));
            }
            _ => {}
        }
    }
    Ok(entries)
}

/// A path without `.` and `..`, from a directory of the archive. These are only names here, never paths of the host.
fn clean(path: &str, parent: &str) -> String {
    let mut parts: Vec<&str> = if path.starts_with('/') { Vec::new() } else { parent.split('/').collect() };
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.retain(|part| !part.is_empty());
    parts.join("/")
}

/// A stretch of a file that others read at the same time.
struct Part {
    file: Arc<File>,
    at: u64,
    end: u64,
}

impl Read for Part {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end - self.at).unwrap_or(usize::MAX).min(buffer.len());
        let length = self.file.read_at(&mut buffer[..left], self.at)?;
        if length == 0 && left > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += length as u64;
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_nowhere_but_into_the_archive() {
        assert_eq!(clean("./a/b", ""), "a/b");
        assert_eq!(clean("../x/layer.tar", "y"), "x/layer.tar");
        assert_eq!(clean("../../../etc/passwd", "a"), "etc/passwd");
        assert_eq!(clean("/abs", "a"), "abs");
    }

    #[test]
    fn the_directories_of_other_programs_are_recognised() {
        for (mark, store) in Store::MARKS {
            let dir = tempfile::tempdir().unwrap();
            let open = || Source::open(dir.path(), dir.path(), 0).unwrap();
            assert_eq!(open().store(), None);
            std::fs::create_dir_all(dir.path().join(mark)).unwrap();
            assert_eq!(open().store(), Some(store));
            // where a directory leads names in it nowhere else
            assert!(open().read("../../../../../../../../etc/hostname", 100).unwrap().is_none());
        }
    }

    #[test]
    fn links_are_followed_and_circles_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.tar");
        let mut builder = tar::Builder::new(File::create(&path).unwrap());
        let mut header = tar::Header::new_gnu();
        header.set_size(5);
        header.set_mode(0o644);
        builder.append_data(&mut header.clone(), "x/layer.tar", &b"hello"[..]).unwrap();
        header.set_size(0);
        header.set_entry_type(tar::EntryType::Symlink);
        builder.append_link(&mut header.clone(), "y/layer.tar", "../x/layer.tar").unwrap();
        builder.append_link(&mut header.clone(), "z", "z").unwrap();
        builder.into_inner().unwrap();
        let source = Source::open(&path, dir.path(), 1 << 20).unwrap();
        assert_eq!(source.read("y/layer.tar", 100).unwrap().unwrap(), b"hello");
        assert!(source.read("y/layer.tar", 4).is_err());
        assert_eq!(source.read("z", 100).unwrap(), None);
        assert_eq!(source.read("nothing", 100).unwrap(), None);
    }
}
