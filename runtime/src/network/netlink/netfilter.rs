//! Netfilter's side of netlink: transactions on nf_tables, questions, and news of what others change.

use super::{
    ERROR, NetlinkError, Socket, errno,
    events::Subscription,
    message::{ACK, Attributes, Batch, attribute, messages},
};
use nix::{
    errno::Errno,
    sys::socket::{MsgFlags, NetlinkAddr, SockProtocol, getsockname, recv, setsockopt, sockopt::SndBufForce},
};
use std::os::fd::AsRawFd;

/// Subsystems, the upper half of a message's type.
const CONNTRACK: u16 = 1;
const TABLES: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
/// Multicast group of changes in tables (NFNLGRP_NFTABLES is 7), as a bit.
const TABLE_NEWS: u32 = 1 << 6;
/// Room for a transaction: what a thousand pods with a dozen host ports each need, and more.
const TRANSACTION: usize = 8 * 1024 * 1024;
const NEWS_ROOM: usize = 512 * 1024;

/// Address family of a table, or of connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::network) enum Family {
    /// IPv4
    V4,
    /// IPv6
    V6,
}

impl Family {
    pub(in crate::network) const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// NFPROTO_IPV4 and NFPROTO_IPV6, which are also AF_INET and AF_INET6.
    pub(in crate::network) fn number(self) -> u8 {
        match self {
            Self::V4 => 2,
            Self::V6 => 10,
        }
    }
}

/// Messages on the tables of one name that nf_tables carries out together or not at all.
#[derive(Debug)]
pub(in crate::network) struct Transaction<'a> {
    table: &'a str,
    batch: Batch,
    open: bool,
}

/// What a message begins with, whether it is on a table, a chain, a rule, a set or its elements.
const TABLE_NAME: u16 = 1;

impl<'a> Transaction<'a> {
    pub(in crate::network) fn on(table: &'a str) -> Self {
        let mut batch = Batch::default();
        // family unspecified, version 0, and which subsystem the batch is for
        let [high, low] = TABLES.to_be_bytes();
        batch.push(BATCH_BEGIN, 0, &[0, 0, high, low], |_| {});
        Self { table, batch, open: true }
    }

    /// Adds a message of nf_tables; `kind` is its `NFT_MSG_…`.
    pub(in crate::network) fn push(
        &mut self,
        kind: u16,
        flags: u16,
        family: Family,
        body: impl FnOnce(&mut Attributes<'_>),
    ) {
        let table = self.table;
        self.batch.push(TABLES << 8 | kind, flags, &[family.number(), 0, 0, 0], |message| {
            message.text(TABLE_NAME, table);
            body(message);
        });
    }

    /// Asks for an answer to the last message: with it comes whatever was wrong with those before.
    fn close(&mut self) -> u32 {
        let last = self.batch.count();
        if std::mem::take(&mut self.open) {
            self.batch.flag_last(ACK);
            let [high, low] = TABLES.to_be_bytes();
            self.batch.push(BATCH_END, 0, &[0, 0, high, low], |_| {});
        }
        last
    }

    pub(in crate::network) fn is_empty(&self) -> bool {
        self.batch.count() == 1
    }
}

/// Adds a message about tracked connections; `kind` is its `IPCTNL_MSG_CT_…`.
pub(in crate::network) fn connection_message(
    batch: &mut Batch,
    kind: u16,
    flags: u16,
    family: Family,
    body: impl FnOnce(&mut Attributes<'_>),
) {
    batch.push(CONNTRACK << 8 | kind, flags, &[family.number(), 0, 0, 0], body);
}

/// A question about a table, outside of a transaction.
pub(in crate::network) fn table_question(
    table: &str,
    kind: u16,
    family: Family,
    body: impl FnOnce(&mut Attributes<'_>),
) -> Batch {
    let mut batch = Batch::default();
    batch.push(TABLES << 8 | kind, 0, &[family.number(), 0, 0, 0], |message| {
        message.text(TABLE_NAME, table);
        body(message);
    });
    batch
}

impl Socket {
    /// For tables and tracked connections.
    pub(in crate::network) fn open_netfilter() -> Result<Self, NetlinkError> {
        let socket = Self::open_for(SockProtocol::NetlinkNetFilter)?;
        // a transaction is one message; without the privilege for more room, small ones still work
        let _ = setsockopt(&socket.descriptor, SndBufForce, &TRANSACTION);
        Ok(socket)
    }

    /// The number that news carry when they tell of what was done by this socket.
    pub(in crate::network) fn port(&self) -> Result<u32, NetlinkError> {
        getsockname::<NetlinkAddr>(self.descriptor.as_raw_fd()).map(|name| name.pid()).map_err(NetlinkError::Open)
    }

    /// Carries out a transaction. The kernel does that while it takes the message, so its answers are there at once.
    pub(in crate::network) fn commit(
        &mut self,
        what: &'static str,
        mut transaction: Transaction<'_>,
    ) -> Result<(), NetlinkError> {
        let last = transaction.close();
        self.send(what, &transaction.batch)?;
        let (mut refused, mut done) = (None, false);
        loop {
            match recv(self.descriptor.as_raw_fd(), &mut self.buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(length) => {
                    for message in messages(&self.buffer[..length]).filter(|message| message.kind == ERROR) {
                        match errno(message.payload) {
                            Some(errno) => drop(refused.get_or_insert(errno)),
                            None => done |= message.sequence == last,
                        }
                    }
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => break,
                Err(source) => return Err(NetlinkError::Receive { what, source }),
            }
        }
        match refused {
            Some(source) => Err(NetlinkError::Refused { what, source }),
            None if done => Ok(()),
            None => Err(NetlinkError::Incomplete { what, missing: "acknowledgement" }),
        }
    }
}

/// News of tables in the network namespace of the thread that subscribed.
#[derive(Debug)]
pub(in crate::network) struct TableEvents(Subscription);

impl TableEvents {
    pub(in crate::network) fn subscribe() -> Result<Self, NetlinkError> {
        Subscription::open(SockProtocol::NetlinkNetFilter, TABLE_NEWS, NEWS_ROOM, "tell of changed tables").map(Self)
    }

    /// Waits until something was taken out of a table of that name, or may have been, by a socket that `foreign` (told its
    /// port) says is not ours. Cancel safe: what was not looked at is still in the socket.
    pub(in crate::network) async fn intrusion(
        &mut self,
        table: &str,
        foreign: impl Fn(u32) -> bool,
    ) -> Result<(), NetlinkError> {
        let intruded = |datagram: &[u8]| {
            messages(datagram)
                .any(|message| removes_from(message.kind, message.payload, table) && foreign(message.port))
                .then_some(())
        };
        // lost news may have been of anything
        self.0.next(intruded).await.map(Option::unwrap_or_default)
    }
}

/// Tables, chains, rules, sets and elements that go; each says first which table it was in.
fn removes_from(kind: u16, payload: &[u8], table: &str) -> bool {
    const DELETIONS: [u16; 5] = [2, 5, 8, 11, 14];
    let name = || payload.get(4..).and_then(|attributes| attribute(attributes, TABLE_NAME));
    kind >> 8 == TABLES
        && DELETIONS.contains(&(kind & 0xff))
        && name().is_some_and(|name| name.strip_suffix(&[0]).unwrap_or(name) == table.as_bytes())
}
