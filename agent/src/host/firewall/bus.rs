//! The running firewalld: org.fedoraproject.FirewallD1.

use std::collections::BTreeSet;
use std::future::Future;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::OnceCell;
use zbus::Connection;
use zbus::zvariant::OwnedObjectPath;

use super::{Firewall, FirewallEntry, FirewallError, Zone};
use crate::host::ledger::Ledger;

/// A change makes firewalld run nft, which may take seconds on a host with many rules.
const CALL: Duration = Duration::from_secs(30);

#[zbus::proxy(
    interface = "org.fedoraproject.FirewallD1",
    default_service = "org.fedoraproject.FirewallD1",
    default_path = "/org/fedoraproject/FirewallD1",
    gen_blocking = false
)]
trait Main {
    #[zbus(name = "getDefaultZone")]
    fn get_default_zone(&self) -> zbus::Result<String>;
    #[zbus(name = "setDefaultZone")]
    fn set_default_zone(&self, zone: &str) -> zbus::Result<()>;
}

#[zbus::proxy(
    interface = "org.fedoraproject.FirewallD1.zone",
    default_service = "org.fedoraproject.FirewallD1",
    default_path = "/org/fedoraproject/FirewallD1",
    gen_blocking = false
)]
trait RunningZones {
    #[zbus(name = "getSources")]
    fn get_sources(&self, zone: &str) -> zbus::Result<Vec<String>>;
    #[zbus(name = "addSource")]
    fn add_source(&self, zone: &str, source: &str) -> zbus::Result<String>;
    #[zbus(name = "removeSource")]
    fn remove_source(&self, zone: &str, source: &str) -> zbus::Result<String>;
    #[zbus(name = "getPorts")]
    fn get_ports(&self, zone: &str) -> zbus::Result<Vec<Vec<String>>>;
    #[zbus(name = "addPort")]
    fn add_port(&self, zone: &str, port: &str, protocol: &str, timeout: i32) -> zbus::Result<String>;
    #[zbus(name = "removePort")]
    fn remove_port(&self, zone: &str, port: &str, protocol: &str) -> zbus::Result<String>;
}

#[zbus::proxy(
    interface = "org.fedoraproject.FirewallD1.config",
    default_service = "org.fedoraproject.FirewallD1",
    default_path = "/org/fedoraproject/FirewallD1/config",
    gen_blocking = false
)]
trait Kept {
    #[zbus(name = "getZoneByName")]
    fn get_zone_by_name(&self, zone: &str) -> zbus::Result<OwnedObjectPath>;
}

#[zbus::proxy(
    interface = "org.fedoraproject.FirewallD1.config.zone",
    default_service = "org.fedoraproject.FirewallD1",
    gen_blocking = false
)]
trait KeptZone {
    #[zbus(name = "getSources")]
    fn get_sources(&self) -> zbus::Result<Vec<String>>;
    #[zbus(name = "addSource")]
    fn add_source(&self, source: &str) -> zbus::Result<()>;
    #[zbus(name = "removeSource")]
    fn remove_source(&self, source: &str) -> zbus::Result<()>;
    #[zbus(name = "getPorts")]
    fn get_ports(&self) -> zbus::Result<Vec<(String, String)>>;
    #[zbus(name = "addPort")]
    fn add_port(&self, port: &str, protocol: &str) -> zbus::Result<()>;
    #[zbus(name = "removePort")]
    fn remove_port(&self, port: &str, protocol: &str) -> zbus::Result<()>;
}

/// firewalld on a message bus. Connects with the first call.
pub struct FirewallBus {
    /// None is the system's bus.
    address: Option<String>,
    connection: OnceCell<Connection>,
    ledger: Ledger,
}

impl FirewallBus {
    /// Of this machine.
    pub fn live(ledger: Ledger) -> FirewallBus {
        FirewallBus { address: None, connection: OnceCell::new(), ledger }
    }

    /// On the bus at this D-Bus address.
    pub fn on_bus(address: &str, ledger: Ledger) -> FirewallBus {
        FirewallBus { address: Some(address.to_owned()), ..FirewallBus::live(ledger) }
    }

    async fn connection(&self) -> Result<&Connection, FirewallError> {
        let opened = self.connection.get_or_try_init(|| async {
            match &self.address {
                Some(address) => zbus::connection::Builder::address(address.as_str())?.build().await,
                None => Connection::system().await,
            }
        });
        match tokio::time::timeout(CALL, opened).await {
            Ok(opened) => opened.map_err(|source| FirewallError::Connect(Box::new(source))),
            Err(_) => Err(FirewallError::NoAnswer { call: "connect", seconds: CALL.as_secs() }),
        }
    }

