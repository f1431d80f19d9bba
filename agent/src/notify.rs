//! Progress for systemd: `systemctl status` shows it while a unit runs.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// The service manager's ear, if there is one.
#[derive(Debug, Default)]
pub struct Notifier {
    socket: Option<UnixDatagram>,
}

impl Notifier {
    /// From the environment that systemd gives its services.
    pub fn from_environment() -> Notifier {
        let Some(address) = std::env::var_os("NOTIFY_SOCKET") else { return Notifier::default() };
        let address = match address.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
            path => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(path)),
        };
        let connect = |address: SocketAddr| {
            let socket = UnixDatagram::unbound()?;
            socket.connect_addr(&address)?;
            // a manager that does not read must not stop a run
            socket.set_nonblocking(true)?;
            Ok::<_, std::io::Error>(socket)
        };
        Notifier { socket: address.and_then(connect).ok() }
    }

    /// Says in one line what is going on.
    pub fn status(&self, text: &str) {
        if let Some(socket) = &self.socket {
            let line = text.lines().next().unwrap_or_default();
            // progress that nobody hears is no error
            drop(socket.send(format!("STATUS={line}").as_bytes()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_one_line() {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        Notifier { socket: Some(ours) }.status("applying swap\nMAINPID=1");
        let mut buffer = [0; 64];
        let length = theirs.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"STATUS=applying swap");
    }
}
