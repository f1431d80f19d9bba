//! Hearing of what changes, without asking.

use super::{NetlinkError, link::deleted_link, message::messages, sys};
use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, setsockopt, socket,
        sockopt::RcvBuf,
    },
};
use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
};
use tokio::io::unix::AsyncFd;

/// Multicast group of links, as a bit (RTMGRP_LINK).
const LINKS: u32 = 1;
/// A hundred links that go at once make some 200 KiB of news.
const ROOM: usize = 1024 * 1024;

/// A socket that the kernel sends news to, of the network namespace of the thread that opened it.
#[derive(Debug)]
pub(super) struct Subscription {
    descriptor: AsyncFd<OwnedFd>,
    buffer: Vec<u8>,
    what: &'static str,
}

impl Subscription {
    /// `groups`: multicast groups of the protocol, a bit each. `room`: bytes that are kept until they are looked at.
    pub(super) fn open(
        protocol: SockProtocol,
        groups: u32,
        room: usize,
        what: &'static str,
    ) -> Result<Self, NetlinkError> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let descriptor = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol).map_err(NetlinkError::Open)?;
        setsockopt(&descriptor, RcvBuf, &room).map_err(NetlinkError::Open)?;
        bind(descriptor.as_raw_fd(), &NetlinkAddr::new(0, groups)).map_err(NetlinkError::Open)?;
        let descriptor = sys::watch(descriptor).map_err(|error| NetlinkError::Open(errno(&error)))?;
        Ok(Self { descriptor, buffer: vec![0; super::DATAGRAM], what })
    }

    /// Waits for a datagram in which `heard` finds something. `None`: there was more news than could be kept, and some is
    /// lost. Cancel safe: what was not looked at is still in the socket.
    pub(super) async fn next<T>(&mut self, heard: impl Fn(&[u8]) -> Option<T>) -> Result<Option<T>, NetlinkError> {
        let failed = |source| NetlinkError::Receive { what: self.what, source };
        loop {
            let mut ready = self.descriptor.readable().await.map_err(|error| failed(errno(&error)))?;
            match recv(ready.get_inner().as_raw_fd(), &mut self.buffer, MsgFlags::empty()) {
                Ok(length) => {
                    if let Some(found) = heard(&self.buffer[..length]) {
                        return Ok(Some(found));
                    }
                }
                Err(Errno::EAGAIN) => ready.clear_ready(),
                Err(Errno::EINTR) => {}
                Err(Errno::ENOBUFS) => return Ok(None),
                Err(source) => return Err(failed(source)),
            }
        }
    }
}

fn errno(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

/// News of links in the network namespace of the thread that subscribed.
#[derive(Debug)]
pub(in crate::network) struct LinkEvents(Subscription);

/// What was heard.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::network) enum News {
    /// these links are gone
    Gone(Vec<String>),
    /// there was more than could be kept: anything may have happened
    Lost,
}

impl LinkEvents {
    pub(in crate::network) fn subscribe() -> Result<Self, NetlinkError> {
        Subscription::open(SockProtocol::NetlinkRoute, LINKS, ROOM, "tell of links").map(Self)
    }

    /// Waits for news. Cancel safe: what was not returned is still in the socket.
    pub(in crate::network) async fn next(&mut self) -> Result<News, NetlinkError> {
        let gone = |datagram: &[u8]| {
            let gone: Vec<_> = messages(datagram).filter_map(deleted_link).collect();
            (!gone.is_empty()).then_some(gone)
        };
        Ok(self.0.next(gone).await?.map_or(News::Lost, News::Gone))
    }
}
