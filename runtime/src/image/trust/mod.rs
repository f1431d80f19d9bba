//! Who may have made an image: `policy.json` of containers tools, enforced before anything of an image is used.
//!
//! `policy` says which requirements apply, `lookaside` where signatures are, `openpgp` and `sigstore` whether one is
//! genuine, `payload` what it says, `identity` whether that is about the image that was asked for. A policy that we
//! cannot enforce in full is an error, never a pass.

mod error;
mod identity;
mod lookaside;
mod openpgp;
mod payload;
mod policy;
mod sigstore;

pub use error::TrustError;

use std::path::Path;

use super::config::TrustConfig;
use super::reference::Reference;
use super::registry::Session;
use crate::content::Digest;
use identity::Identity;
use lookaside::Lookaside;
use payload::Payload;
use policy::{Policy, Requirement};

/// Most signatures of one image that are looked at.
const MAX_SIGNATURES: usize = 32;
const MAX_SIGNATURE: u64 = 4 << 20;

/// What applies to one reference.
#[derive(Debug)]
pub(crate) struct Applied {
    requirements: Vec<Requirement>,
    /// Which part of the policy this is.
    pub scope: String,
    lookaside: Lookaside,
}

/// Reads the policy for an image from a registry. Reads files.
pub(crate) fn for_reference(config: &TrustConfig, reference: &Reference) -> Result<Option<Applied>, TrustError> {
    let Some(policy) = read(config)? else { return Ok(None) };
    let (scope, requirements) = policy.for_docker(reference);
    let needs_signatures = requirements.iter().any(Requirement::needs_signatures);
    let lookaside = match &config.registries_d {
        Some(directory) if needs_signatures => lookaside::load(directory, reference)?,
        _ => Lookaside::default(),
    };
    Ok(Some(Applied { requirements: requirements.to_vec(), scope, lookaside }))
}

/// Whether an archive may be imported. Archives carry no signatures, so only blanket rules can let them in.
pub(crate) fn check_archive(config: &TrustConfig, transport: &str) -> Result<(), TrustError> {
    let Some(policy) = read(config)? else { return Ok(()) };
    let (scope, requirements) = policy.for_transport(transport);
    for requirement in requirements {
        match requirement {
            Requirement::Accept => {}
            Requirement::Reject => return Err(TrustError::Rejected { scope }),
            _ => return Err(TrustError::Unsigned { scope, tried: format!("{transport} carries no signatures") }),
        }
    }
    Ok(())
}

fn read(config: &TrustConfig) -> Result<Option<Policy>, TrustError> {
    config.policy.as_deref().map_or(Ok(None), policy::load)
}

impl Applied {
    /// A line for people.
    pub(crate) fn describe(&self) -> String {
        self.requirements.iter().map(Requirement::describe).collect::<Vec<_>>().join(" and ")
    }

    /// Checks an image by its manifests: what the registry gave for the reference, and the one of an index that was
    /// chosen. A signature of either will do, because the first names the second by digest.
    pub(crate) async fn enforce(
        &self,
        session: &Session,
        reference: &Reference,
        manifests: &[Digest],
    ) -> Result<(), TrustError> {
        for requirement in &self.requirements {
            match requirement {
                Requirement::Accept => {}
                Requirement::Reject => return Err(TrustError::Rejected { scope: self.scope.clone() }),
                Requirement::SignedBy { keys, identity } => {
                    let keyring = openpgp::Keyring::load(keys)?;
                    let found = lookaside::signatures(&self.lookaside, session, reference, manifests).await?;
                    let places = self.lookaside.places();
                    self.one_of(&found, reference, manifests, identity, &places, |blob| keyring.open(blob))?;
                }
                Requirement::SigstoreSigned { keys, identity } => {
                    let keys = sigstore::Keys::load(keys)?;
                    if !self.lookaside.attachments {
                        return Err(TrustError::Unsigned {
                            scope: self.scope.clone(),
                            tried: "registries.d does not say use-sigstore-attachments: true".to_owned(),
                        });
                    }
                    let found = sigstore::attached(session, manifests).await?;
                    self.one_of(&found, reference, manifests, identity, "sigstore attachments", |signed| {
                        keys.verify(signed)
                    })?;
                }
            }
        }
        Ok(())
    }

    /// One genuine signature about this image is enough; if there is none, the reasons of all are told.
    fn one_of<S>(
        &self,
        signatures: &[S],
        reference: &Reference,
        manifests: &[Digest],
        identity: &Identity,
        places: &str,
        verify: impl Fn(&S) -> Result<Payload, String>,
    ) -> Result<(), TrustError> {
        let mut reasons = Vec::new();
        for signature in signatures {
            let checked = verify(signature).and_then(|payload| {
                if !manifests.contains(&payload.digest) {
                    return Err(format!("it is about {}", payload.digest));
                }
                identity.accepts(&payload.reference, reference)
            });
            match checked {
                Ok(()) => return Ok(()),
                Err(reason) => reasons.push(reason),
            }
        }
        let scope = self.scope.clone();
        if reasons.is_empty() {
            return Err(TrustError::Unsigned { scope, tried: format!("none found in {places}") });
        }
        reasons.dedup();
        Err(TrustError::Unsigned { scope, tried: reasons.join("; ") })
    }
}

/// Reads a key file, bounded.
fn key_file(path: &Path) -> Result<Vec<u8>, TrustError> {
    use std::io::Read as _;
    let fail = |source| TrustError::Read { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    std::fs::File::open(path).map_err(fail)?.take(1 << 20).read_to_end(&mut bytes).map_err(fail)?;
    Ok(bytes)
}

/// Reads certificates and signed messages.
#[cfg(feature = "fuzzing")]
pub(crate) fn fuzz_openpgp(bytes: &[u8]) {
    openpgp::fuzz(bytes);
}

/// Parses a policy, looks for what applies, and parses what signatures are about.
#[cfg(feature = "fuzzing")]
pub(crate) fn fuzz_policy(text: &str) {
    if let Ok(policy) = policy::parse(text, Path::new("/fuzz"))
        && let Ok(reference) = Reference::parse("a.example:5000/team/app:1")
    {
        let _ = policy.for_docker(&reference);
    }
    let _ = (payload::parse(text.as_bytes(), payload::SIMPLE), payload::parse(text.as_bytes(), payload::SIGSTORE));
}
