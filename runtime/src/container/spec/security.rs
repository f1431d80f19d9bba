//! What a container may do: checks of what is asked for, and what this runtime cannot give.

use nodeagent_cri_api::{LinuxContainerSecurityContext, NamespaceMode};

use super::SpecError;
use crate::container::capabilities::Request;
use crate::sandbox::{SandboxRecord, id_maps};

/// Refuses what contradicts itself or the pod, and what would silently be less safe than asked.
pub(super) fn check(context: &LinuxContainerSecurityContext, pod: &SandboxRecord) -> Result<(), SpecError> {
    let invalid = |message: &str| Err(SpecError::Invalid(message.to_owned()));
    let options = context.namespace_options.clone().unwrap_or_default();
    let asked = id_maps(options.userns_options.as_ref()).map_err(SpecError::Invalid)?;
    if asked.is_some() && asked != pod.id_maps() {
        return invalid("the container asks for another user namespace than its pod has");
    }
    if options.pid() == NamespaceMode::Pod && pod.namespaces().pid() != NamespaceMode::Pod {
        return invalid("the container shares the pod's PID namespace, and the pod has none to share");
    }
    Ok(())
}

pub(super) fn requested(context: &LinuxContainerSecurityContext) -> Request<'_> {
    let capabilities = context.capabilities.as_ref();
    Request {
        privileged: context.privileged,
        add: capabilities.map_or(&[], |asked| &asked.add_capabilities),
        drop: capabilities.map_or(&[], |asked| &asked.drop_capabilities),
        ambient: capabilities.map_or(&[], |asked| &asked.add_ambient_capabilities),
    }
}
