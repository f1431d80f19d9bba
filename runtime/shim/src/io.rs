//! Small pieces about descriptors.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::sys::stat::Mode;

/// Makes reads and writes return instead of wait.
pub fn set_nonblocking<Fd: AsFd>(fd: Fd) -> nix::Result<()> {
    let flags = OFlag::from_bits_truncate(fcntl(&fd, FcntlArg::F_GETFL)?);
    fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).map(drop)
}

/// A pipe whose reading side does not block.
pub fn pipe_to_read() -> nix::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    set_nonblocking(&read)?;
    Ok((read, write))
}

/// Opens a path as a place only.
pub fn open_path(path: &str) -> nix::Result<OwnedFd> {
    open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())
}

/// A line for the journal; a reader that is gone is no reason to stop.
pub fn complain(message: &str) {
    let _ = writeln!(std::io::stderr(), "<4>nodeagent-shim: {message}");
}

/// Reads what is there, at most `limit` bytes, onto `buffer`. False at the end of the stream.
pub fn read_into(stream: &UnixStream, buffer: &mut Vec<u8>, limit: u64) -> io::Result<bool> {
    let before = buffer.len();
    match stream.take(limit).read_to_end(buffer) {
        // all that may be read in one turn, or the end
        Ok(_) => Ok(u64::try_from(buffer.len() - before).is_ok_and(|read| read == limit)),
        // what came before is in the buffer
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(true),
        Err(error) => Err(error),
    }
}

/// Writes what the other side takes; returns how much.
pub fn write_from(mut stream: &UnixStream, data: &[u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < data.len() {
        match stream.write(&data[done..]) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => done += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}
