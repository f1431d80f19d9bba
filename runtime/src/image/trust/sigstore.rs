//! Sigstore signatures by public keys: attached to an image in its own repository, under a tag made of its digest.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::signature::{self, UnparsedPublicKey, VerificationAlgorithm};
use rustls_pki_types::SubjectPublicKeyInfoDer;
use rustls_pki_types::pem::PemObject as _;
use serde::Deserialize;

use super::payload::{self, Payload};
use super::policy::KeySource;
use super::{MAX_SIGNATURE, MAX_SIGNATURES, TrustError};
use crate::content::Digest;
use crate::image::registry::Session;

const PAYLOAD_TYPE: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
const SIGNATURE: &str = "dev.cosignproject.cosign/signature";

/// A payload and the signature of it.
#[derive(Debug)]
pub(super) struct Signed {
    payload: Vec<u8>,
    signature: String,
}

/// Public keys that may sign.
pub(super) struct Keys(Vec<Key>);

struct Key {
    algorithm: &'static dyn VerificationAlgorithm,
    /// In the form that the algorithm wants.
    bytes: Vec<u8>,
}

impl Keys {
    pub(super) fn load(sources: &[KeySource]) -> Result<Keys, TrustError> {
        let mut keys = Vec::new();
        for source in sources {
            let wrong = |what: &str| TrustError::Key { key: source.name(), what: what.to_owned() };
            let bytes = source.bytes()?;
            let before = keys.len();
            for key in SubjectPublicKeyInfoDer::pem_slice_iter(&bytes) {
                let der = key.map_err(|_| wrong("is not PEM of a public key"))?;
                keys.push(spki(&der).ok_or_else(|| wrong("is neither ECDSA P-256, P-384, Ed25519 nor RSA"))?);
            }
            if keys.len() == before {
                return Err(wrong("has no PEM block PUBLIC KEY"));
            }
        }
        Ok(Keys(keys))
    }

    /// The payload, when one of the keys signed it.
    pub(super) fn verify(&self, signed: &Signed) -> Result<Payload, String> {
        let signature = STANDARD.decode(signed.signature.trim()).map_err(|_| "it is not base64".to_owned())?;
        let genuine = self
            .0
            .iter()
            .any(|key| UnparsedPublicKey::new(key.algorithm, &key.bytes).verify(&signed.payload, &signature).is_ok());
        if !genuine {
            return Err("it is by another key".to_owned());
        }
        payload::parse(&signed.payload, payload::SIGSTORE)
    }
}

/// Takes a SubjectPublicKeyInfo apart: SEQUENCE { SEQUENCE { OID, parameters }, BIT STRING }.
fn spki(der: &[u8]) -> Option<Key> {
    const EC: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
    const P256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
    const P384: &[u8] = &[0x2b, 0x81, 0x04, 0x00, 0x22];
    const ED25519: &[u8] = &[0x2b, 0x65, 0x70];
    const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
    let (outer, rest) = element(der, 0x30)?;
    let (algorithm, after) = element(outer, 0x30)?;
    let (bits, end) = element(after, 0x03)?;
    let (oid, parameters) = element(algorithm, 0x06)?;
    // the first byte of a bit string counts unused bits, of which a key has none
    let key = bits.strip_prefix(&[0])?;
    if !rest.is_empty() || !end.is_empty() {
        return None;
    }
    let algorithm: &'static dyn VerificationAlgorithm = match oid {
        EC => match element(parameters, 0x06)?.0 {
            P256 => &signature::ECDSA_P256_SHA256_ASN1,
            P384 => &signature::ECDSA_P384_SHA384_ASN1,
            _ => return None,
        },
        ED25519 => &signature::ED25519,
        RSA => &signature::RSA_PKCS1_2048_8192_SHA256,
        _ => return None,
    };
    Some(Key { algorithm, bytes: key.to_vec() })
}

