//! Unpacking while downloading: two worker threads per layer and a fixed number of buffers.
//!
//! ```text
//! download ──Bytes──► decompress ──256 KiB buffers──► hash, unpack
//! (async)   8 pieces   (thread)    4, used in turn     (thread)
//! ```
//!
//! Every arrow blocks when it is full, so a slow disk slows the download and memory stays what it is.

use std::fs::File;
use std::io::{self, BufRead, Read, Write as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use bytes::{Buf as _, Bytes};
use flate2::bufread::MultiGzDecoder;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::archive::{ArchiveError, Listener as _};
use super::recipe::Recipe;
use super::unpack::{self, Unpacked};
use super::{SnapshotError, Snapshots};
use crate::content::{Digest, disk};

const PIECES: usize = 8;
const BUFFERS: usize = 4;
const BUFFER: usize = 256 << 10;
/// 16 MiB; builders of images stay at 8 MiB or below, and a frame may not choose how much memory we spend.
const ZSTD_WINDOW_LOG: u32 = 24;

/// What the download sends.
#[derive(Debug)]
pub(crate) enum Feed {
    /// Compressed bytes, in order.
    Data(Bytes),
    /// The same, from what an earlier download kept.
    Kept(Bytes),
    /// That was all. A channel that closes without it means that the download failed.
    End,
}

/// Limits for one layer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LayerLimits {
    pub bytes: u64,
    pub entries: u64,
}

/// A layer that is unpacked and verified, but does not fit the layers below yet. Dropped, it removes itself.
#[derive(Debug)]
pub(crate) struct Built {
    pub(super) unpacked: Unpacked,
    pub(super) diff_id: Digest,
    pub(super) directory: Temporary,
}

/// A directory that goes when this does; an empty path means that it was moved away.
#[derive(Debug)]
pub(super) struct Temporary(pub(super) PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.0.as_os_str().is_empty() {
            disk::remove_all(&self.0);
        }
    }
}

impl Snapshots {
    /// Starts the workers for one layer. What is fed as new is also added to `kept`.
    pub(crate) fn start(
        &self,
        diff_id: Digest,
        limits: LayerLimits,
        kept: Option<File>,
    ) -> (mpsc::Sender<Feed>, JoinHandle<Result<Built, SnapshotError>>) {
        let (feed, incoming) = mpsc::channel(PIECES);
        let (full, filled) = sync_channel(BUFFERS);
        let (empty, recycled) = sync_channel(BUFFERS);
        tokio::task::spawn_blocking(move || decompress(incoming, kept, &full, &recycled));
        let directory = disk::unique(self.temporary());
        let worker = tokio::task::spawn_blocking(move || build(directory, filled, empty, diff_id, limits));
        (feed, worker)
    }
}

/// Second thread: hashes and unpacks.
fn build(
    directory: PathBuf,
    filled: Receiver<io::Result<Piece>>,
    empty: SyncSender<Vec<u8>>,
    diff_id: Digest,
    limits: LayerLimits,
) -> Result<Built, SnapshotError> {
    let directory = Temporary(directory);
    let root = directory.0.join("fs");
    std::fs::create_dir_all(&root).map_err(SnapshotError::disk("create", &root))?;
    let input = Uncompressed {
        filled,
        empty,
        current: None,
        position: 0,
        ended: false,
        hasher: Sha256::new(),
        total: 0,
        limit: limits.bytes,
    };
    let (mut unpacked, mut input, mut recipe) = unpack_into(&root, input, limits, Recipe::create(&directory.0)?)?;
    // the digest covers what follows the end mark, too
    loop {
        let rest = input.fill_buf().map_err(ArchiveError::Read).map_err(explain)?;
        if rest.is_empty() {
            break;
        }
        recipe.structure(rest);
        let length = rest.len();
        input.consume(length);
    }
    unpacked.bytes += recipe.finish(&directory.0)?.div_ceil(4096) * 4096;
    unpacked.inodes += 1;
    log::trace!(bytes = input.total; "layer unpacked");
    let actual = Digest::finish(input.hasher);
    if actual != diff_id {
        return Err(SnapshotError::DiffId { expected: diff_id, actual });
    }
    Ok(Built { unpacked, diff_id, directory })
}

fn unpack_into(
    root: &Path,
    input: Uncompressed,
    limits: LayerLimits,
    recipe: Recipe,
) -> Result<(Unpacked, Uncompressed, Recipe), SnapshotError> {
    unpack::unpack(input, root, limits.entries, recipe).map_err(|error| match error {
        SnapshotError::Archive(error) => explain(error),
        other => other,
    })
}

/// Our own reasons to stop travel through `io::Error`; here they get out again.
fn explain(error: ArchiveError) -> SnapshotError {
    match error {
        ArchiveError::Read(error) => match error.downcast::<SnapshotError>() {
            Ok(own) => own,
            Err(error) => ArchiveError::Read(error).into(),
        },
        other => other.into(),
    }
}

/// A piece of the uncompressed archive.
#[derive(Debug)]
enum Piece {
    /// As it came from the network: the layer is not compressed.
    Shared(Bytes),
    /// One of our buffers.
    Owned(Vec<u8>),
}

impl Piece {
    fn bytes(&self) -> &[u8] {
        match self {
            Piece::Shared(bytes) => bytes,
            Piece::Owned(bytes) => bytes,
        }
    }
}

