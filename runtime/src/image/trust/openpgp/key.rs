//! Public keys, and whether one of them made a signature.

use std::fmt::Write as _;

use ring::digest;
use ring::signature::{self as sig, RsaPublicKeyComponents, UnparsedPublicKey, VerificationAlgorithm};

use super::packet::Reader;
use super::signature::{Hash, Signature};

const ED25519: &[u8] = &[0x2b, 0x06, 0x01, 0x04, 0x01, 0xda, 0x47, 0x0f, 0x01];
const P256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
const P384: &[u8] = &[0x2b, 0x81, 0x04, 0x00, 0x22];

/// A key or subkey.
#[derive(Debug)]
pub(super) struct Key {
    body: Vec<u8>,
    pub created: u64,
    material: Material,
}

#[derive(Debug)]
enum Material {
    Rsa {
        modulus: Vec<u8>,
        exponent: Vec<u8>,
    },
    Ed25519(Vec<u8>),
    P256(Vec<u8>),
    P384(Vec<u8>),
    /// Another algorithm, by its number.
    Other(u8),
}

impl Key {
    /// Reads the body of a key's packet.
    pub(super) fn parse(body: &[u8]) -> Result<Key, String> {
        let cut = || "a key is cut off".to_owned();
        let mut reader = Reader(body);
        match reader.byte().ok_or_else(cut)? {
            4 => {}
            version => return Err(format!("a key of version {version}, where only 4 is known")),
        }
        let created = u64::from(reader.u32().ok_or_else(cut)?);
        let algorithm = reader.byte().ok_or_else(cut)?;
        let material = material(algorithm, &mut reader).ok_or_else(cut)?;
        Ok(Key { body: body.to_vec(), created, material })
    }

    /// What is hashed of a key when it is signed.
    pub(super) fn hashed(&self) -> Vec<u8> {
        let length = u16::try_from(self.body.len()).unwrap_or(u16::MAX).to_be_bytes();
        [&[0x99], &length[..], &self.body].concat()
    }

    /// What people call it.
    pub(super) fn fingerprint(&self) -> String {
        let digest = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, &self.hashed());
        digest.as_ref().iter().fold(String::with_capacity(40), |mut text, byte| {
            // writing to a String cannot fail
            let _ = write!(text, "{byte:02x}");
            text
        })
    }

    /// Whether signatures of this key can be checked at all.
    pub(super) fn usable(&self) -> Result<(), String> {
        match self.material {
            Material::Rsa { ref modulus, .. } if modulus.len() < 256 => {
                Err(format!("key {} is RSA with fewer than 2048 bits, which is not accepted", self.fingerprint()))
            }
            Material::Other(number) => {
                let name = match number {
                    16 | 18 | 20 | 25 | 26 => "an algorithm that does not sign".to_owned(),
                    17 => "DSA, which is not accepted".to_owned(),
                    19 => "an elliptic curve other than P-256 and P-384".to_owned(),
                    22 => "an Edwards curve other than Ed25519".to_owned(),
                    28 => "Ed448, which is not supported".to_owned(),
                    other => format!("algorithm {other}, which is not known"),
                };
                Err(format!("key {} uses {name}", self.fingerprint()))
            }
            _ => Ok(()),
        }
    }

    /// Whether this key signed `data`.
    pub(super) fn made(&self, signature: &Signature, data: &[u8]) -> bool {
        let signed = [data, &signature.trailer].concat();
        let mut values = Reader(&signature.values);
        let verified = match &self.material {
            Material::Rsa { modulus, exponent } if matches!(signature.algorithm, 1 | 3) => {
                let algorithm = match signature.hash {
                    // of what a key says about itself only
                    Hash::Sha1 => &sig::RSA_PKCS1_2048_8192_SHA1_FOR_LEGACY_USE_ONLY,
                    Hash::Sha256 => &sig::RSA_PKCS1_2048_8192_SHA256,
                    Hash::Sha384 => &sig::RSA_PKCS1_2048_8192_SHA384,
                    Hash::Sha512 => &sig::RSA_PKCS1_2048_8192_SHA512,
                    Hash::Other(_) => return false,
                };
                let key = RsaPublicKeyComponents { n: &modulus[..], e: &exponent[..] };
                values
                    .number()
                    .and_then(|value| padded(value, modulus.len()))
                    .map(|value| key.verify(algorithm, &signed, &value))
            }
            Material::Ed25519(point) if matches!(signature.algorithm, 22 | 27) => {
                let Some(digest) = signature.hash.strong() else { return false };
                let value =
                    if signature.algorithm == 27 { values.take(64).map(<[u8]>::to_vec) } else { pair(values, 32) };
                value.map(|value| {
                    let digest = digest::digest(digest, &signed);
                    UnparsedPublicKey::new(&sig::ED25519, point).verify(digest.as_ref(), &value)
                })
            }
            Material::P256(point) if signature.algorithm == 19 => {
                let algorithm: &dyn VerificationAlgorithm = match signature.hash {
                    Hash::Sha256 => &sig::ECDSA_P256_SHA256_ASN1,
                    Hash::Sha384 => &sig::ECDSA_P256_SHA384_ASN1,
                    _ => return false,
                };
                der(values).map(|value| UnparsedPublicKey::new(algorithm, point).verify(&signed, &value))
            }
            Material::P384(point) if signature.algorithm == 19 => {
                let algorithm: &dyn VerificationAlgorithm = match signature.hash {
                    Hash::Sha256 => &sig::ECDSA_P384_SHA256_ASN1,
                    Hash::Sha384 => &sig::ECDSA_P384_SHA384_ASN1,
                    _ => return false,
                };
                der(values).map(|value| UnparsedPublicKey::new(algorithm, point).verify(&signed, &value))
            }
            _ => None,
        };
        matches!(verified, Some(Ok(())))
    }
}

