//! Runs kubeadm with a token that nobody else gets to see.

use std::time::Duration;

use nix::sys::stat::Mode;

use super::Host;
use super::command::{Command, CommandError};
use super::root::{Ownership, RootError};
use crate::config::join::TokenSource;
use crate::resource::join::TOKEN;

const KUBEADM: &str = "/usr/bin/kubeadm";

/// In memory, and gone when kubeadm is.
const CONFIG: &str = "/run/nodeagent/kubeadm-join.yaml";

/// Why the node could not join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// A file.
    #[error("kubeadm's config")]
    File(#[from] RootError),
    /// There is no token.
    #[error("join.token: there is no {place}; {hint}")]
    NoToken {
        /// Where it was looked for.
        place: String,
        /// What would bring it there.
        hint: &'static str,
    },
    /// Others can read it.
    #[error("join.token: {path} can be read by others than root (mode {mode:04o}): chmod 600 {path}")]
    Readable {
        /// The file.
        path: String,
        /// Its mode.
        mode: u32,
    },
    /// What is there is no token.
    #[error(
        "join.token: what is in {place} is no bootstrap token (six and sixteen lower-case letters and digits, with a dot)"
    )]
    NotAToken {
        /// Where it was read.
        place: String,
    },
    /// kubeadm.
    #[error("kubeadm join")]
    Run(#[source] CommandError),
    /// kubeadm said no.
    #[error("kubeadm join ended with status {code}: {stderr}")]
    Failed {
        /// Exit status.
        code: i32,
        /// What it said, without the token.
        stderr: String,
    },
}

/// Joins. The file with the token is gone afterwards, whatever happens.
pub(super) async fn join(host: &Host, config: &str, source: &TokenSource, deadline: Duration) -> Result<(), JoinError> {
    let token = token(host, source)?;
    let config = quoted(config, &token);
    host.root.write(CONFIG, config.as_bytes(), Ownership { mode: 0o600, uid: 0, gid: 0 })?;
    let command = Command::new(KUBEADM, deadline).args(["join", "--config", CONFIG]);
    let ran = host.commands.run(&command).await;
    let removed = host.root.remove(CONFIG);
    let output = ran.map_err(JoinError::Run)?;
    removed?;
    match output.code {
        Some(0) => Ok(()),
        code => {
            let stderr = super::command::tail(&output.stderr).replace(&token, "***");
            Err(JoinError::Failed { code: code.unwrap_or(-1), stderr })
        }
    }
}

/// In quotes, however the mark was written: a token of digits alone would be a number to a reader of YAML.
fn quoted(config: &str, token: &str) -> String {
    let bare = config.replace(&format!("\"{TOKEN}\""), TOKEN).replace(&format!("'{TOKEN}'"), TOKEN);
    bare.replace(TOKEN, &format!("\"{token}\""))
}

fn token(host: &Host, source: &TokenSource) -> Result<String, JoinError> {
    let (place, bytes) = match source {
        TokenSource::File(path) => {
            let hint = "write the token into it, with mode 0600";
            let absent = || JoinError::NoToken { place: path.clone(), hint };
            let found = host.root.metadata(path)?.ok_or_else(absent)?;
            if found.mode & (Mode::S_IRWXG | Mode::S_IRWXO).bits() != 0 {
                return Err(JoinError::Readable { path: path.clone(), mode: found.mode });
            }
            (path.clone(), host.root.read(path)?.ok_or_else(absent)?)
        }
        TokenSource::Credential(name) => {
            let place = format!("credential {name}");
            let hint =
                "give nodeagent-activate.service LoadCredential= of that name (systemd 247), or use { file = … }";
            let dir = std::env::var("CREDENTIALS_DIRECTORY").unwrap_or_default();
            let bytes = match dir.is_empty() {
                true => None,
                false => host.root.read(&format!("{dir}/{name}"))?,
            };
            (place.clone(), bytes.ok_or(JoinError::NoToken { place, hint })?)
        }
    };
    let text = String::from_utf8_lossy(&bytes).trim().to_owned();
    let part =
        |text: &str, length| text.len() == length && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    match text.split_once('.') {
        Some((id, secret)) if part(id, 6) && part(secret, 16) => Ok(text),
        _ => Err(JoinError::NotAToken { place }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_stays_a_text_however_its_place_was_written() {
        for written in [TOKEN.to_owned(), format!("\"{TOKEN}\""), format!("'{TOKEN}'")] {
            let config = quoted(&format!("token: {written}\n"), "123456.1234567890123456");
            assert_eq!(config, "token: \"123456.1234567890123456\"\n", "{written}");
        }
    }
}
