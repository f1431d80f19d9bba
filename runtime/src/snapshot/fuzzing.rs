//! What the fuzz targets run of this module. Compiled for fuzzing only.
#![allow(clippy::panic, clippy::unwrap_used, reason = "a panic is how a fuzz target reports what it found")]

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::archive::{Archive, Kind};
use super::recipe::{self, Recipe};
use super::{measure, settle, tree, unpack};

const BLOCK: usize = 512;
/// Of one layer made from a fuzzer's bytes.
const MAX_ENTRIES: usize = 40;
/// What the layer directory of a fuzzed layer has beside it.
const SECRET: &[u8] = b"not the layer's";

/// Reads an archive as it is, and once more with its checksums set right: a fuzzer does not find those by itself, and
/// everything interesting comes after them.
pub(crate) fn archive(bytes: &[u8]) {
    read(bytes);
    read(&repaired(bytes));
}

fn read(bytes: &[u8]) {
    let mut archive = Archive::new(bytes);
    let mut total = 0;
    while let Ok(Some(entry)) = archive.next_entry() {
        // the path either is refused or stays inside
        if let Ok(parts) = tree::components(&entry.path) {
            assert!(!parts.contains(&&b".."[..]), "{:?}", entry.path);
        }
        while let Ok(data) = archive.data() {
            let length = data.len();
            if length == 0 {
                break;
            }
            total += length;
            archive.consume(length);
        }
        assert!(total <= bytes.len(), "{total} bytes of data in an archive of {}", bytes.len());
        if let Kind::File { size, extents: Some(extents) } = &entry.kind {
            for extent in extents {
                assert!(extent.offset.checked_add(extent.length).is_some_and(|end| end <= *size), "{entry:?}");
            }
        }
    }
}

fn repaired(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let mut at = 0;
    while at + BLOCK <= bytes.len() {
        let block = &mut bytes[at..at + BLOCK];
        at += BLOCK;
        if block.iter().all(|byte| *byte == 0) {
            continue;
        }
        set_checksum(block);
        let size = std::str::from_utf8(&block[124..135]).ok().and_then(|size| usize::from_str_radix(size, 8).ok());
        at = at.saturating_add(size.unwrap_or(0).div_ceil(BLOCK).saturating_mul(BLOCK));
    }
    bytes
}

fn set_checksum(block: &mut [u8]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// Unpacks two layers, one on the other, whose entries the bytes choose among what is worth trying. Whatever they are,
/// nothing changes beside them, and what was unpacked makes the same archive again.
pub(crate) fn unpack(bytes: &[u8]) {
    let base = PathBuf::from(format!("/dev/shm/nodeagent-fuzz-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&base);
    std::fs::create_dir_all(base.join("outside")).unwrap();
    std::fs::write(base.join("outside/secret"), SECRET).unwrap();
    let state = || {
        let secret = base.join("outside/secret").metadata().unwrap();
        (secret.uid(), secret.mode(), secret.nlink(), secret.mtime_nsec())
    };
    let before = state();
    let mut choice = Choice { bytes };
    let mut below: Vec<Arc<File>> = Vec::new();
    for name in ["lower", "upper"] {
        let archive = layer(&mut choice);
        let snapshot = base.join(name);
        let Some(directory) = unpacked(&archive, &snapshot, &below) else { break };
        below.insert(0, directory);
    }
    assert_eq!(state(), before);
    assert_eq!(std::fs::read(base.join("outside/secret")).unwrap(), SECRET);
    let beside: Vec<_> = std::fs::read_dir(&base).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(beside.iter().all(|name| name == "outside" || name == "lower" || name == "upper"), "{beside:?}");
    assert_eq!(std::fs::read_dir(base.join("outside")).unwrap().count(), 1);
    std::fs::remove_dir_all(&base).unwrap();
}

fn unpacked(archive: &[u8], snapshot: &Path, below: &[Arc<File>]) -> Option<Arc<File>> {
    let root = snapshot.join("fs");
    std::fs::create_dir_all(&root).unwrap();
    let recipe = Recipe::create(snapshot).unwrap();
    let (unpacked, rest, recipe) = unpack::unpack(archive, &root, 1000, recipe).ok()?;
    let mut recipe = recipe;
    super::archive::Listener::structure(&mut recipe, rest);
    recipe.finish(snapshot).unwrap();
    settle::settle(&root, unpacked, below).ok()?;
    let beside: Vec<_> = std::fs::read_dir(snapshot).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(beside.len() == 2 || beside.iter().any(|name| name == recipe::REPLACED), "{beside:?}");
    assert_eq!(recipe::replay(snapshot, None).unwrap(), archive.len() as u64);
    let mut again = Vec::new();
    recipe::replay(snapshot, Some(&mut again)).unwrap();
    assert!(again == archive, "the archive cannot be made again");
    let _ = measure(&root);
    Some(Arc::new(File::open(&root).unwrap()))
}

/// The fuzzer's bytes, one decision after the other.
struct Choice<'a> {
    bytes: &'a [u8],
}

impl Choice<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.bytes.split_first() else { return 0 };
        self.bytes = rest;
        *first
    }

    fn of<'a>(&mut self, list: &[&'a [u8]]) -> &'a [u8] {
        list[usize::from(self.byte()) % list.len()]
    }

    fn path(&mut self) -> Vec<u8> {
        const NAMES: [&[u8]; 20] = [
            b"a",
            b"b",
            b"c",
            b"d",
            b".wh.a",
            b".wh.b",
            b".wh.c",
            b".wh..wh..opq",
            b".wh..wh.plnk",
            b".wh.",
            b"..",
            b".",
            b"",
            b"\xff\xfe",
            b"outside",
            b"secret",
            b".wh..",
            b"a\nb",
            b"long",
            b".wh.d",
        ];
        let shape = self.byte();
        let mut path = if shape & 0x80 != 0 { b"/".to_vec() } else { Vec::new() };
        for at in 0..=shape % 4 {
            if at > 0 {
                path.push(b'/');
            }
            match self.of(&NAMES) {
                b"long" => path.extend(std::iter::repeat_n(b'n', 100 + usize::from(self.byte()))),
                name => path.extend(name),
            }
        }
        path
    }
}