fn material(algorithm: u8, reader: &mut Reader<'_>) -> Option<Material> {
    Some(match algorithm {
        1 | 3 => {
            let (modulus, exponent) = (reader.number()?.to_vec(), reader.number()?.to_vec());
            Material::Rsa { modulus, exponent }
        }
        27 => Material::Ed25519(reader.take(32)?.to_vec()),
        19 | 22 => {
            let length = usize::from(reader.byte()?);
            let curve = reader.take(length)?;
            let point = reader.number()?;
            match (algorithm, curve) {
                // a point in its own form has 0x40 in front
                (22, ED25519) if point.len() == 33 && point[0] == 0x40 => Material::Ed25519(point[1..].to_vec()),
                (19, P256) => Material::P256(point.to_vec()),
                (19, P384) => Material::P384(point.to_vec()),
                _ => Material::Other(algorithm),
            }
        }
        other => Material::Other(other),
    })
}

/// With zeros in front, as long as wanted.
fn padded(value: &[u8], length: usize) -> Option<Vec<u8>> {
    let mut padded = vec![0; length.checked_sub(value.len())?];
    padded.extend_from_slice(value);
    Some(padded)
}

/// Two numbers of the same length.
fn pair(mut values: Reader<'_>, length: usize) -> Option<Vec<u8>> {
    let mut both = padded(values.number()?, length)?;
    both.extend(padded(values.number()?, length)?);
    Some(both)
}

/// Two numbers as ASN.1.
fn der(mut values: Reader<'_>) -> Option<Vec<u8>> {
    let mut both = Vec::new();
    for _ in 0..2 {
        let value = values.number()?;
        // a number whose first bit is set would be negative; none at all is zero
        let zero = value.first().is_none_or(|first| first & 0x80 != 0);
        both.extend([0x02, u8::try_from(value.len() + usize::from(zero)).ok()?]);
        both.extend(zero.then_some(0));
        both.extend_from_slice(value);
    }
    let length = u8::try_from(both.len()).ok().filter(|length| *length < 0x80)?;
    Some([&[0x30, length], &both[..]].concat())
}
