//! Protocol buffers, as much of them as a task service needs: numbers, texts, and messages inside messages.

/// Fields taken of one message; the largest that are read have a dozen.
const MAX_FIELDS: usize = 4096;

/// Bytes that are no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no protocol buffers message")]
pub struct Malformed;

/// A message being written. What is zero or empty is left out, as the format wants it.
#[derive(Debug, Clone, Default)]
pub struct Writer(Vec<u8>);

impl Writer {
    /// A number or a truth value.
    pub fn number(mut self, field: u32, value: u64) -> Self {
        if value != 0 {
            self.varint(u64::from(field) << 3);
            self.varint(value);
        }
        self
    }

    /// Bytes.
    pub fn bytes(mut self, field: u32, bytes: &[u8]) -> Self {
        if !bytes.is_empty() {
            self.chunk(field, bytes);
        }
        self
    }

    /// A text.
    pub fn text(self, field: u32, text: &str) -> Self {
        self.bytes(field, text.as_bytes())
    }

    /// A message, also an empty one.
    pub fn message(mut self, field: u32, message: Writer) -> Self {
        self.chunk(field, &message.0);
        self
    }

    /// What was written.
    pub fn done(self) -> Vec<u8> {
        self.0
    }

    fn chunk(&mut self, field: u32, bytes: &[u8]) {
        self.varint(u64::from(field) << 3 | 2);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value.to_le_bytes()[0] | 0x80);
            value >>= 7;
        }
        self.0.push(value.to_le_bytes()[0]);
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// A message being read. Of a field that comes twice the last counts.
#[derive(Debug, Clone, Default)]
pub struct Message<'a>(Vec<(u32, Value<'a>)>);

impl<'a> Message<'a> {
    /// Takes it apart.
    pub fn parse(mut bytes: &'a [u8]) -> Result<Self, Malformed> {
        let mut fields = Vec::new();
        while !bytes.is_empty() {
            let key = varint(&mut bytes)?;
            let field = u32::try_from(key >> 3).map_err(|_| Malformed)?;
            if field == 0 || fields.len() >= MAX_FIELDS {
                return Err(Malformed);
            }
            let value = match key & 7 {
                0 => Value::Number(varint(&mut bytes)?),
                1 => Value::Bytes(take(&mut bytes, 8)?),
                2 => {
                    let length = usize::try_from(varint(&mut bytes)?).map_err(|_| Malformed)?;
                    Value::Bytes(take(&mut bytes, length)?)
                }
                5 => Value::Bytes(take(&mut bytes, 4)?),
                _ => return Err(Malformed),
            };
            fields.push((field, value));
        }
        Ok(Self(fields))
    }

    /// A number; 0 when it is not there.
    pub fn number(&self, field: u32) -> u64 {
        match self.last(field) {
            Some(Value::Number(number)) => number,
            _ => 0,
        }
    }

    /// Bytes, or a message; empty when they are not there.
    pub fn bytes(&self, field: u32) -> &'a [u8] {
        match self.last(field) {
            Some(Value::Bytes(bytes)) => bytes,
            _ => &[],
        }
    }

    /// A text.
    pub fn text(&self, field: u32) -> String {
        String::from_utf8_lossy(self.bytes(field)).into_owned()
    }

    /// The message in a field.
    pub fn message(&self, field: u32) -> Result<Message<'a>, Malformed> {
        Message::parse(self.bytes(field))
    }

    fn last(&self, field: u32) -> Option<Value<'a>> {
        self.0.iter().rev().find(|(number, _)| *number == field).map(|(_, value)| *value)
    }
}

fn varint(bytes: &mut &[u8]) -> Result<u64, Malformed> {
    let mut value = 0_u64;
    for (place, byte) in bytes.iter().enumerate().take(10) {
        let part = u64::from(byte & 0x7f);
        // the tenth byte has room for one bit
        if place == 9 && part > 1 {
            return Err(Malformed);
        }
        value |= part << (7 * place);
        if byte & 0x80 == 0 {
            *bytes = &bytes[place + 1..];
            return Ok(value);
        }
    }
    Err(Malformed)
}

fn take<'a>(bytes: &mut &'a [u8], length: usize) -> Result<&'a [u8], Malformed> {
    let (taken, rest) = bytes.split_at_checked(length).ok_or(Malformed)?;
    *bytes = rest;
    Ok(taken)
}

/// `google.protobuf.Any`.
pub fn any(kind: &str, value: &[u8]) -> Writer {
    Writer::default().text(1, kind).bytes(2, value)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{MAX_FIELDS, Malformed, Message, Writer};

    #[test]
    fn messages_are_written_as_the_format_wants_them() {
        // by protoc: {1: "k8s", 2: 300, 3: {1: true}, 4 is zero}
        let message =
            Writer::default().text(1, "k8s").number(2, 300).message(3, Writer::default().number(1, 1)).number(4, 0);
        let bytes = message.done();
        assert_eq!(bytes, [0x0a, 3, b'k', b'8', b's', 0x10, 0xac, 0x02, 0x1a, 2, 0x08, 1]);
        let read = Message::parse(&bytes).unwrap();
        assert_eq!((read.text(1).as_str(), read.number(2), read.message(3).unwrap().number(1)), ("k8s", 300, 1));
        assert_eq!((read.number(4), read.number(1), read.text(9).as_str()), (0, 0, ""));
    }

    #[test]
    fn what_is_cut_off_or_too_long_is_no_message() {
        for bytes in [
            &[0x0a, 3, b'k'][..],
            &[0x08],
            &[0x08, 0x80],
            &[0xff; 11],
            &[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01],
            &[0x0b],
            &[0x00, 0x00],
        ] {
            assert_eq!(Message::parse(bytes).err(), Some(Malformed), "{bytes:?}");
        }
        assert!(Message::parse(&[0x08, 1].repeat(MAX_FIELDS + 1)).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_message_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            if let Ok(message) = Message::parse(&bytes) {
                for field in 0..20 {
                    let _ = (message.number(field), message.text(field), message.message(field).is_ok());
                }
            }
        }

        #[test]
        fn what_is_written_is_read_again(number in any::<u64>(), text in ".{0,300}", field in 1_u32..5000) {
            let bytes = Writer::default().number(field, number).text(field + 1, &text).done();
            let message = Message::parse(&bytes).unwrap();
            prop_assert_eq!(message.number(field), number);
            prop_assert_eq!(message.text(field + 1), text);
        }
    }
}
