//! One connection of a daemon: frames in, frames out, neither ever waited for.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::rc::Rc;

use nix::sys::epoll::EpollFlags;
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use serde::{Deserialize, Serialize};

use crate::io::{read_into, write_from};
use crate::poll::{Number, Poller, Token, Watched};
use crate::protocol::{Answer, Call, ErrorKind, Hello, MAX_FRAME, MAX_REQUEST, Reply, Request, VERSION};

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
        connection.send(&Hello { version: VERSION, sandbox: sandbox.into(), pid, hooks: true })?;
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

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use proptest::prelude::*;

    use super::*;

    fn frame(text: &str) -> Vec<u8> {
        [&u32::try_from(text.len()).unwrap().to_le_bytes(), text.as_bytes()].concat()
    }

    fn hello() -> Vec<u8> {
        frame(r#"{"version":7,"sandbox":"s","pid":1,"later":true}"#)
    }

    fn pair() -> (Connection, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Connection::new(&Poller::new().unwrap(), 1, ours, "s").unwrap(), theirs)
    }

    fn read(stream: &mut UnixStream) -> serde_json::Value {
        let mut header = [0; 4];
        stream.read_exact(&mut header).unwrap();
        let mut text = vec![0; u32::from_le_bytes(header) as usize];
        stream.read_exact(&mut text).unwrap();
        serde_json::from_slice(&text).unwrap()
    }

    #[test]
    fn both_say_hello_and_requests_come_after_it() {
        let (mut connection, mut daemon) = pair();
        assert_eq!(read(&mut daemon)["sandbox"], "s");
        let mut calls = Vec::new();
        daemon.write_all(&hello()).unwrap();
        daemon.write_all(&frame(r#"{"seq":3,"call":{"call":"list"}}"#)).unwrap();
        assert!(!connection.greeted());
        assert!(connection.receive(&mut calls).unwrap());
        assert!(connection.greeted() && matches!(calls[..], [Incoming::Call(3, Call::List)]));
        drop(daemon);
        assert!(!connection.receive(&mut calls).unwrap());
    }

    #[test]
    fn an_answer_larger_than_the_socket_is_sent_as_it_is_read() {
        let (mut connection, mut daemon) = pair();
        read(&mut daemon);
        let large = "x".repeat(1 << 20);
        connection.send(&large).unwrap();
        assert!(connection.unsent());
        let reader = std::thread::spawn(move || read(&mut daemon));
        while connection.unsent() {
            connection.flush().unwrap();
        }
        assert_eq!(reader.join().unwrap(), large);
        assert_eq!(connection.outbox.capacity(), 0, "the memory is given back");
    }

    #[test]
    fn a_daemon_that_never_reads_is_given_up() {
        let (mut connection, _daemon) = pair();
        // a socket takes a part of a megabyte
        connection.outbox = vec![0; MAX_UNSENT];
        assert!(connection.send(&"fits").is_ok());
        connection.outbox.resize(MAX_UNSENT + (2 << 20), 0);
        assert!(connection.send(&"too much").is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// However the bytes are cut, the same requests come out.
        #[test]
        fn frames_are_put_together(sizes in prop::collection::vec(1..40usize, 1..60)) {
            let (mut connection, mut daemon) = pair();
            let mut bytes = hello();
            for seq in 0..10 {
                bytes.extend(frame(&format!(r#"{{"seq":{seq},"call":{{"call":"forget","container":"{seq}"}}}}"#)));
            }
            let (mut calls, mut rest) = (Vec::new(), bytes.as_slice());
            for size in sizes.into_iter().cycle() {
                let (now, later) = rest.split_at(size.min(rest.len()));
                daemon.write_all(now).unwrap();
                connection.receive(&mut calls).unwrap();
                rest = later;
                if rest.is_empty() {
                    break;
                }
            }
            let seqs: Vec<u64> = calls.iter().map(|c| match c { Incoming::Call(seq, _) => *seq, Incoming::Refused(r) => 100 + r.seq }).collect();
            prop_assert_eq!(seqs, (0..10).collect::<Vec<u64>>());
            prop_assert_eq!(connection.inbox.capacity(), 0);
        }

        /// Whatever comes, it is an answer or an error.
        #[test]
        fn no_bytes_do_harm(bytes in prop::collection::vec(any::<u8>(), 0..200), greeted in any::<bool>()) {
            let (mut connection, mut daemon) = pair();
            if greeted {
                daemon.write_all(&hello()).unwrap();
            }
            daemon.write_all(&bytes).unwrap();
            let _ = connection.receive(&mut Vec::new());
        }
    }
}
