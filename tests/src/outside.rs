//! Programs of others: tools that judge our files, servers that ours talk to.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Top of the repository.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_path_buf).unwrap_or_default()
}

/// What a program said, on both streams, and whether it was content.
#[derive(Debug)]
pub struct Verdict {
    /// Exit status 0.
    pub success: bool,
    /// Standard output, then standard error.
    pub text: String,
}

impl Verdict {
    /// Fails unless the program exited with 0 and said nothing: for judges that report and exit with 0 all the same.
    pub fn silent(self, what: &str) -> Result<()> {
        if self.success && self.text.trim().is_empty() {
            return Ok(());
        }
        bail!("{what} (exit {}):\n{}", if self.success { "0" } else { "not 0" }, self.text)
    }

    /// Fails unless the program exited with 0; its output otherwise.
    pub fn ok(self, what: &str) -> Result<String> {
        if !self.success {
            bail!("{what}:\n{}", self.text);
        }
        Ok(self.text)
    }
}

/// Runs a program to its end, with nothing on standard input.
pub fn run<I, S>(program: &str, args: I) -> Result<Verdict>
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    collect(Command::new(program).args(args))
}

/// Runs a prepared command to its end and collects what it says.
pub fn collect(command: &mut Command) -> Result<Verdict> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("start {} (tests/packages.txt names its package)", command.get_program().display()))?;
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    Ok(Verdict { success: output.status.success(), text })
}
