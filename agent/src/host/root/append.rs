//! Files that grow by whole records: the agent's journals and locks.

use std::fs::File;

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use nix::unistd::fsync;

use super::{Root, RootError};

impl Root {
    /// Opens a file for reading and appending; when it is not there it is made, durably, in a directory that is there. A
    /// link in its place is refused: these are the agent's own names.
    pub fn open_append(&self, path: &str, mode: u32) -> Result<File, RootError> {
        let failed = |step| move |source| RootError::Write { path: path.to_owned(), step, source };
        let (parent, name) = self.parent_of(path)?.ok_or_else(|| failed("open directory")(Errno::ENOENT))?;
        let flags = OFlag::O_RDWR | OFlag::O_APPEND | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        match openat(&parent, name, flags, Mode::empty()) {
            Err(Errno::ENOENT) => {}
            opened => return Ok(File::from(opened.map_err(failed("open"))?)),
        }
        let file =
            openat(&parent, name, flags | OFlag::O_CREAT, Mode::from_bits_truncate(mode)).map_err(failed("make"))?;
        fsync(&parent).map_err(failed("sync directory"))?;
        Ok(File::from(file))
    }
}
