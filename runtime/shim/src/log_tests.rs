use proptest::prelude::*;

use super::*;

const STAMP: &str = "2026-08-22T10:00:00.000000001Z";

fn frame(reads: &[&[u8]]) -> String {
    let (mut framer, mut out) = (Framer::new("stdout"), Vec::new());
    for read in reads {
        framer.push(read, STAMP, &mut out);
    }
    framer.end(STAMP, &mut out);
    String::from_utf8(out).unwrap().replace(STAMP, "T")
}

#[test]
fn lines_become_entries() {
    assert_eq!(frame(&[b"one\ntwo\n\n"]), "T stdout F one\nT stdout F two\nT stdout F \n");
}

#[test]
fn a_line_in_two_reads_is_one_entry() {
    assert_eq!(frame(&[b"hel", b"lo\nwor", b"ld\n"]), "T stdout F hello\nT stdout F world\n");
}

#[test]
fn the_end_of_the_stream_ends_the_line() {
    assert_eq!(frame(&[b"no newline"]), "T stdout F no newline\n");
    assert_eq!(frame(&[]), "");
}

#[test]
fn a_line_of_exactly_one_piece_is_full() {
    let line = "x".repeat(MAX_PIECE);
    assert_eq!(frame(&[format!("{line}\n").as_bytes()]), format!("T stdout F {line}\n"));
    assert_eq!(frame(&[line.as_bytes(), b"\n"]), format!("T stdout F {line}\n"));
    assert_eq!(frame(&[line.as_bytes()]), format!("T stdout F {line}\n"));
}

#[test]
fn a_longer_line_is_cut() {
    let piece = "x".repeat(MAX_PIECE);
    let expected = format!("T stdout P {piece}\nT stdout F y\n");
    assert_eq!(frame(&[format!("{piece}y\n").as_bytes()]), expected);
    assert_eq!(frame(&[piece.as_bytes(), b"y", b"\n"]), expected);
    assert_eq!(frame(&[format!("{piece}{piece}y").as_bytes()]), format!("T stdout P {piece}\n{expected}"));
}

#[test]
fn stamps_are_rfc_3339() {
    assert_eq!(stamp(0), "1970-01-01T00:00:00.000000000Z");
    assert_eq!(stamp(951_782_400_000_000_001), "2000-02-29T00:00:00.000000001Z");
    assert_eq!(stamp(1_798_761_599_999_999_999), "2026-12-31T23:59:59.999999999Z");
}

#[test]
fn reopening_makes_a_new_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a/b/0.log");
    let mut log = LogFile::open(path.to_str().unwrap()).unwrap();
    log.write(&mut b"one\n".to_vec());
    std::fs::rename(&path, dir.path().join("old")).unwrap();
    log.reopen().unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"");
    log.write(&mut b"two\n".to_vec());
    assert_eq!(std::fs::read(&path).unwrap(), b"two\n");
    assert_eq!(std::fs::read(dir.path().join("old")).unwrap(), b"one\n");
}

#[test]
fn links_and_pipes_are_not_opened_as_logs() {
    let dir = tempfile::tempdir().unwrap();
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(dir.path().join("elsewhere"), &link).unwrap();
    assert!(LogFile::open(link.to_str().unwrap()).is_err());
    assert!(!dir.path().join("elsewhere").exists());
    let pipe = dir.path().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    assert!(LogFile::open(pipe.to_str().unwrap()).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever the reads, the content comes back, and every piece has its size and tag.
    #[test]
    fn nothing_is_lost(runs in prop::collection::vec((0..40_000usize, any::<bool>()), 0..8), read in 1..20_000usize) {
        let content: Vec<u8> = runs
            .iter()
            .flat_map(|(length, ends)| std::iter::repeat_n(b'x', *length).chain(ends.then_some(b'\n')))
            .collect();
        let (mut framer, mut out) = (Framer::new("stderr"), Vec::new());
        for read in content.chunks(read) {
            framer.push(read, STAMP, &mut out);
            prop_assert!(framer.carry.len() <= MAX_PIECE);
        }
        framer.end(STAMP, &mut out);
        let mut found = String::new();
        for entry in String::from_utf8(out).unwrap().lines() {
            let (tag, piece) = entry.strip_prefix(&format!("{STAMP} stderr ")).unwrap().split_at(2);
            prop_assert!(piece.len() <= MAX_PIECE);
            match tag {
                "P " => prop_assert_eq!(piece.len(), MAX_PIECE),
                other => prop_assert_eq!(other, "F "),
            }
            found.push_str(piece);
            if tag == "F " {
                found.push('\n');
            }
        }
        let mut expected = String::from_utf8(content).unwrap();
        if !expected.is_empty() && !expected.ends_with('\n') {
            expected.push('\n');
        }
        // not compared by the macro: it would print megabytes
        prop_assert!(found == expected);
    }
}
