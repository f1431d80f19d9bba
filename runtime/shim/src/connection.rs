//! One connection of a daemon: frames in, frames out, neither ever waited for.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::rc::Rc;

use nix::sys::epoll::EpollFlags;
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use serde::{Deserialize, Serialize};

use crate::poll::{Number, Poller, Token, Watched};
use crate::protocol::{Answer, Call, ErrorKind, Hello, MAX_FRAME, MAX_REQUEST, Reply, Request, VERSION};
use crate::server::{read_into, write_from};

/// Unsent bytes kept for a daemon that does not read: two of the largest answers.
const MAX_UNSENT: usize = 2 * MAX_FRAME;

/// Read in one turn of the loop.
const READ_TURN: u64 = 256 << 10;

/// A frame that came.
#[derive(Debug)]
pub enum Incoming {
    /// A request.
    Call(u64, Call),
    /// One that is not understood, with the answer.
    Refused(Reply),
}

/// A connection.
#[derive(Debug)]
pub struct Connection {
    number: Number,
    stream: UnixStream,
    watched: Watched,
    sandbox: String,
    greeted: bool,
    inbox: Vec<u8>,
    outbox: Vec<u8>,
    sent: usize,
}

impl Connection {
    /// Takes a connection over and says hello.
    pub fn new(poller: &Rc<Poller>, number: Number, stream: UnixStream, sandbox: &str) -> io::Result<Self> {
        let peer = getsockopt(&stream, PeerCredentials)?;
        if peer.uid() != nix::unistd::geteuid().as_raw() {
            return Err(io::Error::other(format!("process {} is of user {}", peer.pid(), peer.uid())));
        }
        stream.set_nonblocking(true)?;
        let copy = stream.as_fd().try_clone_to_owned()?;
        let watched = poller.watch(copy, Token::Connection(number), EpollFlags::EPOLLIN)?;
        let (inbox, outbox) = (Vec::new(), Vec::new());
        let mut connection =
            Self { number, stream, watched, sandbox: sandbox.into(), greeted: false, inbox, outbox, sent: 0 };
        let pid = std::process::id().cast_signed();
        connection.send(&Hello { version: VERSION, sandbox: sandbox.into(), pid })?;
        Ok(connection)
    }

    /// Whether the other side has said hello: events are for those.
    pub fn greeted(&self) -> bool {
        self.greeted
    }

    /// Whether something is still to be sent.
    pub fn unsent(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// Sends a frame, or keeps it until the other side reads.
    pub fn send<T: Serialize>(&mut self, value: &T) -> io::Result<()> {
        let begin = self.outbox.len();
        self.outbox.extend_from_slice(&[0; 4]);
        serde_json::to_writer(&mut self.outbox, value)?;
        let length = self.outbox.len() - begin - 4;
        let header = u32::try_from(length).ok().filter(|_| length <= MAX_FRAME);
        let header = header.ok_or_else(|| io::Error::other(format!("a frame of {length} bytes")))?;
        self.outbox[begin..begin + 4].copy_from_slice(&header.to_le_bytes());
        self.flush()?;
        if self.outbox.len() - self.sent > MAX_UNSENT {
            return Err(io::Error::other("the daemon does not read"));
        }
        Ok(())
    }

    /// Sends what the other side takes.
    pub fn flush(&mut self) -> io::Result<()> {
        let waiting = self.sent > 0;
        self.sent += write_from(&self.stream, &self.outbox[self.sent..])?;
        let token = Token::Connection(self.number);
        if self.sent == self.outbox.len() {
            // given back: an answer may have been megabytes, and the next is far away
            self.outbox = Vec::new();
            self.sent = 0;
            if waiting {
                self.watched.interest(token, EpollFlags::EPOLLIN)?;
            }
        } else {
            self.watched.interest(token, EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT)?;
        }
        Ok(())
    }

    /// Takes the frames that have come. False when the other side has closed.
    pub fn receive(&mut self, calls: &mut Vec<Incoming>) -> io::Result<bool> {
        let open = read_into(&self.stream, &mut self.inbox, READ_TURN)?;
        let mut at = 0;
        while let Some(header) = self.inbox.get(at..at + 4) {
            let length = header.iter().rev().fold(0, |sum, byte| sum << 8 | usize::from(*byte));
            if length > MAX_REQUEST {
                return Err(io::Error::other(format!("a request of {length} bytes")));
            }
            let Some(frame) = self.inbox.get(at + 4..at + 4 + length) else { break };
            if self.greeted {
                calls.push(parse(frame)?);
            } else {
                let hello: Hello = serde_json::from_slice(frame)?;
                if hello.sandbox != self.sandbox {
                    return Err(io::Error::other(format!("it looks for sandbox {}", hello.sandbox)));
                }
                self.greeted = true;
            }
            at += 4 + length;
        }
        if at == self.inbox.len() {
            self.inbox = Vec::new()
        } else {
            drop(self.inbox.drain(..at))
        }
        Ok(open)
    }
}

fn parse(frame: &[u8]) -> io::Result<Incoming> {
    /// What every request has, whatever it asks.
    #[derive(Deserialize)]
    struct Envelope {
        seq: u64,
    }
    match serde_json::from_slice::<Request>(frame) {
        Ok(request) => Ok(Incoming::Call(request.seq, request.call)),
        Err(error) => {
            let Envelope { seq } = serde_json::from_slice(frame)?;
            // a newer daemon may ask what this shim has never heard of
            let unknown = error.to_string().starts_with("unknown variant");
            let kind = if unknown { ErrorKind::Unsupported } else { ErrorKind::Invalid };
            let result = Answer::Error { kind, message: format!("request not understood: {error}") };
            Ok(Incoming::Refused(Reply { seq, result }))
        }
    }
}
