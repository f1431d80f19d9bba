//! Unix sockets that are taken over from the dead and never from the living.

use super::ServerError;
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    sys::{
        socket::{self, AddressFamily, Backlog, SockFlag, SockType, UnixAddr},
        stat::{self, Mode},
    },
};
use std::{
    fs, io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt},
    },
    path::{Path, PathBuf},
};
use tokio::net::UnixListener;

/// Owner and group may talk to us: whoever can is as good as root on this node.
const SOCKET_MODE: u32 = 0o660;
/// Clients that may wait to be accepted: as many as `net.core.somaxconn` lets. A number of our own is refused by nix when it is
/// above the C library's constant, which is 4096 in glibc and 128 in musl.
const BACKLOG: Backlog = Backlog::MAXALLOWABLE;

/// A bound, listening socket. The path is removed again when this is dropped, unless someone else owns it by then.
#[derive(Debug)]
pub struct Listener {
    listener: UnixListener,
    path: PathBuf,
    /// device and inode of what we bound: proof that the path is still ours
    identity: (u64, u64),
}

impl Listener {
    /// Binds `path` with mode 0660, making its directory when missing. What a dead server left there is replaced;
    /// [`ServerError::Occupied`] is the answer when somebody listens.
    ///
    /// Must be called inside a tokio runtime.
    pub fn bind(path: &Path) -> Result<Self, ServerError> {
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => return Err(ServerError::NoParent { path: path.to_owned() }),
        };
        let address =
            UnixAddr::new(path).map_err(|source| ServerError::PathTooLong { path: path.to_owned(), source })?;
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(directory)
            .map_err(|source| ServerError::CreateDirectory { path: directory.to_owned(), source })?;
        // between "nobody listens" and bind a second starter could come to the same conclusion
        let _lock = lock(directory)?;
        clear_stale(path, &address)?;
        let bind_error = |source: io::Error| ServerError::Bind { path: path.to_owned(), source };
        let socket = open(path, &address).map_err(bind_error)?;
        let metadata = fs::symlink_metadata(path).map_err(bind_error)?;
        let listener = UnixListener::from_std(std::os::unix::net::UnixListener::from(socket)).map_err(bind_error)?;
        Ok(Self { listener, path: path.to_owned(), identity: (metadata.dev(), metadata.ino()) })
    }

    /// Where clients find this listener.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(super) async fn accept(&self) -> io::Result<tokio::net::UnixStream> {
        self.listener.accept().await.map(|(stream, _)| stream)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path).is_ok_and(|now| (now.dev(), now.ino()) == self.identity);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            log::warn!(path = self.path.display().to_string().as_str(), error = error.to_string().as_str(); "cannot remove our socket");
        }
    }
}

fn lock(directory: &Path) -> Result<Flock<fs::File>, ServerError> {
    let lock_error = |source: io::Error| ServerError::LockDirectory { path: directory.to_owned(), source };
    let handle = fs::File::open(directory).map_err(lock_error)?;
    Flock::lock(handle, FlockArg::LockExclusive).map_err(|(_, errno)| lock_error(errno.into()))
}

/// Makes way at `path`, or says why not.
fn clear_stale(path: &Path, address: &UnixAddr) -> Result<(), ServerError> {
    let probe_error = |source: io::Error| ServerError::Probe { path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.file_type().is_socket() => {}
        Ok(_) => return Err(ServerError::NotASocket { path: path.to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(probe_error(error)),
    }
    // non-blocking: a server whose backlog is full answers EAGAIN instead of holding up our start, and is alive
    let probe = new_socket().map_err(probe_error)?;
    match socket::connect(probe.as_raw_fd(), address) {
        Ok(()) | Err(Errno::EAGAIN | Errno::EINPROGRESS) => Err(ServerError::Occupied { path: path.to_owned() }),
        Err(Errno::ENOENT) => Ok(()),
        Err(Errno::ECONNREFUSED) => match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(ServerError::RemoveStale { path: path.to_owned(), source: error })
            }
            _ => Ok(()),
        },
        // a socket of another type (seqpacket, datagram) is somebody's, too
        Err(Errno::EPROTOTYPE) => Err(ServerError::Occupied { path: path.to_owned() }),
        Err(errno) => Err(probe_error(errno.into())),
    }
}

fn new_socket() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(socket::socket(AddressFamily::Unix, SockType::Stream, flags, None)?)
}

fn open(path: &Path, address: &UnixAddr) -> io::Result<OwnedFd> {
    let socket = new_socket()?;
    // Linux takes the file's mode from the socket's inode (unix_bind), minus the umask: so there is no moment at
    // which the file is more open than asked for, whatever the umask; the second call gives back what it took
    stat::fchmod(&socket, Mode::from_bits_truncate(SOCKET_MODE))?;
    socket::bind(socket.as_raw_fd(), address)?;
    fs::set_permissions(path, fs::Permissions::from_mode(SOCKET_MODE))?;
    socket::listen(&socket, BACKLOG)?;
    Ok(socket)
}
