//! Runs kubeadm with secrets that nobody else gets to see.

use std::time::Duration;

use nix::sys::stat::Mode;

use super::Host;
use super::command::{Command, CommandError};
use super::root::{Ownership, RootError};
use crate::config::join::TokenSource;
use crate::plan::KubeadmVerb;
use crate::resource::cluster::{BEGAN, CERTIFICATE_KEY, MANIFEST, TOKEN, VERSION};

const KUBEADM: &str = "/usr/bin/kubeadm";

/// In memory, and gone when kubeadm is.
const CONFIG: &str = "/run/nodeagent/kubeadm.yaml";

/// Only asks itself.
const QUESTION: Duration = Duration::from_secs(60);

/// Why the node did not come into a cluster.
#[derive(Debug, thiserror::Error)]
pub enum KubeadmError {
    /// A file.
    #[error("kubeadm's config")]
    File(#[from] RootError),
    /// There is no such secret.
    #[error("{key}: there is no {place}; {hint}")]
    NoSecret {
        /// Name of the setting.
        key: String,
        /// Where it was looked for.
        place: String,
        /// What would bring it there.
        hint: &'static str,
    },
    /// Others can read it.
    #[error("{key}: {path} can be read by others than root (mode {mode:04o}): chmod 600 {path}")]
    Readable {
        /// Name of the setting.
        key: String,
        /// The file.
        path: String,
        /// Its mode.
        mode: u32,
    },
    /// What is there is something else.
    #[error("{key}: what is in {place} is no {what}")]
    Malformed {
        /// Name of the setting.
        key: String,
        /// Where it was read.
        place: String,
        /// What it should be.
        what: &'static str,
    },
    /// kubeadm.
    #[error("kubeadm {verb}")]
    Run {
        /// What it was asked to do.
        verb: &'static str,
        /// Why it could not be run.
        #[source]
        source: CommandError,
    },
    /// kubeadm said no.
    #[error("kubeadm {verb} ended with status {code}: {stderr}")]
    Failed {
        /// What it was asked to do.
        verb: &'static str,
        /// Exit status.
        code: i32,
        /// What it said, without the secrets.
        stderr: String,
    },
}

/// Where the secrets are that a config has marks for.
pub(super) struct Secrets<'a> {
    /// The bootstrap token.
    pub(super) token: Option<&'a TokenSource>,
    /// The key of the cluster's certificates.
    pub(super) certificate_key: Option<&'a TokenSource>,
}

/// Joins, or begins a cluster. The file with the secrets is gone afterwards, whatever happens.
pub(super) async fn run(
    host: &Host,
    verb: KubeadmVerb,
    config: &str,
    secrets: Secrets<'_>,
    deadline: Duration,
) -> Result<(), KubeadmError> {
    let mut config = config.to_owned();
    let mut hidden = Vec::new();
    for (mark, source, kind) in
        [(TOKEN, secrets.token, Kind::Token), (CERTIFICATE_KEY, secrets.certificate_key, Kind::CertificateKey)]
    {
        let Some(source) = source else { continue };
        let secret = read(host, source, &kind.key(verb), kind)?;
        config = quoted(&config, mark, &secret);
        hidden.push(secret);
    }
    if config.contains(VERSION) {
        // kubeadm would ask the internet which patch is the newest
        config = quoted(&config, VERSION, &version(host).await?);
    }
    let word = verb.word();
    let mut command = Command::new(KUBEADM, deadline).args([word, "--config", CONFIG]);
    if verb == KubeadmVerb::Init && secrets.certificate_key.is_some() {
        command = command.arg("--upload-certs");
    }
    let private = Ownership { mode: 0o600, uid: 0, gid: 0 };
    if verb == KubeadmVerb::Init {
        host.root.write(BEGAN, b"", private)?;
    }
    host.root.write(CONFIG, config.as_bytes(), private)?;
    let ran = host.commands.run(&command).await;
    let removed = host.root.remove(CONFIG);
    let output = ran.map_err(|source| KubeadmError::Run { verb: word, source })?;
    removed?;
    let refused = output.code != Some(0);
    // one that was refused at the door has begun nothing
    if verb == KubeadmVerb::Init && (!refused || !host.root.exists(MANIFEST)?) {
        host.root.remove(BEGAN)?;
    }
    if !refused {
        return Ok(());
    }
    let mut stderr = super::command::tail(&output.stderr);
    for secret in &hidden {
        stderr = stderr.replace(secret, "***");
    }
    Err(KubeadmError::Failed { verb: word, code: output.code.unwrap_or(-1), stderr })
}

