//! What an image is made of. Its name is a hash of that, so that a changed recipe is another image.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use crate::outside::repository;

/// Which Debian, and by its age which EL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Suite {
    /// systemd 252, kernel 6.1, cloud-init 22.4: as old as EL 9.
    Bookworm,
    /// systemd 257, kernel 6.12, cloud-init 25.1: as old as EL 10.
    Trixie,
}

impl Suite {
    /// Debian's name for it.
    pub fn name(self) -> &'static str {
        match self {
            Suite::Bookworm => "bookworm",
            Suite::Trixie => "trixie",
        }
    }

    /// Major version of the EL that it stands for.
    pub fn release(self) -> u32 {
        match self {
            Suite::Bookworm => 9,
            Suite::Trixie => 10,
        }
    }
}

/// Where script, package list, stand-ins and files of the guest are.
pub fn folder() -> PathBuf {
    repository().join("tests/host-image")
}

/// The guest's Debian packages.
pub fn packages() -> Result<Vec<String>> {
    let path = folder().join("guest-packages.txt");
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let words = text.lines().flat_map(|line| line.split('#').next().unwrap_or_default().split_whitespace());
    Ok(words.map(str::to_owned).collect())
}

/// Name of a suite's unpacked packages.
pub fn packages_key(suite: Suite) -> Result<String> {
    let files = ["guest-packages.txt", "fetch.sh"].map(|name| folder().join(name));
    digest(suite, "packages 1", &files)
}

/// Name of the image of a suite.
pub fn key(suite: Suite) -> Result<String> {
    let mut files = Vec::new();
    list(&folder(), &mut files)?;
    files.sort();
    digest(suite, "image 2", &files)
}

/// The suite and twelve digits of a hash over files. `what` counts too: to be raised by hand when what is made of them changes.
fn digest(suite: Suite, what: &str, files: &[PathBuf]) -> Result<String> {
    let mut hash = Sha256::new();
    hash.update(what);
    hash.update(suite.name());
    for path in files {
        let content = fs::read(path).with_context(|| format!("read {}", path.display()))?;
        let relative = path.strip_prefix(folder())?.to_string_lossy().into_owned();
        hash.update(format!("\0{relative}\0{}\0", content.len()));
        hash.update(content);
    }
    let digest = hash.finalize();
    Ok(format!("{}-{}", suite.name(), hex(digest.get(..6).unwrap_or_default())))
}

/// Lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn list(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            list(&entry.path(), files)?;
        } else if entry.file_name() != "build-packages.txt" && entry.file_name() != "README.md" {
            files.push(entry.path());
        }
    }
    Ok(())
}
