//! Kinds of errors.

/// The kind of an error: what callers decide on and what the CRI maps to its codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorCode {
    /// The registry does not have it, or no such image is here.
    NotFound,
    /// The reference cannot be parsed.
    InvalidReference,
    /// The registry wants other credentials.
    Unauthorized,
    /// The registry cannot be reached or fails.
    RegistryUnavailable,
    /// What came is not what was promised.
    DigestMismatch,
    /// The image exists, for other machines.
    NoMatchingPlatform,
    /// What the registry serves is not an image that we can use.
    InvalidImage,
    /// A container uses it.
    InUse,
    /// The node: its disk, or files of its configuration that cannot be used.
    Disk,
    /// The configuration forbids it.
    Blocked,
    /// The policy wants a signature that is not there.
    Untrusted,
    /// The daemon is stopping.
    ShuttingDown,
}