fn layer(choice: &mut Choice<'_>) -> Vec<u8> {
    let mut archive = Vec::new();
    for _ in 0..usize::from(choice.byte()) % MAX_ENTRIES {
        let (kind, path) = (choice.byte() % 12, choice.path());
        let mode = u32::from(choice.byte()) << 4 | 0o7;
        let mut records = Vec::new();
        record(&mut records, b"path", &path);
        match kind {
            0..=2 => {
                let data = vec![choice.byte(); usize::from(choice.byte()) << (choice.byte() % 8)];
                entry(&mut archive, b'0', mode, &records, b"", &data);
            }
            3..=4 => entry(&mut archive, b'5', mode, &records, b"", b""),
            5 => {
                let key = choice.of(&[b"user.x", b"trusted.overlay.opaque", b"security.capability", b"user.overlay.y"]);
                record(
                    &mut records,
                    &[b"SCHILY.xattr.", key].concat(),
                    b"\x01\x00\x00\x02\x00\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
                );
                entry(&mut archive, if mode & 16 == 0 { b'0' } else { b'5' }, mode, &records, b"", b"");
            }
            6 => {
                // format 1.0: the map stands before the data
                let (offset, length) = (u64::from(choice.byte()) << 5, usize::from(choice.byte()));
                let size = (offset + length as u64 + u64::from(choice.byte())).to_string();
                let name = path.clone();
                for (key, value) in [("major", "1"), ("minor", "0"), ("realsize", &size)] {
                    record(&mut records, format!("GNU.sparse.{key}").as_bytes(), value.as_bytes());
                }
                record(&mut records, b"GNU.sparse.name", &name);
                let mut data = format!("1\n{offset}\n{length}\n").into_bytes();
                data.resize(BLOCK, 0);
                data.extend(std::iter::repeat_n(7, length));
                entry(&mut archive, b'0', mode, &records, b"", &data);
            }
            7..=8 => {
                record(&mut records, b"linkpath", &choice.path());
                entry(&mut archive, b'1', mode, &records, b"x", b"");
            }
            9..=10 => {
                let up = choice.of(&[b"", b"../", b"../../outside/", b"/", b"/dev/shm/"]);
                record(&mut records, b"linkpath", &[up, &choice.path()].concat());
                entry(&mut archive, b'2', mode, &records, b"x", b"");
            }
            _ => {
                let kind = choice.of(&[b"3", b"4", b"6"])[0];
                entry(&mut archive, kind, mode, &records, b"", b"");
            }
        }
    }
    archive.extend([0; 2 * BLOCK]);
    archive
}

fn record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let length = (rest + (rest + rest.to_string().len()).to_string().len()).to_string();
    let _ = write!(records, "{length} ");
    records.extend([key, b"=", value, b"\n"].concat());
}

fn entry(archive: &mut Vec<u8>, kind: u8, mode: u32, records: &[u8], link: &[u8], data: &[u8]) {
    header(archive, b'x', 0o644, b"", records);
    header(archive, kind, mode, link, data);
}

fn header(archive: &mut Vec<u8>, kind: u8, mode: u32, link: &[u8], data: &[u8]) {
    let mut block = [0u8; BLOCK];
    block[0] = b'x';
    block[100..108].copy_from_slice(format!("{:07o}\0", mode & 0o7777).as_bytes());
    block[108..116].copy_from_slice(format!("{:07o}\0", mode % 3).as_bytes());
    block[116..124].copy_from_slice(b"0000000\0");
    block[124..136].copy_from_slice(format!("{:011o}\0", data.len()).as_bytes());
    block[136..148].copy_from_slice(format!("{:011o}\0", 1_700_000_000 + mode).as_bytes());
    block[156] = kind;
    block[157..157 + link.len()].copy_from_slice(link);
    block[257..265].copy_from_slice(b"ustar\x0000");
    set_checksum(&mut block);
    archive.extend(block);
    archive.extend(data);
    archive.resize(archive.len().next_multiple_of(BLOCK), 0);
}
