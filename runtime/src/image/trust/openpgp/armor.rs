//! Packets written as text.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

const BEGIN: &str = "-----BEGIN PGP PUBLIC KEY BLOCK-----";
const END: &str = "-----END PGP PUBLIC KEY BLOCK-----";

/// The packets of each block of a file: of all of it, when it is no text.
pub(super) fn blocks(bytes: &[u8]) -> Result<Vec<Vec<u8>>, String> {
    if bytes.first().is_some_and(|first| first & 0x80 != 0) {
        return Ok(vec![bytes.to_vec()]);
    }
    let text = std::str::from_utf8(bytes).map_err(|_| "it is neither packets nor text".to_owned())?;
    let mut lines = text.lines().map(str::trim_end);
    let mut blocks = Vec::new();
    while lines.any(|line| line == BEGIN) {
        // headers end with an empty line
        if !lines.any(str::is_empty) {
            return Err("a block of text ends in its headers".to_owned());
        }
        let mut body = String::new();
        loop {
            match lines.next() {
                Some(END) => break,
                // a check sum, about which RFC 9580 says to forget it
                Some(line) if line.starts_with('=') => {}
                Some(line) => body.push_str(line.trim()),
                None => return Err("a block of text has no end".to_owned()),
            }
        }
        blocks.push(STANDARD.decode(&body).map_err(|error| format!("a block of text is not base64: {error}"))?);
    }
    Ok(blocks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_found_among_other_text() {
        let one = format!("a comment\r\n{BEGIN}\r\nVersion: 1\r\n\r\nAQID\r\nBAU=\r\n=abcd\r\n{END}\r\n");
        assert_eq!(blocks(one.as_bytes()).unwrap(), [[1, 2, 3, 4, 5]]);
        let two = format!("{BEGIN}\n\nAQID\n{END}\n{BEGIN}\n\nBAUG\n{END}");
        assert_eq!(blocks(two.as_bytes()).unwrap(), [[1, 2, 3], [4, 5, 6]]);
        assert_eq!(blocks(&[0x99, 0, 1]).unwrap(), [[0x99, 0, 1]]);
        assert!(blocks(b"").unwrap().is_empty() && blocks(b"nothing here").unwrap().is_empty());
    }

    #[test]
    fn blocks_that_are_cut_or_no_base64_are_refused() {
        for bad in [format!("{BEGIN}\nVersion: 1"), format!("{BEGIN}\n\nAQID\n"), format!("{BEGIN}\n\n!\n{END}")] {
            assert!(blocks(bad.as_bytes()).is_err(), "{bad}");
        }
        assert!(blocks(&[b'a', 0xff]).is_err());
    }
}
