//! Where images are kept: `$NODEAGENT_CACHE/testhost`, a folder for each, complete or not there.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use nix::fcntl::{Flock, FlockArg};

use super::build;
use super::recipe::{Suite, key, packages_key};
use crate::outside::repository;

/// A complete image, which stays in the cache as long as this is held.
#[derive(Debug)]
pub struct Image {
    folder: PathBuf,
    _in_use: Flock<File>,
}

impl Image {
    /// The image of a suite, built when it is not there yet. `progress` is told what takes time.
    pub fn ready(suite: Suite, progress: &mut dyn FnMut(&str)) -> Result<Self> {
        ensure!(nix::unistd::geteuid().is_root(), "the test host is unpacked and built as root; you are not");
        tools()?;
        let cache = folder();
        fs::create_dir_all(&cache).with_context(|| format!("create {}", cache.display()))?;
        let name = key(suite)?;
        let _one_builder = lock(&cache.join(format!("{}.lock", suite.name())), FlockArg::LockExclusive)?;
        let image = cache.join(&name);
        if !image.exists() {
            let archive = unpacked(&cache, suite, progress)?;
            progress(&format!("building the test host ({})", suite.name()));
            let partial = cache.join(format!("{name}.partial"));
            let _ = fs::remove_dir_all(&partial);
            fs::create_dir(&partial).with_context(|| format!("create {}", partial.display()))?;
            build::build(&archive, &partial)?;
            fs::rename(&partial, &image).with_context(|| format!("rename to {}", image.display()))?;
            discard_old(&cache, suite, &name)?;
        }
        let in_use = lock(&image.join("in-use"), FlockArg::LockShared)?;
        Ok(Self { folder: image, _in_use: in_use })
    }

    /// A file of the image: `vmlinux`, `initrd`, `root.img`, `manifest`.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

/// The suite's packages, unpacked: fetched when the list has changed.
fn unpacked(cache: &Path, suite: Suite, progress: &mut dyn FnMut(&str)) -> Result<PathBuf> {
    let archive = cache.join(format!("{}.tar.zst", packages_key(suite)?));
    if !archive.exists() {
        progress(&format!("fetching and unpacking the packages of Debian {}: some minutes, once", suite.name()));
        // mmdebstrap tells the format by the name
        let partial = cache.join(format!("partial-{}.tar.zst", suite.name()));
        build::unpack(suite, &partial)?;
        fs::rename(&partial, &archive).with_context(|| format!("rename to {}", archive.display()))?;
        for entry in fs::read_dir(cache).with_context(|| format!("list {}", cache.display()))? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path != archive && name.starts_with(&format!("{}-", suite.name())) && name.ends_with(".tar.zst") {
                fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
            }
        }
    }
    Ok(archive)
}

/// Takes a lock file; waits for others who have it.
pub fn lock(path: &Path, how: FlockArg) -> Result<Flock<File>> {
    let file = File::options().create(true).truncate(false).write(true).open(path);
    let file = file.with_context(|| format!("open {}", path.display()))?;
    Flock::lock(file, how).map_err(|(_, errno)| errno).with_context(|| format!("lock {}", path.display()))
}

fn folder() -> PathBuf {
    let base = env::var_os("NODEAGENT_CACHE").map(PathBuf::from).unwrap_or_else(|| {
        let home = env::var_os("HOME").map(PathBuf::from).unwrap_or_else(|| "/root".into());
        home.join(".cache/nodeagent")
    });
    base.join("testhost")
}

/// Images of an older recipe, unless a machine runs from them.
fn discard_old(cache: &Path, suite: Suite, name: &str) -> Result<()> {
    for entry in fs::read_dir(cache).with_context(|| format!("list {}", cache.display()))? {
        let entry = entry?;
        let other = entry.file_name().to_string_lossy().into_owned();
        if !entry.file_type()?.is_dir() || !other.starts_with(&format!("{}-", suite.name())) || other == name {
            continue;
        }
        let in_use = File::options().create(true).truncate(false).write(true).open(entry.path().join("in-use"))?;
        if Flock::lock(in_use, FlockArg::LockExclusiveNonblock).is_ok() {
            fs::remove_dir_all(entry.path()).with_context(|| format!("remove {}", entry.path().display()))?;
        }
    }
    Ok(())
}

/// Installs what is missing on this machine, or says that it cannot.
fn tools() -> Result<()> {
    let script = repository().join("tests/provide");
    let status = std::process::Command::new(&script).args(["packages", "tests/host-image/build-packages.txt"]).status();
    let status = status.with_context(|| format!("start {}", script.display()))?;
    ensure!(status.success(), "what builds and boots the test host is not all there; see above");
    Ok(())
}
