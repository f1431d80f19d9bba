//! ttrpc: frames of a ten-byte head and a protocol buffers message, over a unix socket. Every read and every write has a
//! deadline, every frame a bound.
//!
//! ```text
//! length: u32 │ stream: u32 │ kind: u8 │ flags: u8 │ Request { service, method, payload, timeout, metadata }
//!   big-endian                1 request, 2 response   Response { status { code, message }, payload }
//! ```

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::error::{TaskError, code};
use super::wire::{Message, Writer};

/// Of the head.
pub const HEAD: usize = 10;

/// Longest message that the protocol allows.
pub const MAX_MESSAGE: u32 = 4 << 20;

const REQUEST: u8 = 1;
const RESPONSE: u8 = 2;

/// The namespace of containerd in which Kubernetes' containers are; shims ask for one.
pub const NAMESPACE: &str = "k8s.io";

/// What a head says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Length of what follows.
    pub length: u32,
    /// Which call.
    pub stream: u32,
    /// Request, response or data.
    pub kind: u8,
}

impl Head {
    /// Reads it; a length beyond the bound is an error that gives it.
    pub fn parse(bytes: [u8; HEAD]) -> Result<Self, u32> {
        let [a, b, c, d, e, f, g, h, kind, _flags] = bytes;
        let length = u32::from_be_bytes([a, b, c, d]);
        if length > MAX_MESSAGE {
            return Err(length);
        }
        Ok(Self { length, stream: u32::from_be_bytes([e, f, g, h]), kind })
    }

    fn bytes(self) -> [u8; HEAD] {
        let ([a, b, c, d], [e, f, g, h]) = (self.length.to_be_bytes(), self.stream.to_be_bytes());
        [a, b, c, d, e, f, g, h, self.kind, 0]
    }
}

/// A request that came in.
#[derive(Debug, PartialEq, Eq)]
pub struct Request {
    /// Number of the call.
    pub stream: u32,
    /// `service/method`.
    pub method: String,
    /// Its message.
    pub payload: Vec<u8>,
}

/// A connection, of either side.
#[derive(Debug)]
pub struct Connection {
    socket: UnixStream,
    next: u32,
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Connection {
    /// Speaks over that socket.
    pub fn new(socket: UnixStream) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self { socket, next: 1 })
    }

    /// Sends a request and gives its number.
    pub fn send(
        &mut self,
        service: &str,
        method: &'static str,
        payload: &[u8],
        limit: Duration,
    ) -> Result<u32, TaskError> {
        let stream = self.next;
        // those of clients are odd
        self.next = self.next.wrapping_add(2);
        let metadata = Writer::default().text(1, "containerd-namespace-ttrpc").text(2, NAMESPACE);
        let request = Writer::default().text(1, service).text(2, method).bytes(3, payload).message(5, metadata).done();
        self.write(REQUEST, stream, &request, method, limit)?;
        Ok(stream)
    }

    /// Waits for the answer to a request.
    pub fn receive(&mut self, stream: u32, method: &'static str, limit: Duration) -> Result<Vec<u8>, TaskError> {
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let (head, body) = self.read(method, left).map_err(|error| match error {
                TaskError::Silent { method, .. } => TaskError::Silent { method, after: limit },
                other => other,
            })?;
            // answers to what was given up, and kinds of frames that nobody asked for
            if head.stream == stream && head.kind == RESPONSE {
                return answer(&body, method);
            }
        }
    }

    /// A call and its answer.
    pub fn call(
        &mut self,
        service: &str,
        method: &'static str,
        payload: &[u8],
        limit: Duration,
    ) -> Result<Vec<u8>, TaskError> {
        let stream = self.send(service, method, payload, limit)?;
        self.receive(stream, method, limit)
    }

    /// As a server: the next request. None for a frame that is none.
    pub fn request(&mut self, limit: Duration) -> Result<Option<Request>, TaskError> {
        let (head, body) = self.read("a request", limit)?;
        if head.kind != REQUEST {
            return Ok(None);
        }
        let malformed = |source| TaskError::Malformed { method: "a request", source };
        let request = Message::parse(&body).map_err(malformed)?;
        let method = format!("{}/{}", request.text(1), request.text(2));
        Ok(Some(Request { stream: head.stream, method, payload: request.bytes(3).to_vec() }))
    }

    /// As a server: the answer.
    pub fn respond(&mut self, stream: u32, answer: Result<&[u8], &str>, limit: Duration) -> Result<(), TaskError> {
        let response = match answer {
            Ok(payload) => Writer::default().bytes(2, payload),
            Err(message) => {
                let status = Writer::default().number(1, code::UNIMPLEMENTED).text(2, message);
                Writer::default().message(1, status)
            }
        };
        self.write(RESPONSE, stream, &response.done(), "an answer", limit)
    }

    fn write(
        &mut self,
        kind: u8,
        stream: u32,
        message: &[u8],
        method: &'static str,
        limit: Duration,
    ) -> Result<(), TaskError> {
        let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
        if length > MAX_MESSAGE {
            return Err(TaskError::TooLong { method, length });
        }
        let mut frame = Head { length, stream, kind }.bytes().to_vec();
        frame.extend_from_slice(message);
        let deadline = Instant::now() + limit;
        let mut rest = frame.as_slice();
        while !rest.is_empty() {
            match self.socket.write(rest) {
                Ok(count) => rest = rest.get(count..).unwrap_or_default(),
                Err(error) => self.pause(&error, PollFlags::POLLOUT, deadline, method, limit)?,
            }
        }
        Ok(())
    }

    fn read(&mut self, method: &'static str, limit: Duration) -> Result<(Head, Vec<u8>), TaskError> {
        let deadline = Instant::now() + limit;
        let mut head = [0; HEAD];
        self.fill(&mut head, method, deadline, limit)?;
        let head = Head::parse(head).map_err(|length| TaskError::TooLong { method, length })?;
        let mut body = vec![0; usize::try_from(head.length).unwrap_or_default()];
        self.fill(&mut body, method, deadline, limit)?;
        Ok((head, body))
    }

    fn fill(
        &mut self,
        mut rest: &mut [u8],
        method: &'static str,
        deadline: Instant,
        limit: Duration,
    ) -> Result<(), TaskError> {
        while !rest.is_empty() {
            match self.socket.read(rest) {
                Ok(0) => return Err(TaskError::Gone { method, source: io::ErrorKind::UnexpectedEof.into() }),
                Ok(count) => rest = rest.get_mut(count..).unwrap_or_default(),
                Err(error) => self.pause(&error, PollFlags::POLLIN, deadline, method, limit)?,
            }
        }
        Ok(())
    }

    /// Waits until the socket can go on, if that was why it did not.
    fn pause(
        &self,
        error: &io::Error,
        what: PollFlags,
        deadline: Instant,
        method: &'static str,
        limit: Duration,
    ) -> Result<(), TaskError> {
        match error.kind() {
            io::ErrorKind::Interrupted => return Ok(()),
            io::ErrorKind::WouldBlock => {}
            _ => {
                let source = error.raw_os_error().map_or(error.kind().into(), io::Error::from_raw_os_error);
                return Err(TaskError::Gone { method, source });
            }
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(TaskError::Silent { method, after: limit });
        }
        // what poll says is seen by the next try
        let _ = poll(&mut [PollFd::new(self.socket.as_fd(), what)], milliseconds(left));
        Ok(())
    }
}

