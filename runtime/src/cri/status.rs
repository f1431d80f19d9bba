//! The only place where errors of the domain become gRPC codes.
//!
//! Kubelet relies on `NotFound` and `Unimplemented`, on `DeadlineExceeded` from `ExecSync`, and on the beginning of
//! some texts (`RegistryUnavailable`, `SignatureValidationFailed`, `RROUnsupported`), which is why texts begin with the innermost meaning.

use tonic::{Code, Status};

use crate::cgroup::CgroupError;
use crate::container::apparmor::ProfileError;
use crate::container::{ContainerError, SpecError};
use crate::image::{ErrorCode, ImageError};
use crate::sandbox::{PodError, ShimError};
use crate::selinux::RelabelError;
use crate::telemetry::chain;

/// An answer for what this runtime does not offer; kubelet and crictl step over it.
pub(super) fn unimplemented(what: &str) -> Status {
    Status::unimplemented(format!("{what} is not offered by this runtime"))
}

/// A request without a message it must have.
pub(super) fn missing(field: &str) -> Status {
    Status::invalid_argument(format!("{field} is missing"))
}

pub(super) fn pod(error: PodError) -> Status {
    Status::new(pod_code(&error), chain(&error))
}

pub(super) fn container(error: ContainerError) -> Status {
    Status::new(container_code(&error), chain(&error))
}

pub(super) fn image(error: ImageError) -> Status {
    let text = chain(&error);
    match error.code() {
        // kubelet looks at the beginning of the text, after stripping the code, which it does for `Unknown` only
        ErrorCode::RegistryUnavailable => Status::unknown(format!("RegistryUnavailable: {text}")),
        ErrorCode::Untrusted => Status::unknown(format!("SignatureValidationFailed: {text}")),
        _ => Status::new(image_code(&error), text),
    }
}

fn pod_code(error: &PodError) -> Code {
    match error {
        PodError::NotFound { .. } => Code::NotFound,
        PodError::Invalid(_) | PodError::Handler { .. } => Code::InvalidArgument,
        PodError::NotReady { .. } | PodError::Busy { .. } => Code::FailedPrecondition,
        PodError::Cgroup { source, .. } => cgroup_code(source),
        PodError::Shim { source, .. } => shim_code(source),
        PodError::Network { .. } | PodError::Stopping => Code::Unavailable,
        PodError::Container { source, .. } => container_code(source),
        PodError::Shared(shared) => pod_code(shared),
        PodError::Id(_)
        | PodError::Record { .. }
        | PodError::File { .. }
        | PodError::First { .. }
        | PodError::Label { .. }
        | PodError::Runtime { .. }
        | PodError::Netns { .. } => Code::Internal,
    }
}

fn container_code(error: &ContainerError) -> Code {
    match error {
        ContainerError::NotFound { .. } | ContainerError::NoImage { .. } => Code::NotFound,
        ContainerError::WrongPhase { .. } | ContainerError::NoHooks { .. } => Code::FailedPrecondition,
        ContainerError::Invalid(_) => Code::InvalidArgument,
        ContainerError::Pod(source) => pod_code(source),
        ContainerError::Spec(source) => spec_code(source),
        ContainerError::Rootfs { source, .. } => image_code(source),
        ContainerError::Cgroup { source, .. } => cgroup_code(source),
        ContainerError::Shim { source, .. } => shim_code(source),
        ContainerError::ExecTimeout { .. } => Code::DeadlineExceeded,
        ContainerError::Shared(shared) => container_code(shared),
        ContainerError::Stopping => Code::Unavailable,
        ContainerError::Id(_)
        | ContainerError::Runtime { .. }
        | ContainerError::Hook { .. }
        | ContainerError::Directory { .. }
        | ContainerError::Record { .. }
        | ContainerError::Unkillable { .. } => Code::Internal,
    }
}

fn spec_code(error: &SpecError) -> Code {
    match error {
        SpecError::ImageFile { .. } | SpecError::Source { .. } => Code::Internal,
        SpecError::Label(RelabelError::File { .. }) | SpecError::AppArmor(ProfileError::Load(_)) => Code::Internal,
        SpecError::Invalid(_)
        | SpecError::Label(_)
        | SpecError::Handler(_)
        | SpecError::Seccomp(_)
        | SpecError::AppArmor(_)
        | SpecError::RecursiveReadOnly(_)
        | SpecError::ImageVolume(_)
        | SpecError::Cdi(_)
        | SpecError::NoCommand
        | SpecError::Capability(_)
        | SpecError::Unknown { .. }
        | SpecError::Device { .. } => Code::InvalidArgument,
    }
}

fn cgroup_code(error: &CgroupError) -> Code {
    match error {
        CgroupError::Parent { .. } | CgroupError::Limit { .. } => Code::InvalidArgument,
        CgroupError::SystemdSilent { .. } => Code::Unavailable,
        // the kernel's word for a value it does not like
        CgroupError::Write { source, .. } if source.kind() == std::io::ErrorKind::InvalidInput => Code::InvalidArgument,
        _ => Code::Internal,
    }
}

fn shim_code(error: &ShimError) -> Code {
    match error {
        ShimError::Silent(_) | ShimError::Gone => Code::Unavailable,
        _ => Code::Internal,
    }
}

fn image_code(error: &ImageError) -> Code {
    match error.code() {
        ErrorCode::NotFound => Code::NotFound,
        ErrorCode::InvalidReference => Code::InvalidArgument,
        ErrorCode::Unauthorized => Code::Unauthenticated,
        ErrorCode::RegistryUnavailable | ErrorCode::Untrusted => Code::Unknown,
        ErrorCode::DigestMismatch => Code::DataLoss,
        ErrorCode::InUse | ErrorCode::NoMatchingPlatform | ErrorCode::InvalidImage => Code::FailedPrecondition,
        ErrorCode::Blocked => Code::PermissionDenied,
        ErrorCode::Disk => Code::Internal,
        ErrorCode::ShuttingDown => Code::Unavailable,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn what_kubelet_relies_on_has_its_code() {
        let unknown = ContainerError::NotFound { id: "x".into() };
        assert_eq!(container(unknown).code(), Code::NotFound);
        assert_eq!(container(ContainerError::NoImage { image: "x".into() }).code(), Code::NotFound);
        assert_eq!(
            container(ContainerError::ExecTimeout { id: "x".into(), seconds: 1 }).code(),
            Code::DeadlineExceeded
        );
        let refused = container(SpecError::RecursiveReadOnly("no".into()).into());
        assert_eq!((refused.code(), refused.message()), (Code::InvalidArgument, "RROUnsupported: no"));
    }

    #[test]
    fn an_error_shared_by_several_callers_keeps_its_code() {
        let shared = PodError::Shared(Arc::new(PodError::NotFound { id: "x".into() }));
        assert_eq!(pod(shared).code(), Code::NotFound);
        let shared = ContainerError::Shared(Arc::new(PodError::NotReady { id: "x".into() }.into()));
        assert_eq!(container(shared).code(), Code::FailedPrecondition);
    }
}