/// One DER element of the given tag: its content, and what follows.
fn element(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&found, rest) = der.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81 => (usize::from(*rest.first()?), rest.get(1..)?),
        0x82 => (usize::from(u16::from_be_bytes(rest.get(..2)?.try_into().ok()?)), rest.get(2..)?),
        _ => return None,
    };
    (found == tag).then_some(())?;
    rest.split_at_checked(length)
}

/// All signatures that lie beside the manifests.
pub(super) async fn attached(session: &Session, manifests: &[Digest]) -> Result<Vec<Signed>, TrustError> {
    #[derive(Deserialize)]
    struct Manifest {
        #[serde(default)]
        layers: Vec<Layer>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Layer {
        #[serde(default)]
        media_type: String,
        digest: Digest,
        size: u64,
        #[serde(default)]
        annotations: std::collections::HashMap<String, String>,
    }
    let fetch = |error| TrustError::Fetch(Box::new(error));
    let mut found = Vec::new();
    for digest in manifests {
        let tag = format!("sha256-{}.sig", digest.hex());
        let Some(bytes) = session.tagged(&tag).await.map_err(fetch)? else { continue };
        // whoever can write there may write anything: what cannot be read is no signature
        let Ok(manifest) = serde_json::from_slice::<Manifest>(&bytes) else { continue };
        for mut layer in manifest.layers.into_iter().take(MAX_SIGNATURES) {
            let Some(signature) = layer.annotations.remove(SIGNATURE) else { continue };
            if layer.media_type != PAYLOAD_TYPE || layer.size > MAX_SIGNATURE {
                continue;
            }
            let payload = session.small_blob(layer.digest, layer.size).await.map_err(fetch)?;
            found.push(Signed { payload, signature });
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use ring::rand::SystemRandom;
    use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _};

    use super::*;

    fn pem(prefix: &[u8], key: &[u8]) -> KeySource {
        let der = [prefix, key].concat();
        let text = format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(der));
        KeySource::Inline(text.into_bytes())
    }

    fn payload() -> (Digest, Vec<u8>) {
        let digest = Digest::of(b"manifest");
        let text = format!(
            r#"{{"critical":{{"identity":{{"docker-reference":"r.example/a"}},"image":{{"docker-manifest-digest":"{digest}"}},"type":"{}"}},"optional":null}}"#,
            payload::SIGSTORE
        );
        (digest, text.into_bytes())
    }

    #[test]
    fn a_signature_counts_when_one_of_the_keys_made_it() {
        const P256_PREFIX: &[u8] = &[
            0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48,
            0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
        ];
        const ED_PREFIX: &[u8] = &[0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
        let random = SystemRandom::new();
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random).unwrap();
        let ec = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8.as_ref(), &random).unwrap();
        let ed = Ed25519KeyPair::from_pkcs8(Ed25519KeyPair::generate_pkcs8(&random).unwrap().as_ref()).unwrap();
        let (digest, payload) = payload();
        let both = Keys::load(&[pem(P256_PREFIX, ec.public_key().as_ref()), pem(ED_PREFIX, ed.public_key().as_ref())]);
        let both = both.unwrap();
        let sign = |signature: &[u8]| Signed { payload: payload.clone(), signature: STANDARD.encode(signature) };
        let by_ec = sign(ec.sign(&random, &payload).unwrap().as_ref());
        let by_ed = sign(ed.sign(&payload).as_ref());
        for signed in [&by_ec, &by_ed] {
            assert_eq!(both.verify(signed).unwrap(), Payload { digest, reference: "r.example/a".into() });
        }
        let only_ed = Keys::load(&[pem(ED_PREFIX, ed.public_key().as_ref())]).unwrap();
        assert_eq!(only_ed.verify(&by_ec).unwrap_err(), "it is by another key");
        let mut altered = by_ed;
        altered.payload[40] ^= 1;
        assert!(both.verify(&altered).is_err());
    }

    #[test]
    fn a_file_that_is_no_public_key_is_named() {
        for bytes in [&b"nothing"[..], b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"] {
            let error = Keys::load(&[KeySource::Inline(bytes.to_vec())]).err().unwrap();
            assert!(matches!(error, TrustError::Key { .. }), "{error}");
        }
    }
}
