//! A systemd manager that can also fail, stall, answer in the wrong order and go away.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use super::bus::PrivateBus;
use tokio::net::UnixListener;
use zbus::object_server::SignalEmitter;
use zbus::zvariant::{ObjectPath, OwnedObjectPath, OwnedValue};
use zbus::{Connection, connection};

pub const PATH: &str = "/org/freedesktop/systemd1";

/// What happens when a job is made for a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Behaviour {
    /// The reply, a moment later the end.
    Normal,
    /// The end, then the reply.
    EndFirst,
    /// The job ends as `failed`.
    Fails,
    /// The job never ends.
    Stalls,
    /// The job is done, and the program dies a moment later.
    Crashes,
    /// The job ends, and nobody says so.
    Silent,
    /// The connection is closed while the job runs; it ends a while after the next connection.
    Reexec,
    /// So many other jobs end first that every queue is full.
    Storm,
}

#[derive(Debug, Clone)]
pub struct Unit {
    pub active: &'static str,
    pub file_state: &'static str,
    pub kind: &'static str,
    pub result: &'static str,
    pub exit: i32,
    pub restarts: u32,
    pub starts: u8,
    pub behaviour: Behaviour,
}

impl Unit {
    pub fn new(behaviour: Behaviour) -> Unit {
        Unit {
            active: "inactive",
            file_state: "disabled",
            kind: "simple",
            result: "success",
            exit: 0,
            restarts: 0,
            starts: 0,
            behaviour,
        }
    }
}

#[derive(Default)]
pub struct State {
    pub units: BTreeMap<String, Unit>,
    pub jobs: BTreeMap<u32, String>,
    pub calls: Vec<String>,
    pub system: String,
    pub transient: BTreeMap<String, OwnedValue>,
    pub auxiliary: BTreeMap<String, BTreeMap<String, OwnedValue>>,
    pub reload_takes: Duration,
    next_job: u32,
    closing: Option<tokio::sync::oneshot::Sender<()>>,
}

#[derive(Clone, Default)]
pub struct Mock(Arc<Mutex<State>>);

#[derive(Debug, zbus::DBusError)]
#[zbus(prefix = "org.freedesktop.systemd1")]
enum Refused {
    #[zbus(error)]
    ZBus(zbus::Error),
    NoSuchUnit(String),
    NoSuchJob(String),
    UnitMasked(String),
}

type FileChanges = Vec<(String, String, String)>;

