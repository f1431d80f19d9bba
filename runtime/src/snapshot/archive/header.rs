//! One 512-byte header block.

/// Size of everything in a tar archive.
pub(super) const BLOCK: usize = 512;

/// A header whose checksum was right.
pub(super) struct Header<'a> {
    block: &'a [u8; BLOCK],
}

impl<'a> Header<'a> {
    /// Checks the sum; `Err` says what is wrong.
    pub(super) fn parse(block: &'a [u8; BLOCK]) -> Result<Header<'a>, &'static str> {
        let stored = octal(&block[148..156]).ok_or("unreadable checksum")?;
        let (mut unsigned, mut signed) = (0u64, 0i64);
        for (at, byte) in block.iter().enumerate() {
            // the checksum field itself counts as spaces
            let byte = if (148..156).contains(&at) { b' ' } else { *byte };
            unsigned += u64::from(byte);
            // old Sun tars summed signed characters
            signed += i64::from(byte.cast_signed());
        }
        if stored == unsigned || i64::try_from(stored) == Ok(signed) {
            Ok(Header { block })
        } else {
            Err("wrong header checksum")
        }
    }

    pub(super) fn kind(&self) -> u8 {
        self.block[156]
    }

    /// Name, with the ustar prefix in front.
    pub(super) fn path(&self) -> Vec<u8> {
        let name = text(&self.block[..100]);
        let prefix = text(&self.block[345..500]);
        // GNU and v7 have other things where ustar has the prefix
        if &self.block[257..263] != b"ustar\0" || prefix.is_empty() {
            return name.to_vec();
        }
        [prefix, b"/", name].concat()
    }

    pub(super) fn link(&self) -> Vec<u8> {
        text(&self.block[157..257]).to_vec()
    }

    pub(super) fn mode(&self) -> Result<u32, &'static str> {
        let mode = number(&self.block[100..108]).ok_or("unreadable mode")?;
        // some writers put the file type in as well
        Ok(u32::try_from(mode & 0o7777).unwrap_or(0))
    }

    pub(super) fn uid(&self) -> Result<u32, &'static str> {
        id(&self.block[108..116]).ok_or("unreadable owner")
    }

    pub(super) fn gid(&self) -> Result<u32, &'static str> {
        id(&self.block[116..124]).ok_or("unreadable group")
    }

    pub(super) fn size(&self) -> Result<u64, &'static str> {
        number(&self.block[124..136]).and_then(|size| u64::try_from(size).ok()).ok_or("unreadable size")
    }

    pub(super) fn mtime(&self) -> Result<i64, &'static str> {
        number(&self.block[136..148]).ok_or("unreadable time")
    }

    pub(super) fn device(&self) -> Result<(u32, u32), &'static str> {
        let part = |range| id(range).ok_or("unreadable device number");
        Ok((part(&self.block[329..337])?, part(&self.block[337..345])?))
    }

    /// The part that describes holes in GNU's old sparse format: four extents, whether more follow, the real size.
    pub(super) fn gnu_sparse(&self) -> (&'a [u8], bool, Result<u64, &'static str>) {
        let real = number(&self.block[483..495]).and_then(|size| u64::try_from(size).ok()).ok_or("unreadable size");
        (&self.block[386..482], self.block[482] != 0, real)
    }
}

fn id(field: &[u8]) -> Option<u32> {
    number(field).and_then(|id| u32::try_from(id).ok())
}

/// Bytes up to the first NUL.
fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// Octal digits, or GNU's binary form when the first bit is set.
pub(super) fn number(field: &[u8]) -> Option<i64> {
    match field.first() {
        Some(first) if first & 0x80 != 0 => binary(field),
        _ => octal(field).and_then(|value| i64::try_from(value).ok()),
    }
}

/// Big-endian two's complement; the top bit only marks the form, the next one is the sign.
fn binary(field: &[u8]) -> Option<i64> {
    let (first, rest) = field.split_first()?;
    let negative = first & 0x40 != 0;
    let mut value: i128 = i128::from(first & 0x3f) - if negative { 0x40 } else { 0 };
    for byte in rest {
        value = value.checked_mul(256)? + i128::from(*byte);
    }
    i64::try_from(value).ok()
}

fn octal(field: &[u8]) -> Option<u64> {
    let digits = field.trim_ascii_start();
    let end = digits.iter().position(|byte| matches!(byte, 0 | b' ')).unwrap_or(digits.len());
    if !digits[end..].iter().all(|byte| matches!(byte, 0 | b' ')) {
        return None;
    }
    digits[..end].iter().try_fold(0u64, |value, digit| match digit {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_as_octal_or_binary() {
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b"   644 \0"), Some(0o644));
        assert_eq!(number(b"\0\0\0\0\0\0\0\0"), Some(0));
        assert_eq!(number(b"77777777777\0"), Some(0o77_777_777_777));
        assert_eq!(number(&[0x80, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 1]), Some(0x2_0000_0001));
        assert_eq!(number(&[0xff; 12]), Some(-1));
        assert_eq!(number(&[0xbf; 12]), None);
        assert_eq!(number(b"12x45678"), None);
        assert_eq!(number(b"-1\0"), None);
    }

    #[test]
    fn a_block_with_a_wrong_sum_is_refused() {
        let mut block = [0u8; BLOCK];
        block[148..156].copy_from_slice(b"000400\0 ");
        assert!(Header::parse(&block).is_ok());
        block[0] = 1;
        assert!(Header::parse(&block).is_err());
    }
}
