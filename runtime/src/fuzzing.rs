//! What the fuzz targets run (see `fuzz/README.md`): every parser of bytes from outside, and what must hold for what
//! it accepts. Compiled for fuzzing only.
#![allow(clippy::panic, reason = "a panic is how a fuzz target reports what it found")]

use std::path::Path;

use crate::image;
use crate::snapshot;

/// Image references: what is accepted means the same when it is written down and read again.
pub fn reference(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(reference) = image::Reference::parse(text) else { return };
    let again = image::Reference::parse(&reference.to_string());
    assert_eq!(again.as_ref(), Ok(&reference), "{text:?}");
    let stored = image::Reference::parse(&reference.stored_name());
    assert!(stored.is_ok_and(|stored| stored.stored_name() == reference.stored_name()), "{text:?}");
}

/// Manifests, indexes and configs.
pub fn manifest(bytes: &[u8]) {
    image::fuzz_manifest(bytes);
}

/// A layer's archive, entry by entry. No more data comes out than the archive has.
pub fn archive(bytes: &[u8]) {
    snapshot::fuzzing::archive(bytes);
}

/// Layers unpacked to disk, one on the other: nothing gets out, and the archive can be made again. Needs root and
/// `/dev/shm`.
pub fn unpack(bytes: &[u8]) {
    snapshot::fuzzing::unpack(bytes);
}

/// `auth.json` and what credential helpers answer, `policy.json`, and challenges of registries.
pub fn settings(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    image::fuzz_settings(text);
}

/// `registries.conf` and `hosts.toml`.
pub fn registries(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    image::fuzz_registries(text, Path::new("/fuzz"));
}

/// OpenPGP certificates and signed messages.
pub fn openpgp(bytes: &[u8]) {
    image::fuzz_openpgp(bytes);
}
