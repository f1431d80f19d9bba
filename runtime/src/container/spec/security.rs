//! What a container may do: checks of what is asked for, and what this runtime cannot give.

use nodeagent_cri_api::security_profile::ProfileType;
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

/// The profile by name. A host without AppArmor ignores `RuntimeDefault`, which means "if there is one", and refuses a
/// profile asked for by name.
pub(super) fn apparmor(context: &LinuxContainerSecurityContext) -> Result<Option<String>, SpecError> {
    let named = match (&context.apparmor, context.apparmor_profile.as_str()) {
        (Some(profile), _) if profile.profile_type() == ProfileType::Localhost => profile.localhost_ref.as_str(),
        (Some(_), _) => return Ok(None),
        (None, old) => old.strip_prefix("localhost/").unwrap_or_default(),
    };
    if named.is_empty() || context.privileged {
        return Ok(None);
    }
    let enabled = std::fs::read_to_string("/sys/module/apparmor/parameters/enabled").unwrap_or_default();
    if enabled.trim() != "Y" {
        return Err(SpecError::Invalid(format!("AppArmor profile `{named}`: this host has no AppArmor")));
    }
    Ok(Some(named.to_owned()))
}
