//! From bytes to entries.

use std::io::{self, BufRead};

use super::header::{BLOCK, Header};
use super::pax::Pax;
use super::sparse;
use super::{ArchiveError, Entry, Extent, Kind};

/// Extended headers and long names; Linux limits an extended attribute to 64 KiB and a path to 4 KiB.
const MAX_EXTENSION: u64 = 1 << 20;

/// Hears every byte of an archive that is not the data of a file, in order: headers, padding, end marks.
pub(crate) trait Listener {
    /// Some of these bytes.
    fn structure(&mut self, bytes: &[u8]);
}

impl Listener for () {
    fn structure(&mut self, _: &[u8]) {}
}

/// An archive that is read once, from front to back.
pub(crate) struct Archive<R, L = ()> {
    input: R,
    listener: L,
    position: u64,
    /// Data of the current entry that nobody has read yet.
    remaining: u64,
    padding: u64,
    global: Pax,
}

impl<R: BufRead> Archive<R> {
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn new(input: R) -> Archive<R> {
        Archive::with_listener(input, ())
    }
}

impl<R: BufRead, L: Listener> Archive<R, L> {
    /// Reads an archive and tells `listener` what it is made of.
    pub(crate) fn with_listener(input: R, listener: L) -> Archive<R, L> {
        Archive { input, listener, position: 0, remaining: 0, padding: 0, global: Pax::default() }
    }

    /// What comes after the archive's end mark, and who listened.
    pub(crate) fn into_inner(self) -> (R, L) {
        (self.input, self.listener)
    }

    /// Who listens.
    pub(crate) fn listener(&mut self) -> &mut L {
        &mut self.listener
    }

    /// The next entry, skipping what is left of the current one; `None` at the end.
    pub(crate) fn next_entry(&mut self) -> Result<Option<Entry>, ArchiveError> {
        self.skip(self.remaining + self.padding)?;
        (self.remaining, self.padding) = (0, 0);
        let mut pax = self.global.clone();
        let (mut long_path, mut long_link) = (None, None);
        loop {
            let at = self.position;
            let damaged = |what| ArchiveError::Damaged { at, what };
            let Some(block) = self.header_block()? else { return Ok(None) };
            if block.iter().all(|byte| *byte == 0) {
                // the end mark is two such blocks; one is accepted, as tar does
                return Ok(None);
            }
            let header = Header::parse(&block).map_err(damaged)?;
            let size = header.size().map_err(damaged)?;
            match header.kind() {
                b'x' => pax.add(&self.extension(at, size)?).map_err(damaged)?,
                b'g' => {
                    let records = self.extension(at, size)?;
                    self.global.add(&records).map_err(damaged)?;
                    pax = self.global.clone();
                }
                b'L' => long_path = Some(c_string(self.extension(at, size)?)),
                b'K' => long_link = Some(c_string(self.extension(at, size)?)),
                // the name of the archive, not a file
                b'V' => self.skip(padded(size))?,
                kind => {
                    let path = pax.path.take().or(long_path).unwrap_or_else(|| header.path());
                    let link = pax.link.take().or(long_link).unwrap_or_else(|| header.link());
                    return self.entry(at, kind, &header, pax, path, link).map(Some);
                }
            }
        }
    }

    fn entry(
        &mut self,
        at: u64,
        kind: u8,
        header: &Header<'_>,
        pax: Pax,
        mut path: Vec<u8>,
        link: Vec<u8>,
    ) -> Result<Entry, ArchiveError> {
        let damaged = |what| ArchiveError::Damaged { at, what };
        let size = pax.size.map_or_else(|| header.size(), Ok).map_err(damaged)?;
        let device = || header.device().map_err(damaged);
        let kind = match kind {
            // before ustar, a directory was a name with a slash at its end
            b'0' | 0 if path.ends_with(b"/") => Kind::Directory,
            b'0' | 0 | b'7' | b'S' => {
                self.set_remaining(at, size)?;
                let (real_size, extents) = self.extents(at, kind, header, &pax)?;
                if let Some(name) = &pax.sparse.name {
                    path.clone_from(name);
                }
                Kind::File { size: real_size.unwrap_or(self.remaining), extents }
            }
            b'1' => Kind::Link { target: link },
            b'2' => Kind::Symlink { target: link },
            b'3' => device().map(|(major, minor)| Kind::CharDevice { major, minor })?,
            b'4' => device().map(|(major, minor)| Kind::BlockDevice { major, minor })?,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            other => return Err(ArchiveError::Unsupported { at, kind: char::from(other) }),
        };
        if !matches!(kind, Kind::File { .. }) {
            // only files have data: other writers mean the size of a link's target, or of a directory on their disk. A
            // directory by its name alone is an old file header, whose data has to be passed over.
            let data = if matches!(header.kind(), b'1'..=b'6') { 0 } else { size };
            self.set_remaining(at, data)?;
        }
        Ok(Entry {
            path,
            kind,
            mode: header.mode().map_err(damaged)?,
            uid: pax.uid.map_or_else(|| header.uid(), Ok).map_err(damaged)?,
            gid: pax.gid.map_or_else(|| header.gid(), Ok).map_err(damaged)?,
            mtime: pax.mtime.map_or_else(|| header.mtime().map(|seconds| (seconds, 0)), Ok).map_err(damaged)?,
            xattrs: pax.xattrs,
        })
    }

