//! From Debian packages to kernel, initrd and a disk: no loop device, no mount.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::recipe::{Suite, folder, packages};
use super::{kernel, process};

/// Holes cost nothing: room for images and packages.
const DISK_BYTES: u64 = 6 << 30;

/// Unpacks a suite's packages into an archive: by far the longest part, and the same until the list of packages changes.
pub fn unpack(suite: Suite, archive: &Path) -> Result<()> {
    let script = folder().join("fetch.sh");
    // goes through a shell, mmdebstrap's
    ensure!(
        !script.to_string_lossy().contains('\''),
        "{}: cannot build in a folder with a quote in its name",
        script.display()
    );
    let mut command = isolated("mmdebstrap");
    command.args(["--quiet", "--variant=minbase", "--mode=root", "--format=tar", "--skip=cleanup/reproducible"]);
    command.args(["--aptopt=APT::Install-Recommends \"false\"", "--dpkgopt=force-unsafe-io"]);
    command.args(["doc", "man", "locale"].map(|what| format!("--dpkgopt=path-exclude=/usr/share/{what}/*")));
    command.arg(format!("--include={}", packages()?.join(",")));
    command.arg(format!("--customize-hook='{}' \"$1\"", script.display()));
    command.arg(suite.name()).arg(archive);
    run(command, "mmdebstrap")
}

/// Builds an image of unpacked packages into a folder.
pub fn build(archive: &Path, out: &Path) -> Result<()> {
    let work = tempfile::Builder::new().prefix("nodeagent-image-").tempdir().context("create a temporary folder")?;
    let root = work.path().join("root");
    fs::create_dir(&root)?;
    let mut extract = isolated("tar");
    extract.args(["--extract", "--zstd", "--preserve-permissions", "--numeric-owner", "--xattrs", "--directory"]);
    extract.arg(&root).arg("--file").arg(archive);
    run(extract, "tar")?;
    let mut customise = isolated(folder().join("guest.sh"));
    customise.arg(&root).arg(folder());
    run(customise, "tests/host-image/guest.sh")?;
    let packed = fs::read(root.join("boot/vmlinuz")).context("the tree has no boot/vmlinuz")?;
    fs::write(out.join("vmlinux"), kernel::unpack(&packed)?).context("write vmlinux")?;
    for name in ["initrd", "manifest"] {
        fs::copy(root.join("boot").join(name), out.join(name))
            .with_context(|| format!("the tree has no boot/{name}"))?;
    }
    disk(&root, &out.join("root.img"))
}

/// A program in namespaces of its own: whatever ends this one, its processes and mounts end with it.
fn isolated(program: impl AsRef<OsStr>) -> Command {
    let mut command = process::tied("unshare");
    command.args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "nice", "-n", "10"]).arg(program);
    command
}

fn run(mut command: Command, what: &str) -> Result<()> {
    let said = tempfile::NamedTempFile::new().context("create a temporary file")?;
    let output = said.reopen().context("open a temporary file")?;
    command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
    let status = process::spawn(command)?.wait().with_context(|| format!("wait for {what}"))?;
    let text = fs::read(said.path()).unwrap_or_default();
    ensure!(status.success(), "{what}: {status}\n{}", tail(&String::from_utf8_lossy(&text), 4000));
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
