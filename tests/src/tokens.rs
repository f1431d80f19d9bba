//! A token server as registries send their clients to: basic authentication in, a signed token out.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jiff::Timestamp;
use serde_json::json;

use crate::outside::run;
use crate::registry::{PASSWORD, USER};

/// A token server; it ends with the process.
pub struct TokenServer {
    address: SocketAddr,
    signer: Arc<Signer>,
    refused: Arc<AtomicUsize>,
}

struct Signer {
    directory: PathBuf,
    /// The certificate, as a token carries it.
    certificate: String,
    serial: AtomicU64,
}

impl TokenServer {
    /// The audience of its tokens.
    pub const SERVICE: &str = "test-registry";
    /// Who signs them.
    pub const ISSUER: &str = "test-issuer";

    /// Makes a key in `directory` and listens.
    pub fn start(directory: &Path) -> Result<Self> {
        let (key, certificate) = (directory.join("token.key"), directory.join("token.crt"));
        run(
            "openssl",
            [
                "req",
                "-x509",
                "-newkey",
                "rsa:2048",
                "-nodes",
                "-days",
                "1",
                "-subj",
                "/CN=test-issuer",
                "-keyout",
                &key.to_string_lossy(),
                "-out",
                &certificate.to_string_lossy(),
            ],
        )?
        .ok("openssl req")?;
        let pem = fs::read_to_string(&certificate)?;
        let signer = Arc::new(Signer {
            directory: directory.to_owned(),
            certificate: pem.lines().filter(|l| !l.starts_with("-----")).collect(),
            serial: AtomicU64::new(0),
        });
        let listener = TcpListener::bind("127.0.0.1:0").context("listen on loopback")?;
        let server = Self { address: listener.local_addr()?, signer: signer.clone(), refused: Arc::default() };
        let refused = server.refused.clone();
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                // a client that hangs up hurts only itself
                let _ = answer(&stream, &signer, &refused);
            }
        });
        Ok(server)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The certificate that its tokens are checked with.
    pub fn certificate(&self) -> PathBuf {
        self.signer.directory.join("token.crt")
    }

    /// How many came without the right password.
    pub fn refused(&self) -> usize {
        self.refused.load(Ordering::Relaxed)
    }

    /// A token for a repository.
    pub fn issue(&self, repository: &str, actions: &[&str]) -> Result<String> {
        self.signer.issue(&[json!({"type": "repository", "name": repository, "actions": actions})])
    }
}

impl Signer {
    fn issue(&self, access: &[serde_json::Value]) -> Result<String> {
        let now = Timestamp::now().as_second();
        let serial = self.serial.fetch_add(1, Ordering::Relaxed);
        let header = json!({"typ": "JWT", "alg": "RS256", "x5c": [self.certificate]});
        let claims = json!({
            "iss": TokenServer::ISSUER, "sub": USER, "aud": TokenServer::SERVICE, "jti": serial.to_string(),
            "iat": now, "nbf": now - 10, "exp": now + 300, "access": access,
        });
        let signed =
            format!("{}.{}", URL_SAFE_NO_PAD.encode(header.to_string()), URL_SAFE_NO_PAD.encode(claims.to_string()));
        let (message, signature) = (self.file(serial, "txt"), self.file(serial, "sig"));
        fs::write(&message, &signed)?;
        let key = self.directory.join("token.key");
        let (k, s, m) = (key.to_string_lossy(), signature.to_string_lossy(), message.to_string_lossy());
        run("openssl", ["dgst", "-sha256", "-sign", &k, "-out", &s, &m])?.ok("openssl dgst")?;
        Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(fs::read(&signature)?)))
    }

    fn file(&self, serial: u64, extension: &str) -> PathBuf {
        self.directory.join(format!("token-{serial}.{extension}"))
    }
}

/// `GET /token?service=S&scope=repository:NAME:ACTION,ACTION`
fn answer(mut stream: &TcpStream, signer: &Signer, refused: &AtomicUsize) -> Result<()> {
    let mut lines = BufReader::new(stream).lines();
    let line = lines.next().context("no request")??;
    let mut allowed = false;
    for header in lines.map_while(Result::ok).take_while(|l| !l.is_empty()) {
        if let Some((name, value)) = header.split_once(':') {
            allowed |= name.eq_ignore_ascii_case("authorization")
                && value.trim() == format!("Basic {}", STANDARD.encode(format!("{USER}:{PASSWORD}")));
        }
    }
    let (status, body) = if allowed {
        let query = line.split(' ').nth(1).and_then(|t| t.split_once('?')).map(|(_, q)| q).unwrap_or_default();
        let access: Vec<_> =
            query.split('&').filter_map(|pair| pair.strip_prefix("scope=")).filter_map(scope).collect();
        ("200 OK", json!({"token": signer.issue(&access)?, "expires_in": 300}))
    } else {
        refused.fetch_add(1, Ordering::Relaxed);
        ("401 Unauthorized", json!({"errors": [{"code": "UNAUTHORIZED", "message": "no such user or password"}]}))
    };
    let body = body.to_string();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body.as_bytes())?;
    Ok(())
}

fn scope(text: &str) -> Option<serde_json::Value> {
    let text = text.replace("%3A", ":").replace("%2F", "/").replace("%2C", ",");
    let (kind, rest) = text.split_once(':')?;
    let (name, actions) = rest.rsplit_once(':')?;
    Some(json!({"type": kind, "name": name, "actions": actions.split(',').collect::<Vec<_>>()}))
}
