//! Content digests. Only SHA-256 exists in practice, so a digest is 32 bytes and cheap to copy.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};

/// A SHA-256 digest, written `sha256:<64 lower-case hex digits>`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

/// Why a string is not a digest that we can check.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    /// No `algorithm:` in front.
    #[error("digest {0:?} has no algorithm")]
    NoAlgorithm(String),
    /// An algorithm other than SHA-256.
    #[error("digest {0:?} uses an algorithm other than sha256")]
    Algorithm(String),
    /// Not 64 lower-case hex digits.
    #[error("digest {0:?} is not 64 lower-case hex digits")]
    Hex(String),
}

impl Digest {
    /// The digest of bytes in memory.
    pub fn of(bytes: &[u8]) -> Digest {
        Digest(Sha256::digest(bytes).into())
    }

    /// The result of a running hash.
    pub fn finish(hasher: Sha256) -> Digest {
        Digest(hasher.finalize().into())
    }

    /// Parses 64 hex digits without an algorithm in front.
    pub fn from_hex(hex: &str) -> Result<Digest, DigestError> {
        let bad = || DigestError::Hex(hex.chars().take(80).collect());
        let mut bytes = [0u8; 32];
        let raw = hex.as_bytes();
        if raw.len() != 64 {
            return Err(bad());
        }
        for (byte, pair) in bytes.iter_mut().zip(raw.chunks_exact(2)) {
            let (high, low) = (nibble(pair[0]).ok_or_else(bad)?, nibble(pair[1]).ok_or_else(bad)?);
            *byte = high << 4 | low;
        }
        Ok(Digest(bytes))
    }

    /// The 64 hex digits alone, as used in file names.
    pub fn hex(&self) -> String {
        use fmt::Write as _;
        self.0.iter().fold(String::with_capacity(64), |mut text, byte| {
            // writing to a String cannot fail
            let _ = write!(text, "{byte:02x}");
            text
        })
    }
}

fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Digest, DigestError> {
        let shown = || text.chars().take(80).collect();
        match text.split_once(':') {
            None => Err(DigestError::NoAlgorithm(shown())),
            Some(("sha256", hex)) => Digest::from_hex(hex).map_err(|_| DigestError::Hex(shown())),
            Some(_) => Err(DigestError::Algorithm(shown())),
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Digest, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_survives_writing_and_parsing() {
        let digest = Digest::of(b"hello");
        assert_eq!(digest.to_string(), "sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824");
        assert_eq!(digest.to_string().parse::<Digest>(), Ok(digest));
        assert_eq!(Digest::from_hex(&digest.hex()), Ok(digest));
    }

    #[test]
    fn wrong_algorithms_lengths_and_cases_are_told_apart() {
        let hex = Digest::of(b"").hex();
        assert!(matches!(hex.parse::<Digest>(), Err(DigestError::NoAlgorithm(_))));
        assert!(matches!(format!("sha512:{hex}").parse::<Digest>(), Err(DigestError::Algorithm(_))));
        assert!(matches!(format!("sha256:{}", hex.to_uppercase()).parse::<Digest>(), Err(DigestError::Hex(_))));
        assert!(matches!(format!("sha256:{}", &hex[1..]).parse::<Digest>(), Err(DigestError::Hex(_))));
    }
}
