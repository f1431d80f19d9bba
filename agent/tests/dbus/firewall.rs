//! The firewall client against a firewalld that keeps what runs and what is kept apart, as the real one does.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard};

use nodeagent::host::Ledger;
use nodeagent::host::firewall::bus::FirewallBus;
use nodeagent::host::firewall::{Firewall, FirewallEntry};
use tempfile::TempDir;
use zbus::zvariant::OwnedObjectPath;
use zbus::{Connection, connection};

use super::bus::PrivateBus;

const PATH: &str = "/org/fedoraproject/FirewallD1";
const CONFIG: &str = "/org/fedoraproject/FirewallD1/config";
const ZONE: &str = "/org/fedoraproject/FirewallD1/config/zone/0";

#[derive(Debug, zbus::DBusError)]
#[zbus(prefix = "org.fedoraproject.FirewallD1")]
enum Refused {
    #[zbus(error)]
    ZBus(zbus::Error),
    Exception(String),
}

/// Of the one zone that it has: sources, ports.
#[derive(Debug, Default)]
struct Contents {
    sources: BTreeSet<String>,
    ports: BTreeSet<(String, String)>,
}

#[derive(Debug, Default)]
struct State {
    default_zone: String,
    running: Contents,
    kept: Contents,
    reloads: u32,
}

#[derive(Clone, Default)]
struct Mock(Arc<Mutex<State>>);

impl Mock {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }
}

fn known(zone: &str) -> Result<(), Refused> {
    if zone == "trusted" { Ok(()) } else { Err(Refused::Exception(format!("INVALID_ZONE: {zone}"))) }
}

/// As firewalld answers: an error for what is there already, or gone already.
fn changed(changed: bool, code: &str) -> Result<(), Refused> {
    if changed { Ok(()) } else { Err(Refused::Exception(format!("{code}: x"))) }
}

struct Main(Mock);

#[zbus::interface(name = "org.fedoraproject.FirewallD1")]
impl Main {
    #[zbus(name = "getDefaultZone")]
    fn get_default_zone(&self) -> String {
        self.0.state().default_zone.clone()
    }

    #[zbus(name = "setDefaultZone")]
    fn set_default_zone(&self, zone: String) -> Result<(), Refused> {
        known(&zone)?;
        self.0.state().default_zone = zone;
        Ok(())
    }

    #[zbus(name = "reload")]
    fn reload(&self) {
        self.0.state().reloads += 1;
    }
}

struct Zones(Mock);

#[zbus::interface(name = "org.fedoraproject.FirewallD1.zone")]
impl Zones {
    #[zbus(name = "getSources")]
    fn get_sources(&self, zone: &str) -> Result<Vec<String>, Refused> {
        known(zone)?;
        Ok(self.0.state().running.sources.iter().cloned().collect())
    }

    #[zbus(name = "addSource")]
    fn add_source(&self, zone: &str, source: String) -> Result<String, Refused> {
        known(zone)?;
        changed(self.0.state().running.sources.insert(source), "ALREADY_ENABLED")?;
        Ok(zone.to_owned())
    }

    #[zbus(name = "removeSource")]
    fn remove_source(&self, zone: &str, source: &str) -> Result<String, Refused> {
        changed(self.0.state().running.sources.remove(source), "NOT_ENABLED")?;
        Ok(zone.to_owned())
    }

    #[zbus(name = "getPorts")]
    fn get_ports(&self, _zone: &str) -> Vec<Vec<String>> {
        self.0.state().running.ports.iter().map(|(port, protocol)| vec![port.clone(), protocol.clone()]).collect()
    }

    #[zbus(name = "addPort")]
    fn add_port(&self, zone: &str, port: String, protocol: String, timeout: i32) -> Result<String, Refused> {
        assert_eq!(timeout, 0, "a rule that ends by itself is none");
        changed(self.0.state().running.ports.insert((port, protocol)), "ALREADY_ENABLED")?;
        Ok(zone.to_owned())
    }

    #[zbus(name = "removePort")]
    fn remove_port(&self, zone: &str, port: String, protocol: String) -> Result<String, Refused> {
        changed(self.0.state().running.ports.remove(&(port, protocol)), "NOT_ENABLED")?;
        Ok(zone.to_owned())
    }
}

struct Kept;

#[zbus::interface(name = "org.fedoraproject.FirewallD1.config")]
impl Kept {
    #[zbus(name = "getZoneByName")]
    fn get_zone_by_name(&self, zone: &str) -> Result<OwnedObjectPath, Refused> {
        known(zone)?;
        Ok(ZONE.try_into().unwrap())
    }
}

