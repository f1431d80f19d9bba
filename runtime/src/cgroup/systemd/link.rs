//! The way to systemd: its own socket first, since that works before there is a message bus and after it has died.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::StreamExt;
use nodeagent_systemd_socket::PrivateSocket;
use tokio::sync::mpsc;
use zbus::proxy::CacheProperties;
use zbus::zvariant::{OwnedObjectPath, Value};
use zbus::{Connection, MatchRule, MessageStream, connection, message};

/// systemd's own socket, for root only.
const PRIVATE_SOCKET: &str = "/run/systemd/private";
const SERVICE: &str = "org.freedesktop.systemd1";

/// Signals that may wait while one is looked at: a host that starts or stops ends hundreds of jobs in a second.
const QUEUE: usize = 4096;

/// Further units that come with a transient one.
type AuxiliaryUnits<'a> = [(&'a str, &'a [(&'a str, Value<'a>)])];

/// The interface, as far as it is called; the same in 239, 252 and 257.
#[zbus::proxy(
    interface = "org.freedesktop.systemd1.Manager",
    default_service = "org.freedesktop.systemd1",
    default_path = "/org/freedesktop/systemd1",
    gen_blocking = false
)]
pub(super) trait Manager {
    fn subscribe(&self) -> zbus::Result<()>;
    fn stop_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;
    fn reset_failed_unit(&self, name: &str) -> zbus::Result<()>;
    fn set_unit_properties(&self, name: &str, runtime: bool, properties: &[(&str, Value<'_>)]) -> zbus::Result<()>;
    fn start_transient_unit(
        &self,
        name: &str,
        mode: &str,
        properties: &[(&str, Value<'_>)],
        auxiliary: &AuxiliaryUnits<'_>,
    ) -> zbus::Result<OwnedObjectPath>;
}

/// Ends of jobs, and who is waiting for some.
#[derive(Debug, Default)]
struct Ends {
    next: u64,
    /// None when the connection is gone.
    listeners: Option<HashMap<u64, mpsc::UnboundedSender<(OwnedObjectPath, String)>>>,
}

/// An open way to systemd.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) manager: ManagerProxy<'static>,
    ends: Arc<Mutex<Ends>>,
}

/// The ends of all jobs from some moment on.
pub(super) struct Jobs {
    number: u64,
    ends: Arc<Mutex<Ends>>,
    /// A caller takes them for one job and goes: what waits here is bounded by that.
    heard: mpsc::UnboundedReceiver<(OwnedObjectPath, String)>,
}

impl Link {
    pub(super) async fn open() -> zbus::Result<Link> {
        let connection = match private().await {
            Ok(connection) => connection,
            Err(error) => {
                log::debug!("{PRIVATE_SOCKET}: {error}; trying the system bus");
                connection::Builder::system()?.build().await?
            }
        };
        let manager = ManagerProxy::builder(&connection).cache_properties(CacheProperties::No).build().await?;
        let mut rule = MatchRule::builder()
            .msg_type(message::Type::Signal)
            .interface("org.freedesktop.systemd1.Manager")?
            .member("JobRemoved")?
            .path("/org/freedesktop/systemd1")?;
        if connection.is_bus() {
            // anybody may send a signal that looks like one
            let bus = zbus::fdo::DBusProxy::new(&connection).await?;
            rule = rule.sender(bus.get_name_owner(zbus::names::BusName::try_from(SERVICE)?).await?)?;
        }
        let stream = MessageStream::for_match_rule(rule.build(), &connection, Some(QUEUE)).await?;
        match manager.subscribe().await {
            Ok(()) => {}
            Err(zbus::Error::MethodError(name, _, _)) if name.ends_with(".AlreadySubscribed") => {}
            Err(error) => return Err(error),
        }
        let ends = Arc::new(Mutex::new(Ends { next: 0, listeners: Some(HashMap::new()) }));
        tokio::spawn(listen(stream, Arc::clone(&ends)));
        Ok(Link { manager, ends })
    }

    /// Whether systemd has closed it.
    pub(super) fn is_closed(&self) -> bool {
        self.ends.lock().unwrap_or_else(PoisonError::into_inner).listeners.is_none()
    }

    /// The ends of jobs from now on.
    pub(super) fn jobs(&self) -> Jobs {
        let (sender, heard) = mpsc::unbounded_channel();
        let mut ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
        ends.next += 1;
        let number = ends.next;
        if let Some(listeners) = &mut ends.listeners {
            listeners.insert(number, sender);
        }
        Jobs { number, ends: Arc::clone(&self.ends), heard }
    }
}

impl Jobs {
    /// Waits for the end of one job: its result in systemd's word, or none when the connection is gone.
    pub(super) async fn end_of(mut self, job: &OwnedObjectPath) -> Option<String> {
        while let Some((path, result)) = self.heard.recv().await {
            if path == *job {
                return Some(result);
            }
        }
        None
    }
}

impl Drop for Jobs {
    fn drop(&mut self) {
        let mut ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(listeners) = &mut ends.listeners {
            listeners.remove(&self.number);
        }
    }
}

async fn private() -> zbus::Result<Connection> {
    let stream = tokio::net::UnixStream::connect(PRIVATE_SOCKET).await?;
    connection::Builder::socket(PrivateSocket(stream)).p2p().build().await
}

/// Tells every end of a job to all who listen, until the connection is closed.
async fn listen(mut stream: MessageStream, ends: Arc<Mutex<Ends>>) {
    while let Some(signal) = stream.next().await {
        let message = match signal {
            Ok(message) => message,
            Err(zbus::Error::InputOutput(_)) => break,
            Err(error) => {
                log::debug!("unreadable signal of systemd: {error}");
                continue;
            }
        };
        type Body = (u32, OwnedObjectPath, String, String);
        let Ok((_, job, _, result)) = message.body().deserialize::<Body>() else { continue };
        let ends = ends.lock().unwrap_or_else(PoisonError::into_inner);
        for listener in ends.listeners.iter().flat_map(HashMap::values) {
            // one that left a moment ago
            let _ = listener.send((job.clone(), result.clone()));
        }
    }
    log::info!("systemd closed the connection");
    // their senders go: whoever waits is told
    ends.lock().unwrap_or_else(PoisonError::into_inner).listeners = None;
}