/// For poll, rounded up.
pub fn milliseconds(time: Duration) -> PollTimeout {
    let milliseconds = i32::try_from(time.as_micros().div_ceil(1000)).unwrap_or(i32::MAX);
    PollTimeout::try_from(milliseconds).unwrap_or(PollTimeout::MAX)
}

fn answer(body: &[u8], method: &'static str) -> Result<Vec<u8>, TaskError> {
    let malformed = |source| TaskError::Malformed { method, source };
    let response = Message::parse(body).map_err(malformed)?;
    let status = response.message(1).map_err(malformed)?;
    if status.number(1) != 0 {
        return Err(TaskError::Refused { code: status.number(1), message: status.text(2) });
    }
    Ok(response.bytes(2).to_vec())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    fn pair() -> (Connection, Connection) {
        let (one, other) = UnixStream::pair().unwrap();
        (Connection::new(one).unwrap(), Connection::new(other).unwrap())
    }

    #[test]
    fn a_call_is_answered_by_its_own_response() {
        let (mut client, mut server) = pair();
        let served = std::thread::spawn(move || {
            let request = server.request(LIMIT).unwrap().unwrap();
            assert_eq!((request.method.as_str(), request.payload.as_slice()), ("some.Task/Create", &b"in"[..]));
            server.respond(request.stream + 2, Ok(b"of another call"), LIMIT).unwrap();
            server.respond(request.stream, Ok(b"out"), LIMIT).unwrap();
            let request = server.request(LIMIT).unwrap().unwrap();
            server.respond(request.stream, Err("not this one"), LIMIT).unwrap();
        });
        assert_eq!(client.call("some.Task", "Create", b"in", LIMIT).unwrap(), b"out");
        let refused = client.call("some.Task", "Pause", b"", LIMIT).unwrap_err();
        assert_eq!(refused.to_string(), "not this one");
        assert!(matches!(refused, TaskError::Refused { code: code::UNIMPLEMENTED, .. }));
        served.join().unwrap();
        assert!(client.call("some.Task", "State", b"", LIMIT).unwrap_err().is_gone());
    }

    #[test]
    fn one_that_is_silent_is_given_up() {
        let (mut client, _server) = pair();
        let silent = client.call("some.Task", "Create", b"", Duration::from_millis(30)).unwrap_err();
        assert!(matches!(silent, TaskError::Silent { .. }), "{silent}");
        // one that does not read either
        let large = vec![7; 3 << 20];
        let full = client.call("some.Task", "Create", &large, Duration::from_millis(30)).unwrap_err();
        assert!(matches!(full, TaskError::Silent { .. }), "{full}");
    }

    #[test]
    fn frames_have_a_bound_in_both_directions() {
        let (mut client, server) = pair();
        let large = vec![7; usize::try_from(MAX_MESSAGE).unwrap() + 1];
        assert!(matches!(client.call("some.Task", "Create", &large, LIMIT), Err(TaskError::TooLong { .. })));
        let mut raw = server.socket;
        raw.write_all(&Head { length: MAX_MESSAGE + 1, stream: 1, kind: RESPONSE }.bytes()).unwrap();
        let error = client.call("some.Task", "Create", b"", LIMIT).unwrap_err();
        assert_eq!(error.to_string(), "Create: a frame of 4194305 bytes");
    }

    proptest! {
        #[test]
        fn any_bytes_are_frames_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let (mut reader, writer) = pair();
            let mut raw = writer.socket;
            raw.write_all(&bytes).unwrap();
            drop(raw);
            // ends: each frame takes ten bytes or more, and then there are none
            while reader.request(LIMIT).is_ok() {}
        }

        #[test]
        fn heads_are_read_as_they_were_written(length in 0..=MAX_MESSAGE, stream in any::<u32>(), kind in any::<u8>()) {
            let head = Head { length, stream, kind };
            prop_assert_eq!(Head::parse(head.bytes()), Ok(head));
        }
    }
}
