//! AppArmor: which profile a container gets, and the default one, which is loaded when a container wants it.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Once;
use std::time::Duration;

use nodeagent_cri_api::security_profile::ProfileType;
use nodeagent_cri_api::{ContainerConfig, LinuxContainerSecurityContext};
use thiserror::Error;
use tokio::sync::Mutex;

use crate::handler::{CommandError, run_command};
use crate::telemetry::chain;

/// Where the kernel says that it is on.
const ENABLED: &str = "/sys/module/apparmor/parameters/enabled";
/// Profiles that the kernel has, a line each: `NAME (MODE)`. Not there, profiles cannot be loaded either.
const LOADED: &str = "/sys/kernel/security/apparmor/profiles";
const DEFAULT_NAME: &str = "nodeagent-default";
const DEFAULT_PROFILE: &str = include_str!("apparmor.profile");
/// Brings profiles into the kernel; a part of every distribution that has AppArmor.
const PARSER: &str = "apparmor_parser";
/// The version of the language that the profile is written in, where the parser knows versions. Without it a parser takes the
/// newest that it knows, in which what a rule does not name may be forbidden.
const ABI_FILE: &str = "/etc/apparmor.d/abi/3.0";
const ABI: &str = "abi <abi/3.0>,\n";
/// How long the parser may take.
const LIMIT: Duration = Duration::from_secs(60);

/// Why a container cannot have the profile it asks for.
#[derive(Debug, Error)]
pub enum ProfileError {
    /// Asked for, and nobody here would enforce it.
    #[error("AppArmor profile `{0}`: this host has no AppArmor")]
    Absent(String),
    /// Localhost, and none is named.
    #[error("AppArmor: a profile of type Localhost needs its name in localhost_ref")]
    Unnamed,
    /// The default cannot be loaded.
    #[error("load AppArmor's profile `{DEFAULT_NAME}`")]
    Load(#[source] Box<CommandError>),
}

/// What a container asks for.
#[derive(Debug, PartialEq, Eq)]
enum Choice<'a> {
    Unconfined,
    /// The default, if there is one.
    Unsaid,
    /// The default.
    RuntimeDefault,
    Localhost(&'a str),
}

/// The profile by name; none: unconfined. Loads the default one where it is wanted and not there.
///
/// Who asks for a profile gets it or an error, the default too. Who says nothing gets the default on a host with AppArmor and its
/// parser, and none elsewhere, as from other runtimes.
pub async fn profile(config: &ContainerConfig) -> Result<Option<String>, ProfileError> {
    let context = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    let choice = context.map_or(Choice::Unsaid, choose);
    let default = || async {
        let loaded = load_default().await.map_err(|error| ProfileError::Load(Box::new(error)));
        loaded.map(|()| Some(DEFAULT_NAME.to_owned()))
    };
    match (choice, is_enabled()) {
        (Choice::Unconfined, _) | (Choice::Unsaid, false) => Ok(None),
        (Choice::Localhost(""), _) => Err(ProfileError::Unnamed),
        (Choice::Localhost(name), true) => Ok(Some(name.to_owned())),
        (Choice::Localhost(name), false) => Err(ProfileError::Absent(name.to_owned())),
        (Choice::RuntimeDefault, false) => Err(ProfileError::Absent("RuntimeDefault".to_owned())),
        (Choice::RuntimeDefault, true) => default().await,
        (Choice::Unsaid, true) => match default().await {
            Err(ProfileError::Load(error)) if is_absent(&error) => {
                static SAID: Once = Once::new();
                let why =
                    || log::warn!("containers that ask for no AppArmor profile run without one: {}", chain(&error));
                SAID.call_once(why);
                Ok(None)
            }
            result => result,
        },
    }
}

/// Reads the new field, else the old one, which older kubelets still fill: `runtime/default` there is the same as nothing.
fn choose(context: &LinuxContainerSecurityContext) -> Choice<'_> {
    if context.privileged {
        return Choice::Unconfined;
    }
    match (&context.apparmor, context.apparmor_profile.as_str()) {
        (Some(profile), _) => match profile.profile_type() {
            ProfileType::Unconfined => Choice::Unconfined,
            ProfileType::RuntimeDefault => Choice::RuntimeDefault,
            ProfileType::Localhost => Choice::Localhost(profile_name(&profile.localhost_ref)),
        },
        (None, "unconfined") => Choice::Unconfined,
        (None, "" | "runtime/default" | "docker/default") => Choice::Unsaid,
        (None, name) => Choice::Localhost(profile_name(name)),
    }
}

fn profile_name(text: &str) -> &str {
    text.strip_prefix("localhost/").unwrap_or(text)
}

fn is_enabled() -> bool {
    fs::read_to_string(ENABLED).is_ok_and(|text| text.trim() == "Y") && Path::new(LOADED).exists()
}

