//! A real registry with images made on the spot, for the tests of the image store.
#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "only tests use this")]

pub mod power;
pub mod proxy;
pub mod throttle;
pub mod trees;

use std::io::Write as _;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nodeagent_runtime::content::Digest;
use nodeagent_runtime::image::{Images, ImagesConfig};
use serde_json::{Value, json};

pub const USER: &str = "kube";
pub const PASSWORD: &str = "p:ss word";
/// `htpasswd -nbB kube 'p:ss word'`
const HTPASSWD: &str = "kube:$2y$05$TFF9csQnmHFTE7LBx3KcLeZjE9bT6IJ81Q0O39X/2xcvcdHZl.TYC\n";

/// How the registry wants to be asked.
#[derive(Clone, Debug)]
pub enum Access {
    Open,
    Basic,
    /// HTTPS with the certificate and key that lie in this directory as `server.pem` and `server.key`.
    Tls(PathBuf),
    /// The same, and clients have to show a certificate of the authority `ca.pem`.
    MutualTls(PathBuf),
}

/// Debian's docker-registry on a port of its own.
pub struct Registry {
    process: Child,
    pub host: String,
    pub dir: tempfile::TempDir,
    client: reqwest::Client,
    access: Access,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Registry {
    pub async fn start() -> Registry {
        Registry::start_with(Access::Open).await
    }

    pub async fn start_with(access: Access) -> Registry {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let dir = tempfile::tempdir().unwrap();
        // it takes a port itself: one that is only looked up beforehand may be somebody else's by then, even a client's
        let mut config = json!({
            "version": "0.1",
            "log": { "level": "info", "accesslog": { "disabled": true } },
            "storage": { "filesystem": { "rootdirectory": dir.path().join("data") }, "delete": { "enabled": true } },
            "http": { "addr": "127.0.0.1:0" },
        });
        match &access {
            Access::Open => {}
            Access::Tls(files) | Access::MutualTls(files) => {
                config["http"]["tls"] =
                    json!({ "certificate": files.join("server.pem"), "key": files.join("server.key") });
                if matches!(access, Access::MutualTls(_)) {
                    config["http"]["tls"]["clientcas"] = json!([files.join("ca.pem")]);
                }
            }
            Access::Basic => {
                std::fs::write(dir.path().join("htpasswd"), HTPASSWD).unwrap();
                config["auth"] = json!({ "htpasswd": { "realm": "test", "path": dir.path().join("htpasswd") } });
            }
        }
        let path = dir.path().join("config.yml");
        std::fs::write(&path, config.to_string()).unwrap();
        let log = std::fs::File::create(dir.path().join("log")).unwrap();
        let process = Command::new("/usr/bin/docker-registry")
            .arg("serve")
            .arg(&path)
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .stdin(Stdio::null())
            .spawn()
            .expect("docker-registry must be installed");
        let mut client = reqwest::Client::builder().tls_danger_accept_invalid_certs(true);
        if let Access::MutualTls(files) = &access {
            let mut pem = std::fs::read(files.join("client.pem")).unwrap();
            pem.extend(std::fs::read(files.join("client.key")).unwrap());
            client = client.identity(reqwest::Identity::from_pem(&pem).unwrap());
        }
        let mut registry = Registry { process, host: String::new(), dir, client: client.build().unwrap(), access };
        registry.host = registry.announced().await;
        registry
    }

    /// Its address, once it listens.
    async fn announced(&mut self) -> String {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let log = std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
            if let Some((_, rest)) = log.split_once("listening on ")
                && let Some(end) = rest.find(['"', ' ', ','])
            {
                return rest[..end].to_owned();
            }
            if let Some(status) = self.process.try_wait().unwrap() {
                panic!("docker-registry ended with {status}: {log}");
            }
            assert!(Instant::now() < deadline, "docker-registry does not listen: {log}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn scheme(&self) -> &'static str {
        if matches!(self.access, Access::Tls(_) | Access::MutualTls(_)) { "https" } else { "http" }
    }

    fn request(&self, method: reqwest::Method, url: &str) -> reqwest::RequestBuilder {
        let request = self.client.request(method, url);
        match &self.access {
            Access::Basic => request.basic_auth(USER, Some(PASSWORD)),
            _ => request,
        }
    }

    pub async fn push_blob(&self, repository: &str, bytes: &[u8]) -> Digest {
        let digest = Digest::of(bytes);
        let url = format!("{}://{}/v2/{repository}/blobs/uploads/", self.scheme(), self.host);
        let started = self.request(reqwest::Method::POST, &url).send().await.unwrap();
        assert_eq!(started.status(), 202, "{}", started.text().await.unwrap());
        let location = started.headers()["location"].to_str().unwrap().to_owned();
        let url = format!("{location}&digest={digest}");
        let done = self.request(reqwest::Method::PUT, &url).body(bytes.to_vec()).send().await.unwrap();
        assert_eq!(done.status(), 201, "{}", done.text().await.unwrap());
        digest
    }

    pub async fn push_manifest(&self, repository: &str, name: &str, manifest: &Value) -> Digest {
        let url = format!("{}://{}/v2/{repository}/manifests/{name}", self.scheme(), self.host);
        let bytes = serde_json::to_vec(manifest).unwrap();
        let media_type = manifest["mediaType"].as_str().unwrap().to_owned();
        let request = self.request(reqwest::Method::PUT, &url).header("content-type", media_type);
        let done = request.body(bytes.clone()).send().await.unwrap();
        assert_eq!(done.status(), 201, "{}", done.text().await.unwrap());
        Digest::of(&bytes)
    }

    /// Pushes an image and gives its manifest's digest.
    pub async fn push(&self, repository: &str, tag: &str, image: &TestImage) -> Digest {
        for blob in image.blobs() {
            self.push_blob(repository, &blob).await;
        }
        self.push_manifest(repository, tag, &image.manifest()).await
    }

    /// The file in which the registry keeps a blob, to damage it.
    pub fn blob_file(&self, digest: Digest) -> PathBuf {
        let hex = digest.hex();
        self.dir.path().join("data/docker/registry/v2/blobs/sha256").join(&hex[..2]).join(&hex).join("data")
    }
}

pub fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

/// One layer: its archive, and how it travels.
#[derive(Clone, Debug)]
pub struct Layer {
    pub tar: Vec<u8>,
    pub blob: Vec<u8>,
    pub media_type: String,
}

impl Layer {
    pub fn gzip(tar: Vec<u8>) -> Layer {
        Layer { blob: gzip(&tar), tar, media_type: "application/vnd.docker.image.rootfs.diff.tar.gzip".into() }
    }

    pub fn plain(tar: Vec<u8>) -> Layer {
        Layer { blob: tar.clone(), tar, media_type: "application/vnd.oci.image.layer.v1.tar".into() }
    }
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// An image to push.
#[derive(Clone, Debug)]
pub struct TestImage {
    pub layers: Vec<Layer>,
    pub config: Value,
    pub oci: bool,
}

impl TestImage {
    pub fn new(layers: Vec<Layer>) -> TestImage {
        let diff_ids: Vec<String> = layers.iter().map(|layer| Digest::of(&layer.tar).to_string()).collect();
        let config = json!({
            "architecture": architecture(), "os": "linux", "created": "2026-01-02T03:04:05Z",
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
            "config": {
                "User": "1000:50000", "Env": ["PATH=/bin", "A=b"], "Entrypoint": ["/bin/sh"], "Cmd": ["-c", "true"],
                "WorkingDir": "/work", "Labels": { "l": "v" }, "ExposedPorts": { "80/tcp": {} }, "StopSignal": "SIGINT",
            },
        });
        TestImage { layers, config, oci: false }
    }

    pub fn config_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(&self.config).unwrap()
    }

    pub fn id(&self) -> String {
        Digest::of(&self.config_bytes()).to_string()
    }

    pub fn size(&self) -> u64 {
        self.blobs().iter().map(|blob| blob.len() as u64).sum()
    }

    pub fn blobs(&self) -> Vec<Vec<u8>> {
        self.layers.iter().map(|layer| layer.blob.clone()).chain([self.config_bytes()]).collect()
    }

    pub fn manifest(&self) -> Value {
        let config = self.config_bytes();
        let (manifest_type, config_type) = if self.oci {
            ("application/vnd.oci.image.manifest.v1+json", "application/vnd.oci.image.config.v1+json")
        } else {
            ("application/vnd.docker.distribution.manifest.v2+json", "application/vnd.docker.container.image.v1+json")
        };
        let layers: Vec<Value> = self
            .layers
            .iter()
            .map(|layer| json!({ "mediaType": layer.media_type, "size": layer.blob.len(), "digest": Digest::of(&layer.blob) }))
            .collect();
        json!({
            "schemaVersion": 2, "mediaType": manifest_type,
            "config": { "mediaType": config_type, "size": config.len(), "digest": Digest::of(&config) },
            "layers": layers,
        })
    }
}

pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// A manifest list of images that were pushed, by platform.
pub fn index(platforms: &[(&str, &Value)]) -> Value {
    let manifests: Vec<Value> = platforms
        .iter()
        .map(|(platform, manifest)| {
            let mut parts = platform.split('/');
            let bytes = serde_json::to_vec(manifest).unwrap();
            json!({
                "mediaType": manifest["mediaType"], "size": bytes.len(), "digest": Digest::of(&bytes),
                "platform": { "os": parts.next(), "architecture": parts.next(), "variant": parts.next() },
            })
        })
        .collect();
    json!({
        "schemaVersion": 2, "mediaType": "application/vnd.docker.distribution.manifest.list.v2+json",
        "manifests": manifests,
    })
}

/// A tar archive with plain files.
pub fn files(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, content) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(1_000_000_000);
        builder.append_data(&mut header, path, *content).unwrap();
    }
    builder.into_inner().unwrap()
}

/// What does not compress, so that it comes in many pieces.
pub fn noise(size: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let bytes = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    bytes.flatten().take(size).collect()
}

/// An image with one small layer.
pub fn small(content: &str) -> TestImage {
    TestImage::new(vec![Layer::gzip(files(&[("etc/content", content.as_bytes())]))])
}

pub async fn open(root: &Path) -> Images {
    Images::open(ImagesConfig::isolated(root)).await.unwrap()
}

/// Everything that could be left behind by a pull that failed.
pub fn leftovers(root: &Path) -> Vec<String> {
    let list = |path: &str| {
        let entries = std::fs::read_dir(root.join(path)).unwrap();
        entries.map(|entry| format!("{path}/{}", entry.unwrap().file_name().display())).collect::<Vec<_>>()
    };
    ["tmp", "images", "content/sha256", "snapshots", "partial"].iter().flat_map(|path| list(path)).collect()
}

/// True when tests may chown and mknod; says so loudly otherwise.
pub fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("skipped: needs root");
    }
    root
}

/// Deleting what was removed goes on in the background.
pub async fn wait_until_empty(path: &Path) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while std::fs::read_dir(path).unwrap().count() > 0 {
        assert!(Instant::now() < deadline, "{} does not become empty", path.display());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
