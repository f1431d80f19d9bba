//! Unpacking while downloading: two worker threads per layer and a fixed number of buffers.
//!
//! ```text
//! download, hash ──3 buffers──► decompress, hash ──4 buffers──► unpack
//! (async)                        (thread)                        (thread)
//! ```
//!
//! What is unpacked is hashed where it is decompressed, as long as it is in that processor's cache: of gzip, that makes
//! both threads about equally busy.
//!
//! Buffers come from one budget for all layers ([`crate::content::memory`]) and go back when they are read. Whoever
//! needs an empty one waits, so a slow disk slows the download and memory stays what it is.

use std::io::{self, BufRead, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use bytes::{Buf as _, Bytes};
use flate2::bufread::MultiGzDecoder;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::archive::{ArchiveError, Listener as _};
use super::frames::Frames;
use super::recipe::Recipe;
use super::sync::{Ahead, GroupSync, Since};
use super::unpack::{self, Unpacked};
use super::{SnapshotError, Snapshots};
use crate::content::memory::{LayerMemory, Lease, Windows};
use crate::content::{Digest, Keeper, disk};

/// The buffers are counted where they are made, so these are never in the way.
const PIECES: usize = 8;

/// What the download sends.
#[derive(Debug)]
pub(crate) enum Feed {
    /// Compressed bytes, in order.
    Data(Bytes),
    /// The same, worth keeping in case that the daemon is killed.
    Keep(Bytes),
    /// That was all. A channel that closes without it means that the download failed.
    End,
}

/// What works on one layer.
#[derive(Debug)]
pub(crate) struct Workers {
    /// To be filled with what is downloaded.
    pub buffers: Lease,
    pub feed: mpsc::Sender<Feed>,
    pub built: JoinHandle<Result<Built, SnapshotError>>,
}

/// What a blob is.
#[derive(Debug)]
pub(crate) enum Form {
    /// An archive, compressed or not, that has to be the expected one.
    Archive,
    /// A file's content as it is. Its bytes are verified by whoever feeds them.
    File(Around),
}

/// What makes an archive of a file.
#[derive(Debug)]
pub(crate) struct Around {
    pub head: Vec<u8>,
    pub tail: Vec<u8>,
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
    pub(super) since: Since,
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
    /// Starts the workers for one layer. What is worth it is also added to `keeper`.
    pub(crate) fn start(
        &self,
        diff_id: Digest,
        form: Form,
        limits: LayerLimits,
        memory: LayerMemory,
        keeper: Option<Keeper>,
    ) -> Workers {
        let (feed, incoming) = mpsc::channel(PIECES);
        let (full, filled) = sync_channel(PIECES);
        let LayerMemory { compressed, uncompressed, windows } = memory;
        let expected = matches!(form, Form::Archive).then_some(diff_id);
        tokio::task::spawn_blocking(move || decompress(incoming, form, keeper, full, &uncompressed, windows));
        let directory = disk::unique(self.temporary());
        let syncing = self.syncing.clone();
        let built = tokio::task::spawn_blocking(move || {
            let (unpacked, directory, since) = build(directory, filled, expected, limits, syncing)?;
            Ok(Built { unpacked, diff_id, directory, since })
        });
        Workers { buffers: compressed, feed, built }
    }
}

/// Second thread: unpacks.
fn build(
    directory: PathBuf,
    filled: Receiver<io::Result<Piece>>,
    expected: Option<Digest>,
    limits: LayerLimits,
    syncing: Arc<GroupSync>,
) -> Result<(Unpacked, Temporary, Since), SnapshotError> {
    let directory = Temporary(directory);
    let since = syncing.begin();
    let root = directory.0.join("fs");
    std::fs::create_dir_all(&root).map_err(SnapshotError::disk("create", &root))?;
    let input = Uncompressed {
        filled,
        current: Bytes::new(),
        digest: None,
        ahead: Ahead::new(syncing),
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
    match (input.digest, expected) {
        (Some(actual), Some(expected)) if actual != expected => Err(SnapshotError::DiffId { expected, actual }),
        (Some(_), _) => Ok((unpacked, directory, since)),
        (None, _) => Err(SnapshotError::Stopped),
    }
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

/// What the first thread gives the second.
#[derive(Debug)]
enum Piece {
    Data(Bytes),
    /// That was all, and what it hashes to.
    End(Digest),
}

/// The way there.
struct Output {
    full: SyncSender<io::Result<Piece>>,
    hasher: Sha256,
}

impl Output {
    /// False when nobody wants more.
    fn send(&mut self, piece: Bytes) -> bool {
        self.hasher.update(&piece);
        self.full.send(Ok(Piece::Data(piece))).is_ok()
    }
}

/// First thread: finds out how the layer is compressed, from its first bytes because media types are often wrong.
fn decompress(
    incoming: mpsc::Receiver<Feed>,
    form: Form,
    keeper: Option<Keeper>,
    full: SyncSender<io::Result<Piece>>,
    buffers: &Lease,
    windows: Windows,
) {
    let mut input = Downloaded { incoming, keeper, position: 0, current: Bytes::new(), ended: false };
    let mut output = Output { full, hasher: Sha256::new() };
    let result = match input.magic() {
        Ok(_) if let Form::File(around) = form => wrap(&mut input, &mut output, around),
        Ok([0x1f, 0x8b, ..]) => pump(&mut MultiGzDecoder::new(&mut input), &mut output, buffers),
        Ok(magic) if is_zstd(magic) => pump(&mut Frames::new(&mut input, windows), &mut output, buffers),
        Ok(_) => forward(&mut input, &mut output),
        Err(error) => Err(error),
    };
    let Output { full, hasher } = output;
    // a receiver that is gone has its own error already
    let _ = full.send(result.map(|()| Piece::End(Digest::finish(hasher))));
}

/// A frame, or one of the skippable frames that may stand before it.
fn is_zstd(magic: [u8; 4]) -> bool {
    magic == [0x28, 0xb5, 0x2f, 0xfd] || (magic[0] & 0xf0 == 0x50 && magic[1..] == [0x2a, 0x4d, 0x18])
}

/// Decompresses into buffers that the other thread gives back.
fn pump(decoder: &mut dyn Read, output: &mut Output, buffers: &Lease) -> io::Result<()> {
    loop {
        let mut buffer = buffers.blocking_buffer();
        while !buffer.is_full() {
            match decoder.read(buffer.space()) {
                Ok(0) => break,
                Ok(length) => buffer.add(length),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if buffer.is_empty() || !output.send(buffer.freeze()) {
            return Ok(());
        }
    }
}

fn wrap(input: &mut Downloaded, output: &mut Output, around: Around) -> io::Result<()> {
    if output.send(around.head.into()) {
        forward(input, output)?;
        output.send(around.tail.into());
    }
    Ok(())
}

fn forward(input: &mut Downloaded, output: &mut Output) -> io::Result<()> {
    loop {
        input.fill_buf()?;
        let piece = std::mem::take(&mut input.current);
        if piece.is_empty() || !output.send(piece) {
            return Ok(());
        }
    }
}

/// The download as a reader.
struct Downloaded {
    incoming: mpsc::Receiver<Feed>,
    /// Where a copy goes.
    keeper: Option<Keeper>,
    /// How much has come.
    position: u64,
    current: Bytes,
    ended: bool,
}

impl Downloaded {
    /// The first bytes, left in place; zeros where there are fewer.
    fn magic(&mut self) -> io::Result<[u8; 4]> {
        self.fill_buf()?;
        if self.current.len() < 4 {
            // pieces of one byte are legal, if strange
            let mut start = Vec::new();
            while start.len() < 4 && !self.fill_buf()?.is_empty() {
                start.extend_from_slice(&std::mem::take(&mut self.current));
            }
            self.current = Bytes::from(start);
        }
        let mut magic = [0; 4];
        magic.iter_mut().zip(&self.current).for_each(|(to, from)| *to = *from);
        Ok(magic)
    }
}

impl BufRead for Downloaded {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.current.is_empty() && !self.ended {
            match self.incoming.blocking_recv() {
                Some(Feed::Data(bytes)) => self.current = bytes,
                Some(Feed::Keep(bytes)) => {
                    if let Some(keeper) = &mut self.keeper {
                        keeper.add(self.position, &bytes);
                    }
                    self.current = bytes;
                }
                Some(Feed::End) => self.ended = true,
                None => return Err(io::Error::other(SnapshotError::Stopped)),
            }
            self.position += self.current.len() as u64;
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

/// The uncompressed archive as a reader that counts.
struct Uncompressed {
    filled: Receiver<io::Result<Piece>>,
    current: Bytes,
    /// Of all of it, once it has come.
    digest: Option<Digest>,
    ahead: Ahead,
    total: u64,
    limit: u64,
}

impl Uncompressed {
    fn next(&mut self) -> io::Result<()> {
        // before waiting for the next one: the other thread may need this to make it
        self.current = Bytes::new();
        match self.filled.recv() {
            Ok(Ok(Piece::End(digest))) => self.digest = Some(digest),
            Ok(Ok(Piece::Data(piece))) => {
                self.total += piece.len() as u64;
                if self.total > self.limit {
                    let too_much = SnapshotError::TooMuch { what: "uncompressed bytes", limit: self.limit };
                    return Err(io::Error::other(too_much));
                }
                self.ahead.at(self.total);
                self.current = piece;
            }
            Ok(Err(error)) => return Err(error),
            Err(_) => return Err(io::Error::other(SnapshotError::Stopped)),
        }
        Ok(())
    }
}

impl BufRead for Uncompressed {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.digest.is_none() && self.current.is_empty() {
            self.next()?;
        }
        Ok(&self.current)
    }

    fn consume(&mut self, bytes: usize) {
        self.current.advance(bytes);
    }
}

impl Read for Uncompressed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.fill_buf()?.read(buffer)?;
        self.consume(length);
        Ok(length)
    }
}
