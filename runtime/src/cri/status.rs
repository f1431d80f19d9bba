//! The only place where errors of the domain become gRPC codes.

use tonic::Status;

/// An answer for what this runtime does not offer (yet); kubelet and crictl step over it.
pub(super) fn unimplemented(what: &str) -> Status {
    Status::unimplemented(format!("{what} is not offered by this runtime"))
}
