//! Certificates: a key with what it says about itself, and its subkeys.

use super::key::Key;
use super::packet::{self, PUBLIC_KEY, PUBLIC_SUBKEY, SECRET_KEY, SECRET_SUBKEY, SIGNATURE, USER_ATTRIBUTE, USER_ID};
use super::signature::{BY_SUBKEY, DIRECT, Hash, KEY_REVOCATION, SUBKEY, SUBKEY_REVOCATION, Signature};

/// Certifications of a name, from the careless to the careful.
const CERTIFICATIONS: std::ops::RangeInclusive<u8> = 0x10..=0x13;

/// One certificate.
#[derive(Debug)]
pub(super) struct Certificate {
    primary: Key,
    /// What is signed, and the signatures of it: the key alone, then each of its names.
    about: Vec<(Vec<u8>, Vec<Signature>)>,
    subkeys: Vec<(Key, Vec<Signature>)>,
}

/// What signatures belong to that come next.
enum Place {
    About,
    Subkey,
    /// A subkey of a kind that we do not know.
    Nothing,
}

impl Certificate {
    /// Every certificate of a sequence of packets.
    pub(super) fn parse_all(bytes: &[u8]) -> Result<Vec<Certificate>, String> {
        let mut certificates: Vec<Certificate> = Vec::new();
        let mut place = Place::About;
        for packet in packet::all(bytes)? {
            if packet.tag == PUBLIC_KEY {
                let primary = Key::parse(&packet.body)?;
                let about = vec![(primary.hashed(), Vec::new())];
                certificates.push(Certificate { primary, about, subkeys: Vec::new() });
                place = Place::About;
                continue;
            }
            if matches!(packet.tag, SECRET_KEY | SECRET_SUBKEY) {
                return Err("it has a secret key, which does not belong here".to_owned());
            }
            let Some(certificate) = certificates.last_mut() else {
                return Err("it does not begin with a key".to_owned());
            };
            match packet.tag {
                USER_ID | USER_ATTRIBUTE => {
                    let kind = if packet.tag == USER_ID { 0xb4 } else { 0xd1 };
                    let length = u32::try_from(packet.body.len()).unwrap_or(u32::MAX).to_be_bytes();
                    let signed = [&certificate.primary.hashed()[..], &[kind], &length, &packet.body].concat();
                    certificate.about.push((signed, Vec::new()));
                    place = Place::About;
                }
                PUBLIC_SUBKEY => {
                    place = match Key::parse(&packet.body) {
                        Ok(key) => {
                            certificate.subkeys.push((key, Vec::new()));
                            Place::Subkey
                        }
                        Err(_) => Place::Nothing,
                    };
                }
                SIGNATURE => {
                    // of another version, and so of somebody else or of no use
                    let Ok(signature) = Signature::parse(&packet.body) else { continue };
                    let last = match place {
                        Place::About => certificate.about.last_mut().map(|(_, signatures)| signatures),
                        Place::Subkey => certificate.subkeys.last_mut().map(|(_, signatures)| signatures),
                        Place::Nothing => None,
                    };
                    last.into_iter().for_each(|signatures| signatures.push(signature.clone()));
                }
                other => return Err(format!("it has a packet of kind {other}, which does not belong here")),
            }
        }
        Ok(certificates)
    }

    /// The keys that may sign documents, unless the whole certificate is no longer good.
    pub(super) fn signing_keys(&self, now: u64) -> Result<Vec<&Key>, String> {
        let primary = &self.primary;
        let name = || primary.fingerprint();
        let all = || self.about.iter().flat_map(|(_, signatures)| signatures);
        // not checked: whoever could put a false revocation into the key file could as well take the key away
        if all().any(|one| one.kind == KEY_REVOCATION) {
            return Err(format!("key {} is revoked", name()));
        }
        primary.usable()?;
        // the newest statement that the key makes about itself counts
        let own = self.about.iter().flat_map(|(signed, signatures)| {
            signatures.iter().filter(move |one| {
                (CERTIFICATIONS.contains(&one.kind) || one.kind == DIRECT && *signed == primary.hashed())
                    && accepted(one, now)
                    && primary.made(one, signed)
            })
        });
        let Some(newest) = own.max_by_key(|own| own.created) else {
            return Err(format!("key {} has no valid self-signature", name()));
        };
        if has_expired(primary, newest, now) {
            return Err(format!("key {} has expired", name()));
        }
        let mut keys = Vec::new();
        if newest.lets_sign() {
            keys.push(primary);
        }
        keys.extend(self.subkeys.iter().filter(|(key, own)| self.is_own(key, own, now)).map(|(key, _)| key));
        Ok(keys)
    }

    /// Whether a subkey is one of this certificate, for signing and still good.
    fn is_own(&self, key: &Key, signatures: &[Signature], now: u64) -> bool {
        let signed = [self.primary.hashed(), key.hashed()].concat();
        if signatures.iter().any(|one| one.kind == SUBKEY_REVOCATION) || key.usable().is_err() {
            return false;
        }
        let bindings =
            signatures.iter().filter(|one| one.kind == SUBKEY && accepted(one, now) && self.primary.made(one, &signed));
        let Some(newest) = bindings.max_by_key(|one| one.created) else { return false };
        // a key that signs has to agree, or somebody could call the key of another his own
        let agreed = newest.embedded.as_ref().is_some_and(|embedded| {
            embedded.kind == BY_SUBKEY && accepted(embedded, now) && key.made(embedded, &signed)
        });
        newest.is_for_signing() && agreed && !has_expired(key, newest, now)
    }
}

/// Whether a statement of a key about itself is one to listen to. SHA-1 is: keys of long ago used it, and a collision
/// would have to be made by the key's owner.
fn accepted(signature: &Signature, now: u64) -> bool {
    signature.understood()
        && !signature.has_expired(now)
        && (signature.hash == Hash::Sha1 || signature.hash.strong().is_some())
}

fn has_expired(key: &Key, newest: &Signature, now: u64) -> bool {
    newest.key_expires_after != 0 && key.created.saturating_add(newest.key_expires_after) <= now
}