impl Mock {
    pub fn new(units: &[(&str, Unit)]) -> Mock {
        let mock = Mock::default();
        mock.state().system = "running".into();
        mock.state().units = units.iter().map(|(name, unit)| ((*name).to_owned(), unit.clone())).collect();
        mock
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    pub fn calls(&self) -> Vec<String> {
        self.state().calls.clone()
    }

    async fn serve(&self, builder: connection::Builder<'_>) -> Connection {
        let names: Vec<String> = self.state().units.keys().cloned().collect();
        let mut builder = builder.serve_at(PATH, Manager(self.clone())).unwrap();
        for name in names {
            let path = ObjectPath::try_from(unit_path(&name)).unwrap();
            builder = builder.serve_at(path.clone(), UnitObject(self.clone(), name.clone())).unwrap();
            builder = builder.serve_at(path, ServiceObject(self.clone(), name)).unwrap();
        }
        builder.build().await.unwrap()
    }

    /// As the owner of systemd's name on a bus.
    pub async fn on_bus(&self, bus: &PrivateBus) -> Connection {
        let builder = connection::Builder::address(bus.address.as_str()).unwrap();
        self.serve(builder.name("org.freedesktop.systemd1").unwrap()).await
    }

    /// On a socket of its own, as /run/systemd/private: each connection alone, closed when systemd executes itself anew.
    pub fn on_socket(&self, path: &Path) {
        let listener = UnixListener::bind(path).unwrap();
        let mock = self.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (close, closed) = tokio::sync::oneshot::channel();
                mock.state().closing = Some(close);
                let builder = connection::Builder::unix_stream(stream);
                let guid = zbus::Guid::generate();
                let connection = mock.serve(builder.server(guid).unwrap().p2p()).await;
                for (id, unit) in mock.state().jobs.clone() {
                    mock.end_later(connection.clone(), id, unit, Duration::from_millis(100));
                }
                tokio::spawn(async move {
                    let _ = closed.await;
                    let _ = connection.close().await;
                });
            }
        });
    }

    fn end_later(&self, connection: Connection, id: u32, unit: String, after: Duration) {
        let mock = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(after).await;
            mock.state().jobs.remove(&id);
            mock.set_active(&unit);
            let emitter = SignalEmitter::new(&connection, PATH).unwrap();
            Manager::job_removed(&emitter, id, job_path(id), &unit, "done").await.unwrap();
        });
    }

    fn set_active(&self, name: &str) {
        let mut state = self.state();
        let unit = state.units.get_mut(name).unwrap();
        unit.active = "active";
        unit.starts += 1;
    }

    async fn job(
        &self,
        verb: &str,
        name: &str,
        mode: &str,
        emitter: &SignalEmitter<'_>,
    ) -> Result<OwnedObjectPath, Refused> {
        let (id, behaviour) = {
            let mut state = self.state();
            state.calls.push(format!("{verb} {name} {mode}"));
            state.next_job += 1;
            let id = state.next_job;
            let unit = state.units.get(name).ok_or_else(|| Refused::NoSuchUnit(name.into()))?;
            if unit.file_state == "masked" {
                return Err(Refused::UnitMasked(format!("Unit {name} is masked.")));
            }
            let behaviour = unit.behaviour;
            state.jobs.insert(id, name.into());
            (id, behaviour)
        };
        let connection = emitter.connection().clone();
        let path = job_path(id);
        match behaviour {
            Behaviour::Normal => self.end_later(connection, id, name.into(), Duration::from_millis(20)),
            Behaviour::EndFirst => {
                self.state().jobs.remove(&id);
                self.set_active(name);
                Manager::job_removed(emitter, id, path.clone(), name, "done").await?;
            }
            Behaviour::Fails => {
                self.state().jobs.remove(&id);
                let unit = Unit { active: "failed", result: "exit-code", exit: 3, ..Unit::new(behaviour) };
                self.state().units.insert(name.into(), unit);
                Manager::job_removed(emitter, id, path.clone(), name, "failed").await?;
            }
            Behaviour::Stalls => {}
            Behaviour::Crashes => {
                self.end_later(connection, id, name.into(), Duration::from_millis(1));
                let (mock, name) = (self.clone(), name.to_owned());
                tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_millis(300)).await;
                    let mut state = mock.state();
                    let unit = state.units.get_mut(&name).unwrap();
                    (unit.restarts, unit.starts) = (1, unit.starts + 1);
                });
            }
            Behaviour::Silent => {
                self.state().jobs.remove(&id);
                self.set_active(name);
            }
            Behaviour::Reexec => drop(self.state().closing.take()),
            Behaviour::Storm => {
                for other in 0..5000 {
                    Manager::job_removed(emitter, 10_000 + other, job_path(10_000 + other), "o.service", "done")
                        .await?;
                }
                self.end_later(connection, id, name.into(), Duration::from_millis(20));
            }
        }
        Ok(path.into())
    }
}

fn unit_path(name: &str) -> String {
    let escaped: String = name
        .bytes()
        .map(|b| if b.is_ascii_alphanumeric() { (b as char).to_string() } else { format!("_{b:02x}") })
        .collect();
    format!("{PATH}/unit/{escaped}")
}

pub fn job_path(id: u32) -> ObjectPath<'static> {
    ObjectPath::try_from(format!("{PATH}/job/{id}")).unwrap()
}

struct Manager(Mock);

#[zbus::interface(name = "org.freedesktop.systemd1.Manager")]
impl Manager {
    async fn subscribe(&self) {
        self.0.state().calls.push("subscribe".into());
    }

    #[zbus(property)]
    async fn system_state(&self) -> String {
        self.0.state().system.clone()
    }

    async fn load_unit(&self, name: String) -> Result<OwnedObjectPath, Refused> {
        // systemd has an object for a unit that does not exist too; the mock keeps it short
        if !self.0.state().units.contains_key(&name) {
            return Err(Refused::NoSuchUnit(name));
        }
        Ok(ObjectPath::try_from(unit_path(&name)).unwrap().into())
    }

    async fn get_unit_file_state(&self, name: String) -> Result<String, Refused> {
        let state = self.0.state();
        state.units.get(&name).map(|unit| unit.file_state.to_owned()).ok_or(Refused::NoSuchUnit(name))
    }

    async fn start_unit(
        &self,
        name: String,
        mode: String,
        #[zbus(signal_emitter)] emitter: SignalEmitter<'_>,
    ) -> Result<OwnedObjectPath, Refused> {
        self.0.job("start", &name, &mode, &emitter).await
    }

    async fn reload_unit(
        &self,
        name: String,
        mode: String,
        #[zbus(signal_emitter)] emitter: SignalEmitter<'_>,
    ) -> Result<OwnedObjectPath, Refused> {
        self.0.job("reload", &name, &mode, &emitter).await
    }

