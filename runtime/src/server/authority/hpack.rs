//! HPACK decoding (RFC 7541) with a dynamic table, and the one form of encoding that needs none.
//!
//! Everything comes from the other side of a socket: every length is checked before it is used, and what a block may
//! expand to is bounded (one byte can stand for a field of 4 KiB).

use super::{huffman, static_table::STATIC};
use bytes::{BufMut, Bytes, BytesMut};
use std::collections::VecDeque;

/// Size of the dynamic table before SETTINGS_HEADER_TABLE_SIZE says otherwise. Our server never says otherwise, so
/// this is also the most that a client may choose.
const TABLE_SIZE: usize = 4096;
/// What RFC 7541 §4.1 adds to the length of each field.
const FIELD_OVERHEAD: usize = 32;
/// Integers above this have no use in a header block of 64 KiB.
const MAX_INTEGER: usize = 1 << 20;

/// Why a header block is refused; all of them end the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum HpackError {
    #[error("header block ends inside a field")]
    Truncated,
    #[error("header block has an integer that is too large")]
    Integer,
    #[error("header block has a string with invalid Huffman code")]
    Huffman,
    #[error("header block refers to field {0}, which does not exist")]
    Index(usize),
    #[error("header block resizes the dynamic table to {0} bytes")]
    TableSize(usize),
    #[error("header block resizes the dynamic table after a field")]
    LateResize,
    #[error("header list is larger than {0} bytes")]
    ListSize(usize),
}

/// A header field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Field {
    pub(super) name: Bytes,
    pub(super) value: Bytes,
    /// the sender asks that no hop puts it into a table
    pub(super) never_indexed: bool,
}

impl Field {
    fn size(&self) -> usize {
        self.name.len() + self.value.len() + FIELD_OVERHEAD
    }

    /// Appends the field as a literal without indexing and without Huffman code: valid in any state of the reader's
    /// table, and it changes nothing there.
    pub(super) fn encode(&self, out: &mut BytesMut) {
        out.put_u8(if self.never_indexed { 0x10 } else { 0 });
        for text in [&self.name, &self.value] {
            encode_length(text.len(), out);
            out.put_slice(text);
        }
    }
}

/// Length of a plain string: an integer with a prefix of seven bits below a zero bit (RFC 7541 §5.1).
fn encode_length(length: usize, out: &mut BytesMut) {
    let Some(mut rest) = length.checked_sub(0x7f) else {
        // below 0x7f, so it fits
        return out.put_slice(&[length.to_le_bytes()[0]]);
    };
    out.put_u8(0x7f);
    while rest >= 0x80 {
        out.put_u8(rest.to_le_bytes()[0] | 0x80);
        rest >>= 7;
    }
    out.put_u8(rest.to_le_bytes()[0]);
}

/// A decoder in step with one client's encoder: it has to see every header block of the connection, from the first.
#[derive(Debug)]
pub(super) struct Decoder {
    /// newest first
    table: VecDeque<Field>,
    /// sum of the fields' sizes
    size: usize,
    limit: usize,
}

impl Decoder {
    pub(super) fn new() -> Self {
        Self { table: VecDeque::new(), size: 0, limit: TABLE_SIZE }
    }

    /// Decodes one whole header block into a list whose size (as RFC 9113 §6.5.2 counts) is at most `max_list`.
    pub(super) fn decode(&mut self, block: &[u8], max_list: usize) -> Result<Vec<Field>, HpackError> {
        let mut input = Input { rest: block };
        let mut fields = Vec::new();
        let mut list = 0;
        while let Some(&first) = input.rest.first() {
            let field = if first & 0x80 != 0 {
                self.get(input.integer(7)?)?
            } else if first & 0x40 != 0 {
                let field = self.literal(&mut input, 6)?;
                self.insert(field.clone());
                field
            } else if first & 0x20 != 0 {
                if !fields.is_empty() {
                    return Err(HpackError::LateResize);
                }
                let size = input.integer(5)?;
                if size > TABLE_SIZE {
                    return Err(HpackError::TableSize(size));
                }
                self.limit = size;
                self.evict(0);
                continue;
            } else {
                let field = self.literal(&mut input, 4)?;
                Field { never_indexed: first & 0x10 != 0, ..field }
            };
            list += field.size();
            if list > max_list {
                return Err(HpackError::ListSize(max_list));
            }
            fields.push(field);
        }
        Ok(fields)
    }

    fn literal(&self, input: &mut Input<'_>, prefix: u32) -> Result<Field, HpackError> {
        let name = match input.integer(prefix)? {
            0 => input.string()?,
            index => self.get(index)?.name,
        };
        Ok(Field { name, value: input.string()?, never_indexed: false })
    }

    fn get(&self, index: usize) -> Result<Field, HpackError> {
        let position = index.checked_sub(1).ok_or(HpackError::Index(index))?;
        if let Some((name, value)) = STATIC.get(position) {
            let (name, value) = (Bytes::from_static(name), Bytes::from_static(value));
            return Ok(Field { name, value, never_indexed: false });
        }
        self.table.get(position - STATIC.len()).cloned().ok_or(HpackError::Index(index))
    }

    fn insert(&mut self, field: Field) {
        let size = field.size();
        self.evict(size);
        // one that is larger than the whole table empties it and is not kept (RFC 7541 §4.4)
        if size <= self.limit {
            self.size += size;
            self.table.push_front(field);
        }
    }

