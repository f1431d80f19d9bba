//! From Debian packages to kernel, initrd and a disk: no loop device, no mount.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use super::recipe::{Suite, folder, packages};
use super::{kernel, process};

/// Holes cost nothing: room for images and packages.
const DISK_BYTES: u64 = 6 << 30;

/// Builds the image of a suite into a folder.
pub fn build(suite: Suite, out: &Path) -> Result<()> {
    let work = tempfile::Builder::new().prefix("nodeagent-image-").tempdir().context("create a temporary folder")?;
    let root = work.path().join("root");
    unpack(suite, &root, &out.join("build.log"))?;
    let packed = fs::read(root.join("boot/vmlinuz")).context("the tree has no boot/vmlinuz")?;
    fs::write(out.join("vmlinux"), kernel::unpack(&packed)?).context("write vmlinux")?;
    for name in ["initrd", "manifest"] {
        fs::copy(root.join("boot").join(name), out.join(name))
            .with_context(|| format!("the tree has no boot/{name}"))?;
    }
    disk(&root, &out.join("root.img"))
}

fn unpack(suite: Suite, root: &Path, log: &Path) -> Result<()> {
    let script = folder().join("guest.sh");
    for path in [&script, &folder()] {
        // goes through a shell, mmdebstrap's
        ensure!(
            !path.to_string_lossy().contains('\''),
            "{}: cannot build in a folder with a quote in its name",
            path.display()
        );
    }
    // in namespaces of its own: whatever ends this, its processes and mounts end with it
    let mut command = process::tied("unshare");
    command.args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "nice", "-n", "10", "mmdebstrap"]);
    command.args(["--quiet", "--variant=minbase", "--mode=root", "--format=directory"]);
    command.args([
        "--skip=cleanup/reproducible",
        "--aptopt=APT::Install-Recommends \"false\"",
        "--dpkgopt=force-unsafe-io",
    ]);
    command.args(["doc", "man", "locale"].map(|what| format!("--dpkgopt=path-exclude=/usr/share/{what}/*")));
    command.arg(format!("--include={}", packages()?.join(",")));
    command.arg(format!("--customize-hook='{}' \"$1\" '{}'", script.display(), folder().display()));
    command.arg(suite.name()).arg(root);
    let output = File::create(log).with_context(|| format!("create {}", log.display()))?;
    let status =
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output).status().context("start mmdebstrap")?;
    if !status.success() {
        let text = fs::read_to_string(log).unwrap_or_default();
        bail!("mmdebstrap: {status}\n{}", tail(&text, 4000));
    }
    Ok(())
}

fn disk(root: &Path, image: &Path) -> Result<()> {
    let file = File::create(image).with_context(|| format!("create {}", image.display()))?;
    file.set_len(DISK_BYTES).with_context(|| format!("resize {}", image.display()))?;
    // with a journal: a power cut has to be fair
    let options =
        ["-q", "-t", "ext4", "-O", "^metadata_csum", "-J", "size=16", "-E", "lazy_itable_init=1,nodiscard", "-m", "0"];
    let mut command = Command::new("mke2fs");
    command.args(options).args(["-N", "98304", "-d"]).args([root.as_os_str(), image.as_os_str()]);
    let output = command.stdin(Stdio::null()).output().context("start mke2fs")?;
    ensure!(output.status.success(), "mke2fs: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Runs a filter over bytes.
pub(super) fn filter<S: AsRef<OsStr>>(program: &str, arguments: &[S], input: &Path) -> Result<Vec<u8>> {
    let file = File::open(input).with_context(|| format!("open {}", input.display()))?;
    let output = Command::new(program).args(arguments).stdin(file).stderr(Stdio::null()).output();
    Ok(output.with_context(|| format!("start {program}"))?.stdout)
}

/// The end of a text, from the beginning of a line.
pub fn tail(text: &str, bytes: usize) -> &str {
    let from = text.len().saturating_sub(bytes);
    let from = (from..=text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len());
    match text.get(from..) {
        Some(end) if from > 0 => end.split_once('\n').map_or(end, |(_, rest)| rest),
        Some(end) => end,
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::tail;

    #[test]
    fn the_tail_of_a_text_begins_with_a_line() {
        assert_eq!(tail("one\ntwo\nthree\n", 9), "three\n");
        assert_eq!(tail("short", 100), "short");
        assert_eq!(tail("ä\nö", 3), "ö");
    }
}