fn is_absent(error: &CommandError) -> bool {
    matches!(error, CommandError::Execute { source, .. } if source.kind() == io::ErrorKind::NotFound)
}

/// Loads the default profile: with the first container, in the place of one of an older release, and again when somebody has
/// removed it since. Without a parser the one that the kernel has will do.
async fn load_default() -> Result<(), CommandError> {
    static CURRENT: Mutex<bool> = Mutex::const_new(false);
    let mut current = CURRENT.lock().await;
    let listed = fs::read_to_string(LOADED).is_ok_and(|list| is_listed(&list, DEFAULT_NAME));
    if *current && listed {
        return Ok(());
    }
    let text = default_profile(Path::new(ABI_FILE).exists());
    match run_command(Path::new(PARSER), &["--skip-cache", "--replace"], Some(text), LIMIT).await {
        Err(error) if !(listed && is_absent(&error)) => return Err(error),
        _ => *current = true,
    }
    Ok(())
}

fn is_listed(list: &str, name: &str) -> bool {
    list.lines().any(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(" (")))
}

fn default_profile(has_abi: bool) -> String {
    format!("{}{DEFAULT_PROFILE}", if has_abi { ABI } else { "" })
}

#[cfg(test)]
mod tests {
    use nodeagent_cri_api::{LinuxContainerConfig, SecurityProfile};

    use super::*;

    fn new(kind: ProfileType, localhost_ref: &str) -> LinuxContainerSecurityContext {
        let apparmor = SecurityProfile { profile_type: kind.into(), localhost_ref: localhost_ref.to_owned() };
        LinuxContainerSecurityContext { apparmor: Some(apparmor), ..Default::default() }
    }

    fn old(name: &str) -> LinuxContainerSecurityContext {
        LinuxContainerSecurityContext { apparmor_profile: name.to_owned(), ..Default::default() }
    }

    #[test]
    fn both_ways_of_asking_are_understood() {
        for (context, expected) in [
            (new(ProfileType::Unconfined, ""), Choice::Unconfined),
            (new(ProfileType::RuntimeDefault, ""), Choice::RuntimeDefault),
            (new(ProfileType::Localhost, "web"), Choice::Localhost("web")),
            (new(ProfileType::Localhost, "localhost/web"), Choice::Localhost("web")),
            (LinuxContainerSecurityContext::default(), Choice::Unsaid),
            (old("unconfined"), Choice::Unconfined),
            (old("runtime/default"), Choice::Unsaid),
            (old("localhost/web"), Choice::Localhost("web")),
            // kubelet fills both
            (
                LinuxContainerSecurityContext {
                    apparmor_profile: "unconfined".into(),
                    ..new(ProfileType::Localhost, "web")
                },
                Choice::Localhost("web"),
            ),
        ] {
            assert_eq!(choose(&context), expected, "{context:?}");
        }
        let privileged = LinuxContainerSecurityContext { privileged: true, ..new(ProfileType::Localhost, "web") };
        assert_eq!(choose(&privileged), Choice::Unconfined);
    }

    #[tokio::test]
    async fn without_apparmor_who_asks_for_a_profile_is_refused_and_who_does_not_has_none() {
        if is_enabled() {
            return; // what is true there is tried in containers
        }
        let wanted = async |context| {
            let linux = LinuxContainerConfig { security_context: Some(context), ..Default::default() };
            profile(&ContainerConfig { linux: Some(linux), ..Default::default() }).await
        };
        for (context, word) in [
            (new(ProfileType::Localhost, "web"), "`web`"),
            (old("localhost/web"), "`web`"),
            (new(ProfileType::RuntimeDefault, ""), "`RuntimeDefault`"),
            (new(ProfileType::Localhost, ""), "localhost_ref"),
        ] {
            let error = wanted(context).await.unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
        for context in [new(ProfileType::Unconfined, ""), old("runtime/default"), old("")] {
            assert_eq!(wanted(context).await.unwrap(), None);
        }
    }

    #[test]
    fn a_profile_is_listed_under_its_whole_name() {
        let list = "nodeagent-default-2 (enforce)\nmy nodeagent-default (enforce)\n";
        assert!(!is_listed(list, DEFAULT_NAME));
        assert!(is_listed(&format!("{list}nodeagent-default (complain)\n"), DEFAULT_NAME));
    }

    #[test]
    fn the_default_profile_has_the_name_it_is_asked_for_by() {
        let header = format!("profile {DEFAULT_NAME} flags=(attach_disconnected,mediate_deleted) {{");
        assert!(DEFAULT_PROFILE.lines().any(|line| line == header), "{DEFAULT_PROFILE}");
        assert!(DEFAULT_PROFILE.contains(&format!("signal (send,receive) peer={DEFAULT_NAME},")));
        assert_eq!(default_profile(true), format!("abi <abi/3.0>,\n{DEFAULT_PROFILE}"));
        assert_eq!(default_profile(false), DEFAULT_PROFILE);
    }
}
