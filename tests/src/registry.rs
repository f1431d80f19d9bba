//! A real registry (Debian's docker-registry) on a free loopback port, with a store of its own.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tempfile::TempDir;

use crate::http::{Response, request};
use crate::tokens::TokenServer;

/// The one who may pull from, and push to, a registry that asks.
pub const USER: &str = "puller";
/// Its password.
pub const PASSWORD: &str = "correct horse";
/// `htpasswd -nbB -C 5` of the two.
const HTPASSWD: &str = "puller:$2y$05$CcpS54CXLtOsp7pZp8DNfO7ZWLaIeln9srGl31SUd6qIzYEm3LAyW\n";
/// Runs a program until its own input ends, which it does with this process, however that ends.
const ENDS_WITH_US: &str = r#"exec 3<&0; (cat <&3 >/dev/null; kill $$) & exec "$@" </dev/null 3<&-"#;
/// It starts in a tenth of a second.
const STARTS_WITHIN: Duration = Duration::from_secs(30);

/// Who is let in.
#[derive(Debug)]
pub enum Access {
    /// Everybody.
    Open,
    /// [`USER`] with [`PASSWORD`], by HTTP basic authentication.
    Basic,
    /// Bearers of a token, which a [`TokenServer`] gives to the same user.
    Token,
}

/// A running registry; one that was started here is stopped, and its store removed, when dropped.
pub struct Registry {
    child: Option<Child>,
    address: SocketAddr,
    access: Access,
    log: Arc<Mutex<Vec<String>>>,
    tokens: Option<TokenServer>,
    directory: TempDir,
}

impl Registry {
    /// Starts one and waits until it listens.
    pub fn start(access: Access) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let tokens = match access {
            Access::Token => Some(TokenServer::start(directory.path())?),
            _ => None,
        };
        let config = directory.path().join("config.yml");
        fs::write(&config, configuration(directory.path(), &access, tokens.as_ref())?)?;
        let mut child = Command::new("sh")
            .args(["-c", ENDS_WITH_US, "sh", "docker-registry", "serve"])
            .arg(&config)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("start docker-registry (see tests/packages.txt)")?;
        let log = Arc::new(Mutex::new(Vec::new()));
        let announced = follow(&mut child, log.clone())?;
        let address = ([127, 0, 0, 1], 0).into();
        let mut registry = Self { child: Some(child), address, access, log, tokens, directory };
        registry.address = match announced.recv_timeout(STARTS_WITHIN) {
            Ok(address) => address,
            Err(_) => bail!("the registry does not listen:\n{}", registry.log()),
        };
        Ok(registry)
    }

    /// One that runs already, and lets everybody in. Nothing is known of its log and its files.
    pub fn at(address: SocketAddr) -> Result<Self> {
        let (child, tokens) = (None, None);
        Ok(Self { child, address, access: Access::Open, log: Arc::default(), tokens, directory: tempfile::tempdir()? })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its process, if it was started here.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// `host:port/name`, to pull by.
    pub fn reference(&self, name: &str) -> String {
        format!("{}/{name}", self.address)
    }

    /// The token server, when there is one.
    pub fn tokens(&self) -> Option<&TokenServer> {
        self.tokens.as_ref()
    }

    /// What it said.
    pub fn log(&self) -> String {
        self.log.lock().map(|lines| lines.join("\n")).unwrap_or_default()
    }

    /// Number of log lines that have all these words: what was asked of it, for example.
    pub fn logged(&self, words: &[&str]) -> usize {
        self.log.lock().map(|lines| lines.iter().filter(|l| words.iter().all(|w| l.contains(w))).count()).unwrap_or(0)
    }

    /// Uploads a blob.
    pub fn push_blob(&self, repository: &str, digest: &str, bytes: &[u8]) -> Result<()> {
        let upload = self.call("POST", repository, &format!("/v2/{repository}/blobs/uploads/"), "", &[])?;
        let upload = upload.expect_status(202).context("begin an upload")?;
        let location = upload.header("location").context("an upload without a location")?;
        let target = location.splitn(4, '/').nth(3).map(|path| format!("/{path}")).unwrap_or_default();
        let target = format!("{target}&digest={digest}");
        self.call("PUT", repository, &target, "application/octet-stream", bytes)?.expect_status(201)?;
        Ok(())
    }

    /// Uploads a manifest or an index under a tag or digest.
    pub fn push_manifest(&self, repository: &str, tag: &str, media_type: &str, bytes: &[u8]) -> Result<()> {
        let target = format!("/v2/{repository}/manifests/{tag}");
        self.call("PUT", repository, &target, media_type, bytes)?.expect_status(201)?;
        Ok(())
    }

    /// The file in which a blob is kept, for spoiling it.
    pub fn blob_file(&self, digest: &str) -> PathBuf {
        let hex = digest.trim_start_matches("sha256:");
        let store = self.directory.path().join("store/docker/registry/v2/blobs/sha256");
        store.join(hex.get(..2).unwrap_or_default()).join(hex).join("data")
    }

    fn call(&self, method: &str, repository: &str, target: &str, kind: &str, body: &[u8]) -> Result<Response> {
        let mut headers = Vec::new();
        if !kind.is_empty() {
            headers.push(("Content-Type".to_owned(), kind.to_owned()));
        }
        match (&self.access, &self.tokens) {
            (Access::Basic, _) => {
                headers
                    .push(("Authorization".into(), format!("Basic {}", STANDARD.encode(format!("{USER}:{PASSWORD}")))));
            }
            (Access::Token, Some(tokens)) => {
                headers
                    .push(("Authorization".into(), format!("Bearer {}", tokens.issue(repository, &["pull", "push"])?)));
            }
            _ => {}
        }
        let headers: Vec<(&str, &str)> = headers.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        request(self.address, method, target, &headers, body)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        if let Some(child) = self.child.as_mut() {
            // the end of its input; it may have ended by itself
            drop(child.stdin.take());
            let _ = child.wait();
        }
    }
}

