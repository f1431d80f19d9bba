use proptest::prelude::*;

use super::*;

/// Reads everything: entries with their data.
fn read(bytes: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>, ArchiveError> {
    let mut archive = Archive::new(bytes);
    let mut found = Vec::new();
    while let Some(entry) = archive.next_entry()? {
        let mut data = Vec::new();
        loop {
            let piece = archive.data()?;
            if piece.is_empty() {
                break;
            }
            data.extend_from_slice(piece);
            let length = piece.len();
            archive.consume(length);
        }
        found.push((entry, data));
    }
    Ok(found)
}

fn header(kind: tar::EntryType, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(0o4755);
    header.set_uid(1000);
    header.set_gid(3_000_000_000);
    header.set_mtime(42);
    header
}

/// An archive written by another implementation.
fn sample() -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    builder.append_data(&mut header(tar::EntryType::Regular, 5), "a/file", &b"hello"[..]).unwrap();
    builder.append_data(&mut header(tar::EntryType::Directory, 0), "a/dir/", &[][..]).unwrap();
    builder.append_link(&mut header(tar::EntryType::Symlink, 0), "a/link", "../target").unwrap();
    builder.append_link(&mut header(tar::EntryType::Link, 0), "a/hard", "a/file").unwrap();
    let mut device = header(tar::EntryType::Block, 0);
    device.set_device_major(8).unwrap();
    device.set_device_minor(300).unwrap();
    builder.append_data(&mut device, "a/sda", &[][..]).unwrap();
    let long = "x".repeat(90);
    builder.append_data(&mut header(tar::EntryType::Regular, 1), format!("{long}/{long}/{long}"), &b"1"[..]).unwrap();
    builder.append_link(&mut header(tar::EntryType::Symlink, 0), "l", format!("{long}/{long}")).unwrap();
    builder
        .append_pax_extensions([("SCHILY.xattr.user.k", &b"v"[..]), ("mtime", b"7.5"), ("path", b"from-pax")])
        .unwrap();
    builder.append_data(&mut header(tar::EntryType::Fifo, 0), "short", &[][..]).unwrap();
    builder.into_inner().unwrap()
}

#[test]
fn entries_of_every_kind_are_read_as_they_were_written() {
    let entries = read(&sample()).unwrap();
    let (file, data) = &entries[0];
    assert_eq!((file.path.as_slice(), data.as_slice()), (&b"a/file"[..], &b"hello"[..]));
    assert_eq!((file.mode, file.uid, file.gid, file.mtime), (0o4755, 1000, 3_000_000_000, (42, 0)));
    assert_eq!(file.kind, Kind::File { size: 5, extents: None });
    assert_eq!(entries[1].0.kind, Kind::Directory);
    assert_eq!(entries[2].0.kind, Kind::Symlink { target: b"../target".to_vec() });
    assert_eq!(entries[3].0.kind, Kind::Link { target: b"a/file".to_vec() });
    assert_eq!(entries[4].0.kind, Kind::BlockDevice { major: 8, minor: 300 });
    assert_eq!(entries[5].0.path.len(), 272);
    assert!(matches!(&entries[6].0.kind, Kind::Symlink { target } if target.len() == 181));
    let pax = &entries[7].0;
    assert_eq!((pax.path.as_slice(), pax.mtime, &pax.kind), (&b"from-pax"[..], (7, 500_000_000), &Kind::Fifo));
    assert_eq!(pax.xattrs, [(b"user.k".to_vec(), b"v".to_vec())]);
    assert_eq!(entries.len(), 8);
}

#[test]
fn an_archive_that_is_cut_anywhere_is_an_error_or_ends_at_an_entry() {
    let whole = sample();
    let complete = read(&whole).unwrap();
    for length in 0..whole.len() {
        match read(&whole[..length]) {
            // without end mark, as some tools write; then what came is a beginning of the whole
            Ok(entries) => assert_eq!(entries[..], complete[..entries.len()]),
            Err(error) => assert!(matches!(error, ArchiveError::Truncated { .. }), "{length}: {error}"),
        }
    }
}