    async fn restart_unit(
        &self,
        name: String,
        mode: String,
        #[zbus(signal_emitter)] emitter: SignalEmitter<'_>,
    ) -> Result<OwnedObjectPath, Refused> {
        self.0.job("restart", &name, &mode, &emitter).await
    }

    async fn stop_unit(&self, name: String, mode: String) -> OwnedObjectPath {
        self.0.state().calls.push(format!("stop {name} {mode}"));
        job_path(9999).into()
    }

    async fn reset_failed_unit(&self, name: String) {
        self.0.state().calls.push(format!("reset-failed {name}"));
    }

    async fn get_job(&self, id: u32) -> Result<OwnedObjectPath, Refused> {
        match self.0.state().jobs.contains_key(&id) {
            true => Ok(job_path(id).into()),
            false => Err(Refused::NoSuchJob(format!("Job {id} does not exist."))),
        }
    }

    async fn cancel_job(&self, id: u32) {
        self.0.state().calls.push(format!("cancel {id}"));
        self.0.state().jobs.remove(&id);
    }

    async fn reload(&self) {
        let takes = self.0.state().reload_takes;
        tokio::time::sleep(takes).await;
        self.0.state().calls.push("reload".into());
    }

    async fn enable_unit_files(
        &self,
        files: Vec<String>,
        _runtime: bool,
        _force: bool,
    ) -> Result<(bool, FileChanges), Refused> {
        let mut state = self.0.state();
        let name = &files[0];
        let unit = state.units.get_mut(name).ok_or_else(|| Refused::NoSuchUnit(name.clone()))?;
        match unit.file_state {
            "masked" => Err(Refused::UnitMasked(format!("Unit {name} is masked."))),
            "static" => Ok((false, vec![])),
            "enabled" => Ok((true, vec![])),
            _ => {
                unit.file_state = "enabled";
                Ok((true, vec![("symlink".into(), "/etc/x".into(), "/usr/x".into())]))
            }
        }
    }

    async fn start_transient_unit(
        &self,
        name: String,
        mode: String,
        properties: Vec<(String, OwnedValue)>,
        auxiliary: Vec<(String, Vec<(String, OwnedValue)>)>,
        #[zbus(signal_emitter)] emitter: SignalEmitter<'_>,
    ) -> Result<OwnedObjectPath, Refused> {
        self.0.state().transient = properties.into_iter().collect();
        self.0.state().auxiliary =
            auxiliary.into_iter().map(|(name, properties)| (name, properties.into_iter().collect())).collect();
        self.0.job("transient", &name, &mode, &emitter).await
    }

    #[zbus(signal)]
    async fn job_removed(
        emitter: &SignalEmitter<'_>,
        id: u32,
        job: ObjectPath<'_>,
        unit: &str,
        result: &str,
    ) -> zbus::Result<()>;
}

struct UnitObject(Mock, String);

impl UnitObject {
    fn unit(&self) -> Unit {
        self.0.state().units[&self.1].clone()
    }
}

#[zbus::interface(name = "org.freedesktop.systemd1.Unit")]
impl UnitObject {
    #[zbus(property)]
    async fn id(&self) -> String {
        self.1.clone()
    }

    #[zbus(property)]
    async fn load_state(&self) -> String {
        "loaded".into()
    }

    #[zbus(property)]
    async fn active_state(&self) -> String {
        self.unit().active.into()
    }

    #[zbus(property)]
    async fn sub_state(&self) -> String {
        "running".into()
    }

    #[zbus(property)]
    async fn drop_in_paths(&self) -> Vec<String> {
        vec!["/etc/systemd/system/x.service.d/50.conf".into()]
    }

    #[zbus(property)]
    async fn need_daemon_reload(&self) -> bool {
        true
    }

    #[zbus(property, name = "InvocationID")]
    async fn invocation_id(&self) -> Vec<u8> {
        vec![self.unit().starts; 16]
    }

    #[zbus(property)]
    async fn job(&self) -> (u32, OwnedObjectPath) {
        (0, ObjectPath::try_from("/").unwrap().into())
    }
}

struct ServiceObject(Mock, String);

#[zbus::interface(name = "org.freedesktop.systemd1.Service")]
impl ServiceObject {
    #[zbus(property, name = "Type")]
    async fn kind(&self) -> String {
        self.0.state().units[&self.1].kind.into()
    }

    #[zbus(property)]
    async fn result(&self) -> String {
        self.0.state().units[&self.1].result.into()
    }

    #[zbus(property)]
    async fn exec_main_status(&self) -> i32 {
        self.0.state().units[&self.1].exit
    }

    #[zbus(property, name = "NRestarts")]
    async fn restarts(&self) -> u32 {
        self.0.state().units[&self.1].restarts
    }
}
