//! What the test host installs: repositories with our package and the stand-ins for Kubernetes', and a registry with an image.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use nix::fcntl::FlockArg;
use sha2::{Digest, Sha256};

use crate::image;
use crate::outside::{collect, repository};
use crate::registry::{Access, Registry};
use crate::vm::cache::lock;
use crate::vm::recipe::hex;
use crate::vm::{Forward, OFFER_ADDRESS};

/// How the guest calls the registry: the image has a way to it on a loopback address.
pub const REGISTRY_IN_GUEST: &str = "127.0.0.1:5000";

/// What the web server of the image says.
pub const GREETING: &str = "a pod on nodeagent\n";

/// Programs that the packages are made of, below target/x86_64-unknown-linux-musl.
const PROGRAMS: [&str; 5] = [
    "release/agent",
    "release/nodeagent-runtime",
    "shim/nodeagent-shim",
    "release/standin-kubelet",
    "release/standin-kubeadm",
];

/// A folder with repositories.
#[derive(Debug)]
pub struct Depot {
    folder: PathBuf,
}

impl Depot {
    /// Repositories of what `make build standins` has built; made when something of it has changed.
    pub fn ready(progress: &mut dyn FnMut(&str)) -> Result<Self> {
        let place = repository().join("target/depot");
        fs::create_dir_all(&place).with_context(|| format!("create {}", place.display()))?;
        let _one = lock(&place.join("lock"), FlockArg::LockExclusive)?;
        let name = key()?;
        let folder = place.join(&name);
        if !folder.exists() {
            progress("packing and signing the packages");
            let provide = repository().join("tests/provide");
            collect(Command::new(&provide).args(["packages", "tests/standin/rpm/packages.txt"]))?
                .ok("install what is needed")?;
            discard_others(&place)?;
            let partial = place.join("partial");
            collect(Command::new(repository().join("tests/standin/rpm/build")).arg(&partial))?
                .ok("make the repositories")?;
            fs::rename(&partial, &folder).with_context(|| format!("rename to {}", folder.display()))?;
        }
        Ok(Self { folder })
    }

    /// Serves it to a guest, over HTTP.
    pub fn offer(&self) -> Forward {
        // one process for each connection: nothing is left when the machine ends
        let words = ["busybox", "httpd", "-i", "-h"].map(str::to_owned);
        let folder = self.folder.to_string_lossy().into_owned();
        Forward { port: 80, command: words.into_iter().chain([folder]).collect() }
    }

    /// Where the guest finds a repository: `nodeagent`, `kubernetes/1.31`.
    pub fn url(path: &str) -> String {
        format!("http://{OFFER_ADDRESS}/{path}")
    }
}

/// A registry with the image `web:1`.
pub fn registry() -> Result<Registry> {
    let registry = Registry::start(Access::Open)?;
    image::Image::busybox()?.layer(&[("www/index.html", GREETING)])?.push(&registry, "web", "1")?;
    Ok(registry)
}

/// Leads a guest to a registry of this machine.
pub fn offer_registry(registry: &Registry) -> Forward {
    let address = registry.address();
    let words = ["busybox".to_owned(), "nc".to_owned(), address.ip().to_string(), address.port().to_string()];
    Forward { port: 5000, command: words.to_vec() }
}

fn key() -> Result<String> {
    let top = repository();
    let mut hash = Sha256::new();
    for program in PROGRAMS {
        let path = top.join("target/x86_64-unknown-linux-musl").join(program);
        let content = fs::read(&path).with_context(|| format!("read {} (make build standins)", path.display()))?;
        hash.update(content);
    }
    for folder in ["units", "image-build/rpm", "tests/standin/rpm", "kickstart"] {
        add(&mut hash, &top.join(folder))?;
    }
    Ok(hex(hash.finalize().get(..6).unwrap_or_default()))
}

fn add(hash: &mut Sha256, folder: &Path) -> Result<()> {
    let entries = fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    paths.sort();
    for path in paths {
        hash.update(path.as_os_str().as_encoded_bytes());
        if path.is_dir() {
            add(hash, &path)?;
        } else {
            hash.update(fs::read(&path).with_context(|| format!("read {}", path.display()))?);
        }
    }
    Ok(())
}

/// What older programs were packed into. A machine that runs from it has what it needs by now.
fn discard_others(place: &Path) -> Result<()> {
    for entry in fs::read_dir(place).with_context(|| format!("list {}", place.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path()).with_context(|| format!("remove {}", entry.path().display()))?;
        }
    }
    Ok(())
}
