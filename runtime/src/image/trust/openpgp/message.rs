//! Signed messages.

use std::io::Read;

use super::key::Key;
use super::packet::{self, COMPRESSED, LITERAL, ONE_PASS, Packet, Reader, SIGNATURE};
use super::signature::{Signature, TEXT};

/// A payload is a few hundred bytes; compression may not choose how much memory we spend.
const MAX_PAYLOAD: usize = 1 << 20;
/// What stands around it.
const MAX_FRAME: usize = 64 << 10;

/// A document and the one signature of it.
#[derive(Debug)]
pub(super) struct Message {
    pub signature: Signature,
    pub text: Vec<u8>,
}

impl Message {
    /// Reads a message, compressed or not.
    pub(super) fn parse(bytes: &[u8]) -> Result<Message, String> {
        let packets = packet::all(bytes)?;
        match &packets[..] {
            [Packet { tag: COMPRESSED, body }] => Message::of(&packet::all(&decompressed(body)?)?),
            packets => Message::of(packets),
        }
    }

    fn of(packets: &[Packet<'_>]) -> Result<Message, String> {
        let signatures = packets.iter().filter(|packet| packet.tag == SIGNATURE).count();
        if signatures > 1 {
            return Err("it has more than one signature".to_owned());
        }
        let tags: Vec<u8> = packets.iter().map(|packet| packet.tag).collect();
        let (signature, literal) = match tags[..] {
            [ONE_PASS, LITERAL, SIGNATURE] => (&packets[2], &packets[1]),
            [SIGNATURE, LITERAL] => (&packets[0], &packets[1]),
            _ => return Err("it is not made of a document and its signature".to_owned()),
        };
        let signature = Signature::parse(&signature.body)?;
        let text = document(&literal.body).ok_or("its document is cut off")?;
        if text.len() > MAX_PAYLOAD {
            return Err("it is too long".to_owned());
        }
        Ok(Message { signature, text: text.to_vec() })
    }

    /// Whether the key signed it.
    pub(super) fn is_by(&self, key: &Key) -> bool {
        if self.signature.kind == TEXT {
            key.made(&self.signature, &with_crlf(&self.text))
        } else {
            key.made(&self.signature, &self.text)
        }
    }
}

/// Without its name and time, which are not signed.
fn document(body: &[u8]) -> Option<&[u8]> {
    let mut reader = Reader(body);
    reader.byte()?;
    let name = usize::from(reader.byte()?);
    reader.take(name)?;
    reader.u32()?;
    Some(reader.0)
}

fn decompressed(body: &[u8]) -> Result<Vec<u8>, String> {
    let (algorithm, bytes) = body.split_first().ok_or("a compressed packet is empty")?;
    let mut reader: Box<dyn Read + '_> = match algorithm {
        0 => Box::new(bytes),
        1 => Box::new(flate2::read::DeflateDecoder::new(bytes)),
        2 => Box::new(flate2::read::ZlibDecoder::new(bytes)),
        3 => return Err("it is compressed with bzip2, which is not supported".to_owned()),
        other => return Err(format!("it is compressed with algorithm {other}, which is not known")),
    };
    let mut plain = Vec::new();
    let limit = MAX_PAYLOAD + MAX_FRAME;
    let read = reader.by_ref().take(limit as u64 + 1).read_to_end(&mut plain);
    read.map_err(|error| format!("it cannot be decompressed: {error}"))?;
    if plain.len() > limit {
        return Err("it is too long".to_owned());
    }
    Ok(plain)
}

/// Text is signed with the line ends of the network.
fn with_crlf(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len() + 16);
    let mut before = 0;
    for byte in text {
        if *byte == b'\n' && before != b'\r' {
            out.push(b'\r');
        }
        out.push(*byte);
        before = *byte;
    }
    out
}
