//! The way to systemd: its own socket first, since that works before there is a message bus and after it has died.

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nodeagent_systemd_socket::PrivateSocket;
use tokio::sync::Mutex;
use zbus::names::OwnedUniqueName;
use zbus::proxy::CacheProperties;
use zbus::{Connection, MatchRule, MessageStream, connection, message};

use super::SystemdError;
use super::proxy::ManagerProxy;

/// systemd's own socket, for root only.
const PRIVATE_SOCKET: &str = "/run/systemd/private";

/// systemd's name on a message bus.
pub(super) const SERVICE: &str = "org.freedesktop.systemd1";

/// Answers that need no job.
pub(super) const CALL: Duration = Duration::from_secs(25);

/// Signals that may wait while one is looked at. A booting system ends hundreds of jobs in a second.
const QUEUE: usize = 1024;

/// How long systemd may be away while it executes itself again.
const REEXEC: Duration = Duration::from_secs(10);

/// Where systemd is.
#[derive(Debug, Clone)]
pub(super) enum Address {
    /// This machine.
    System,
    /// A message bus at this D-Bus address.
    Bus(String),
    /// A socket that speaks to systemd alone.
    Peer(PathBuf),
}

/// An open way to systemd.
pub(super) struct Link {
    pub(super) connection: Connection,
    pub(super) manager: ManagerProxy<'static>,
    /// Who systemd is on the bus; none on its own socket, where nobody else can speak.
    owner: Option<OwnedUniqueName>,
}

impl Link {
    /// Ends of jobs from now on. On a bus only systemd's own: anybody may send a signal that looks like one.
    pub(super) async fn job_ends(&self) -> zbus::Result<MessageStream> {
        let mut rule = MatchRule::builder()
            .msg_type(message::Type::Signal)
            .interface("org.freedesktop.systemd1.Manager")?
            .member("JobRemoved")?
            .path("/org/freedesktop/systemd1")?;
        if let Some(owner) = &self.owner {
            rule = rule.sender(owner.clone())?;
        }
        MessageStream::for_match_rule(rule.build(), &self.connection, Some(QUEUE)).await
    }

    async fn open(address: &Address) -> Result<Link, SystemdError> {
        let failed = |error| SystemdError::Connect { private: PRIVATE_SOCKET.to_owned(), source: Box::new(error) };
        let connection = match address {
            Address::Bus(address) => connection::Builder::address(address.as_str()).map_err(failed)?.build().await,
            Address::Peer(path) => peer(path).await,
            Address::System => match peer(&PathBuf::from(PRIVATE_SOCKET)).await {
                Ok(connection) => Ok(connection),
                Err(error) => {
                    log::debug!("{PRIVATE_SOCKET}: {error}; trying the system bus");
                    connection::Builder::system().map_err(failed)?.build().await
                }
            },
        }
        .map_err(failed)?;
        let owner = if connection.is_bus() { Some(owner(&connection).await.map_err(failed)?) } else { None };
        let manager =
            ManagerProxy::builder(&connection).cache_properties(CacheProperties::No).build().await.map_err(failed)?;
        match manager.subscribe().await {
            Ok(()) => {}
            Err(error) if error_name(&error) == Some("org.freedesktop.systemd1.AlreadySubscribed") => {}
            Err(error) => return Err(failed(error)),
        }
        Ok(Link { connection, manager, owner })
    }
}

async fn peer(path: &std::path::Path) -> zbus::Result<Connection> {
    let stream = tokio::net::UnixStream::connect(path).await?;
    connection::Builder::socket(PrivateSocket(stream)).p2p().build().await
}

async fn owner(connection: &Connection) -> zbus::Result<OwnedUniqueName> {
    let bus = zbus::fdo::DBusProxy::new(connection).await?;
    Ok(bus.get_name_owner(zbus::names::BusName::try_from(SERVICE)?).await?)
}

