//! Reading tar archives: v7, ustar, GNU and PAX, with sparse files and extended attributes.
//!
//! Made for archives from strangers. Memory is bounded whatever a header claims, data is handed out in the pieces in
//! which it arrives, and nothing here touches a file system.

mod header;
mod pax;
mod reader;
mod sparse;

use std::io;

pub(crate) use reader::{Archive, Listener};

/// Something in an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// As in the archive: may be absolute, hold `..` or end in a slash.
    pub path: Vec<u8>,
    pub kind: Kind,
    /// Permission bits, setuid, setgid and sticky included.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Seconds and nanoseconds.
    pub mtime: (i64, u32),
    /// Name and value, in archive order.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A file; its bytes follow. `size` is what the file has in the end.
    File {
        size: u64,
        /// Where the bytes belong when the file has holes, in ascending order.
        extents: Option<Vec<Extent>>,
    },
    Directory,
    Symlink {
        target: Vec<u8>,
    },
    /// Another name for something that came before.
    Link {
        target: Vec<u8>,
    },
    CharDevice {
        major: u32,
        minor: u32,
    },
    BlockDevice {
        major: u32,
        minor: u32,
    },
    Fifo,
}

/// A piece of a sparse file that has data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extent {
    pub offset: u64,
    pub length: u64,
}

/// Why an archive cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The source of the bytes failed.
    #[error("cannot read the archive")]
    Read(#[source] io::Error),
    /// The bytes end within an entry.
    #[error("archive ends early, at byte {at}")]
    Truncated {
        /// Offset in the uncompressed archive.
        at: u64,
    },
    /// A header that does not add up.
    #[error("archive is damaged at byte {at}: {what}")]
    Damaged {
        /// Offset of the header in the uncompressed archive.
        at: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// A kind of entry that has no place in a layer.
    #[error("archive has an entry of unsupported type {kind:?} at byte {at}")]
    Unsupported {
        /// Offset of the header in the uncompressed archive.
        at: u64,
        /// The type as in the header.
        kind: char,
    },
}
