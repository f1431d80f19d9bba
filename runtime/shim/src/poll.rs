//! The one epoll instance, and descriptors that belong to it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

/// Number of a container, an exec or a connection; never used again, so that a late event finds nobody.
pub type Number = u32;

/// What an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Token {
    /// The listening socket.
    Listener,
    /// The signalfd.
    Signals,
    /// A daemon's connection.
    Connection(Number),
    /// Reports of a launcher.
    Launch(Number),
    /// Standard output (or the terminal) of a process.
    Stdout(Number),
    /// Standard error of a process.
    Stderr(Number),
    /// Memory has become short in a container.
    Memory(Number),
}

impl Token {
    fn encode(self) -> u64 {
        let (kind, number) = match self {
            Self::Listener => (0u64, 0),
            Self::Signals => (1, 0),
            Self::Connection(n) => (2, n),
            Self::Launch(n) => (3, n),
            Self::Stdout(n) => (4, n),
            Self::Stderr(n) => (5, n),
            Self::Memory(n) => (6, n),
        };
        kind << 32 | u64::from(number)
    }

    fn decode(data: u64) -> Option<Self> {
        let number = Number::try_from(data & u64::from(u32::MAX)).ok()?;
        Some(match data >> 32 {
            0 => Self::Listener,
            1 => Self::Signals,
            2 => Self::Connection(number),
            3 => Self::Launch(number),
            4 => Self::Stdout(number),
            5 => Self::Stderr(number),
            6 => Self::Memory(number),
            _ => return None,
        })
    }
}

/// An epoll instance.
#[derive(Debug)]
pub struct Poller(Epoll);

impl Poller {
    /// Makes one.
    pub fn new() -> nix::Result<Rc<Self>> {
        Ok(Rc::new(Self(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?)))
    }

    /// Watches a descriptor until the returned value is dropped.
    pub fn watch(self: &Rc<Self>, fd: OwnedFd, token: Token, flags: EpollFlags) -> nix::Result<Watched> {
        self.0.add(&fd, EpollEvent::new(flags, token.encode()))?;
        Ok(Watched { fd, poller: Rc::clone(self) })
    }

    /// Waits for events, at most `timeout` milliseconds (none: for ever).
    pub fn wait(&self, events: &mut [EpollEvent], timeout: Option<u16>) -> nix::Result<usize> {
        self.0.wait(events, timeout.map_or(EpollTimeout::NONE, EpollTimeout::from))
    }

    /// What an event is about.
    pub fn token(event: &EpollEvent) -> Option<Token> {
        Token::decode(event.data())
    }
}

/// A descriptor in the epoll set.
///
/// Closing is not enough to get it out of there: a launcher may still hold a copy of it.
#[derive(Debug)]
pub struct Watched {
    fd: OwnedFd,
    poller: Rc<Poller>,
}

impl Watched {
    /// Changes what is waited for.
    pub fn interest(&self, token: Token, flags: EpollFlags) -> nix::Result<()> {
        self.poller.0.modify(&self.fd, &mut EpollEvent::new(flags, token.encode()))
    }
}

impl AsFd for Watched {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        // the only failure is that it is not in the set, which is what is wanted
        let _ = self.poller.0.delete(&self.fd);
    }
}
