//! Why a container cannot be put together.

use std::io;
use std::path::PathBuf;

use crate::container::apparmor::ProfileError;
use crate::container::capabilities::UnknownCapability;
use crate::container::cdi::CdiError;
use crate::container::seccomp::FilterError;

/// Why a container cannot be put together.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// A volume that cannot be labelled.
    #[error(transparent)]
    Label(#[from] crate::selinux::RelabelError),
    /// What another runtime cannot be told.
    #[error("{0}")]
    Handler(#[from] crate::handler::OciSpecError),
    /// The configuration contradicts itself, or the host.
    #[error("{0}")]
    Invalid(String),
    /// A recursive read-only mount that cannot be; the client parses the beginning of this text.
    #[error("RROUnsupported: {0}")]
    RecursiveReadOnly(String),
    /// An image that cannot be shown as a volume; the client parses the beginning of this text.
    #[error("ImageVolumeMountFailed: {0}")]
    ImageVolume(String),
    /// Nothing to execute.
    #[error("no command: neither the container nor its image has one")]
    NoCommand,
    /// The seccomp filter that it asks for.
    #[error(transparent)]
    Seccomp(FilterError),
    /// The AppArmor profile that it asks for.
    #[error(transparent)]
    AppArmor(#[from] ProfileError),
    /// No such capability.
    #[error(transparent)]
    Capability(#[from] UnknownCapability),
    /// A user or group that the image does not know.
    #[error("{what} `{name}` is not in the image's {file}")]
    Unknown {
        /// `user` or `group`.
        what: &'static str,
        /// As it was asked for.
        name: String,
        /// Where it was looked for.
        file: &'static str,
    },
    /// A file of the image cannot be read.
    #[error("cannot read {file} of the image")]
    ImageFile {
        /// The file.
        file: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A mount's source on the host.
    #[error("mount of {}", path.display())]
    Source {
        /// The source.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A device by its name.
    #[error(transparent)]
    Cdi(CdiError),
    /// A device of the host.
    #[error("device {}", path.display())]
    Device {
        /// The device.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}
