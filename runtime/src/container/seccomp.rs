//! Which seccomp filter a container gets.

use std::sync::Once;

use nodeagent_cri_api::LinuxContainerSecurityContext;
use nodeagent_cri_api::security_profile::ProfileType;

/// What `RuntimeDefault` means at present, as `Status` tells it: until profiles are compiled, a container that asks for
/// one runs without, and the log says so.
pub const RUNTIME_DEFAULT: &str = "unconfined";

/// What a container asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Profile {
    /// No filter.
    Unconfined,
    /// The runtime's own.
    RuntimeDefault,
}

/// Reads the new field, else the old one. A profile of the host is refused: running without it would be a lie.
pub fn choose(context: &LinuxContainerSecurityContext) -> Result<Profile, String> {
    let profile = match (&context.seccomp, context.seccomp_profile_path.as_str()) {
        (Some(profile), _) => match profile.profile_type() {
            ProfileType::Unconfined => Profile::Unconfined,
            ProfileType::RuntimeDefault => Profile::RuntimeDefault,
            ProfileType::Localhost => return Err(refusal(&profile.localhost_ref)),
        },
        (None, "" | "unconfined") => Profile::Unconfined,
        (None, "runtime/default" | "docker/default") => Profile::RuntimeDefault,
        (None, named) => return Err(refusal(named.strip_prefix("localhost/").unwrap_or(named))),
    };
    if profile == Profile::RuntimeDefault {
        warn_once();
    }
    Ok(profile)
}

fn refusal(name: &str) -> String {
    format!("seccomp profile `{name}` of the host: profiles are not compiled by this version")
}

fn warn_once() {
    static WARNED: Once = Once::new();
    WARNED.call_once(|| log::warn!("seccomp RuntimeDefault: containers run without a filter in this version"));
}

#[cfg(test)]
mod tests {
    use nodeagent_cri_api::SecurityProfile;

    use super::*;

    fn new(kind: ProfileType) -> LinuxContainerSecurityContext {
        let seccomp = SecurityProfile { profile_type: kind.into(), localhost_ref: "/p.json".into() };
        LinuxContainerSecurityContext { seccomp: Some(seccomp), ..Default::default() }
    }

    fn old(path: &str) -> LinuxContainerSecurityContext {
        LinuxContainerSecurityContext { seccomp_profile_path: path.to_owned(), ..Default::default() }
    }

    #[test]
    fn both_ways_of_asking_are_understood() {
        assert_eq!(choose(&new(ProfileType::Unconfined)), Ok(Profile::Unconfined));
        assert_eq!(choose(&new(ProfileType::RuntimeDefault)), Ok(Profile::RuntimeDefault));
        assert_eq!(choose(&LinuxContainerSecurityContext::default()), Ok(Profile::Unconfined));
        assert_eq!(choose(&old("runtime/default")), Ok(Profile::RuntimeDefault));
        assert_eq!(choose(&old("unconfined")), Ok(Profile::Unconfined));
    }

    #[test]
    fn a_profile_that_would_be_missing_is_refused() {
        assert!(choose(&new(ProfileType::Localhost)).unwrap_err().contains("/p.json"));
        assert!(choose(&old("localhost/web")).unwrap_err().contains("`web`"));
    }
}
