//! SELinux labels of what is there already. A file that is written keeps its label by [`Root::write`] itself.

use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::OFlag;

use super::super::sys;
use super::{Root, RootError};

/// Directories open for reading only; nothing here may wait for a pipe's other end.
const FLAGS: OFlag = OFlag::O_RDONLY.union(OFlag::O_NONBLOCK).union(OFlag::O_NOCTTY);

impl Root {
    /// The label of what the path leads to; none when there is nothing, or nothing with a label.
    pub fn selinux_label(&self, path: &str) -> Result<Option<String>, RootError> {
        let Some(file) = self.open_existing(path, FLAGS)? else { return Ok(None) };
        let label = sys::selinux_label(&file).map_err(failed(path, "read SELinux label"))?;
        Ok(label.map(|label| String::from_utf8_lossy(&label).trim_end_matches('\0').to_owned()))
    }

    /// Gives what the path leads to another label.
    pub fn set_selinux_label(&self, path: &str, label: &str) -> Result<(), RootError> {
        let file = self.resolver.open(Path::new(path), FLAGS).map_err(failed(path, "open"))?;
        self.refuse_kernel_state(path, &file)?;
        self.ledger.note(format!("label {path} {label}"));
        // the final NUL is part of a label as the kernel keeps it
        let label = format!("{label}\0");
        sys::set_selinux_label(&file, label.as_bytes()).map_err(failed(path, "set SELinux label"))
    }
}

fn failed(path: &str, step: &'static str) -> impl FnOnce(Errno) -> RootError {
    let path = path.to_owned();
    move |source| RootError::Write { path, step, source }
}
