//! What has to be remembered of an archive until its end, of which a layer may have any amount: in memory while it is
//! little, then in a file without a name.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use super::SnapshotError;

/// Kept in memory: the directories of most layers.
const MEMORY: usize = 128 << 10;
/// All of a list: a quarter of a gigabyte of names is no image.
const LIMIT: u64 = 256 << 20;

/// Pairs of byte strings, in the order in which they came.
#[derive(Debug)]
pub(super) struct Spool {
    directory: PathBuf,
    memory: Vec<u8>,
    file: Option<File>,
    total: u64,
}

impl Spool {
    /// An empty one, which may make a file in `directory`.
    pub(super) fn new(directory: &Path) -> Spool {
        Spool { directory: directory.to_owned(), memory: Vec::new(), file: None, total: 0 }
    }

    pub(super) fn push(&mut self, first: &[u8], second: &[u8]) -> Result<(), SnapshotError> {
        for part in [first, second] {
            // paths, which Linux limits to 4 KiB
            self.memory.extend(u32::try_from(part.len()).unwrap_or(u32::MAX).to_le_bytes());
            self.memory.extend_from_slice(part);
            self.total += 4 + part.len() as u64;
        }
        if self.total > LIMIT {
            return Err(SnapshotError::TooMuch { what: "bytes of directory names", limit: LIMIT });
        }
        if self.memory.len() >= MEMORY {
            self.spill().map_err(SnapshotError::disk("write a list of names in", &self.directory))?;
        }
        Ok(())
    }

    fn spill(&mut self) -> io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            none => {
                let path = crate::content::disk::unique(&self.directory);
                let file = File::options().read(true).write(true).create_new(true).open(&path)?;
                std::fs::remove_file(&path)?;
                none.insert(file)
            }
        };
        file.write_all(&self.memory)?;
        self.memory.clear();
        Ok(())
    }

    /// Gives everything back.
    pub(super) fn for_each(
        self,
        mut each: impl FnMut(&[u8], &[u8]) -> Result<(), SnapshotError>,
    ) -> Result<(), SnapshotError> {
        let failed = || SnapshotError::disk("read a list of names in", &self.directory);
        let spilled = match self.file {
            Some(mut file) => {
                file.seek(SeekFrom::Start(0)).map_err(failed())?;
                Some(BufReader::with_capacity(32 << 10, file))
            }
            None => None,
        };
        let mut input: Box<dyn Read + '_> = match spilled {
            Some(spilled) => Box::new(spilled.chain(&self.memory[..])),
            None => Box::new(&self.memory[..]),
        };
        let (mut left, mut parts) = (self.total, [Vec::new(), Vec::new()]);
        while left > 0 {
            for part in &mut parts {
                let mut length = [0; 4];
                input.read_exact(&mut length).map_err(failed())?;
                let length = u64::from(u32::from_le_bytes(length));
                part.clear();
                input.by_ref().take(length).read_to_end(part).map_err(failed())?;
                left = left.saturating_sub(4 + length);
            }
            each(&parts[0], &parts[1])?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_in_comes_out_in_order_whether_it_fits_into_memory_or_not() {
        for count in [0u32, 3, 50_000] {
            let dir = tempfile::tempdir().unwrap();
            let mut spool = Spool::new(dir.path());
            for number in 0..count {
                spool.push(format!("a/path/{number}").as_bytes(), if number % 3 == 0 { b"" } else { b"x\0y" }).unwrap();
                assert!(spool.memory.len() < MEMORY);
            }
            assert_eq!(spool.file.is_some(), count > 10_000);
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
            let mut number = 0;
            spool
                .for_each(|first, second| {
                    assert_eq!(first, format!("a/path/{number}").as_bytes());
                    assert_eq!(second.is_empty(), number % 3 == 0);
                    number += 1;
                    Ok(())
                })
                .unwrap();
            assert_eq!(number, count);
        }
    }

    #[test]
    fn there_is_an_end_to_it() {
        let dir = tempfile::tempdir().unwrap();
        let (mut spool, name) = (Spool::new(dir.path()), vec![b'n'; 1 << 20]);
        let pushed = (0..300).find_map(|_| spool.push(&name, b"").err());
        assert!(matches!(pushed, Some(SnapshotError::TooMuch { limit: LIMIT, .. })));
    }
}
