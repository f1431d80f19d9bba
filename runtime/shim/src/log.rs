//! Container logs in the CRI form: `2026-08-22T10:00:00.123456789Z stdout F text`.
//!
//! Lines are cut at [`MAX_PIECE`], every piece but a line's last being marked `P`. One read becomes one write. An
//! unfinished line waits for its end, for more than a piece of it, or for the end of the stream.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::io::complain;

/// Longest piece of a line.
pub const MAX_PIECE: usize = 16 << 10;

/// Cuts one stream into log entries.
#[derive(Debug)]
pub struct Framer {
    stream: &'static str,
    carry: Vec<u8>,
}

impl Framer {
    /// A framer for `stdout` or `stderr`.
    pub fn new(stream: &'static str) -> Self {
        Self { stream, carry: Vec::new() }
    }

    /// Appends to `out` the entries that `data` completes.
    pub fn push(&mut self, data: &[u8], stamp: &str, out: &mut Vec<u8>) {
        let mut rest = data;
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let line = &rest[..end];
            rest = &rest[end + 1..];
            if self.carry.is_empty() {
                self.line(line, stamp, out);
            } else {
                let mut whole = std::mem::take(&mut self.carry);
                whole.extend_from_slice(line);
                self.line(&whole, stamp, out);
            }
        }
        self.carry.extend_from_slice(rest);
        if self.carry.len() > MAX_PIECE {
            let held = std::mem::take(&mut self.carry);
            // at least one byte stays, so that the line's last piece is never empty
            let cut = (held.len() - 1) / MAX_PIECE * MAX_PIECE;
            for piece in held[..cut].chunks(MAX_PIECE) {
                self.entry(piece, 'P', stamp, out);
            }
            self.carry.extend_from_slice(&held[cut..]);
        }
    }

    /// Appends what is left when the stream has ended.
    pub fn end(&mut self, stamp: &str, out: &mut Vec<u8>) {
        let rest = std::mem::take(&mut self.carry);
        if !rest.is_empty() {
            self.line(&rest, stamp, out);
        }
    }

    fn line(&self, line: &[u8], stamp: &str, out: &mut Vec<u8>) {
        let mut pieces = line.chunks(MAX_PIECE).peekable();
        if pieces.peek().is_none() {
            self.entry(b"", 'F', stamp, out);
        }
        while let Some(piece) = pieces.next() {
            let tag = if pieces.peek().is_some() { 'P' } else { 'F' };
            self.entry(piece, tag, stamp, out);
        }
    }

    fn entry(&self, piece: &[u8], tag: char, stamp: &str, out: &mut Vec<u8>) {
        // writing to a Vec cannot fail
        let _ = write!(out, "{stamp} {} {tag} ", self.stream);
        out.extend_from_slice(piece);
        out.push(b'\n');
    }
}

/// The file that entries go to.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    file: File,
    /// The last write stopped in the middle of an entry.
    torn: bool,
    failing: bool,
}

impl LogFile {
    /// Opens or makes the file, and the directories above it.
    pub fn open(path: &str) -> io::Result<Self> {
        let path = PathBuf::from(path);
        let file = open_file(&path)?;
        Ok(Self { path, file, torn: false, failing: false })
    }

    /// Opens the file of that name anew: the old one has been renamed.
    pub fn reopen(&mut self) -> io::Result<()> {
        self.file = open_file(&self.path)?;
        self.torn = false;
        Ok(())
    }

    /// Writes whole entries. A full disk loses them and neither stops the container nor tears the next ones.
    pub fn write(&mut self, entries: &mut Vec<u8>) {
        if self.torn {
            entries.insert(0, b'\n');
        }
        let mut done = 0;
        while done < entries.len() {
            match self.file.write(&entries[done..]) {
                Ok(0) => return self.failed(entries, done, &io::ErrorKind::WriteZero.into()),
                Ok(n) => done += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return self.failed(entries, done, &error),
            }
        }
        self.torn = false;
        if self.failing {
            self.failing = false;
            complain(&format!("log {}: written again", self.path.display()));
        }
    }

    fn failed(&mut self, entries: &[u8], done: usize, error: &io::Error) {
        self.torn = if done == 0 { self.torn } else { entries[done - 1] != b'\n' };
        if !self.failing {
            self.failing = true;
            complain(&format!("log {}: output is lost: {error}", self.path.display()));
        }
    }
}

fn open_file(path: &Path) -> io::Result<File> {
    if let Some(directory) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o755).create(directory)?;
    }
    // what a container may have put there if the directory is shared with it: a link, a pipe that nobody reads
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = OpenOptions::new().append(true).create(true).mode(0o640).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    Ok(file)
}

/// Nanoseconds since the epoch.
pub fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// A time as RFC 3339 with nine digits of the second.
pub fn stamp(nanoseconds: i64) -> String {
    let (seconds, nanos) = (nanoseconds.div_euclid(1_000_000_000), nanoseconds.rem_euclid(1_000_000_000));
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // civil date from days, counting years from March so that the leap day is the last (Hinnant)
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let day_of_era = z.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nanos:09}Z")
}

#[cfg(test)]
#[path = "log_tests.rs"]
mod tests;
