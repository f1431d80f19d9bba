//! Simple signatures: a JSON document in a signed OpenPGP message, and the keys that may sign.

use std::io::Read as _;

use pgp::composed::{Deserializable as _, Message, SignedPublicKey};
use pgp::crypto::hash::HashAlgorithm;
use pgp::packet::{Signature, SignatureType, SubpacketData};
use pgp::types::{KeyDetails as _, Timestamp, VerifyingKey};

use super::TrustError;
use super::payload::{self, Payload};
use super::policy::KeySource;

/// A payload is a few hundred bytes; compression may not choose how much memory we spend.
const MAX_PAYLOAD: u64 = 1 << 20;

/// Certificates whose keys may sign.
#[derive(Debug)]
pub(super) struct Keyring(Vec<SignedPublicKey>);

impl Keyring {
    /// Reads all certificates of all sources, armored or not.
    pub(super) fn load(sources: &[KeySource]) -> Result<Keyring, TrustError> {
        let mut certificates = Vec::new();
        for source in sources {
            let bytes = source.bytes()?;
            let wrong = |what: String| TrustError::Key { key: source.name(), what };
            let (found, _) = SignedPublicKey::from_reader_many(&bytes[..])
                .map_err(|error| wrong(format!("is no OpenPGP certificate: {error}")))?;
            let before = certificates.len();
            for certificate in found {
                certificates.push(certificate.map_err(|error| wrong(format!("is no OpenPGP certificate: {error}")))?);
            }
            if certificates.len() == before {
                return Err(wrong("has no OpenPGP certificate".to_owned()));
            }
        }
        Ok(Keyring(certificates))
    }

    /// What the message says, when one of the keys signed it and both are still good.
    pub(super) fn open(&self, message: &[u8]) -> Result<Payload, String> {
        let (signature, text) = self.verified(message)?;
        current(&signature)?;
        payload::parse(&text, payload::SIMPLE).map_err(|reason| format!("genuine, but {reason}"))
    }

    fn verified(&self, bytes: &[u8]) -> Result<(Signature, Vec<u8>), String> {
        let unreadable = |error: &dyn std::fmt::Display| format!("it is no signed OpenPGP message: {error}");
        let (message, _) = Message::from_reader(bytes).map_err(|error| unreadable(&error))?;
        let mut message =
            if message.is_compressed() { message.decompress().map_err(|error| unreadable(&error))? } else { message };
        if !message.is_signed() {
            return Err("it is no signed OpenPGP message".to_owned());
        }
        let mut text = Vec::new();
        (&mut message).take(MAX_PAYLOAD + 1).read_to_end(&mut text).map_err(|error| unreadable(&error))?;
        if text.len() as u64 > MAX_PAYLOAD {
            return Err("it is too long".to_owned());
        }
        let Message::Signed { reader, .. } = &message else {
            return Err("it is no signed OpenPGP message".to_owned());
        };
        if reader.num_signatures() != 1 {
            return Err("it has more than one signature".to_owned());
        }
        let mut refused = None;
        for certificate in &self.0 {
            let usable = signing_keys(certificate);
            let keys = match &usable {
                Ok(keys) => keys,
                Err(reason) => {
                    refused.get_or_insert_with(|| reason.clone());
                    continue;
                }
            };
            for key in keys {
                if let Ok(signature) = message.verify(*key) {
                    return Ok((signature.clone(), text));
                }
            }
        }
        Err(refused.unwrap_or_else(|| "it is by another key".to_owned()))
    }
}

/// The keys of a certificate that may sign: none when it was revoked or has expired.
fn signing_keys(certificate: &SignedPublicKey) -> Result<Vec<&dyn VerifyingKey>, String> {
    let primary = &certificate.primary_key;
    let name = primary.fingerprint();
    let now = Timestamp::now().as_secs();
    // whoever could put a false revocation into the key file could as well take the key away
    if !certificate.details.revocation_signatures.is_empty() {
        return Err(format!("key {name} is revoked"));
    }
    // the newest statement that the key makes about itself counts
    let of_users = certificate.details.users.iter().flat_map(|user| {
        let id = &user.id;
        user.signatures.iter().filter(move |own| {
            own.typ() != Some(SignatureType::CertRevocation)
                && own.verify_certification(primary, pgp::types::Tag::UserId, id).is_ok()
        })
    });
    let direct = certificate.details.direct_signatures.iter().filter(|own| own.verify_key(primary).is_ok());
    let newest = of_users.chain(direct).max_by_key(|own| own.created().map(Timestamp::as_secs));
    let Some(newest) = newest else { return Err(format!("key {name} has no valid self-signature")) };
    let ends = |signature: &Signature, created: Timestamp| {
        let valid = signature.key_expiration_time().map_or(0, pgp::types::Duration::as_secs);
        valid != 0 && created.as_secs().saturating_add(valid) <= now
    };
    if ends(newest, primary.created_at()) {
        return Err(format!("key {name} has expired"));
    }
    let mut keys: Vec<&dyn VerifyingKey> = vec![primary];
    for subkey in &certificate.public_subkeys {
        // binds it, and for one that signs, the other way round, too
        let bound = subkey.verify_bindings(primary).is_ok();
        let revoked = subkey.signatures.iter().any(|one| one.typ() == Some(SignatureType::SubkeyRevocation));
        let newest = subkey.signatures.iter().max_by_key(|own| own.created().map(Timestamp::as_secs));
        if let Some(newest) = newest
            && bound
            && !revoked
            && newest.key_flags().sign()
            && !ends(newest, subkey.key.created_at())
        {
            keys.push(&subkey.key);
        }
    }
    Ok(keys)
}

/// Whether a genuine signature still counts.
fn current(signature: &Signature) -> Result<(), String> {
    if signature.typ() != Some(SignatureType::Binary) && signature.typ() != Some(SignatureType::Text) {
        return Err("it signs something other than a document".to_owned());
    }
    let strong = matches!(
        signature.hash_alg(),
        Some(
            HashAlgorithm::Sha256
                | HashAlgorithm::Sha384
                | HashAlgorithm::Sha512
                | HashAlgorithm::Sha3_256
                | HashAlgorithm::Sha3_512
        )
    );
    if !strong {
        return Err("it uses a broken digest".to_owned());
    }
    let odd = signature.config().into_iter().flat_map(|config| config.hashed_subpackets()).any(|part| {
        part.is_critical
            && matches!(
                part.data,
                SubpacketData::Experimental(..) | SubpacketData::Other(..) | SubpacketData::Notation(_)
            )
    });
    if odd {
        return Err("it has a critical part that is not understood".to_owned());
    }
    let Some(created) = signature.created().map(Timestamp::as_secs) else {
        return Err("it does not say when it was made".to_owned());
    };
    let valid = signature.signature_expiration_time().map_or(0, pgp::types::Duration::as_secs);
    if valid != 0 && created.saturating_add(valid) <= Timestamp::now().as_secs() {
        return Err("it has expired".to_owned());
    }
    Ok(())
}
