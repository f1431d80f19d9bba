//! The daemon's connections and the loop that serves everything.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::sys::epoll::{EpollEvent, EpollFlags};
use nix::sys::signalfd::SignalFd;

use crate::connection::{Connection, Incoming};
use crate::context::{Caller, Outgoing};
use crate::io::{complain, set_nonblocking};
use crate::output::Which;
use crate::pod::Pod;
use crate::poll::{Number, Poller, Token, Watched};

/// Connections at a time: the daemon has one, two while it is being replaced.
const MAX_CONNECTIONS: usize = 16;

/// How long the last answers get to be taken after [`crate::protocol::Call::Exit`].
const FAREWELL: Duration = Duration::from_secs(1);

/// What can stop the shim.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("prepare to wait for events")]
    Prepare { source: nix::errno::Errno },
    #[error("wait for events")]
    Wait { source: nix::errno::Errno },
}

/// The shim.
pub struct Server {
    poller: Rc<Poller>,
    listener: UnixListener,
    _listening: Watched,
    signals: SignalFd,
    _signalled: Watched,
    connections: BTreeMap<Number, Connection>,
    next: Number,
    sandbox: String,
    pod: Pod,
}

impl Server {
    /// A server on that socket, for that sandbox.
    pub fn new(listener: OwnedFd, signals: SignalFd, host_net: OwnedFd, sandbox: String) -> Result<Self, ServeError> {
        let prepare = |source| ServeError::Prepare { source };
        let io = |error: io::Error| {
            prepare(error.raw_os_error().map_or(nix::errno::Errno::EIO, nix::errno::Errno::from_raw))
        };
        set_nonblocking(&listener).map_err(prepare)?;
        let listener = UnixListener::from(listener);
        let poller = Poller::new().map_err(prepare)?;
        let watched = listener.as_fd().try_clone_to_owned().map_err(io)?;
        let listening = poller.watch(watched, Token::Listener, EpollFlags::EPOLLIN).map_err(prepare)?;
        let watched = signals.as_fd().try_clone_to_owned().map_err(io)?;
        let signalled = poller.watch(watched, Token::Signals, EpollFlags::EPOLLIN).map_err(prepare)?;
        let pod = Pod::new(&poller, host_net);
        Ok(Self {
            poller,
            listener,
            _listening: listening,
            signals,
            _signalled: signalled,
            connections: BTreeMap::new(),
            next: 0,
            sandbox,
            pod,
        })
    }

    /// Serves until the daemon says that the shim may end.
    pub fn serve(mut self) -> Result<(), ServeError> {
        let mut events = [EpollEvent::empty(); 16];
        while !self.pod.exiting() {
            self.turn(&mut events, self.pod.timeout())?;
        }
        let until = Instant::now() + FAREWELL;
        while self.connections.values().any(Connection::unsent) {
            let left = until.saturating_duration_since(Instant::now()).as_millis();
            if left == 0 {
                break;
            }
            self.turn(&mut events, u16::try_from(left).ok())?;
        }
        Ok(())
    }

    fn turn(&mut self, events: &mut [EpollEvent], timeout: Option<u16>) -> Result<(), ServeError> {
        let count = match self.poller.wait(events, timeout) {
            Ok(count) => count,
            Err(nix::errno::Errno::EINTR) => 0,
            Err(source) => return Err(ServeError::Wait { source }),
        };
        for event in &events[..count] {
            match Poller::token(event) {
                Some(Token::Listener) => self.accept(),
                Some(Token::Signals) => self.signals(),
                Some(Token::Connection(number)) => self.connection(number, event.events()),
                Some(Token::Launch(number)) => self.pod.hear(number),
                Some(Token::Stdout(number)) => self.pod.read(number, Which::Stdout),
                Some(Token::Stderr(number)) => self.pod.read(number, Which::Stderr),
                Some(Token::Memory(number)) => self.pod.memory_short(number),
                None => {}
            }
            self.deliver();
        }
        if count < events.len() {
            // nothing is waiting: time for what is due
            self.pod.advance();
            self.deliver();
        }
        Ok(())
    }

    fn accept(&mut self) {
        let Ok((stream, _)) = self.listener.accept() else { return };
        if self.connections.len() >= MAX_CONNECTIONS {
            return complain("too many connections: one more is refused");
        }
        self.next += 1;
        match Connection::new(&self.poller, self.next, stream, &self.sandbox) {
            Ok(connection) => {
                self.connections.insert(self.next, connection);
            }
            Err(error) => complain(&format!("connection refused: {error}")),
        }
    }

    fn signals(&mut self) {
        let mut children = false;
        // SIGTERM and the rest mean nothing here: the shim ends when the daemon says so
        while let Ok(Some(signal)) = self.signals.read_signal() {
            children |= signal.ssi_signo == libc::SIGCHLD.unsigned_abs();
        }
        if children {
            self.pod.reap();
        }
    }

    fn connection(&mut self, number: Number, flags: EpollFlags) {
        let Some(connection) = self.connections.get_mut(&number) else { return };
        let mut alive = true;
        if flags.contains(EpollFlags::EPOLLOUT) {
            alive = connection.flush().is_ok();
        }
        let mut calls = Vec::new();
        if alive && flags.intersects(EpollFlags::EPOLLIN | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR) {
            alive = match connection.receive(&mut calls) {
                Ok(open) => open,
                Err(error) => {
                    complain(&format!("connection closed: {error}"));
                    false
                }
            };
        }
        for incoming in calls {
            match incoming {
                Incoming::Call(seq, call) => self.pod.call(Caller { connection: number, seq }, call),
                Incoming::Refused(reply) => self.pod.outbox.0.push(Outgoing::Reply(number, reply)),
            }
        }
        if !alive {
            // what was said last is carried out all the same; nobody hears of it
            self.connections.remove(&number);
        }
    }

    fn deliver(&mut self) {
        let mut lost = Vec::new();
        for outgoing in std::mem::take(&mut self.pod.outbox.0) {
            match outgoing {
                Outgoing::Reply(number, reply) => {
                    if let Some(connection) = self.connections.get_mut(&number)
                        && connection.send(&reply).is_err()
                    {
                        lost.push(number);
                    }
                }
                Outgoing::Event(event) => {
                    for (number, connection) in &mut self.connections {
                        if connection.greeted() && connection.send(&event).is_err() {
                            lost.push(*number);
                        }
                    }
                }
            }
        }
        for number in lost {
            self.connections.remove(&number);
        }
    }
}
