//! Standard output and error of a process: read as they come, handed on as log entries or kept for an answer.

use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use nix::errno::Errno;
use nix::sys::epoll::EpollFlags;

use crate::log::{Framer, LogFile, now, stamp};
use crate::poll::{Number, Poller, Token, Watched};

/// Read from a pipe after its process has ended: all that a pipe can hold, and no more if somebody keeps writing.
const DRAIN_MAX: usize = 1 << 20;

/// Read at once; a pipe holds four times as much by default.
pub const READ: usize = 16 << 10;

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// Standard output, or the terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Memory shared by all reads of the loop.
#[derive(Debug)]
pub struct Scratch {
    read: Box<[u8]>,
    entries: Vec<u8>,
}

impl Default for Scratch {
    fn default() -> Self {
        Self { read: vec![0; READ].into_boxed_slice(), entries: Vec::new() }
    }
}

/// Where output goes.
#[derive(Debug)]
enum Sink {
    Log(Option<LogFile>),
    Keep { limit: usize },
}

#[derive(Debug)]
struct Stream {
    pipe: Option<Watched>,
    framer: Framer,
    kept: Vec<u8>,
}

/// Both streams of one process.
#[derive(Debug)]
pub struct Output {
    sink: Sink,
    stdout: Stream,
    stderr: Stream,
}

impl Output {
    /// Output that goes to a log, or nowhere.
    pub fn log(file: Option<LogFile>) -> Self {
        Self::new(Sink::Log(file))
    }

    /// Output of which the first `limit` bytes of each stream are kept.
    pub fn keep(limit: usize) -> Self {
        Self::new(Sink::Keep { limit })
    }

    fn new(sink: Sink) -> Self {
        let stream = |name| Stream { pipe: None, framer: Framer::new(name), kept: Vec::new() };
        Self { sink, stdout: stream("stdout"), stderr: stream("stderr") }
    }

    /// Reads from this pipe or terminal from now on; it must not block.
    pub fn attach(&mut self, poller: &Rc<Poller>, number: Number, which: Which, pipe: OwnedFd) -> nix::Result<()> {
        let token = match which {
            Which::Stdout => Token::Stdout(number),
            Which::Stderr => Token::Stderr(number),
        };
        self.stream(which).pipe = Some(poller.watch(pipe, token, EpollFlags::EPOLLIN)?);
        Ok(())
    }

    fn stream(&mut self, which: Which) -> &mut Stream {
        match which {
            Which::Stdout => &mut self.stdout,
            Which::Stderr => &mut self.stderr,
        }
    }

    /// The log, when there is one.
    pub fn log_file(&mut self) -> Option<&mut LogFile> {
        match &mut self.sink {
            Sink::Log(file) => file.as_mut(),
            Sink::Keep { .. } => None,
        }
    }

    /// Reads once what is there.
    pub fn read(&mut self, which: Which, scratch: &mut Scratch) {
        self.read_some(which, scratch);
    }

    /// Number of bytes read; none when there was nothing or the stream has ended.
    fn read_some(&mut self, which: Which, scratch: &mut Scratch) -> usize {
        let Some(pipe) = &self.stream(which).pipe else { return 0 };
        match nix::unistd::read(pipe.as_fd(), &mut scratch.read) {
            Ok(0) => self.end(which, scratch),
            Ok(n) => {
                self.take(which, n, scratch);
                return n;
            }
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            // a terminal whose last user is gone says EIO
            Err(_) => self.end(which, scratch),
        }
        0
    }

    fn take(&mut self, which: Which, length: usize, scratch: &mut Scratch) {
        let Scratch { read, entries } = scratch;
        let data = &read[..length];
        match self.sink {
            Sink::Log(None) => {}
            Sink::Log(Some(_)) => {
                self.stream(which).framer.push(data, &stamp(now()), entries);
                self.write(entries);
            }
            Sink::Keep { limit } => {
                let kept = &mut self.stream(which).kept;
                let room = limit.saturating_sub(kept.len()).min(data.len());
                kept.extend_from_slice(&data[..room]);
            }
        }
    }

    fn write(&mut self, entries: &mut Vec<u8>) {
        if !entries.is_empty()
            && let Some(log) = self.log_file()
        {
            log.write(entries);
        }
        // an entry is hardly larger than what was read, unless it was many short lines: that memory goes back
        if entries.capacity() > 4 * READ { *entries = Vec::new() } else { entries.clear() }
    }

    fn end(&mut self, which: Which, scratch: &mut Scratch) {
        let stream = self.stream(which);
        stream.pipe = None;
        stream.framer.end(&stamp(now()), &mut scratch.entries);
        self.write(&mut scratch.entries);
    }

    /// Takes what is left after the process has ended. Whoever else holds the other end is not waited for.
    pub fn drain(&mut self, scratch: &mut Scratch) {
        for which in [Which::Stdout, Which::Stderr] {
            let mut total = 0;
            while total < DRAIN_MAX {
                match self.read_some(which, scratch) {
                    0 => break,
                    n => total += n,
                }
            }
            self.end(which, scratch);
        }
        if let Sink::Log(file) = &mut self.sink {
            *file = None;
        }
    }

    /// What was kept of both.
    pub fn kept(self) -> (Vec<u8>, Vec<u8>) {
        (self.stdout.kept, self.stderr.kept)
    }
}
