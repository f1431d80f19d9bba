//! Which seccomp filter a container gets.

/// What `RuntimeDefault` means at present, as `Status` tells it: until profiles are compiled, a container that asks for
/// one runs without, and the log says so.
pub const RUNTIME_DEFAULT: &str = "unconfined";
