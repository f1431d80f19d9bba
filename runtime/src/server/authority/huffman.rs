//! HPACK's Huffman code (RFC 7541 appendix B). It is canonical: the lengths alone determine every code.

/// Length of the code of each octet, and of the end-of-string symbol.
#[rustfmt::skip]
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
    30,
];
const LONGEST: usize = 30;
const END_OF_STRING: u16 = 256;

/// Codes of one length are consecutive numbers, in the order of their symbols.
struct Canonical {
    /// first code of each length
    first: [u32; LONGEST + 1],
    /// how many codes have that length
    count: [u32; LONGEST + 1],
    /// where the symbols of that length begin in `symbols`
    start: [usize; LONGEST + 1],
    symbols: [u16; 257],
}

static CANONICAL: Canonical = canonical();

const fn canonical() -> Canonical {
    let mut table =
        Canonical { first: [0; LONGEST + 1], count: [0; LONGEST + 1], start: [0; LONGEST + 1], symbols: [0; 257] };
    let mut code = 0;
    let mut placed = 0;
    let mut length = 1;
    while length <= LONGEST {
        code <<= 1;
        table.first[length] = code;
        table.start[length] = placed;
        let mut symbol: u16 = 0;
        while symbol <= END_OF_STRING {
            if LENGTHS[symbol as usize] as usize == length {
                table.symbols[placed] = symbol;
                placed += 1;
                code += 1;
                table.count[length] += 1;
            }
            symbol += 1;
        }
        length += 1;
    }
    table
}

/// Decodes a whole string. `None` when it has a code that does not exist, the end-of-string symbol, or padding that is
/// longer than seven bits or not all ones (RFC 7541 §5.2).
pub(super) fn decode(encoded: &[u8]) -> Option<Vec<u8>> {
    let mut decoded = Vec::with_capacity(encoded.len() * 8 / 5);
    let mut code: u32 = 0;
    let mut length = 0;
    for byte in encoded {
        for shift in (0..8).rev() {
            code = code << 1 | u32::from(byte >> shift & 1);
            length += 1;
            if length > LONGEST {
                return None;
            }
            let offset = code.wrapping_sub(CANONICAL.first[length]);
            if code >= CANONICAL.first[length] && offset < CANONICAL.count[length] {
                let symbol = CANONICAL.symbols[CANONICAL.start[length] + offset as usize];
                // the end-of-string symbol is the only one that is no octet
                decoded.push(u8::try_from(symbol).ok()?);
                (code, length) = (0, 0);
            }
        }
    }
    let padding_is_ones = code == (1 << length) - 1;
    (length < 8 && padding_is_ones).then_some(decoded)
}

#[cfg(test)]
mod tests {
    use super::decode;

    #[test]
    fn the_examples_of_the_rfc_decode() {
        let host = [0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff];
        assert_eq!(decode(&host).unwrap(), b"www.example.com");
        assert_eq!(decode(&[0x25, 0xa8, 0x49, 0xe9, 0x5b, 0xa9, 0x7d, 0x7f]).unwrap(), b"custom-key");
        assert_eq!(decode(&[]).unwrap(), b"");
    }

    #[test]
    fn bad_padding_and_end_of_string_are_refused() {
        // 'a' is 00011: three bits of padding, ones and then zeros
        assert_eq!(decode(&[0b0001_1111]).unwrap(), b"a");
        assert_eq!(decode(&[0b0001_1000]), None);
        // eight bits of padding
        assert_eq!(decode(&[0b0001_1111, 0xff]), None);
        assert_eq!(decode(&[0xff, 0xff, 0xff, 0xff]), None);
    }
}
