//! Program, arguments, environment and working directory: the configuration laid over the image.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use nodeagent_cri_api::ContainerConfig;

use super::{Inputs, SpecError};
use crate::container::record::User;
use crate::image::ImageConfig;
use crate::sandbox::hostname;

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// As Kubernetes documents it: a command replaces entrypoint and arguments of the image, arguments replace its
/// arguments.
pub(super) fn arguments(config: &ContainerConfig, image: &ImageConfig) -> Result<Vec<String>, SpecError> {
    let (command, arguments) = match (config.command.is_empty(), config.args.is_empty()) {
        (true, true) => (&image.entrypoint, &image.cmd),
        (true, false) => (&image.entrypoint, &config.args),
        (false, _) => (&config.command, &config.args),
    };
    let all: Vec<String> = command.iter().chain(arguments).cloned().collect();
    match all.first() {
        Some(program) if !program.is_empty() => Ok(all),
        _ => Err(SpecError::NoCommand),
    }
}

pub(super) fn working_dir(config: &ContainerConfig, image: &ImageConfig) -> String {
    let dir = [&config.working_dir, &image.working_dir].into_iter().find(|dir| !dir.is_empty());
    dir.map_or_else(|| "/".to_owned(), Clone::clone)
}

/// The environment as the protocol carries it. Later ones win: defaults, image, configuration, devices.
pub(super) fn variables(inputs: &Inputs<'_>, of_devices: &[String], user: &User) -> Vec<String> {
    let mut variables = Variables::default();
    variables.set(b"PATH", DEFAULT_PATH.as_bytes());
    variables.set(b"HOSTNAME", hostname(&inputs.pod.config).as_bytes());
    if inputs.config.tty {
        variables.set(b"TERM", b"xterm");
    }
    for variable in &inputs.image.env {
        let (name, value) = variable.split_once('=').unwrap_or((variable, ""));
        variables.set(name.as_bytes(), value.as_bytes());
    }
    for variable in &inputs.config.envs {
        variables.set(variable.key.as_bytes(), &variable.value);
    }
    for variable in of_devices {
        let (name, value) = variable.split_once('=').unwrap_or((variable, ""));
        variables.set(name.as_bytes(), value.as_bytes());
    }
    if !variables.has(b"HOME") {
        variables.set(b"HOME", user.home.as_bytes());
    }
    variables.encode()
}

/// In the order in which names first appear.
#[derive(Default)]
struct Variables(Vec<(Vec<u8>, Vec<u8>)>);

impl Variables {
    fn set(&mut self, name: &[u8], value: &[u8]) {
        match self.0.iter_mut().find(|(known, _)| known == name) {
            Some((_, old)) => *old = value.to_vec(),
            None => self.0.push((name.to_vec(), value.to_vec())),
        }
    }

    fn has(&self, name: &[u8]) -> bool {
        self.0.iter().any(|(known, value)| known == name && !value.is_empty())
    }

    fn encode(self) -> Vec<String> {
        self.0.into_iter().map(|(name, value)| STANDARD.encode([name, value].join(&b'='))).collect()
    }
}