/// `v1.36.2`, of the kubeadm that is installed.
async fn version(host: &Host) -> Result<String, KubeadmError> {
    let verb = "version";
    let command = Command::query(KUBEADM, QUESTION).args([verb, "-o", "short"]);
    let output = host.commands.run(&command).await.map_err(|source| KubeadmError::Run { verb, source })?;
    let version = output.stdout.trim();
    let plain = |b: u8| b.is_ascii_alphanumeric() || b".-+".contains(&b);
    if output.code != Some(0) || !version.starts_with('v') || !version.bytes().all(plain) {
        let stderr = super::command::tail(&output.stderr);
        return Err(KubeadmError::Failed { verb, code: output.code.unwrap_or(-1), stderr });
    }
    Ok(version.to_owned())
}

/// What a secret is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Token,
    CertificateKey,
}

impl Kind {
    fn key(self, verb: KubeadmVerb) -> String {
        let name = match self {
            Kind::Token => "token",
            Kind::CertificateKey => "certificate_key",
        };
        format!("{}.{name}", verb.word())
    }

    fn is_valid(self, text: &str) -> bool {
        let part = |text: &str, length| {
            text.len() == length && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
        };
        match self {
            Kind::Token => text.split_once('.').is_some_and(|(id, secret)| part(id, 6) && part(secret, 16)),
            Kind::CertificateKey => text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit()),
        }
    }

    fn in_words(self) -> &'static str {
        match self {
            Kind::Token => "bootstrap token (six and sixteen lower-case letters and digits, with a dot)",
            Kind::CertificateKey => "key of certificates (64 hex digits; `kubeadm certs certificate-key` makes one)",
        }
    }
}

/// In quotes, however the mark was written: a token of digits alone would be a number to a reader of YAML.
fn quoted(config: &str, mark: &str, value: &str) -> String {
    let bare = config.replace(&format!("\"{mark}\""), mark).replace(&format!("'{mark}'"), mark);
    bare.replace(mark, &format!("\"{value}\""))
}

fn read(host: &Host, source: &TokenSource, key: &str, kind: Kind) -> Result<String, KubeadmError> {
    let key = key.to_owned();
    let (place, bytes) = match source {
        TokenSource::File(path) => {
            let hint = "write it into that file, with mode 0600";
            let absent = || KubeadmError::NoSecret { key: key.clone(), place: path.clone(), hint };
            let found = host.root.metadata(path)?.ok_or_else(absent)?;
            if found.mode & (Mode::S_IRWXG | Mode::S_IRWXO).bits() != 0 {
                return Err(KubeadmError::Readable { key, path: path.clone(), mode: found.mode });
            }
            (path.clone(), host.root.read(path)?.ok_or_else(absent)?)
        }
        TokenSource::Credential(name) => {
            let place = format!("credential {name}");
            let hint = "give the host a credential of that name (systemd 247), or use { file = … }";
            let dir = std::env::var("CREDENTIALS_DIRECTORY").unwrap_or_default();
            let bytes = match dir.is_empty() {
                true => None,
                false => host.root.read(&format!("{dir}/{name}"))?,
            };
            (place.clone(), bytes.ok_or(KubeadmError::NoSecret { key: key.clone(), place, hint })?)
        }
    };
    let text = String::from_utf8_lossy(&bytes).trim().to_owned();
    match kind.is_valid(&text) {
        true => Ok(text),
        false => Err(KubeadmError::Malformed { key, place, what: kind.in_words() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_stays_a_text_however_its_place_was_written() {
        for written in [TOKEN.to_owned(), format!("\"{TOKEN}\""), format!("'{TOKEN}'")] {
            let config = quoted(&format!("token: {written}\n"), TOKEN, "123456.1234567890123456");
            assert_eq!(config, "token: \"123456.1234567890123456\"\n", "{written}");
        }
    }
}