struct KeptZone(Mock);

#[zbus::interface(name = "org.fedoraproject.FirewallD1.config.zone")]
impl KeptZone {
    #[zbus(name = "getSources")]
    fn get_sources(&self) -> Vec<String> {
        self.0.state().kept.sources.iter().cloned().collect()
    }

    #[zbus(name = "addSource")]
    fn add_source(&self, source: String) -> Result<(), Refused> {
        changed(self.0.state().kept.sources.insert(source), "ALREADY_ENABLED")
    }

    #[zbus(name = "removeSource")]
    fn remove_source(&self, source: &str) -> Result<(), Refused> {
        changed(self.0.state().kept.sources.remove(source), "NOT_ENABLED")
    }

    #[zbus(name = "getPorts")]
    fn get_ports(&self) -> Vec<(String, String)> {
        self.0.state().kept.ports.iter().cloned().collect()
    }

    #[zbus(name = "addPort")]
    fn add_port(&self, port: String, protocol: String) -> Result<(), Refused> {
        changed(self.0.state().kept.ports.insert((port, protocol)), "ALREADY_ENABLED")
    }

    #[zbus(name = "removePort")]
    fn remove_port(&self, port: String, protocol: String) -> Result<(), Refused> {
        changed(self.0.state().kept.ports.remove(&(port, protocol)), "NOT_ENABLED")
    }
}

struct Scene {
    mock: Mock,
    client: FirewallBus,
    _connection: Connection,
    _bus: PrivateBus,
    _dir: TempDir,
}

async fn scene() -> Option<Scene> {
    let dir = TempDir::new().unwrap();
    let Some(bus) = PrivateBus::start(dir.path()) else {
        eprintln!("SKIPPED: dbus-daemon is not installed");
        return None;
    };
    let mock = Mock::default();
    mock.state().default_zone = "public".into();
    let connection = connection::Builder::address(bus.address.as_str())
        .unwrap()
        .serve_at(PATH, Main(mock.clone()))
        .unwrap()
        .serve_at(PATH, Zones(mock.clone()))
        .unwrap()
        .serve_at(CONFIG, Kept)
        .unwrap()
        .serve_at(ZONE, KeptZone(mock.clone()))
        .unwrap()
        .name("org.fedoraproject.FirewallD1")
        .unwrap()
        .build()
        .await
        .unwrap();
    let client = FirewallBus::on_bus(&bus.address, Ledger::default());
    Some(Scene { mock, client, _connection: connection, _bus: bus, _dir: dir })
}

#[tokio::test]
async fn an_entry_goes_into_what_runs_and_what_is_kept_and_out_of_both_without_a_reload() {
    let Some(scene) = scene().await else { return };
    let source = FirewallEntry::Source { zone: "trusted".into(), source: "10.244.0.0/16".into() };
    let port = FirewallEntry::Port { zone: "trusted".into(), port: "10250".into(), protocol: "tcp".into() };
    for entry in [&source, &port] {
        scene.client.add(entry).await.unwrap();
        // twice is once
        scene.client.add(entry).await.unwrap();
    }
    let entries = scene.client.zone("trusted").await.unwrap().entries;
    assert_eq!(entries, BTreeSet::from([source.clone(), port.clone()]));
    scene.mock.state().running.sources.clear();
    let entries = scene.client.zone("trusted").await.unwrap().entries;
    assert_eq!(entries, BTreeSet::from([port.clone()]), "what is only kept does not let anything through now");
    for entry in [&source, &port] {
        scene.client.remove(entry).await.unwrap();
        scene.client.remove(entry).await.unwrap();
    }
    let state = scene.mock.state();
    assert!(
        state.kept.sources.is_empty() && state.kept.ports.is_empty() && state.running.ports.is_empty(),
        "{state:?}"
    );
    assert_eq!(state.reloads, 0);
}

#[tokio::test]
async fn the_default_zone_is_set_and_a_zone_that_is_none_is_an_error_that_names_the_reason() {
    let Some(scene) = scene().await else { return };
    assert_eq!(scene.client.default_zone().await.unwrap(), "public");
    scene.client.set_default_zone("trusted").await.unwrap();
    assert_eq!(scene.mock.state().default_zone, "trusted");
    let error = scene.client.zone("nowhere").await.unwrap_err();
    let text = nodeagent::telemetry::chain(&error);
    assert!(text.contains("find a zone") && text.contains("INVALID_ZONE: nowhere"), "{text}");
}
