//! Which seccomp filter a container gets.

use std::io::Read;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use nodeagent_cri_api::LinuxContainerSecurityContext;
use nodeagent_cri_api::security_profile::ProfileType;
use thiserror::Error;

use crate::seccomp::profile::MAX_BYTES;
use crate::seccomp::{DEFAULT_PROFILE, Filters, SeccompError};

/// Why a container cannot have the filter it asks for. Running it without would be a lie.
#[derive(Debug, Error)]
pub enum FilterError {
    /// A profile is named by its absolute path on the host.
    #[error("seccomp profile `{0}`: want an absolute path on the host")]
    Name(String),
    /// The file is missing or unreadable.
    #[error("read seccomp profile {path}")]
    Read {
        /// The profile.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is larger than any profile.
    #[error("seccomp profile {path} is larger than {MAX_BYTES} bytes")]
    TooLarge {
        /// The profile.
        path: PathBuf,
    },
    /// It is no usable profile.
    #[error("seccomp profile {profile}")]
    Profile {
        /// Which.
        profile: String,
        /// Why.
        #[source]
        source: SeccompError,
    },
}

/// What a container asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Profile {
    /// No filter.
    Unconfined,
    /// The runtime's own.
    RuntimeDefault,
    /// A file of the host.
    Localhost(PathBuf),
}

/// Reads the new field, else the old one, which older kubelets still fill.
pub fn choose(context: &LinuxContainerSecurityContext) -> Result<Profile, FilterError> {
    // a privileged container has none, whatever it asks for
    if context.privileged {
        return Ok(Profile::Unconfined);
    }
    match (&context.seccomp, context.seccomp_profile_path.as_str()) {
        (Some(profile), _) => match profile.profile_type() {
            ProfileType::Unconfined => Ok(Profile::Unconfined),
            ProfileType::RuntimeDefault => Ok(Profile::RuntimeDefault),
            ProfileType::Localhost => localhost(&profile.localhost_ref),
        },
        (None, "" | "unconfined") => Ok(Profile::Unconfined),
        (None, "runtime/default" | "docker/default") => Ok(Profile::RuntimeDefault),
        (None, named) => localhost(named.strip_prefix("localhost/").unwrap_or(named)),
    }
}

fn localhost(name: &str) -> Result<Profile, FilterError> {
    let path = PathBuf::from(name);
    if path.is_absolute() { Ok(Profile::Localhost(path)) } else { Err(FilterError::Name(name.to_owned())) }
}

/// The filter for a container with these bounding capabilities, as the launch protocol carries it; none: unconfined.
pub fn filter(
    context: &LinuxContainerSecurityContext,
    filters: &Filters,
    bounding: u64,
) -> Result<Option<String>, FilterError> {
    let built = match choose(context)? {
        Profile::Unconfined => return Ok(None),
        Profile::RuntimeDefault => filters
            .filter(DEFAULT_PROFILE, bounding)
            .map_err(|source| FilterError::Profile { profile: "RuntimeDefault".to_owned(), source })?,
        Profile::Localhost(path) => filters
            .filter(&read(&path)?, bounding)
            .map_err(|source| FilterError::Profile { profile: path.display().to_string(), source })?,
    };
    Ok(Some(STANDARD.encode(built.as_slice())))
}

/// The same in the words of another runtime; none: unconfined.
pub fn document(
    context: &LinuxContainerSecurityContext,
    filters: &Filters,
    bounding: u64,
) -> Result<Option<serde_json::Value>, FilterError> {
    let (profile, text) = match choose(context)? {
        Profile::Unconfined => return Ok(None),
        Profile::RuntimeDefault => ("RuntimeDefault".to_owned(), DEFAULT_PROFILE.to_vec()),
        Profile::Localhost(path) => (path.display().to_string(), read(&path)?),
    };
    let resolved = filters.resolved(&text, bounding).map_err(|source| FilterError::Profile { profile, source })?;
    Ok(Some(crate::seccomp::oci::document(&resolved)))
}

fn read(path: &Path) -> Result<Vec<u8>, FilterError> {
    let failed = |source| FilterError::Read { path: path.to_owned(), source };
    let mut text = Vec::new();
    std::fs::File::open(path).map_err(failed)?.take(MAX_BYTES + 1).read_to_end(&mut text).map_err(failed)?;
    if text.len() as u64 > MAX_BYTES {
        return Err(FilterError::TooLarge { path: path.to_owned() });
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use nodeagent_cri_api::SecurityProfile;

    use super::*;

    fn new(kind: ProfileType, localhost_ref: &str) -> LinuxContainerSecurityContext {
        let seccomp = SecurityProfile { profile_type: kind.into(), localhost_ref: localhost_ref.to_owned() };
        LinuxContainerSecurityContext { seccomp: Some(seccomp), ..Default::default() }
    }

    fn old(path: &str) -> LinuxContainerSecurityContext {
        LinuxContainerSecurityContext { seccomp_profile_path: path.to_owned(), ..Default::default() }
    }

    #[test]
    fn both_ways_of_asking_are_understood() {
        let file = Profile::Localhost(PathBuf::from("/p.json"));
        for (context, expected) in [
            (new(ProfileType::Unconfined, ""), Profile::Unconfined),
            (new(ProfileType::RuntimeDefault, ""), Profile::RuntimeDefault),
            (new(ProfileType::Localhost, "/p.json"), file.clone()),
            (LinuxContainerSecurityContext::default(), Profile::Unconfined),
            (old("runtime/default"), Profile::RuntimeDefault),
            (old("docker/default"), Profile::RuntimeDefault),
            (old("unconfined"), Profile::Unconfined),
            (old("localhost//p.json"), file),
        ] {
            assert_eq!(choose(&context).unwrap(), expected, "{context:?}");
        }
    }

    #[test]
    fn a_privileged_container_has_no_filter() {
        let context = LinuxContainerSecurityContext { privileged: true, ..new(ProfileType::RuntimeDefault, "") };
        assert_eq!(choose(&context).unwrap(), Profile::Unconfined);
    }

    #[test]
    fn a_profile_that_is_not_there_is_an_error_and_not_a_container_without_one() {
        let filters = Filters::new((5, 14));
        let error = filter(&new(ProfileType::Localhost, "/nowhere/p.json"), &filters, 0).unwrap_err();
        assert!(error.to_string().contains("/nowhere/p.json"));
        assert!(filter(&old("localhost/web"), &filters, 0).unwrap_err().to_string().contains("`web`"));
        assert!(filter(&new(ProfileType::RuntimeDefault, ""), &filters, 0).unwrap().is_some());
    }
}