    /// The holes of a file: its real size and where its data belongs.
    fn extents(
        &mut self,
        at: u64,
        kind: u8,
        header: &Header<'_>,
        pax: &Pax,
    ) -> Result<(Option<u64>, Option<Vec<Extent>>), ArchiveError> {
        let damaged = |what| ArchiveError::Damaged { at, what };
        let (real_size, extents) = if kind == b'S' {
            let (map, mut more, real_size) = header.gnu_sparse();
            let mut extents = Vec::new();
            sparse::gnu(map, &mut extents).map_err(damaged)?;
            while more {
                // continuation blocks stand between header and data and are not part of the size
                let block = self.header_block()?.ok_or(ArchiveError::Truncated { at: self.position })?;
                sparse::gnu(&block[..504], &mut extents).map_err(damaged)?;
                more = block[504] != 0;
            }
            (real_size.map_err(damaged)?, extents)
        } else if pax.sparse.major == Some(1) {
            let mut map = sparse::MapReader::default();
            loop {
                if self.remaining < BLOCK as u64 {
                    return Err(damaged("sparse map is cut off"));
                }
                let block = self.header_block()?.ok_or(ArchiveError::Truncated { at: self.position })?;
                self.remaining -= BLOCK as u64;
                if map.block(&block).map_err(damaged)? {
                    break;
                }
            }
            let real_size = pax.sparse.real_size.ok_or(damaged("sparse file without a size"))?;
            (real_size, map.extents().map_err(damaged)?)
        } else if pax.sparse.present() {
            let real_size = pax.sparse.real_size.ok_or(damaged("sparse file without a size"))?;
            (real_size, sparse::pairs(&pax.sparse.map).map_err(damaged)?)
        } else {
            return Ok((None, None));
        };
        sparse::check(&extents, real_size, self.remaining).map_err(damaged)?;
        Ok((Some(real_size), Some(extents)))
    }

    /// The next piece of the current entry's data, empty when there is no more. [`Archive::consume`] says how much
    /// of it was used.
    pub(crate) fn data(&mut self) -> Result<&[u8], ArchiveError> {
        if self.remaining == 0 {
            return Ok(&[]);
        }
        let remaining = usize::try_from(self.remaining).unwrap_or(usize::MAX);
        let at = self.position;
        let available = fill(&mut self.input)?;
        if available.is_empty() {
            return Err(ArchiveError::Truncated { at });
        }
        Ok(&available[..available.len().min(remaining)])
    }

    pub(crate) fn consume(&mut self, bytes: usize) {
        self.input.consume(bytes);
        self.position += bytes as u64;
        self.remaining -= bytes as u64;
    }

    fn set_remaining(&mut self, at: u64, size: u64) -> Result<(), ArchiveError> {
        // a size near 2^64 would wrap around when it is padded
        if size > i64::MAX as u64 {
            return Err(ArchiveError::Damaged { at, what: "impossible size" });
        }
        (self.remaining, self.padding) = (size, padded(size) - size);
        Ok(())
    }

    /// The data of an extension entry.
    fn extension(&mut self, at: u64, size: u64) -> Result<Vec<u8>, ArchiveError> {
        if size > MAX_EXTENSION {
            return Err(ArchiveError::Damaged { at, what: "extended header is too long" });
        }
        let mut bytes = Vec::new();
        self.set_remaining(at, size)?;
        loop {
            let data = self.data()?;
            if data.is_empty() {
                break;
            }
            bytes.extend_from_slice(data);
            let length = data.len();
            self.consume(length);
        }
        self.listener.structure(&bytes);
        self.skip(self.padding)?;
        self.padding = 0;
        Ok(bytes)
    }

    /// One block, or `None` when the bytes end exactly before it.
    fn header_block(&mut self) -> Result<Option<[u8; BLOCK]>, ArchiveError> {
        let mut block = [0u8; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            let available = fill(&mut self.input)?;
            if available.is_empty() {
                return if filled == 0 { Ok(None) } else { Err(ArchiveError::Truncated { at: self.position }) };
            }
            let length = available.len().min(BLOCK - filled);
            block[filled..filled + length].copy_from_slice(&available[..length]);
            self.input.consume(length);
            self.position += length as u64;
            filled += length;
        }
        self.listener.structure(&block);
        Ok(Some(block))
    }

    fn skip(&mut self, mut bytes: u64) -> Result<(), ArchiveError> {
        while bytes > 0 {
            let available = fill(&mut self.input)?;
            if available.is_empty() {
                return Err(ArchiveError::Truncated { at: self.position });
            }
            let length = available.len().min(usize::try_from(bytes).unwrap_or(usize::MAX));
            self.listener.structure(&available[..length]);
            self.input.consume(length);
            self.position += length as u64;
            bytes -= length as u64;
        }
        Ok(())
    }
}

fn fill<R: BufRead>(input: &mut R) -> Result<&[u8], ArchiveError> {
    loop {
        match input.fill_buf() {
            // asked again below: the borrow checker does not let a conditional return keep this one
            Ok(_) => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(ArchiveError::Read(error)),
        }
    }
    input.fill_buf().map_err(ArchiveError::Read)
}

fn padded(size: u64) -> u64 {
    size.div_ceil(BLOCK as u64).saturating_mul(BLOCK as u64)
}

/// GNU's long names end in a NUL.
fn c_string(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.iter().position(|byte| *byte == 0) {
        bytes.truncate(end);
    }
    bytes
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
