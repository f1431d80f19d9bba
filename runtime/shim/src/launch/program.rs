//! Finding the program, inside the container and as its user, and executing it.

use std::ffi::CString;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::sys::stat::{SFlag, stat};
use nix::unistd::{AccessFlags, execve, faccessat};

use super::error::LaunchError;
use crate::protocol::ProcessSpec;

/// Where programs are searched when the environment has no `PATH`.
const DEFAULT_PATH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Arguments and environment in the kernel's form.
pub struct Program {
    args: Vec<CString>,
    env: Vec<CString>,
}

impl Program {
    /// Decodes them from the request.
    pub fn new(process: &ProcessSpec) -> Result<Self, LaunchError> {
        let args = process
            .args
            .iter()
            .map(|arg| CString::new(arg.as_str()).map_err(|_| LaunchError::ZeroByte { what: "an argument" }))
            .collect::<Result<Vec<_>, _>>()?;
        if args.is_empty() {
            return Err(LaunchError::NoProgram);
        }
        let env = process
            .env
            .iter()
            .map(|entry| {
                let entry = STANDARD.decode(entry).map_err(|_| LaunchError::Encoding { what: "the environment" })?;
                CString::new(entry).map_err(|_| LaunchError::ZeroByte { what: "the environment" })
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { args, env })
    }

    /// Finds the file. To be called where the program will see its files, with its user's rights.
    pub fn find(&self) -> Result<CString, LaunchError> {
        let name = &self.args[0];
        let text = || name.to_string_lossy().into_owned();
        if name.as_bytes().contains(&b'/') {
            return Ok(name.clone());
        }
        if name.is_empty() {
            return Err(LaunchError::NotInPath { program: text() });
        }
        let path = self.env.iter().rev().find_map(|entry| entry.as_bytes().strip_prefix(b"PATH="));
        let mut denied = false;
        for directory in path.unwrap_or(DEFAULT_PATH).split(|byte| *byte == b':') {
            // an empty entry means the working directory, as everywhere
            let directory = if directory.is_empty() { b".".as_slice() } else { directory };
            let Ok(candidate) = CString::new([directory, b"/", name.as_bytes()].concat()) else { continue };
            let regular = stat(candidate.as_c_str())
                .is_ok_and(|found| SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT == SFlag::S_IFREG);
            if !regular {
                continue;
            }
            match faccessat(AT_FDCWD, candidate.as_c_str(), AccessFlags::X_OK, AtFlags::empty()) {
                Ok(()) => return Ok(candidate),
                Err(Errno::EACCES) => denied = true,
                Err(_) => {}
            }
        }
        if denied {
            return Err(LaunchError::Execute { program: text(), source: Errno::EACCES });
        }
        Err(LaunchError::NotInPath { program: text() })
    }

    /// Becomes the program; returns only with an error.
    pub fn execute(&self, file: &CString) -> LaunchError {
        match execve(file.as_c_str(), &self.args, &self.env) {
            Ok(never) => match never {},
            Err(source) => LaunchError::Execute { program: file.to_string_lossy().into_owned(), source },
        }
    }
}
