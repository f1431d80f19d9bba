//! systemd's own socket, for a D-Bus library that expects a message bus.
//!
//! Where there is no bus there are no unique names, and systemd signs its messages there as `org.freedesktop.systemd1`. zbus
//! takes every sender for a unique name, which begins with a colon, and panics over this one when it looks at the header. So
//! the sender is replaced in the bytes that come in by a unique name of the same length. Only the header fields of messages
//! are looked at, never their bodies.

use std::io;
use std::os::fd::OwnedFd;

use async_trait::async_trait;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use zbus::connection::socket::{ReadHalf, Socket, Split};

/// What systemd calls itself, and what zbus gets to see.
const SENDER: &[u8; 24] = b"org.freedesktop.systemd1";
const UNIQUE: &[u8; 24] = b":1.systemd_on_its_socket";

/// A sender field of that length before its text: the field's code, its signature, the length. Little-endian, which is what
/// every platform of ours is.
const FIELD: [u8; 8] = [7, 1, b's', 0, 24, 0, 0, 0];

/// Byte order, type, flags, version, body length, serial, length of the fields.
const FIXED: usize = 16;

/// A connection to systemd itself.
#[derive(Debug)]
pub struct PrivateSocket(pub UnixStream);

impl Socket for PrivateSocket {
    type ReadHalf = Incoming;
    type WriteHalf = OwnedWriteHalf;

    fn split(self) -> Split<Incoming, OwnedWriteHalf> {
        let (read, write) = self.0.into_split();
        Split::new(Incoming { read, senders: Senders::default() }, write)
    }
}

/// What systemd sends.
#[derive(Debug)]
pub struct Incoming {
    read: OwnedReadHalf,
    senders: Senders,
}

#[async_trait]
impl ReadHalf for Incoming {
    async fn recvmsg(&mut self, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
        let (size, fds) = self.read.recvmsg(buffer).await?;
        self.senders.replace(&mut buffer[..size]);
        Ok((size, fds))
    }

    fn can_pass_unix_fd(&self) -> bool {
        self.read.can_pass_unix_fd()
    }

    async fn peer_credentials(&mut self) -> io::Result<zbus::fdo::ConnectionCredentials> {
        self.read.peer_credentials().await
    }
}

/// Where in the stream the next byte lies.
#[derive(Debug)]
enum Place {
    /// In the handshake, which is lines; at the beginning of one or not.
    Line { begins: bool },
    /// In the fixed part of a message.
    Fixed { bytes: [u8; FIXED], have: usize },
    /// In its fields; `field` bytes of a sender's field have been seen, or some of its text.
    Fields { at: usize, end: usize, body: usize, field: usize },
    /// In its body.
    Body { left: usize },
}

/// Replaces senders in a stream that arrives in pieces.
#[derive(Debug)]
struct Senders {
    place: Place,
}

impl Default for Senders {
    fn default() -> Senders {
        Senders { place: Place::Line { begins: true } }
    }
}

impl Senders {
    fn replace(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            self.step(byte);
        }
    }

    fn step(&mut self, byte: &mut u8) {
        match &mut self.place {
            // a server's lines begin with a capital, a message with the sign of its byte order
            Place::Line { begins: true } if *byte == b'l' => self.fixed(*byte),
            Place::Line { begins } => *begins = *byte == b'\n',
            Place::Body { left: 0 } => self.fixed(*byte),
            Place::Body { left } => *left -= 1,
            Place::Fixed { bytes, have } => {
                bytes[*have] = *byte;
                *have += 1;
                if *have == FIXED {
                    let number = |at: usize| {
                        let bytes = [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]];
                        u32::from_le_bytes(bytes) as usize
                    };
                    // the fields are filled up to a multiple of eight
                    let end = (FIXED + number(12)).next_multiple_of(8);
                    self.place = Place::Fields { at: FIXED, end, body: number(4), field: 0 };
                    self.end_of_fields();
                }
            }
            Place::Fields { at, field, .. } => {
                let text = field.checked_sub(FIELD.len());
                match text {
                    // a field begins at a multiple of eight only
                    None if *byte == FIELD[*field] && (*field > 0 || (*at).is_multiple_of(8)) => *field += 1,
                    Some(text) if text < SENDER.len() && *byte == SENDER[text] => {
                        *byte = UNIQUE[text];
                        *field += 1;
                    }
                    _ => *field = 0,
                }
                *at += 1;
                self.end_of_fields();
            }
        }
    }

    fn fixed(&mut self, first: u8) {
        let mut bytes = [0; FIXED];
        bytes[0] = first;
        self.place = Place::Fixed { bytes, have: 1 };
    }

    fn end_of_fields(&mut self) {
        if let Place::Fields { at, end, body, .. } = self.place
            && at >= end
        {
            self.place = Place::Body { left: body };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One message with this sender, and the same name in its body.
    fn message(sender: &[u8; 24]) -> Vec<u8> {
        let placeholder = ":1.xxxxxxxxxxxxxxxxxxxxx";
        let message = zbus::Message::signal("/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager", "X")
            .and_then(|message| message.sender(placeholder))
            .and_then(|message| message.build(&("org.freedesktop.systemd1", 7u32)))
            .unwrap();
        with_sender(message.data(), placeholder.as_bytes(), sender)
    }

    fn with_sender(bytes: &[u8], old: &[u8], new: &[u8; 24]) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        let at = bytes.windows(old.len()).position(|window| window == old).unwrap();
        bytes[at..at + new.len()].copy_from_slice(new);
        bytes
    }

    fn filtered(stream: &[u8], piece: usize) -> Vec<u8> {
        let mut bytes = stream.to_vec();
        let mut senders = Senders::default();
        bytes.chunks_mut(piece).for_each(|piece| senders.replace(piece));
        bytes
    }

    #[test]
    fn only_the_sender_is_replaced_however_the_stream_is_cut() {
        const MARK: &[u8; 24] = b"org.freedesktop.SYSTEMD1";
        // each message has a number of its own: what is wanted is made of the very same one
        let marked = message(MARK);
        let (raw, wanted) = (with_sender(&marked, MARK, SENDER), with_sender(&marked, MARK, UNIQUE));
        let other = message(b":1.yyyyyyyyyyyyyyyyyyyyy");
        let handshake = b"OK 0123456789abcdef0123456789abcdef\r\nAGREE_UNIX_FD\r\n";
        let stream = [&handshake[..], &raw, &other, &raw].concat();
        let expected = [&handshake[..], &wanted, &other, &wanted].concat();
        for piece in [1, 2, 7, 16, 24, 33, 1000] {
            assert_eq!(filtered(&stream, piece), expected, "pieces of {piece}");
        }
    }

    #[test]
    fn the_name_that_zbus_gets_is_one_that_it_takes() {
        let unique = std::str::from_utf8(UNIQUE).unwrap();
        assert!(zbus::names::UniqueName::try_from(unique).is_ok());
    }
}
