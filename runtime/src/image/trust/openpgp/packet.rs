//! Packets: a tag, a length, a body.

use std::borrow::Cow;

/// The tags that matter here.
pub(super) const SIGNATURE: u8 = 2;
pub(super) const ONE_PASS: u8 = 4;
pub(super) const SECRET_KEY: u8 = 5;
pub(super) const PUBLIC_KEY: u8 = 6;
pub(super) const SECRET_SUBKEY: u8 = 7;
pub(super) const COMPRESSED: u8 = 8;
pub(super) const MARKER: u8 = 10;
pub(super) const LITERAL: u8 = 11;
pub(super) const TRUST: u8 = 12;
pub(super) const USER_ID: u8 = 13;
pub(super) const PUBLIC_SUBKEY: u8 = 14;
pub(super) const USER_ATTRIBUTE: u8 = 17;
pub(super) const PADDING: u8 = 21;

/// One packet. Its body is copied only when it came in pieces.
#[derive(Debug)]
pub(super) struct Packet<'a> {
    pub tag: u8,
    pub body: Cow<'a, [u8]>,
}

/// All packets, one after the other, without those that mean nothing.
pub(super) fn all(bytes: &[u8]) -> Result<Vec<Packet<'_>>, &'static str> {
    let (mut reader, mut packets) = (Reader(bytes), Vec::new());
    while !reader.0.is_empty() {
        let packet = one(&mut reader).ok_or("a packet is cut off or damaged")?;
        if !matches!(packet.tag, MARKER | TRUST | PADDING) {
            packets.push(packet);
        }
    }
    Ok(packets)
}

fn one<'a>(reader: &mut Reader<'a>) -> Option<Packet<'a>> {
    let head = reader.byte()?;
    if head & 0x80 == 0 {
        return None;
    }
    if head & 0x40 != 0 {
        return Some(Packet { tag: head & 0x3f, body: body(reader)? });
    }
    let length = match head & 3 {
        0 => usize::from(reader.byte()?),
        1 => usize::from(reader.u16()?),
        2 => usize::try_from(reader.u32()?).ok()?,
        _ => reader.0.len(),
    };
    Some(Packet { tag: (head >> 2) & 0xf, body: Cow::Borrowed(reader.take(length)?) })
}

/// With a length of today's format, which may come in parts.
fn body<'a>(reader: &mut Reader<'a>) -> Option<Cow<'a, [u8]>> {
    let mut parts: Option<Vec<u8>> = None;
    loop {
        let first = reader.byte()?;
        let (length, last) = match first {
            224..=254 => (1usize << (first & 0x1f), false),
            _ => (reader.length_after(first)?, true),
        };
        let part = reader.take(length)?;
        match (&mut parts, last) {
            (None, true) => return Some(Cow::Borrowed(part)),
            (None, false) => parts = Some(part.to_vec()),
            (Some(parts), _) => parts.extend_from_slice(part),
        }
        if last {
            return parts.map(Cow::Owned);
        }
    }
}

/// Bytes that are read from the front.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    pub(super) fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes(self.take(2)?.try_into().ok()?))
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        Some(u32::from_be_bytes(self.take(4)?.try_into().ok()?))
    }

    /// A length of one, two or five bytes, of which the first is known.
    pub(super) fn length_after(&mut self, first: u8) -> Option<usize> {
        match first {
            0..=191 => Some(usize::from(first)),
            255 => usize::try_from(self.u32()?).ok(),
            _ => Some((usize::from(first) - 192) * 256 + usize::from(self.byte()?) + 192),
        }
    }

    /// A number of any size, without zeros in front.
    pub(super) fn number(&mut self) -> Option<&'a [u8]> {
        let bits = usize::from(self.u16()?);
        let bytes = self.take(bits.div_ceil(8))?;
        let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
        Some(&bytes[zeros..])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_every_format_are_understood() {
        let cases: [(&[u8], usize); 7] = [
            (&[0x80 | 2 << 2, 3], 3),
            (&[0x80 | 2 << 2 | 1, 1, 0], 256),
            (&[0x80 | 2 << 2 | 2, 0, 0, 0, 5], 5),
            (&[0xc2, 191], 191),
            (&[0xc2, 192, 0], 192),
            (&[0xc2, 223, 255], 8383),
            (&[0xc2, 255, 0, 0, 0x20, 0xc0], 8384),
        ];
        for (head, length) in cases {
            let bytes = [head, &vec![7; length]].concat();
            let packets = all(&bytes).unwrap();
            assert_eq!((packets.len(), packets[0].tag, packets[0].body.len()), (1, SIGNATURE, length), "{head:?}");
            assert!(all(&bytes[..bytes.len() - 1]).is_err(), "{head:?} cut off");
        }
        let open = [&[0x80 | 8 << 2 | 3][..], &[1; 50]].concat();
        assert_eq!(all(&open).unwrap()[0].body.len(), 50);
    }

    #[test]
    fn a_body_in_parts_is_put_together() {
        let bytes = [&[0xcb, 0xe1, 1, 2, 0xe0, 3, 2, 4, 5][..], &[0xca, 3, b'P', b'G', b'P']].concat();
        let packets = all(&bytes).unwrap();
        assert_eq!((packets.len(), packets[0].tag, &packets[0].body[..]), (1, LITERAL, &[1, 2, 3, 4, 5][..]));
    }

    #[test]
    fn what_is_no_packet_is_refused() {
        assert!(all(b"text").is_err());
        assert!(all(&[0xc2, 255, 255, 255, 255, 255]).is_err());
        assert!(all(&[0xc2, 0xfe]).is_err());
    }
}