    /// Drops the oldest fields until `wanted` more bytes fit, or none is left.
    fn evict(&mut self, wanted: usize) {
        while self.size + wanted > self.limit
            && let Some(oldest) = self.table.pop_back()
        {
            self.size -= oldest.size();
        }
    }
}

/// What is left of a header block.
struct Input<'a> {
    rest: &'a [u8],
}

impl Input<'_> {
    fn byte(&mut self) -> Result<u8, HpackError> {
        let (&byte, rest) = self.rest.split_first().ok_or(HpackError::Truncated)?;
        self.rest = rest;
        Ok(byte)
    }

    /// An integer whose first byte has `prefix` bits of it (RFC 7541 §5.1).
    fn integer(&mut self, prefix: u32) -> Result<usize, HpackError> {
        let mask = (1 << prefix) - 1;
        let mut value = usize::from(self.byte()?) & mask;
        if value < mask {
            return Ok(value);
        }
        // four groups of seven bits are far above the largest integer that is accepted
        for shift in [0, 7, 14, 21] {
            let byte = self.byte()?;
            value += usize::from(byte & 0x7f) << shift;
            if value > MAX_INTEGER {
                return Err(HpackError::Integer);
            }
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(HpackError::Integer)
    }

    fn string(&mut self) -> Result<Bytes, HpackError> {
        let huffman_coded = self.rest.first().is_some_and(|byte| byte & 0x80 != 0);
        let length = self.integer(7)?;
        let (text, rest) = self.rest.split_at_checked(length).ok_or(HpackError::Truncated)?;
        self.rest = rest;
        if huffman_coded {
            huffman::decode(text).map(Bytes::from).ok_or(HpackError::Huffman)
        } else {
            Ok(Bytes::copy_from_slice(text))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: usize = 64 * 1024;

    fn text(fields: &[Field]) -> Vec<String> {
        let show = |bytes: &Bytes| String::from_utf8(bytes.to_vec()).unwrap();
        fields.iter().map(|field| format!("{}: {}", show(&field.name), show(&field.value))).collect()
    }

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<_> = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
        digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
    }

    #[test]
    fn the_requests_of_rfc_7541_appendix_c4_decode_one_after_the_other() {
        let mut decoder = Decoder::new();
        let first = decoder.decode(&hex("8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff"), LIST).unwrap();
        assert_eq!(text(&first), [":method: GET", ":scheme: http", ":path: /", ":authority: www.example.com"]);
        let second = decoder.decode(&hex("8286 84be 5886 a8eb 1064 9cbf"), LIST).unwrap();
        assert_eq!(text(&second)[3..], [":authority: www.example.com", "cache-control: no-cache"]);
        let third = decoder.decode(&hex("8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf"), LIST).unwrap();
        assert_eq!(
            text(&third),
            [
                ":method: GET",
                ":scheme: https",
                ":path: /index.html",
                ":authority: www.example.com",
                "custom-key: custom-value"
            ]
        );
        assert_eq!(decoder.size, 164);
    }

    #[test]
    fn the_table_shrinks_and_grows_only_where_it_may() {
        let mut decoder = Decoder::new();
        decoder.decode(&hex("4001 6101 62"), LIST).unwrap();
        assert_eq!(text(&decoder.decode(&[0x80 | 62], LIST).unwrap()), ["a: b"]);
        // to nothing and back to 4096, as encoders do to empty the table
        decoder.decode(&hex("20 3fe11f"), LIST).unwrap();
        assert_eq!(decoder.decode(&[0x80 | 62], LIST), Err(HpackError::Index(62)));
        assert_eq!(decoder.decode(&hex("3fe21f"), LIST), Err(HpackError::TableSize(4097)));
        assert_eq!(decoder.decode(&hex("82 20"), LIST), Err(HpackError::LateResize));
    }

    #[test]
    fn a_field_larger_than_the_table_empties_it() {
        let mut decoder = Decoder::new();
        decoder.decode(&hex("4001 6101 62"), LIST).unwrap();
        let mut large = hex("4001 63 7f a11f");
        large.extend(vec![b'v'; 4128]);
        assert_eq!(decoder.decode(&large, LIST).unwrap()[0].value.len(), 4128);
        assert_eq!((decoder.size, decoder.table.len()), (0, 0));
    }

    #[test]
    fn blocks_that_end_too_early_or_count_too_far_are_refused() {
        let mut decoder = Decoder::new();
        for (block, error) in [
            ("40", HpackError::Truncated),
            ("4002 61", HpackError::Truncated),
            ("ff", HpackError::Truncated),
            ("80", HpackError::Index(0)),
            ("ffff ffff ff7f", HpackError::Integer),
            ("ff80 8080 8000", HpackError::Integer),
            ("0081 00", HpackError::Huffman),
        ] {
            assert_eq!(decoder.decode(&hex(block), LIST), Err(error), "{block}");
        }
    }

    #[test]
    fn what_is_encoded_decodes_without_touching_the_table() {
        let mut decoder = Decoder::new();
        for length in [0, 1, 126, 127, 128, 254, 255, 256, 16_383, 16_384, 40_000] {
            let field = Field {
                name: Bytes::from_static(b"n"),
                value: Bytes::from(vec![b'v'; length]),
                never_indexed: length % 2 == 0,
            };
            let mut block = BytesMut::new();
            field.encode(&mut block);
            assert_eq!(decoder.decode(&block, LIST).unwrap(), [field], "{length}");
            assert_eq!(decoder.size, 0);
        }
    }
}