/// Keeps the way open, and opens it again when systemd has executed itself anew.
pub(super) struct Links {
    address: Address,
    current: Mutex<Option<Arc<Link>>>,
}

impl Links {
    pub(super) fn new(address: Address) -> Links {
        Links { address, current: Mutex::new(None) }
    }

    /// The open way, or a new one.
    pub(super) async fn get(&self) -> Result<Arc<Link>, SystemdError> {
        let mut current = self.current.lock().await;
        if let Some(link) = current.as_ref() {
            return Ok(link.clone());
        }
        let open = tokio::time::timeout(CALL, Link::open(&self.address)).await;
        let link = Arc::new(open.unwrap_or_else(|_| {
            Err(SystemdError::NoAnswer { call: "connect to", unit: "systemd".to_owned(), deadline: CALL })
        })?);
        *current = Some(link.clone());
        Ok(link)
    }

    /// A new way after this one has broken. systemd that executes itself again is away for a moment.
    pub(super) async fn renew(&self, broken: &Arc<Link>) -> Result<Arc<Link>, SystemdError> {
        {
            let mut current = self.current.lock().await;
            if current.as_ref().is_some_and(|link| Arc::ptr_eq(link, broken)) {
                *current = None;
            }
        }
        log::info!("systemd closed the connection; connecting again");
        let end = tokio::time::Instant::now() + REEXEC;
        let mut pause = Duration::from_millis(20);
        loop {
            match self.get().await {
                Err(error) if tokio::time::Instant::now() >= end => return Err(error),
                Err(_) => tokio::time::sleep(pause).await,
                Ok(link) => return Ok(link),
            }
            pause = (pause * 2).min(Duration::from_millis(500));
        }
    }

    /// Makes a call that may be made twice: it is repeated once when the connection breaks under it.
    pub(super) async fn call<T, F>(
        &self,
        call: &'static str,
        unit: &str,
        deadline: Duration,
        run: impl Fn(Arc<Link>) -> F,
    ) -> Result<T, SystemdError>
    where
        F: Future<Output = zbus::Result<T>>,
    {
        let mut link = self.get().await?;
        let mut repeated = false;
        loop {
            match tokio::time::timeout(deadline, run(link.clone())).await {
                Err(_) => return Err(SystemdError::NoAnswer { call, unit: unit.to_owned(), deadline }),
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) if is_broken(&error) && !repeated => {
                    repeated = true;
                    link = self.renew(&link).await?;
                }
                Ok(Err(error)) => return Err(refused(call, unit, error)),
            }
        }
    }
}

/// True when the connection is gone, whatever the call was. A bus that lost systemd answers in its place.
pub(super) fn is_broken(error: &zbus::Error) -> bool {
    matches!(error, zbus::Error::InputOutput(_))
        || matches!(
            error_name(error),
            Some("org.freedesktop.DBus.Error.NoReply" | "org.freedesktop.DBus.Error.Disconnected")
        )
}

/// Turns systemd's errors into ours.
pub(super) fn refused(call: &'static str, unit: &str, error: zbus::Error) -> SystemdError {
    let unit = unit.to_owned();
    match error_name(&error) {
        Some(
            "org.freedesktop.systemd1.NoSuchUnit"
            | "org.freedesktop.DBus.Error.FileNotFound"
            | "org.freedesktop.systemd1.LoadFailed",
        ) => SystemdError::NotFound { unit },
        Some("org.freedesktop.systemd1.UnitMasked") => SystemdError::Masked { unit },
        Some("org.freedesktop.DBus.Error.InvalidArgs") if call == "load" => SystemdError::BadName { unit },
        _ => SystemdError::Call { call, unit, source: Box::new(error) },
    }
}

/// The D-Bus name of an error that systemd answered with.
pub(super) fn error_name(error: &zbus::Error) -> Option<&str> {
    match error {
        zbus::Error::MethodError(name, _, _) => Some(name.as_str()),
        _ => None,
    }
}
