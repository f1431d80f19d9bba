//! Hearing of links that disappear.

use super::{NetlinkError, link::deleted_link, message::messages, sys};
use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, setsockopt, socket,
        sockopt::RcvBuf,
    },
};
use std::os::fd::{AsRawFd, OwnedFd};
use tokio::io::unix::AsyncFd;

/// Multicast group of links, as a bit (RTMGRP_LINK).
const LINKS: u32 = 1;
/// A hundred links that go at once make some 200 KiB of news.
const ROOM: usize = 1024 * 1024;
const WHAT: &str = "tell of links";

/// News of the network namespace of the thread that subscribed.
#[derive(Debug)]
pub(in crate::network) struct LinkEvents {
    descriptor: AsyncFd<OwnedFd>,
    buffer: Vec<u8>,
}

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
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let descriptor = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)
            .map_err(NetlinkError::Open)?;
        setsockopt(&descriptor, RcvBuf, &ROOM).map_err(NetlinkError::Open)?;
        bind(descriptor.as_raw_fd(), &NetlinkAddr::new(0, LINKS)).map_err(NetlinkError::Open)?;
        let descriptor = sys::watch(descriptor)
            .map_err(|error| NetlinkError::Open(Errno::from_raw(error.raw_os_error().unwrap_or_default())))?;
        Ok(Self { descriptor, buffer: vec![0; super::DATAGRAM] })
    }

    /// Waits for news. Cancel safe: what was not returned is still in the socket.
    pub(in crate::network) async fn next(&mut self) -> Result<News, NetlinkError> {
        loop {
            let mut ready = self.descriptor.readable().await.map_err(|error| NetlinkError::Receive {
                what: WHAT,
                source: Errno::from_raw(error.raw_os_error().unwrap_or_default()),
            })?;
            match recv(ready.get_inner().as_raw_fd(), &mut self.buffer, MsgFlags::empty()) {
                Ok(length) => {
                    let gone: Vec<_> = messages(&self.buffer[..length]).filter_map(deleted_link).collect();
                    if !gone.is_empty() {
                        return Ok(News::Gone(gone));
                    }
                }
                Err(Errno::EAGAIN) => ready.clear_ready(),
                Err(Errno::EINTR) => {}
                Err(Errno::ENOBUFS) => return Ok(News::Lost),
                Err(source) => return Err(NetlinkError::Receive { what: WHAT, source }),
            }
        }
    }
}
