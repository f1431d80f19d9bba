//! Who asked, what is to be sent, and what else containers and execs need of the loop.

use std::rc::Rc;

use crate::output::Scratch;
use crate::poll::{Number, Poller};
use crate::protocol::{Answer, Event, Reply};

/// Who asked: a connection and the number of the request on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    /// The connection.
    pub connection: Number,
    /// The request.
    pub seq: u64,
}

/// A frame to be sent.
#[derive(Debug)]
pub enum Outgoing {
    /// To one connection, if it is still there.
    Reply(Number, Reply),
    /// To all.
    Event(Event),
}

/// Frames to be sent, in order.
#[derive(Debug, Default)]
pub struct Outbox(pub Vec<Outgoing>);

impl Outbox {
    /// Answers a request.
    pub fn reply(&mut self, caller: Caller, result: Answer) {
        self.0.push(Outgoing::Reply(caller.connection, Reply { seq: caller.seq, result }));
    }

    /// Tells all.
    pub fn event(&mut self, event: Event) {
        self.0.push(Outgoing::Event(event));
    }
}

/// What containers and execs need of the loop.
pub struct Context<'a> {
    /// The epoll set.
    pub poller: &'a Rc<Poller>,
    /// What is to be sent.
    pub outbox: &'a mut Outbox,
    /// Memory for reads.
    pub scratch: &'a mut Scratch,
}
