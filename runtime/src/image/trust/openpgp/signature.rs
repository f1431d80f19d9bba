//! Signatures: of documents, and of what keys say about themselves.

use ring::digest;

use super::packet::Reader;

pub(super) const BINARY: u8 = 0x00;
pub(super) const TEXT: u8 = 0x01;
pub(super) const SUBKEY: u8 = 0x18;
pub(super) const BY_SUBKEY: u8 = 0x19;
pub(super) const DIRECT: u8 = 0x1f;
pub(super) const KEY_REVOCATION: u8 = 0x20;
pub(super) const SUBKEY_REVOCATION: u8 = 0x28;

const MAY_SIGN: u8 = 2;

/// A digest that a signature is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hash {
    Sha1,
    Sha256,
    Sha384,
    Sha512,
    Other(u8),
}

impl Hash {
    fn of(number: u8) -> Hash {
        match number {
            2 => Hash::Sha1,
            8 => Hash::Sha256,
            9 => Hash::Sha384,
            10 => Hash::Sha512,
            other => Hash::Other(other),
        }
    }

    /// Unless it is broken or unknown.
    pub(super) fn strong(self) -> Option<&'static digest::Algorithm> {
        match self {
            Hash::Sha256 => Some(&digest::SHA256),
            Hash::Sha384 => Some(&digest::SHA384),
            Hash::Sha512 => Some(&digest::SHA512),
            Hash::Sha1 | Hash::Other(_) => None,
        }
    }
}

/// One signature, not checked yet.
#[derive(Debug, Clone)]
pub(super) struct Signature {
    pub kind: u8,
    pub algorithm: u8,
    pub hash: Hash,
    /// What is hashed of itself, after what it signs.
    pub trailer: Vec<u8>,
    /// The numbers that the algorithm made.
    pub values: Vec<u8>,
    /// All that follows is from the part that is signed, too.
    pub created: Option<u64>,
    expires_after: u64,
    /// How long a key is good that says this about itself, from its creation; 0 for ever.
    pub key_expires_after: u64,
    flags: Option<u8>,
    /// A critical part that we do not know.
    odd: bool,
    /// The subkey's own signature in one that makes it a subkey. It speaks for itself, wherever it stands.
    pub embedded: Option<Box<Signature>>,
}

impl Signature {
    /// Reads the body of a signature's packet.
    pub(super) fn parse(body: &[u8]) -> Result<Signature, String> {
        Signature::parse_at(body, true)
    }

    fn parse_at(body: &[u8], outermost: bool) -> Result<Signature, String> {
        let cut = || "a signature is cut off".to_owned();
        let mut reader = Reader(body);
        match reader.byte().ok_or_else(cut)? {
            4 => {}
            version => return Err(format!("a signature of version {version}, where only 4 is known")),
        }
        let head = reader.take(3).ok_or_else(cut)?;
        let length = usize::from(reader.u16().ok_or_else(cut)?);
        let hashed = reader.take(length).ok_or_else(cut)?;
        let mut trailer = body[..6 + length].to_vec();
        trailer.extend([4, 0xff]);
        // at most 6 bytes and what a 16 bit number counts
        trailer.extend(u32::try_from(6 + length).unwrap_or(u32::MAX).to_be_bytes());
        let length = usize::from(reader.u16().ok_or_else(cut)?);
        let unhashed = reader.take(length).ok_or_else(cut)?;
        // the first bits of the digest, a hint that we do not need
        reader.u16().ok_or_else(cut)?;
        let mut signature = Signature {
            kind: head[0],
            algorithm: head[1],
            hash: Hash::of(head[2]),
            trailer,
            values: reader.0.to_vec(),
            created: None,
            expires_after: 0,
            key_expires_after: 0,
            flags: None,
            odd: false,
            embedded: None,
        };
        signature.parts(hashed, true, outermost).ok_or_else(cut)?;
        signature.parts(unhashed, false, outermost).ok_or_else(cut)?;
        Ok(signature)
    }

    fn parts(&mut self, bytes: &[u8], hashed: bool, outermost: bool) -> Option<()> {
        let mut reader = Reader(bytes);
        while !reader.0.is_empty() {
            let first = reader.byte()?;
            let length = reader.length_after(first)?;
            let mut part = Reader(reader.take(length)?);
            let kind = part.byte()?;
            match (kind & 0x7f, hashed) {
                (2, true) => self.created = Some(u64::from(part.u32()?)),
                (3, true) => self.expires_after = u64::from(part.u32()?),
                (9, true) => self.key_expires_after = u64::from(part.u32()?),
                (27, true) => self.flags = Some(part.byte().unwrap_or(0)),
                (32, _) if outermost => {
                    // one of another version makes nothing a subkey
                    self.embedded = Signature::parse_at(part.0, false).ok().map(Box::new).or(self.embedded.take());
                }
                // who made it, and what is good to know
                (4..=7 | 11 | 12 | 16 | 21..=26 | 28..=35 | 39, _) => {}
                (_, true) => self.odd |= kind & 0x80 != 0,
                (_, false) => {}
            }
        }
        Some(())
    }

    /// Whether the key that it is about may sign documents; one that does not say may.
    pub(super) fn lets_sign(&self) -> bool {
        self.flags.is_none_or(|flags| flags & MAY_SIGN != 0)
    }

    /// Whether the subkey that it is about was made for signing documents.
    pub(super) fn is_for_signing(&self) -> bool {
        self.flags.is_some_and(|flags| flags & MAY_SIGN != 0)
    }

    /// Whether all of it that has to be understood is.
    pub(super) fn understood(&self) -> bool {
        !self.odd && self.created.is_some()
    }

    /// Whether its own time is over.
    pub(super) fn has_expired(&self, now: u64) -> bool {
        self.expires_after != 0 && self.created.unwrap_or(0).saturating_add(self.expires_after) <= now
    }

    /// Whether a genuine signature of a document still counts.
    pub(super) fn still_counts(&self, now: u64) -> Result<(), String> {
        let no = |why: &str| Err(why.to_owned());
        if !matches!(self.kind, BINARY | TEXT) {
            return no("it signs something other than a document");
        }
        if self.hash.strong().is_none() {
            return no("it uses a broken digest");
        }
        if self.odd {
            return no("it has a critical part that is not understood");
        }
        if self.created.is_none() {
            return no("it does not say when it was made");
        }
        if self.has_expired(now) {
            return no("it has expired");
        }
        Ok(())
    }
}
