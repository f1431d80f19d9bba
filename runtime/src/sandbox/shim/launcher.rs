//! Starting a shim: its socket first, then the program, from a sealed copy in memory.

use std::ffi::{CStr, CString};
use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl};
use nix::spawn::{PosixSpawnAttr, PosixSpawnFileActions, PosixSpawnFlags, posix_spawn};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::SigSet;
use nix::sys::stat::Mode;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use tokio::signal::unix::{SignalKind, signal};

use super::ShimError;
use crate::cgroup::Delegated;
use crate::telemetry::chain;

/// Where the shim finds the socket it is to listen on.
const LISTENER_FD: i32 = 3;
/// What it is called, and what comes before the name of its pod.
const NAME: &CStr = c"nodeagent-shim";
const FLAG: &CStr = c"--sandbox";

/// Starts shims.
#[async_trait::async_trait]
pub trait ShimLauncher: Send + Sync {
    /// Starts the shim of a pod; it listens on `socket` when this returns. Gives its process id.
    async fn launch(&self, sandbox: &str, socket: &Path) -> Result<i32, ShimError>;
}

/// Starts real ones.
pub struct MemfdLauncher {
    program: PathBuf,
    image: Mutex<Option<Image>>,
    children: Arc<Mutex<Vec<Pid>>>,
    delegated: Option<Delegated>,
}

/// The program in memory: all shims share its pages, and an update of the file does not touch them.
struct Image {
    file: Arc<OwnedFd>,
    of: Identity,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

impl MemfdLauncher {
    /// Starts shims from that program. Must be called inside a tokio runtime: their ends are waited for there.
    pub fn new(program: &Path, delegated: Option<Delegated>) -> io::Result<Self> {
        let children = Arc::<Mutex<Vec<Pid>>>::default();
        tokio::spawn(reap(signal(SignalKind::child())?, Arc::clone(&children)));
        Ok(MemfdLauncher { program: program.to_owned(), image: Mutex::default(), children, delegated })
    }

    fn image(&self) -> Result<Arc<OwnedFd>, ShimError> {
        let failed = |source| ShimError::Load { path: self.program.clone(), source };
        let metadata = fs::metadata(&self.program).map_err(failed)?;
        let of = Identity {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        };
        let mut image = self.image.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(image) = image.as_ref().filter(|image| image.of == of) {
            return Ok(Arc::clone(&image.file));
        }
        let file = Arc::new(load(&self.program).map_err(failed)?);
        *image = Some(Image { file: Arc::clone(&file), of });
        Ok(file)
    }
}

#[async_trait::async_trait]
impl ShimLauncher for MemfdLauncher {
    async fn launch(&self, sandbox: &str, socket: &Path) -> Result<i32, ShimError> {
        let image = self.image()?;
        let listener = listen(socket).map_err(|source| ShimError::Socket { path: socket.to_owned(), source })?;
        let pid = spawn(&image, &listener, sandbox).map_err(ShimError::Spawn)?;
        self.children.lock().unwrap_or_else(PoisonError::into_inner).push(pid);
        if let Some(delegated) = self.delegated.clone() {
            // before it has children, which would stay where it came from; the kernel may take a while
            let adopted = tokio::task::spawn_blocking(move || delegated.adopt(pid.as_raw())).await;
            if let Ok(Err(error)) = adopted {
                // it works where it is, but shares the daemon's limits
                log::warn!(sandbox = sandbox, pid = pid.as_raw(); "{}", chain(&error));
            }
        }
        Ok(pid.as_raw())
    }
}

/// A sealed copy of the program in memory.
fn load(program: &Path) -> io::Result<OwnedFd> {
    let bytes = fs::read(program)?;
    let memory = memfd_create(NAME, MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
    let mut file = fs::File::from(memory);
    file.write_all(&bytes)?;
    // for everybody: the reaper of a shared PID namespace executes it without privileges
    file.set_permissions(fs::Permissions::from_mode(0o555))?;
    let seals = SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(file.into())
}

/// Only the owner may talk to a shim.
fn listen(socket: &Path) -> io::Result<UnixListener> {
    if let Err(error) = fs::remove_file(socket)
        && error.kind() != io::ErrorKind::NotFound
    {
        return Err(error);
    }
    // the directory is closed to others, so there is no moment in which they could connect
    let listener = UnixListener::bind(socket)?;
    fs::set_permissions(socket, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Through posix_spawn, which does not copy the daemon's memory as a fork would.
fn spawn(image: &OwnedFd, listener: &UnixListener, sandbox: &str) -> nix::Result<Pid> {
    let mut files = PosixSpawnFileActions::init()?;
    files.add_open(0, c"/dev/null", OFlag::O_RDONLY, Mode::empty())?;
    files.add_open(1, c"/dev/null", OFlag::O_WRONLY, Mode::empty())?;
    files.add_dup2(listener.as_raw_fd(), LISTENER_FD)?;
    let mut attributes = PosixSpawnAttr::init()?;
    attributes.set_sigmask(&SigSet::empty())?;
    attributes.set_sigdefault(&SigSet::all())?;
    attributes.set_flags(PosixSpawnFlags::POSIX_SPAWN_SETSIGMASK | PosixSpawnFlags::POSIX_SPAWN_SETSIGDEF)?;
    let path = format!("/proc/self/fd/{}", image.as_raw_fd());
    let id = CString::new(sandbox).map_err(|_| nix::Error::EINVAL)?;
    let arguments: [&CStr; 3] = [NAME, FLAG, &id];
    let environment: [&CStr; 0] = [];
    posix_spawn(path.as_str(), &files, &attributes, &arguments, &environment)
}

/// Whether that process is the shim of that pod: a number may belong to another by now. One that has ended is none.
pub fn is_of(pid: i32, sandbox: &str) -> bool {
    let line = [NAME.to_bytes(), FLAG.to_bytes(), sandbox.as_bytes(), b""].join(&0);
    pid > 0 && fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|found| found == line)
}

/// Waits for shims that end while the daemon is their parent; others are init's.
async fn reap(mut signals: tokio::signal::unix::Signal, children: Arc<Mutex<Vec<Pid>>>) {
    while signals.recv().await.is_some() {
        children.lock().unwrap_or_else(PoisonError::into_inner).retain(|pid| {
            let status = waitpid(*pid, Some(WaitPidFlag::WNOHANG));
            match &status {
                Ok(WaitStatus::StillAlive) => return true,
                Ok(WaitStatus::Exited(_, 0)) => log::debug!(pid = pid.as_raw(); "a shim ended"),
                other => log::warn!(pid = pid.as_raw(), status:? = other; "a shim ended badly"),
            }
            false
        });
    }
}
