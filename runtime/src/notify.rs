//! What systemd wants to hear from a `Type=notify` service.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// Where to report, if anybody asked; by value, so that nothing below `main` reads the environment.
#[derive(Debug, Clone, Default)]
pub struct Notifier {
    socket: Option<String>,
    watchdog: Option<Duration>,
}

impl Notifier {
    /// `socket` is the value of `NOTIFY_SOCKET`: a path, or an abstract name after `@`.
    pub fn new(socket: Option<String>) -> Self {
        Notifier { socket: socket.filter(|name| !name.is_empty()), watchdog: None }
    }

    /// Adds systemd's watchdog: `usec` and `pid` are the values of `WATCHDOG_USEC` and `WATCHDOG_PID`. One that is meant
    /// for another process, from which the variables were inherited, is none.
    pub fn with_watchdog(self, usec: Option<&str>, pid: Option<&str>) -> Self {
        let ours = pid.is_none_or(|pid| pid.parse() == Ok(std::process::id()));
        let usec = usec.and_then(|usec| usec.parse().ok()).filter(|usec| *usec > 0);
        Notifier { watchdog: usec.filter(|_| ours).map(Duration::from_micros), ..self }
    }

    /// How often [`Self::alive`] is to be called: three times in the watchdog's time.
    pub fn watchdog(&self) -> Option<Duration> {
        self.watchdog.map(|limit| limit / 3)
    }

    /// The service still answers.
    pub fn alive(&self) {
        self.send("WATCHDOG=1");
    }

    /// The service answers.
    pub fn ready(&self, status: &str) {
        self.send(&format!("READY=1\nSTATUS={}", one_line(status)));
    }

    /// The configuration is read again; followed by [`Self::ready`]. systemd wants the time of a `RELOADING`.
    pub fn reloading(&self, monotonic_usec: u64) {
        self.send(&format!("RELOADING=1\nMONOTONIC_USEC={monotonic_usec}"));
    }

    /// The service is on its way out.
    pub fn stopping(&self) {
        self.send("STOPPING=1");
    }

    fn send(&self, message: &str) {
        let Some(socket) = &self.socket else { return };
        // losing a notification is systemd's timeout to handle; the service itself must go on
        if let Err(error) = send_to(socket, message) {
            log::warn!(socket = socket.as_str(); "cannot notify systemd: {error}");
        }
    }
}

fn one_line(text: &str) -> String {
    text.replace(['\n', '\r'], " ")
}

fn send_to(socket: &str, message: &str) -> io::Result<()> {
    let address = match socket.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name.as_bytes())?,
        None => SocketAddr::from_pathname(socket)?,
    };
    let datagram = UnixDatagram::unbound()?;
    datagram.send_to_addr(message.as_bytes(), &address)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_and_its_status_reach_the_socket() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let receiver = UnixDatagram::bind(&path).unwrap();
        Notifier::new(Some(path.to_string_lossy().into_owned())).ready("serving\n/run/x");
        let mut buffer = [0; 256];
        let length = receiver.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"READY=1\nSTATUS=serving /run/x");
    }

    #[test]
    fn an_abstract_socket_is_reached_too() {
        let name = format!("nodeagent-test-{}", std::process::id());
        let receiver = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(name.as_bytes()).unwrap()).unwrap();
        Notifier::new(Some(format!("@{name}"))).stopping();
        let mut buffer = [0; 64];
        let length = receiver.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"STOPPING=1");
    }

    #[test]
    fn a_watchdog_is_ours_or_none() {
        let of = |usec, pid| Notifier::new(None).with_watchdog(usec, pid).watchdog();
        let own = std::process::id().to_string();
        assert_eq!(of(Some("30000000"), Some(&own)), Some(Duration::from_secs(10)));
        assert_eq!(of(Some("30000000"), None), Some(Duration::from_secs(10)));
        assert_eq!(of(Some("30000000"), Some("1")), None);
        assert_eq!((of(Some("0"), None), of(Some("x"), None), of(None, None)), (None, None, None));
    }

    #[test]
    fn nobody_asked_means_nothing_is_sent() {
        Notifier::new(Some(String::new())).ready("x");
        Notifier::new(None).stopping();
    }
}