fn configuration(directory: &Path, access: &Access, tokens: Option<&TokenServer>) -> Result<String> {
    let mut text = format!(
        "version: 0.1\nlog: {{level: info, accesslog: {{disabled: true}}}}\nstorage:\n  filesystem: {{rootdirectory: {}}}\n  delete: {{enabled: true}}\n\
         http: {{addr: '127.0.0.1:0'}}\n",
        directory.join("store").display()
    );
    match (access, tokens) {
        (Access::Basic, _) => {
            let file = directory.join("htpasswd");
            fs::write(&file, HTPASSWD)?;
            text.push_str(&format!("auth: {{htpasswd: {{realm: test, path: {}}}}}\n", file.display()));
        }
        (Access::Token, Some(tokens)) => text.push_str(&format!(
            "auth:\n  token: {{realm: 'http://{}/token', service: {}, issuer: {}, rootcertbundle: {}}}\n",
            tokens.address(),
            TokenServer::SERVICE,
            TokenServer::ISSUER,
            tokens.certificate().display()
        )),
        _ => {}
    }
    Ok(text)
}

/// Collects the log; sends the address when it is announced.
fn follow(child: &mut Child, log: Arc<Mutex<Vec<String>>>) -> Result<Receiver<SocketAddr>> {
    let stream = child.stderr.take().context("the registry's standard error")?;
    let (announce, announced) = channel();
    thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            let address =
                line.split_once("listening on ").and_then(|(_, rest)| rest.split(['"', ' ']).next()?.parse().ok());
            if let Ok(mut lines) = log.lock() {
                lines.push(line);
            }
            if let Some(address) = address {
                // nobody waits any more after the deadline
                let _ = announce.send(address);
            }
        }
    });
    Ok(announced)
}
