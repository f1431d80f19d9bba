//! Simple signatures: a JSON document in a signed OpenPGP message, and the keys that may sign.
//!
//! As much of RFC 9580 as this takes, and no more: `packet` cuts bytes into packets, `armor` finds them in text, `key`
//! checks one signature (RSA, Ed25519, ECDSA over P-256 and P-384, all by ring), `signature` reads one, `certificate`
//! says which keys somebody has made his own, `message` what was signed. Nothing is decrypted and nothing is secret here.
//! Versions other than 4 are what GnuPG does not write; they are refused by name.

mod armor;
mod certificate;
mod key;
mod message;
mod packet;
mod signature;

use super::TrustError;
use super::payload::{self, Payload};
use super::policy::KeySource;
use certificate::Certificate;
use message::Message;

/// Certificates whose keys may sign.
#[derive(Debug)]
pub(super) struct Keyring(Vec<Certificate>);

impl Keyring {
    /// Reads all certificates of all sources, armored or not.
    pub(super) fn load(sources: &[KeySource]) -> Result<Keyring, TrustError> {
        let mut certificates = Vec::new();
        for source in sources {
            let wrong = |what: String| TrustError::Key { key: source.name(), what };
            let found = certificates_in(&source.bytes()?)
                .map_err(|error| wrong(format!("is no OpenPGP certificate: {error}")))?;
            if found.is_empty() {
                return Err(wrong("has no OpenPGP certificate".to_owned()));
            }
            certificates.extend(found);
        }
        Ok(Keyring(certificates))
    }

    /// What the message says, when one of the keys signed it and both are still good.
    pub(super) fn open(&self, message: &[u8]) -> Result<Payload, String> {
        let text = self.verified(message, now())?;
        payload::parse(&text, payload::SIMPLE).map_err(|reason| format!("genuine, but {reason}"))
    }

    fn verified(&self, bytes: &[u8], now: u64) -> Result<Vec<u8>, String> {
        let message = Message::parse(bytes).map_err(|error| format!("it is no signed OpenPGP message: {error}"))?;
        let mut refused = None;
        for certificate in &self.0 {
            match certificate.signing_keys(now) {
                Ok(keys) => {
                    if keys.iter().any(|key| message.is_by(key)) {
                        message.signature.still_counts(now)?;
                        return Ok(message.text);
                    }
                }
                Err(reason) => {
                    refused.get_or_insert(reason);
                }
            }
        }
        Err(refused.unwrap_or_else(|| "it is by another key".to_owned()))
    }
}

fn certificates_in(bytes: &[u8]) -> Result<Vec<Certificate>, String> {
    let mut certificates = Vec::new();
    for block in armor::blocks(bytes)? {
        certificates.extend(Certificate::parse_all(&block)?);
    }
    Ok(certificates)
}

fn now() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    // a clock before 1970 makes everything expired rather than nothing
    now.map_or(u64::MAX, |since| since.as_secs())
}

/// Reads bytes as certificates and as a message, and checks one with the other.
#[cfg(feature = "fuzzing")]
pub(super) fn fuzz(bytes: &[u8]) {
    // two files in one input, as a fuzzer can make them
    let middle = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    for (certificates, message) in [(bytes, bytes), (&bytes[..middle], &bytes[middle..])] {
        if let Ok(certificates) = certificates_in(certificates) {
            let _ = Keyring(certificates).verified(message, 1_700_000_000);
        }
        let _ = Message::parse(message);
    }
}

#[cfg(test)]
mod tests;
