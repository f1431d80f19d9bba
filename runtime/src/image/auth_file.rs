//! Credentials that are kept on the node: `auth.json` of containers tools and Docker's `config.json`, one format.
//!
//! Read at every pull, so that a change counts at once. Credential helpers (`docker-credential-*`) are asked with a
//! deadline: those that a file names for a registry, and those that `credential-helpers` in registries.conf names for all.

use std::collections::HashMap;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::credentials::Credentials;

const MAX_FILE: u64 = 1 << 20;
const MAX_ANSWER: u64 = 64 << 10;
const HELPER_TIME: Duration = Duration::from_secs(20);
/// Where distributions and users put credential helpers.
const HELPER_DIRECTORIES: [&str; 3] = ["/usr/local/bin", "/usr/bin", "/usr/libexec"];
/// The name under which Docker files its own registry.
const HUB_KEY: &str = "https://index.docker.io/v1/";
/// Where helpers for all registries are named.
const IN_CONF: &str = "registries.conf";
/// How registries.conf calls the files among the credential helpers.
const FILES: &str = "containers-auth.json";
/// A user name by which helpers say that the secret is a refresh token.
const TOKEN_USER: &str = "<token>";

/// Why stored credentials cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AuthFileError {
    /// The file is there and cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The file is no JSON of the expected shape.
    #[error("cannot parse {path}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: serde_json::Error,
    },
    /// A credential helper that is named and does not work.
    #[error("credential helper {helper}, named in {path}, failed: {detail}")]
    Helper {
        /// Its name, without `docker-credential-`.
        helper: String,
        /// The file that names it.
        path: PathBuf,
        /// What went wrong.
        detail: String,
    },
}

#[derive(Debug, Default, Deserialize)]
struct File {
    #[serde(default)]
    auths: HashMap<String, Entry>,
    #[serde(default, rename = "credHelpers")]
    helpers: HashMap<String, String>,
    #[serde(default, rename = "credsStore")]
    store: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
struct Entry {
    #[serde(default)]
    auth: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default, rename = "identitytoken")]
    identity_token: String,
    #[serde(default, rename = "registrytoken")]
    registry_token: String,
}

/// What a file says about a repository.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    Credentials(Credentials),
    Helper { name: String, server: String },
}

/// Credentials for `name` (`host[:port]/repository`): from the first file that has some, or from the first of `helpers`,
/// of which the files are one.
pub(crate) async fn lookup(
    files: &[PathBuf],
    helpers: Option<&[String]>,
    name: &str,
) -> Result<Option<Credentials>, AuthFileError> {
    lookup_in(&HELPER_DIRECTORIES.map(PathBuf::from), files, helpers, name).await
}