    async fn kept(&self, zone: &str) -> Result<KeptZoneProxy<'static>, FirewallError> {
        let connection = self.connection().await?;
        let find = async {
            let path = KeptProxy::new(connection).await?.get_zone_by_name(zone).await?;
            KeptZoneProxy::builder(connection).path(path)?.build().await
        };
        call("find a zone", find).await
    }
}

async fn call<T>(call: &'static str, run: impl Future<Output = zbus::Result<T>>) -> Result<T, FirewallError> {
    match tokio::time::timeout(CALL, run).await {
        Ok(result) => result.map_err(|source| FirewallError::Call { call, source: Box::new(source) }),
        Err(_) => Err(FirewallError::NoAnswer { call, seconds: CALL.as_secs() }),
    }
}

/// What is there already, or gone already, is what was wanted. firewalld has one error name, and codes in its text.
fn done<T>(result: zbus::Result<T>) -> zbus::Result<()> {
    match result {
        Err(zbus::Error::MethodError(_, Some(text), _))
            if ["ALREADY_ENABLED", "NOT_ENABLED", "ZONE_ALREADY_SET"].iter().any(|code| text.starts_with(code)) =>
        {
            Ok(())
        }
        other => other.map(drop),
    }
}

#[async_trait]
impl Firewall for FirewallBus {
    async fn default_zone(&self) -> Result<String, FirewallError> {
        let connection = self.connection().await?;
        call("ask for the default zone", async { MainProxy::new(connection).await?.get_default_zone().await }).await
    }

    async fn set_default_zone(&self, zone: &str) -> Result<(), FirewallError> {
        self.ledger.note(format!("firewall: default zone {zone}"));
        let connection = self.connection().await?;
        let set = async { done(MainProxy::new(connection).await?.set_default_zone(zone).await) };
        call("set the default zone", set).await
    }

    async fn zone(&self, name: &str) -> Result<Zone, FirewallError> {
        let connection = self.connection().await?;
        let kept = self.kept(name).await?;
        let ask = async {
            let running = RunningZonesProxy::new(connection).await?;
            let (sources, ports) = (running.get_sources(name).await?, running.get_ports(name).await?);
            zbus::Result::Ok((sources, ports, kept.get_sources().await?, kept.get_ports().await?))
        };
        let (sources, ports, kept_sources, kept_ports) = call("read a zone", ask).await?;
        let both = sources.into_iter().filter(|source| kept_sources.contains(source));
        let mut entries: BTreeSet<FirewallEntry> =
            both.map(|source| FirewallEntry::Source { zone: name.to_owned(), source }).collect();
        for (port, protocol) in kept_ports {
            if ports.iter().any(|running| *running == [port.as_str(), protocol.as_str()]) {
                entries.insert(FirewallEntry::Port { zone: name.to_owned(), port, protocol });
            }
        }
        Ok(Zone { entries })
    }

    async fn add(&self, entry: &FirewallEntry) -> Result<(), FirewallError> {
        self.ledger.note(format!("firewall: add {entry}"));
        let connection = self.connection().await?;
        // what is kept comes first: a restart of firewalld between must not lose it
        match entry {
            FirewallEntry::Source { zone, source } => {
                let kept = self.kept(zone).await?;
                call("add a source", async {
                    done(kept.add_source(source).await)?;
                    done(RunningZonesProxy::new(connection).await?.add_source(zone, source).await)
                })
                .await
            }
            FirewallEntry::Port { zone, port, protocol } => {
                let kept = self.kept(zone).await?;
                call("open a port", async {
                    done(kept.add_port(port, protocol).await)?;
                    done(RunningZonesProxy::new(connection).await?.add_port(zone, port, protocol, 0).await)
                })
                .await
            }
        }
    }

    async fn remove(&self, entry: &FirewallEntry) -> Result<(), FirewallError> {
        self.ledger.note(format!("firewall: remove {entry}"));
        let connection = self.connection().await?;
        match entry {
            FirewallEntry::Source { zone, source } => {
                let kept = self.kept(zone).await?;
                call("remove a source", async {
                    done(kept.remove_source(source).await)?;
                    done(RunningZonesProxy::new(connection).await?.remove_source(zone, source).await)
                })
                .await
            }
            FirewallEntry::Port { zone, port, protocol } => {
                let kept = self.kept(zone).await?;
                call("close a port", async {
                    done(kept.remove_port(port, protocol).await)?;
                    done(RunningZonesProxy::new(connection).await?.remove_port(zone, port, protocol).await)
                })
                .await
            }
        }
    }
}
