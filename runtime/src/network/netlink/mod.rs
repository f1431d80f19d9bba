//! Talking to the kernel's network without a program in between.

pub(super) mod events;
pub(super) mod link;
pub(super) mod message;
pub(super) mod netfilter;
mod sys;

use message::{Batch, messages, u32_at};
use nix::{
    errno::Errno,
    sys::{
        socket::{
            AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, setsockopt,
            socket, sockopt::ReceiveTimeout,
        },
        time::TimeVal,
    },
};
use std::os::fd::{AsRawFd, OwnedFd};

const ERROR: u16 = 2;
const DONE: u16 = 3;
/// Room for one datagram; the kernel makes dumps of at most 32 KiB.
const DATAGRAM: usize = 64 * 1024;
/// The kernel answers at once. If it does not, something is very wrong, and a thread must not stand there forever.
const PATIENCE_SECONDS: i64 = 30;

/// The kernel refused, or could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// no socket
    #[error("open a netlink socket")]
    Open(#[source] Errno),
    /// sending failed
    #[error("ask the kernel to {what}")]
    Send {
        /// what was wanted
        what: &'static str,
        /// the system's answer
        #[source]
        source: Errno,
    },
    /// receiving failed
    #[error("hear from the kernel about {what}")]
    Receive {
        /// what was wanted
        what: &'static str,
        /// the system's answer
        #[source]
        source: Errno,
    },
    /// the kernel said no
    #[error("{what}")]
    Refused {
        /// what was wanted
        what: &'static str,
        /// its reason
        #[source]
        source: Errno,
    },
    /// the answer makes no sense
    #[error("answer of the kernel to {what} has no {missing}")]
    Incomplete {
        /// what was wanted
        what: &'static str,
        /// what the answer lacks
        missing: &'static str,
    },
}

impl NetlinkError {
    /// The kernel's reason, when it gave one.
    pub(super) fn reason(&self) -> Option<Errno> {
        match self {
            Self::Refused { source, .. } => Some(*source),
            _ => None,
        }
    }
}

/// A netlink socket. It belongs to the network namespace of the thread that opened it, for as long as it lives.
#[derive(Debug)]
pub(super) struct Socket {
    descriptor: OwnedFd,
    buffer: Vec<u8>,
}

impl Socket {
    /// For links, addresses and routes.
    pub(super) fn open() -> Result<Self, NetlinkError> {
        Self::open_for(SockProtocol::NetlinkRoute)
    }

    fn open_for(protocol: SockProtocol) -> Result<Self, NetlinkError> {
        let descriptor = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)
            .map_err(NetlinkError::Open)?;
        bind(descriptor.as_raw_fd(), &NetlinkAddr::new(0, 0)).map_err(NetlinkError::Open)?;
        setsockopt(&descriptor, ReceiveTimeout, &TimeVal::new(PATIENCE_SECONDS, 0)).map_err(NetlinkError::Open)?;
        Ok(Self { descriptor, buffer: vec![0; DATAGRAM] })
    }

    /// Sends all requests at once and waits until each is done. Later ones are carried out even if an earlier one is
    /// refused; the first refusal is returned.
    pub(super) fn execute(&mut self, what: &'static str, batch: &Batch) -> Result<(), NetlinkError> {
        self.send(what, batch)?;
        let mut waiting = batch.count();
        let mut refused = None;
        while waiting > 0 {
            let length = self.receive(what)?;
            for message in messages(&self.buffer[..length]).filter(|message| message.kind == ERROR) {
                waiting = waiting.saturating_sub(1);
                if let Some(errno) = errno(message.payload) {
                    refused.get_or_insert(errno);
                }
            }
        }
        refused.map_or(Ok(()), |source| Err(NetlinkError::Refused { what, source }))
    }

    /// Asks for one object; `found` sees the answer's payload.
    pub(super) fn get<T>(
        &mut self,
        what: &'static str,
        batch: &Batch,
        found: impl FnOnce(&[u8]) -> Result<T, NetlinkError>,
    ) -> Result<T, NetlinkError> {
        self.send(what, batch)?;
        let length = self.receive(what)?;
        let answer = messages(&self.buffer[..length]).next();
        let answer = answer.ok_or(NetlinkError::Incomplete { what, missing: "message" })?;
        match (answer.kind, errno(answer.payload)) {
            (ERROR, Some(source)) => Err(NetlinkError::Refused { what, source }),
            _ => found(answer.payload),
        }
    }

    /// Asks for all objects of a kind; `each` sees every one.
    pub(super) fn dump(
        &mut self,
        what: &'static str,
        batch: &Batch,
        mut each: impl FnMut(&[u8]),
    ) -> Result<(), NetlinkError> {
        self.send(what, batch)?;
        loop {
            let length = self.receive(what)?;
            for message in messages(&self.buffer[..length]) {
                match message.kind {
                    DONE => return Ok(()),
                    ERROR => {
                        let source = errno(message.payload).unwrap_or(Errno::UnknownErrno);
                        return Err(NetlinkError::Refused { what, source });
                    }
                    _ => each(message.payload),
                }
            }
        }
    }

    fn send(&self, what: &'static str, batch: &Batch) -> Result<(), NetlinkError> {
        let sent = send(self.descriptor.as_raw_fd(), batch.bytes(), MsgFlags::empty());
        sent.map(drop).map_err(|source| NetlinkError::Send { what, source })
    }

    fn receive(&mut self, what: &'static str) -> Result<usize, NetlinkError> {
        loop {
            match recv(self.descriptor.as_raw_fd(), &mut self.buffer, MsgFlags::empty()) {
                Err(Errno::EINTR) => {}
                received => return received.map_err(|source| NetlinkError::Receive { what, source }),
            }
        }
    }
}

/// The reason in an error message; `None` is success.
fn errno(payload: &[u8]) -> Option<Errno> {
    let code = u32_at(payload, 0)?.cast_signed();
    (code != 0).then(|| Errno::from_raw(-code))
}