/// First thread: finds out how the layer is compressed, from its first bytes because media types are often wrong.
fn decompress(
    incoming: mpsc::Receiver<Feed>,
    kept: Option<File>,
    full: &SyncSender<io::Result<Piece>>,
    recycled: &Receiver<Vec<u8>>,
) {
    let mut input = Downloaded { incoming, kept, current: Bytes::new(), ended: false };
    let result = match input.magic() {
        Ok(magic) if magic.starts_with(&[0x1f, 0x8b]) => pump(&mut MultiGzDecoder::new(&mut input), full, recycled),
        Ok(magic) if is_zstd(&magic) => zstd_decoder(&mut input).and_then(|mut zstd| pump(&mut zstd, full, recycled)),
        Ok(_) => forward(&mut input, full),
        Err(error) => Err(error),
    };
    if let Err(error) = result {
        // a receiver that is gone has its own error already
        let _ = full.send(Err(error));
    }
}

/// A frame, or one of the skippable frames that may stand before it.
fn is_zstd(magic: &[u8]) -> bool {
    magic == [0x28, 0xb5, 0x2f, 0xfd]
        || (magic.len() == 4 && magic[0] & 0xf0 == 0x50 && magic[1..] == [0x2a, 0x4d, 0x18])
}

fn zstd_decoder<'a, R: BufRead>(input: R) -> io::Result<zstd::stream::read::Decoder<'a, R>> {
    let mut decoder = zstd::stream::read::Decoder::with_buffer(input)?;
    decoder.window_log_max(ZSTD_WINDOW_LOG)?;
    Ok(decoder)
}

/// Decompresses into the buffers that the other thread gives back.
fn pump(decoder: &mut dyn Read, full: &SyncSender<io::Result<Piece>>, recycled: &Receiver<Vec<u8>>) -> io::Result<()> {
    let mut made = 0;
    loop {
        let mut buffer = if made < BUFFERS {
            made += 1;
            vec![0; BUFFER]
        } else {
            match recycled.recv() {
                Ok(buffer) => buffer,
                Err(_) => return Ok(()),
            }
        };
        buffer.resize(BUFFER, 0);
        let mut filled = 0;
        while filled < buffer.len() {
            match decoder.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(length) => filled += length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        buffer.truncate(filled);
        if filled == 0 || full.send(Ok(Piece::Owned(buffer))).is_err() {
            return Ok(());
        }
    }
}

fn forward(input: &mut Downloaded, full: &SyncSender<io::Result<Piece>>) -> io::Result<()> {
    loop {
        input.fill_buf()?;
        let piece = std::mem::take(&mut input.current);
        if piece.is_empty() || full.send(Ok(Piece::Shared(piece))).is_err() {
            return Ok(());
        }
    }
}

/// The download as a reader.
struct Downloaded {
    incoming: mpsc::Receiver<Feed>,
    /// Where a copy goes.
    kept: Option<File>,
    current: Bytes,
    ended: bool,
}

impl Downloaded {
    /// The first bytes, left in place.
    fn magic(&mut self) -> io::Result<Vec<u8>> {
        // pieces of one byte are legal, if strange
        let mut start = Vec::new();
        while start.len() < 4 {
            if self.fill_buf()?.is_empty() {
                break;
            }
            start.extend_from_slice(&self.current);
            self.current = Bytes::new();
        }
        self.current = Bytes::from(start);
        Ok(self.current.slice(..self.current.len().min(4)).to_vec())
    }
}

impl BufRead for Downloaded {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.current.is_empty() && !self.ended {
            match self.incoming.blocking_recv() {
                Some(Feed::Kept(bytes)) => self.current = bytes,
                Some(Feed::Data(bytes)) => {
                    // without a copy it works as well, only not after a crash
                    if self.kept.as_mut().is_some_and(|kept| kept.write_all(&bytes).is_err()) {
                        self.kept = None;
                    }
                    self.current = bytes;
                }
                Some(Feed::End) => self.ended = true,
                None => return Err(io::Error::other(SnapshotError::Stopped)),
            }
        }
        Ok(&self.current)
    }

    fn consume(&mut self, bytes: usize) {
        self.current.advance(bytes);
    }
}

impl Read for Downloaded {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.fill_buf()?.read(buffer)?;
        self.consume(length);
        Ok(length)
    }
}

/// The uncompressed archive as a reader that hashes and counts.
struct Uncompressed {
    filled: Receiver<io::Result<Piece>>,
    empty: SyncSender<Vec<u8>>,
    current: Option<Piece>,
    position: usize,
    ended: bool,
    hasher: Sha256,
    total: u64,
    limit: u64,
}

impl Uncompressed {
    fn next(&mut self) -> io::Result<()> {
        if let Some(Piece::Owned(buffer)) = self.current.take() {
            // the other thread may be done and gone
            let _ = self.empty.try_send(buffer);
        }
        self.position = 0;
        match self.filled.recv() {
            Ok(Ok(piece)) => {
                self.total += piece.bytes().len() as u64;
                if self.total > self.limit {
                    let too_much = SnapshotError::TooMuch { what: "uncompressed bytes", limit: self.limit };
                    return Err(io::Error::other(too_much));
                }
                self.hasher.update(piece.bytes());
                self.current = Some(piece);
            }
            Ok(Err(error)) => return Err(error),
            Err(_) => self.ended = true,
        }
        Ok(())
    }
}

impl BufRead for Uncompressed {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while !self.ended && self.current.as_ref().is_none_or(|piece| piece.bytes().len() == self.position) {
            self.next()?;
        }
        Ok(self.current.as_ref().map_or(&[], |piece| &piece.bytes()[self.position..]))
    }

    fn consume(&mut self, bytes: usize) {
        self.position += bytes;
    }
}

impl Read for Uncompressed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.fill_buf()?.read(buffer)?;
        self.consume(length);
        Ok(length)
    }
}
