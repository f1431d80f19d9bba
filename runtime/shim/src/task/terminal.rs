//! A terminal between the two shims: ours owns its master side, as with any runtime, and what the other one writes and reads
//! through pipes passes over the slave.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::poll::PollFlags;
use nix::sys::stat::Mode;
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
use nix::unistd::{pipe2, read, write};

use super::error::TaskError;
use crate::io::set_nonblocking;
use crate::launch::report::{Report, send};
use crate::sys;

/// What is on its way in one direction; nothing is read while it waits.
#[derive(Debug, Default)]
struct Pending(Vec<u8>);

impl Pending {
    /// Moves on what is there. False when no more will come.
    fn pass(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> bool {
        loop {
            while !self.0.is_empty() {
                match write(to, &self.0) {
                    Ok(count) => drop(self.0.drain(..count)),
                    Err(Errno::EINTR) => {}
                    Err(Errno::EAGAIN) => return true,
                    Err(_) => return false,
                }
            }
            let mut buffer = [0; 4096];
            match read(from, &mut buffer) {
                Ok(0) => return false,
                Ok(count) => self.0.extend_from_slice(&buffer[..count]),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return true,
                // the last one has closed the other side
                Err(_) => return false,
            }
        }
    }
}

/// The slave side, and the pipes of the other shim.
#[derive(Debug)]
pub struct Terminal {
    slave: OwnedFd,
    output: (OwnedFd, Option<OwnedFd>),
    input: (OwnedFd, OwnedFd),
    to_slave: Pending,
    from_slave: Pending,
    talks: bool,
    listens: bool,
}

impl Terminal {
    /// Makes one, and hands its master side to whoever listens at `console`.
    pub fn make(console: &Path) -> Result<Self, TaskError> {
        let terminal = Self::open().map_err(TaskError::system("make a terminal"))?;
        let (terminal, master) = terminal;
        let failed = |source| TaskError::File { action: "hand over a terminal to", path: console.to_owned(), source };
        let socket = UnixStream::connect(console).map_err(failed)?;
        send(&socket, &Report::Terminal, Some(master.as_raw_fd()))
            .map_err(|error| failed(std::io::Error::from(error)))?;
        Ok(terminal)
    }

    fn open() -> nix::Result<(Self, OwnedFd)> {
        let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        let master = open("/dev/ptmx", flags, Mode::empty())?;
        sys::unlock_pty(&master)?;
        let path = format!("/dev/pts/{}", sys::pty_number(&master)?);
        let slave = open(path.as_str(), flags, Mode::empty())?;
        // the terminal inside is the one that edits lines and makes signals of keys
        let mut settings = tcgetattr(&slave)?;
        cfmakeraw(&mut settings);
        tcsetattr(&slave, SetArg::TCSANOW, &settings)?;
        let output = pipe2(OFlag::O_CLOEXEC)?;
        let input = pipe2(OFlag::O_CLOEXEC)?;
        set_nonblocking(&output.0)?;
        set_nonblocking(&input.1)?;
        let terminal = Self {
            slave,
            output: (output.0, Some(output.1)),
            input,
            to_slave: Pending::default(),
            from_slave: Pending::default(),
            talks: true,
            listens: true,
        };
        Ok((terminal, master))
    }

    /// Where the other shim reads and writes: descriptors of this process.
    pub fn ends(&self) -> (i32, i32) {
        (self.input.0.as_raw_fd(), self.output.1.as_ref().map_or(-1, AsRawFd::as_raw_fd))
    }

    /// The other shim has opened them.
    pub fn opened(&mut self) {
        self.output.1 = None;
    }

    /// Whether more output may come.
    pub fn talks(&self) -> bool {
        self.talks
    }

    /// What is to be waited for.
    pub fn sources(&self) -> impl Iterator<Item = (BorrowedFd<'_>, PollFlags)> {
        let read = |wanted: bool, pending: &Pending, from, to| match (wanted, pending.0.is_empty()) {
            (false, _) => None,
            (true, true) => Some((from, PollFlags::POLLIN)),
            (true, false) => Some((to, PollFlags::POLLOUT)),
        };
        let out = read(self.talks, &self.to_slave, self.output.0.as_fd(), self.slave.as_fd());
        let input = read(self.listens, &self.from_slave, self.slave.as_fd(), self.input.1.as_fd());
        out.into_iter().chain(input)
    }

    /// Moves on what is there.
    pub fn serve(&mut self) {
        if self.talks {
            self.talks = self.to_slave.pass(self.output.0.as_fd(), self.slave.as_fd());
        }
        if self.listens {
            self.listens = self.from_slave.pass(self.slave.as_fd(), self.input.1.as_fd());
        }
    }
}
