//! What a launcher tells the shim, and the one thing it is told.
//!
//! A packet socket: every report is one packet, exec closes it. `Ready` tells an exec from a death before it.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg, socketpair,
};
use serde::{Deserialize, Serialize};

use crate::protocol::ErrorKind;

/// Largest report; messages are cut to fit.
const MAX: usize = 16 << 10;

/// A report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "report", rename_all = "snake_case")]
pub enum Report {
    /// Something was given up.
    Warning {
        /// What.
        message: String,
    },
    /// The master side of the terminal comes with this packet.
    Terminal,
    /// All is mounted, and others may have a look before it goes on.
    Made,
    /// Nothing but the exec is left to do.
    Ready,
    /// It failed; the launcher ends.
    Failed {
        /// Class.
        kind: ErrorKind,
        /// Exit code to be recorded.
        exit_code: i32,
        /// The step, its object, the reason.
        message: String,
    },
}

/// Makes the socket: the shim's side does not block, the launcher's does.
pub fn channel() -> nix::Result<(OwnedFd, OwnedFd)> {
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
    crate::io::set_nonblocking(&ours)?;
    Ok((ours, theirs))
}

/// Sends a report, with a descriptor or without.
pub fn send<Fd: AsFd>(socket: Fd, report: &Report, attached: Option<RawFd>) -> nix::Result<()> {
    let mut text = serde_json::to_vec(report).map_err(|_| Errno::EINVAL)?;
    if text.len() > MAX
        && let Report::Failed { kind, exit_code, message } = report
    {
        let message = message.chars().take(MAX / 8).collect();
        let short = Report::Failed { kind: *kind, exit_code: *exit_code, message };
        text = serde_json::to_vec(&short).map_err(|_| Errno::EINVAL)?;
    }
    let fds: Vec<RawFd> = attached.into_iter().collect();
    let rights = [ControlMessage::ScmRights(&fds)];
    let control: &[ControlMessage<'_>] = if fds.is_empty() { &[] } else { &rights };
    let socket = socket.as_fd().as_raw_fd();
    sendmsg::<()>(socket, &[IoSlice::new(&text)], control, MsgFlags::MSG_NOSIGNAL, None).map(drop)
}

/// What came from a launcher.
#[derive(Debug)]
pub enum Received {
    /// A report, with the descriptor that came along.
    Report(Report, Option<OwnedFd>),
    /// The launcher is gone, by exec or otherwise.
    End,
    /// Nothing yet.
    Nothing,
}

/// Receives one report.
pub fn receive<Fd: AsFd>(socket: Fd) -> Received {
    let mut buffer = vec![0; MAX];
    let mut control = nix::cmsg_space!([RawFd; 1]);
    let mut parts = [IoSliceMut::new(&mut buffer)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
    let (length, attached) = match recvmsg::<()>(socket.as_fd().as_raw_fd(), &mut parts, Some(&mut control), flags) {
        Err(Errno::EAGAIN | Errno::EINTR) => return Received::Nothing,
        Err(_) => return Received::End,
        Ok(message) => {
            let mut attached = None;
            for part in message.cmsgs().into_iter().flatten() {
                if let ControlMessageOwned::ScmRights(fds) = part {
                    attached = fds.first().copied().map(crate::sys::received);
                }
            }
            (message.bytes, attached)
        }
    };
    if length == 0 {
        return Received::End;
    }
    match serde_json::from_slice(&buffer[..length]) {
        Ok(report) => Received::Report(report, attached),
        Err(_) => Received::End,
    }
}

/// Receives what a runtime sends: a descriptor with a text that only names it.
pub fn receive_descriptor<Fd: AsFd>(socket: Fd) -> Option<OwnedFd> {
    let mut buffer = [0; 4096];
    let mut control = nix::cmsg_space!([RawFd; 1]);
    let mut parts = [IoSliceMut::new(&mut buffer)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(socket.as_fd().as_raw_fd(), &mut parts, Some(&mut control), flags).ok()?;
    message.cmsgs().into_iter().flatten().find_map(|part| match part {
        ControlMessageOwned::ScmRights(fds) => fds.first().copied().map(crate::sys::received),
        _ => None,
    })
}

/// Lets a held launcher go on.
pub fn release<Fd: AsFd>(socket: Fd) -> nix::Result<()> {
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    sendmsg::<()>(socket.as_fd().as_raw_fd(), &[IoSlice::new(b"go")], &[], flags, None).map(drop)
}

/// Waits for [`release`]; fails when the shim is gone.
pub fn wait_for_release<Fd: AsFd>(socket: Fd) -> nix::Result<()> {
    let mut buffer = [0; 8];
    loop {
        match nix::unistd::read(&socket, &mut buffer) {
            Ok(0) => return Err(Errno::EPIPE),
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error),
        }
    }
}
