//! The first container of a pod that another runtime makes: our reaper, in a root where nothing else is.

use std::io;
use std::path::{Path, PathBuf};

use nodeagent_shim::protocol::{LaunchSpec, Rootfs};

use super::{Handler, oci_spec};
use crate::sandbox::{SandboxRecord, Shared, Shim, ShimError};

/// Where the reaper is in its root; the program knows itself by that.
const PLACE: &str = "/nodeagent-reaper";

/// It could not be started.
#[derive(Debug, thiserror::Error)]
pub enum SandboxContainerError {
    /// Its files.
    #[error("write {}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The runtime.
    #[error(transparent)]
    Shim(#[from] ShimError),
}

/// Starts it and gives its process. `environment` knows where the pod's files are.
pub async fn start(
    environment: &Shared,
    handler: &Handler,
    pod: &SandboxRecord,
    shim: &Shim,
) -> Result<i32, SandboxContainerError> {
    let bundle = environment.paths.pod(&pod.id).join("runtime");
    let root = bundle.join("rootfs");
    let reaper = environment.host.handlers.reaper();
    let text = oci_spec::sandbox_container(pod, &root, reaper, PLACE, handler.by_systemd()).to_string();
    write(&bundle, &root, &text)?;
    let spec = LaunchSpec {
        container: pod.id.clone(),
        rootfs: Rootfs { target: root.to_string_lossy().into_owned(), ..Rootfs::default() },
        cgroups: environment.cgroups.attach_dirs(&pod.cgroup),
        oci: Some(handler.oci(&bundle)),
        ..LaunchSpec::default()
    };
    Ok(handler.process(&pod.id, shim.start(spec).await?.pid))
}

fn write(bundle: &Path, root: &Path, text: &str) -> Result<(), SandboxContainerError> {
    std::fs::create_dir_all(root).map_err(|source| SandboxContainerError::File { path: root.to_owned(), source })?;
    let path = bundle.join("config.json");
    std::fs::write(&path, text).map_err(|source| SandboxContainerError::File { path, source })
}