async fn lookup_in(
    directories: &[PathBuf],
    files: &[PathBuf],
    helpers: Option<&[String]>,
    name: &str,
) -> Result<Option<Credentials>, AuthFileError> {
    let Some(helpers) = helpers else { return in_files(directories, files, name).await };
    let mut failed = None;
    for helper in helpers {
        let found = if helper == FILES {
            in_files(directories, files, name).await
        } else {
            ask_in(directories, Path::new(IN_CONF), helper, registry(name)).await
        };
        match found {
            Ok(Some(credentials)) => return Ok(Some(credentials)),
            Ok(None) => {}
            // the next one may know
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    failed.map_or(Ok(None), Err)
}

fn registry(name: &str) -> &str {
    name.split('/').next().unwrap_or(name)
}

async fn in_files(
    directories: &[PathBuf],
    files: &[PathBuf],
    name: &str,
) -> Result<Option<Credentials>, AuthFileError> {
    for path in files {
        let Some(file) = read(path)? else { continue };
        match find(&file, name) {
            Some(Found::Credentials(credentials)) => return Ok(Some(credentials)),
            Some(Found::Helper { name, server }) => {
                if let Some(credentials) = ask_in(directories, path, &name, &server).await? {
                    return Ok(Some(credentials));
                }
            }
            None => {}
        }
    }
    Ok(None)
}

/// Where credentials for `name` would come from, without asking a helper.
pub(crate) fn describe(
    files: &[PathBuf],
    helpers: Option<&[String]>,
    name: &str,
) -> Result<Option<String>, AuthFileError> {
    let Some(helpers) = helpers else { return describe_files(files, name) };
    let mut parts = Vec::new();
    for helper in helpers {
        match helper.as_str() {
            FILES => parts.extend(describe_files(files, name)?),
            helper => parts.push(format!("docker-credential-{helper}, named in {IN_CONF}")),
        }
    }
    Ok(Some(parts.join(", else ")).filter(|parts| !parts.is_empty()))
}

fn describe_files(files: &[PathBuf], name: &str) -> Result<Option<String>, AuthFileError> {
    for path in files {
        let Some(file) = read(path)? else { continue };
        match find(&file, name) {
            Some(Found::Credentials(_)) => return Ok(Some(path.display().to_string())),
            Some(Found::Helper { name, .. }) => {
                return Ok(Some(format!("docker-credential-{name}, named in {}", path.display())));
            }
            None => {}
        }
    }
    Ok(None)
}

fn read(path: &Path) -> Result<Option<File>, AuthFileError> {
    let fail = |source| AuthFileError::Read { path: path.to_owned(), source };
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(fail(error)),
    };
    let mut text = Vec::new();
    file.take(MAX_FILE).read_to_end(&mut text).map_err(fail)?;
    serde_json::from_slice(&text).map(Some).map_err(|source| AuthFileError::Parse { path: path.to_owned(), source })
}

/// The entry with the longest matching name, then helpers for the registry, then the store for everything.
fn find(file: &File, name: &str) -> Option<Found> {
    let mut scope = name;
    loop {
        for (key, entry) in &file.auths {
            if normal(key) == scope
                && let Some(credentials) = entry.credentials()
            {
                return Some(Found::Credentials(credentials));
            }
        }
        match scope.rsplit_once('/') {
            Some((shorter, _)) => scope = shorter,
            None => break,
        }
    }
    // scope is the registry now
    let server = if scope == "docker.io" { HUB_KEY } else { scope };
    let named = file.helpers.iter().find(|(key, _)| normal(key) == scope);
    match (named, &file.store) {
        (Some((key, helper)), _) => Some(Found::Helper { name: helper.clone(), server: key.clone() }),
        (None, Some(store)) if !store.is_empty() => {
            Some(Found::Helper { name: store.clone(), server: server.to_owned() })
        }
        _ => None,
    }
}

/// Keys come as `host`, `host/path`, or as the URL of an API that is long gone.
fn normal(key: &str) -> &str {
    let bare = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let bare = if bare == key { bare } else { bare.split('/').next().unwrap_or(bare) };
    match bare.trim_end_matches('/') {
        "index.docker.io" | "registry-1.docker.io" | "index.docker.io/v1" => "docker.io",
        other => other,
    }
}

impl Entry {
    fn credentials(&self) -> Option<Credentials> {
        let credentials = Credentials {
            username: self.username.clone(),
            password: self.password.clone(),
            auth: self.auth.clone(),
            identity_token: self.identity_token.clone(),
            registry_token: self.registry_token.clone(),
            server_address: String::new(),
        };
        (!credentials.is_empty()).then_some(credentials)
    }
}

/// Asks a credential helper; `None` when it knows nothing about the server.
async fn ask_in(
    directories: &[PathBuf],
    path: &Path,
    helper: &str,
    server: &str,
) -> Result<Option<Credentials>, AuthFileError> {
    let fail = |detail: String| AuthFileError::Helper { helper: helper.to_owned(), path: path.to_owned(), detail };
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if helper.is_empty() || !helper.bytes().all(plain) {
        return Err(fail("its name is not a file name".to_owned()));
    }
    let name = format!("docker-credential-{helper}");
    let program = directories.iter().map(|directory| directory.join(&name)).find(|program| program.is_file());
    let program = program.ok_or_else(|| fail(format!("{name} is in none of {}", HELPER_DIRECTORIES.join(", "))))?;
    let mut child = tokio::process::Command::new(program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| fail(error.to_string()))?;
    let talk = async {
        if let Some(mut stdin) = child.stdin.take() {
            match stdin.write_all(server.as_bytes()).await {
                // one that has its answer without the question
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
                written => written?,
            }
        }
        let mut answer = Vec::new();
        if let Some(stdout) = child.stdout.take() {
            stdout.take(MAX_ANSWER).read_to_end(&mut answer).await?;
        }
        io::Result::Ok((child.wait().await?, answer))
    };
    let (status, answer) = tokio::time::timeout(HELPER_TIME, talk)
        .await
        .map_err(|_| fail(format!("no answer within {HELPER_TIME:?}")))?
        .map_err(|error| fail(error.to_string()))?;
    if !status.success() {
        // the protocol's only way to say "not found"
        if String::from_utf8_lossy(&answer).contains("credentials not found") {
            return Ok(None);
        }
        return Err(fail(format!("it ended with {status}")));
    }
    #[derive(Deserialize)]
    struct Answer {
        #[serde(rename = "Username")]
        username: String,
        #[serde(rename = "Secret")]
        secret: String,
    }
    let answer: Answer = serde_json::from_slice(&answer).map_err(|_| fail("its answer is no JSON".to_owned()))?;
    Ok(Some(if answer.username == TOKEN_USER {
        Credentials { identity_token: answer.secret, ..Default::default() }
    } else {
        Credentials { username: answer.username, password: answer.secret, ..Default::default() }
    }))
}

/// Parses a file, looks a name up in it and uses what is there.
#[cfg(feature = "fuzzing")]
pub(super) fn fuzz(text: &str) {
    let Ok(file) = serde_json::from_str::<File>(text) else { return };
    for name in ["docker.io/library/box", "a.example:5000/team/app", "b"] {
        if let Some(Found::Credentials(found)) = find(&file, name) {
            let _ = (found.user_and_password(), found.basic(), found.are_for(name, false));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn file(text: &str) -> File {
        serde_json::from_str(text).unwrap()
    }

    fn auth(file: &File, name: &str) -> Option<String> {
        match find(file, name) {
            Some(Found::Credentials(credentials)) => Some(credentials.auth),
            _ => None,
        }
    }

    #[test]
    fn the_longest_matching_name_wins() {
        let file = file(
            r#"{"auths":{"quay.io":{"auth":"host"},"quay.io/team":{"auth":"team"},"quay.io/team/app":{"auth":"app"},
                "https://index.docker.io/v1/":{"auth":"hub"},"http://old.example:5000/v2/":{"auth":"old"},"empty.example":{}}}"#,
        );
        for (name, expected) in [
            ("quay.io/team/app", Some("app")),
            ("quay.io/team/app2", Some("team")),
            ("quay.io/other", Some("host")),
            ("docker.io/library/busybox", Some("hub")),
            ("old.example:5000/x", Some("old")),
            ("empty.example/x", None),
            ("nobody.example/x", None),
        ] {
            assert_eq!(auth(&file, name).as_deref(), expected, "{name}");
        }
    }

    #[test]
    fn helpers_come_after_entries_and_the_store_last() {
        let file = file(r#"{"auths":{"a.example":{}},"credHelpers":{"a.example":"one"},"credsStore":"all"}"#);
        let helper = |name: &str, server: &str| Some(Found::Helper { name: name.into(), server: server.into() });
        assert_eq!(find(&file, "a.example/x"), helper("one", "a.example"));
        assert_eq!(find(&file, "docker.io/library/x"), helper("all", HUB_KEY));
    }

    #[tokio::test]
    async fn a_helper_is_asked_and_its_failure_is_reported() {
        let dir = tempfile::tempdir().unwrap();
        let script = "#!/bin/sh\nread server\ncase $server in good) echo '{\"Username\":\"u\",\"Secret\":\"s\"}';;\n\
            token) echo '{\"Username\":\"<token>\",\"Secret\":\"r\"}';;\nnone) echo credentials not found; exit 1;;\n*) exit 3;; esac\n";
        let program = dir.path().join("docker-credential-test");
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let directories = [dir.path().to_owned()];
        let ask =
            |helper: &'static str, server: &'static str| ask_in(&directories, Path::new("/auth.json"), helper, server);
        let user = Credentials { username: "u".into(), password: "s".into(), ..Default::default() };
        assert_eq!(ask("test", "good\n").await.unwrap(), Some(user));
        assert_eq!(ask("test", "token\n").await.unwrap().unwrap().identity_token, "r");
        assert_eq!(ask("test", "none\n").await.unwrap(), None);
        for (helper, server) in [("test", "broken\n"), ("absent", "x"), ("../test", "x")] {
            let error = ask(helper, server).await.unwrap_err().to_string();
            assert!(error.contains(helper) && error.contains("/auth.json"), "{error}");
        }
    }

    #[tokio::test]
    async fn helpers_for_all_registries_are_asked_in_order_and_the_files_are_one_of_them() {
        let dir = tempfile::tempdir().unwrap();
        for (name, line) in [
            ("none", "echo credentials not found; exit 1"),
            ("broken", "exit 3"),
            ("knows", "read server; echo \"{\\\"Username\\\":\\\"$server\\\",\\\"Secret\\\":\\\"s\\\"}\""),
        ] {
            let program = dir.path().join(format!("docker-credential-{name}"));
            std::fs::write(&program, format!("#!/bin/sh\n{line}\n")).unwrap();
            std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        let auth = dir.path().join("auth.json");
        std::fs::write(&auth, r#"{"auths":{"a.example":{"username":"file","password":"p"}}}"#).unwrap();
        let (directories, files) = ([dir.path().to_owned()], [auth]);
        let user = async |helpers: &[&str], name: &str| {
            let helpers: Vec<String> = helpers.iter().map(|name| (*name).to_owned()).collect();
            let found = lookup_in(&directories, &files, Some(&helpers), name).await;
            found.map(|found| found.map(|credentials| credentials.username))
        };
        assert_eq!(user(&["knows", FILES], "a.example/x").await.unwrap().as_deref(), Some("a.example"));
        assert_eq!(user(&["none", "broken", FILES], "a.example/x").await.unwrap().as_deref(), Some("file"));
        assert_eq!(user(&["none", FILES], "b.example/x").await.unwrap(), None);
        assert!(user(&["broken", "none"], "b.example/x").await.unwrap_err().to_string().contains("registries.conf"));
        let helpers = ["knows".to_owned(), FILES.to_owned()];
        let described = describe(&files, Some(&helpers), "a.example/x").unwrap().unwrap();
        assert!(described.contains("docker-credential-knows") && described.contains("auth.json"), "{described}");
    }

    #[tokio::test]
    async fn an_absent_file_is_fine_and_a_broken_one_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let broken = dir.path().join("auth.json");
        assert_eq!(lookup(std::slice::from_ref(&broken), None, "a.example/x").await.unwrap(), None);
        std::fs::write(&broken, "{").unwrap();
        let error = lookup(std::slice::from_ref(&broken), None, "a.example/x").await.unwrap_err();
        assert!(error.to_string().contains("auth.json"));
    }
}
