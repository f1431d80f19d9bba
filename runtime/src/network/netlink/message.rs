//! Netlink messages as bytes: a head, a fixed part, attributes that may nest. All numbers are in the machine's order.

/// Begins every message.
const HEAD: usize = 16;
const ATTRIBUTE_HEAD: usize = 4;
const NESTED: u16 = 0x8000;
const TYPE_MASK: u16 = 0x3fff;

pub(in crate::network) const REQUEST: u16 = 0x1;
pub(in crate::network) const ACK: u16 = 0x4;
pub(in crate::network) const EXCL: u16 = 0x200;
pub(in crate::network) const CREATE: u16 = 0x400;
pub(in crate::network) const DUMP: u16 = 0x300;
pub(in crate::network) const APPEND: u16 = 0x800;

/// Messages that are sent together, each of which is answered.
#[derive(Debug, Default)]
pub(in crate::network) struct Batch {
    bytes: Vec<u8>,
    count: u32,
    /// where the last one begins
    last: usize,
}

impl Batch {
    /// Adds a request; `body` writes its attributes. The sequence number is its place, from 1.
    pub(in crate::network) fn push(
        &mut self,
        kind: u16,
        flags: u16,
        fixed: &[u8],
        body: impl FnOnce(&mut Attributes<'_>),
    ) {
        let start = self.bytes.len();
        self.last = start;
        self.count += 1;
        self.bytes.extend([0; 4]);
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend((flags | REQUEST).to_ne_bytes());
        self.bytes.extend(self.count.to_ne_bytes());
        self.bytes.extend([0; 4]);
        self.bytes.extend(fixed);
        pad(&mut self.bytes);
        body(&mut Attributes { bytes: &mut self.bytes });
        let length = u32::try_from(self.bytes.len() - start).unwrap_or(u32::MAX);
        self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
    }

    /// Adds flags to the last request.
    pub(super) fn flag_last(&mut self, flags: u16) {
        let Some(field) = self.bytes.get_mut(self.last + 6..self.last + 8) else { return };
        for (byte, more) in field.iter_mut().zip(flags.to_ne_bytes()) {
            *byte |= more;
        }
    }

    pub(in crate::network) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn count(&self) -> u32 {
        self.count
    }
}

/// Attributes of one message or of one attribute.
#[derive(Debug)]
pub(in crate::network) struct Attributes<'a> {
    bytes: &'a mut Vec<u8>,
}

impl Attributes<'_> {
    pub(in crate::network) fn bytes(&mut self, kind: u16, value: &[u8]) {
        self.put(kind, |bytes| bytes.extend(value));
    }

    /// Text with the zero that the kernel wants behind it.
    pub(in crate::network) fn text(&mut self, kind: u16, value: &str) {
        self.put(kind, |bytes| {
            bytes.extend(value.as_bytes());
            bytes.push(0);
        });
    }

    pub(in crate::network) fn u32(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_ne_bytes());
    }

    /// A number as netfilter wants it: in the network's order, whatever the machine's.
    pub(in crate::network) fn be32(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    pub(in crate::network) fn nest(&mut self, kind: u16, body: impl FnOnce(&mut Attributes<'_>)) {
        self.put(kind | NESTED, |bytes| body(&mut Attributes { bytes }));
    }

    /// Nests with a fixed part before the inner attributes.
    pub(in crate::network) fn nest_after(&mut self, kind: u16, fixed: &[u8], body: impl FnOnce(&mut Attributes<'_>)) {
        self.put(kind | NESTED, |bytes| {
            bytes.extend(fixed);
            body(&mut Attributes { bytes });
        });
    }

    fn put(&mut self, kind: u16, body: impl FnOnce(&mut Vec<u8>)) {
        let start = self.bytes.len();
        self.bytes.extend([0; 2]);
        self.bytes.extend(kind.to_ne_bytes());
        body(self.bytes);
        // nothing that is written here comes near the limit of 64 KiB
        let length = u16::try_from(self.bytes.len() - start).unwrap_or(u16::MAX);
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        pad(self.bytes);
    }
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// A message from the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::network) struct Message<'a> {
    pub(in crate::network) kind: u16,
    pub(in crate::network) sequence: u32,
    /// the socket that asked for it, or whose change it tells of
    pub(in crate::network) port: u32,
    /// fixed part and attributes
    pub(in crate::network) payload: &'a [u8],
}

/// Takes the messages of a datagram apart; ends at the first that does not fit.
pub(in crate::network) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let length = usize::try_from(u32_at(bytes, 0)?).ok()?;
        let kind = u16_at(bytes, 4)?;
        let sequence = u32_at(bytes, 8)?;
        let port = u32_at(bytes, 12)?;
        let payload = bytes.get(HEAD..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Message { kind, sequence, port, payload })
    })
}

/// Takes attributes apart: type without flags, and value; ends at the first that does not fit.
pub(in crate::network) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(bytes, 0)?);
        let kind = u16_at(bytes, 2)? & TYPE_MASK;
        let value = bytes.get(ATTRIBUTE_HEAD..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The value of the first attribute of a type.
pub(in crate::network) fn attribute(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
}

pub(in crate::network) fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(offset..offset + 2)?.try_into().ok()?))
}

pub(in crate::network) fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(offset..offset + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_written_is_read_back() {
        let mut batch = Batch::default();
        batch.push(16, CREATE, &[1, 2, 3, 4, 5], |message| {
            message.text(3, "eth0");
            message.nest(18, |info| {
                info.text(1, "veth");
                info.nest_after(2, &[9; 8], |peer| peer.u32(4, 1500));
            });
        });
        batch.push(20, 0, &[], |_| {});
        let all: Vec<_> = messages(batch.bytes()).collect();
        assert_eq!(all.iter().map(|message| (message.kind, message.sequence)).collect::<Vec<_>>(), [(16, 1), (20, 2)]);
        let body = &all[0].payload[8..];
        assert_eq!(attribute(body, 3), Some(&b"eth0\0"[..]));
        let peer = attribute(attribute(body, 18).unwrap(), 2).unwrap();
        assert_eq!(attribute(&peer[8..], 4), Some(&1500_u32.to_ne_bytes()[..]));
        assert!(all[1].payload.is_empty());
    }

    proptest! {
        #[test]
        fn rubbish_ends_the_reading(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            for message in messages(&bytes).take(100) {
                prop_assert!(attributes(message.payload).take(100).count() <= 100);
            }
        }
    }
}