#[test]
fn sparse_files_of_gnu_tar_come_with_their_holes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sparse");
    let file = std::fs::File::create(&path).unwrap();
    for piece in 0..40u64 {
        std::os::unix::fs::FileExt::write_all_at(&file, b"data", piece * 1_000_000).unwrap();
    }
    file.set_len(50_000_000).unwrap();
    for format in [
        &["--format=gnu"][..],
        &["--format=posix", "--sparse-version=0.0"],
        &["--format=posix", "--sparse-version=0.1"],
        &["--format=posix", "--sparse-version=1.0"],
    ] {
        let output = std::process::Command::new("tar")
            .args(["-c", "-S", "-f", "-", "-C"])
            .arg(dir.path())
            .args(format)
            .arg("sparse")
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let entries = read(&output.stdout).unwrap();
        let (entry, data) = &entries[0];
        assert_eq!(entry.path, b"sparse");
        let Kind::File { size: 50_000_000, extents: Some(extents) } = &entry.kind else { panic!("{entry:?}") };
        let mut rebuilt = vec![0u8; 50_000_000];
        let mut from = 0;
        for extent in extents {
            let offset = usize::try_from(extent.offset).unwrap();
            let length = usize::try_from(extent.length).unwrap();
            rebuilt[offset..offset + length].copy_from_slice(&data[from..from + length]);
            from += length;
        }
        assert!(rebuilt == std::fs::read(&path).unwrap(), "{format:?}");
    }
}

#[test]
fn headers_that_ask_for_too_much_memory_are_refused() {
    for kind in [tar::EntryType::GNULongName, tar::EntryType::XHeader, tar::EntryType::XGlobalHeader] {
        let mut header = header(kind, 1 << 40);
        header.set_cksum();
        assert!(matches!(read(header.as_bytes()), Err(ArchiveError::Damaged { .. })));
    }
    let mut header = header(tar::EntryType::Regular, 0);
    header.as_mut_bytes()[124..136].copy_from_slice(&[0x80, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
    header.set_cksum();
    assert!(read(header.as_bytes()).is_err());
}

#[test]
fn a_size_where_no_data_can_be_is_not_one() {
    let mut builder = tar::Builder::new(Vec::new());
    for kind in [tar::EntryType::Directory, tar::EntryType::Link, tar::EntryType::Fifo] {
        let mut header = header(kind, 4096);
        header.set_path("x").unwrap();
        header.set_cksum();
        // without any data behind it
        builder.append(&header, &[][..]).unwrap();
    }
    builder.append_data(&mut header(tar::EntryType::Regular, 1), "file", &b"1"[..]).unwrap();
    let entries = read(&builder.into_inner().unwrap()).unwrap();
    assert_eq!((entries.len(), &entries[3].1[..]), (4, &b"1"[..]));
}

#[test]
fn kinds_that_no_layer_has_are_named() {
    let mut header = header(tar::EntryType::new(b'M'), 0);
    header.set_cksum();
    match read(header.as_bytes()) {
        Err(ArchiveError::Unsupported { kind: 'M', at: 0 }) => {}
        other => panic!("{other:?}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]
    #[test]
    fn damage_anywhere_is_refused_or_harmless(at in 0usize..9000, byte in any::<u8>(), fix in any::<bool>()) {
        let mut bytes = sample();
        let at = at % bytes.len();
        bytes[at] = byte;
        if fix {
            // a wrong sum alone would hide what the rest of the parser does
            let start = at / 512 * 512;
            let mut block: [u8; 512] = bytes[start..start + 512].try_into().unwrap();
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
            bytes[start + 148..start + 156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
        let _ = read(&bytes);
    }

    #[test]
    fn any_bytes_come_to_an_end(bytes in proptest::collection::vec(any::<u8>(), 0..3000)) {
        let _ = read(&bytes);
    }
}
