//! The running systemd, over D-Bus.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use zbus::fdo::PropertiesProxy;
use zbus::names::InterfaceName;
use zbus::proxy::CacheProperties;
use zbus::zvariant::{OwnedValue, Value};

use super::connection::{Address, CALL, Link, Links, SERVICE};
use super::job::Job;
use super::proxy::ManagerProxy;
use super::{JobKind, JobResult, Systemd, SystemdError, Timer, Transient, UnitFileState, UnitStatus, settle};
use crate::host::ledger::Ledger;

/// systemd's own default for a start is 90 s, and a unit may ask for more.
const JOB: Duration = Duration::from_secs(180);

/// Reading all units anew takes long on a slow disk while the system boots.
const RELOAD: Duration = Duration::from_secs(180);

/// The running systemd.
pub struct Bus {
    links: Links,
    ledger: Ledger,
    job_deadline: Duration,
}

impl Bus {
    /// The systemd of this machine. Connects with the first call.
    pub fn live(ledger: Ledger) -> Bus {
        Bus::at(Address::System, ledger)
    }

    /// A systemd on the message bus at this D-Bus address.
    pub fn on_bus(address: &str, ledger: Ledger) -> Bus {
        Bus::at(Address::Bus(address.to_owned()), ledger)
    }

    /// A systemd that listens on this socket without a message bus.
    pub fn on_socket(path: &Path, ledger: Ledger) -> Bus {
        Bus::at(Address::Peer(path.to_owned()), ledger)
    }

    fn at(address: Address, ledger: Ledger) -> Bus {
        Bus { links: Links::new(address), ledger, job_deadline: JOB }
    }

    /// Waits this long for jobs.
    pub fn with_job_deadline(mut self, deadline: Duration) -> Bus {
        self.job_deadline = deadline;
        self
    }

    async fn call<T, F>(
        &self,
        call: &'static str,
        unit: &str,
        run: impl Fn(ManagerProxy<'static>) -> F,
    ) -> Result<T, SystemdError>
    where
        F: Future<Output = zbus::Result<T>>,
    {
        self.links.call(call, unit, CALL, |link| run(link.manager.clone())).await
    }

    async fn properties(
        &self,
        unit: &str,
        path: &str,
        interface: &'static str,
    ) -> Result<HashMap<String, OwnedValue>, SystemdError> {
        self.links
            .call("read properties of", unit, CALL, |link| {
                let path = path.to_owned();
                async move { all_properties(&link, path, interface).await }
            })
            .await
    }

    /// The main name of a unit that exists: enabling another name of it is refused by systemd.
    async fn main_name(&self, unit: &str) -> Result<String, SystemdError> {
        let status = self.unit(unit).await?;
        if !status.exists() {
            return Err(SystemdError::NotFound { unit: unit.to_owned() });
        }
        Ok(status.id)
    }

    /// Boot jobs that wait must not be thrown out by ours.
    async fn job_mode(&self) -> Result<&'static str, SystemdError> {
        let state = self.call("ask the state of", "systemd", |m| async move { m.system_state().await }).await?;
        Ok(if matches!(state.as_str(), "initializing" | "starting") { "fail" } else { "replace" })
    }
}

#[async_trait]
impl Systemd for Bus {
    async fn unit(&self, name: &str) -> Result<UnitStatus, SystemdError> {
        let loaded = self.call("load", name, |m| async move { m.load_unit(name).await }).await;
        let path = match loaded {
            Err(SystemdError::NotFound { .. }) => return Ok(UnitStatus::absent(name)),
            other => other?,
        };
        let unit = self.properties(name, path.as_str(), "org.freedesktop.systemd1.Unit").await?;
        // the unit's own property is remembered from before an enablement; the manager looks at the disk
        let file = self.call("get state of", name, |m| async move { m.get_unit_file_state(name).await }).await;
        let file = match file {
            Err(SystemdError::NotFound { .. }) => UnitFileState::Absent,
            other => UnitFileState::parse(&other?),
        };
        let is_service = name.ends_with(".service") && text(&unit, "LoadState") == "loaded";
        let service = match is_service {
            true => self.properties(name, path.as_str(), "org.freedesktop.systemd1.Service").await?,
            false => HashMap::new(),
        };
        Ok(status(name, file, &unit, &service))
    }

    async fn enable(&self, name: &str) -> Result<bool, SystemdError> {
        let name = self.main_name(name).await?;
        self.ledger.note(format!("enable {name}"));
        let name = name.as_str();
        let (installable, changes) =
            self.call("enable", name, |m| async move { m.enable_unit_files(&[name], false, false).await }).await?;
        if !installable && changes.is_empty() {
            let state = self.unit(name).await?.unit_file_state.to_string();
            return Err(SystemdError::NotInstallable { unit: name.to_owned(), state });
        }
        Ok(!changes.is_empty())
    }

    async fn disable(&self, name: &str) -> Result<bool, SystemdError> {
        let name = self.main_name(name).await?;
        self.ledger.note(format!("disable {name}"));
        let name = name.as_str();
        let changes = self.call("disable", name, |m| async move { m.disable_unit_files(&[name], false).await }).await?;
        Ok(!changes.is_empty())
    }

    async fn mask(&self, name: &str) -> Result<bool, SystemdError> {
        self.ledger.note(format!("mask {name}"));
        let changes = self.call("mask", name, |m| async move { m.mask_unit_files(&[name], false, false).await }).await;
        match changes {
            Ok(changes) => Ok(!changes.is_empty()),
            Err(SystemdError::Call { source, .. })
                if super::connection::error_name(&source) == Some("org.freedesktop.systemd1.UnitExists") =>
            {
                let path = format!("/etc/systemd/system/{name}");
                Err(SystemdError::InTheWay { unit: name.to_owned(), path })
            }
            Err(error) => Err(error),
        }
    }

    async fn unmask(&self, name: &str) -> Result<bool, SystemdError> {
        self.ledger.note(format!("unmask {name}"));
        let changes = self.call("unmask", name, |m| async move { m.unmask_unit_files(&[name], false).await }).await?;
        Ok(!changes.is_empty())
    }

    async fn run_job(&self, kind: JobKind, name: &str) -> Result<(), SystemdError> {
        // one that keeps dying and being started (a kubelet before its join) takes new settings up by itself
        if matches!(kind, JobKind::TryRestart | JobKind::TryReload) && !self.unit(name).await?.is_active() {
            return Ok(());
        }
        let mode = self.job_mode().await?;
        self.ledger.note(format!("{} {name}", kind.verb()));
        let job = Job { verb: kind.verb(), unit: name, deadline: self.job_deadline };
        let result = job.run(&self.links, |manager| async move { start(&manager, kind, name, mode).await }).await?;
        match result {
            // not seen: what the unit is now decides
            None | Some(JobResult::Done | JobResult::Skipped) => settle(self, kind, name).await,
            Some(result) => {
                let state = self.unit(name).await?.in_words();
                Err(SystemdError::Job { verb: kind.verb(), unit: name.to_owned(), result, state })
            }
        }
    }

    async fn enqueue(&self, kind: JobKind, name: &str) -> Result<(), SystemdError> {
        let mode = self.job_mode().await?;
        self.ledger.note(format!("enqueue {} {name}", kind.verb()));
        self.call(kind.verb(), name, |m| async move { start(&m, kind, name, mode).await }).await.map(drop)
    }

    async fn daemon_reload(&self) -> Result<(), SystemdError> {
        self.ledger.note("daemon-reload");
        self.links.call("reload", "systemd", RELOAD, |link| async move { link.manager.reload().await }).await
    }

    async fn run_transient(&self, unit: &Transient) -> Result<i32, SystemdError> {
        let Some(exec_start) = exec_start(&unit.command) else {
            return Err(SystemdError::BadName { unit: unit.name.clone() });
        };
        self.ledger.note(format!("run as {}: {}", unit.name, unit.command.join(" ")));
        let environment: Vec<String> = unit.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let timeout = u64::try_from(unit.deadline.as_micros()).unwrap_or(u64::MAX);
        let properties = [
            ("Description", Value::from(unit.description.as_str())),
            // a oneshot's start job ends with its program, and it stays to be asked how that ended
            ("Type", Value::from("oneshot")),
            ("RemainAfterExit", Value::from(true)),
            ("TimeoutStartUSec", Value::from(timeout)),
            ("Environment", Value::from(environment)),
            ("StandardOutputFile", Value::from(unit.output.as_str())),
            ("StandardErrorFile", Value::from(unit.errors.as_str())),
            ("ExecStart", exec_start),
        ];
        let name = unit.name.as_str();
        let job = Job { verb: "run", unit: name, deadline: unit.deadline + CALL };
        let properties = &properties;
        let ended =
            job.run(&self.links, |m| async move { m.start_transient_unit(name, "fail", properties, &[]).await }).await;
        let status = self.unit(name).await;
        self.forget(name).await;
        let (ended, status) = (ended?, status?);
        match ended {
            Some(JobResult::Done) => Ok(status.exec_main_status),
            None if status.result == "success" => Ok(status.exec_main_status),
            // the program ran and said no: that is for the caller to read
            _ if status.result == "exit-code" && status.exec_main_status != 0 => Ok(status.exec_main_status),
            result => Err(SystemdError::Job {
                verb: "run",
                unit: unit.name.clone(),
                result: result.unwrap_or(JobResult::Other),
                state: status.in_words(),
            }),
        }
    }

    async fn start_timer(&self, timer: &Timer) -> Result<(), SystemdError> {
        let (name, service) = (format!("{}.timer", timer.name), format!("{}.service", timer.name));
        let Some(exec_start) = exec_start(&timer.command) else { return Err(SystemdError::BadName { unit: name }) };
        self.stop_timer(&timer.name).await?;
        self.ledger.note(format!("start timer {name}: {}", timer.command.join(" ")));
        let after = u64::try_from(timer.after.as_micros()).unwrap_or(u64::MAX);
        let properties = [
            ("Description", Value::from(timer.description.as_str())),
            ("TimersMonotonic", Value::from(vec![("OnActiveSec", after)])),
            ("AccuracyUSec", Value::from(1_000_000_u64)),
            ("RemainAfterElapse", Value::from(false)),
        ];
        let started = [
            ("Description", Value::from(timer.description.as_str())),
            ("Type", Value::from("oneshot")),
            ("ExecStart", exec_start),
        ];
        let auxiliary = [(service.as_str(), started.as_slice())];
        let (name, properties, auxiliary) = (name.as_str(), &properties, &auxiliary);
        let job = Job { verb: "start timer", unit: name, deadline: CALL };
        let ended = job
            .run(&self.links, |m| async move { m.start_transient_unit(name, "replace", properties, auxiliary).await })
            .await?;
        match ended {
            None | Some(JobResult::Done) => {}
            Some(result) => {
                let state = self.unit(name).await?.in_words();
                return Err(SystemdError::Job { verb: "start timer", unit: name.to_owned(), result, state });
            }
        }
        // what is armed on paper alone would take nothing back
        let status = self.unit(name).await?;
        match status.is_active() {
            true => Ok(()),
            false => Err(SystemdError::Unhealthy { unit: name.to_owned(), state: status.in_words() }),
        }
    }

    async fn stop_timer(&self, name: &str) -> Result<(), SystemdError> {
        let timer = format!("{name}.timer");
        if self.unit(&timer).await?.exists() {
            self.ledger.note(format!("stop timer {timer}"));
            self.forget(&timer).await;
        }
        Ok(())
    }
}

/// What a unit needs to be run once: its program.
fn exec_start(command: &[String]) -> Option<Value<'static>> {
    let program = command.first()?.clone();
    Some(Value::from(vec![(program, command.to_vec(), false)]))
}

impl Bus {
    /// Lets go of a transient unit that has ended, well or badly.
    async fn forget(&self, name: &str) {
        let stopped = self.call("stop", name, |m| async move { m.stop_unit(name, "replace").await }).await;
        let reset = self.call("reset", name, |m| async move { m.reset_failed_unit(name).await }).await;
        for error in [stopped.err(), reset.err()].into_iter().flatten() {
            log::debug!(unit = name; "forget transient unit: {error}");
        }
    }
}

async fn start(
    manager: &ManagerProxy<'static>,
    kind: JobKind,
    name: &str,
    mode: &str,
) -> zbus::Result<zbus::zvariant::OwnedObjectPath> {
    match kind {
        JobKind::Start => manager.start_unit(name, mode).await,
        JobKind::Stop => manager.stop_unit(name, mode).await,
        JobKind::Restart => manager.restart_unit(name, mode).await,
        JobKind::TryRestart => manager.try_restart_unit(name, mode).await,
        JobKind::TryReload => manager.reload_unit(name, mode).await,
    }
}

async fn all_properties(
    link: &Link,
    path: String,
    interface: &'static str,
) -> zbus::Result<HashMap<String, OwnedValue>> {
    let properties = PropertiesProxy::builder(&link.connection)
        .destination(SERVICE)?
        .path(path)?
        .cache_properties(CacheProperties::No)
        .build()
        .await?;
    let interface = InterfaceName::from_static_str(interface)?;
    Ok(properties.get_all(interface).await?)
}

fn status(
    name: &str,
    unit_file_state: UnitFileState,
    unit: &HashMap<String, OwnedValue>,
    service: &HashMap<String, OwnedValue>,
) -> UnitStatus {
    let id = text(unit, "Id");
    UnitStatus {
        id: if id.is_empty() { name.to_owned() } else { id },
        load_state: text(unit, "LoadState"),
        active_state: text(unit, "ActiveState"),
        sub_state: text(unit, "SubState"),
        unit_file_state,
        fragment: text(unit, "FragmentPath"),
        drop_ins: get(unit, "DropInPaths").unwrap_or_default(),
        need_daemon_reload: get(unit, "NeedDaemonReload").unwrap_or(false),
        condition: get(unit, "ConditionResult").unwrap_or(true) || get::<u64>(unit, "ConditionTimestamp") == Some(0),
        invocation: get::<Vec<u8>>(unit, "InvocationID")
            .unwrap_or_default()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect(),
        has_job: get::<(u32, zbus::zvariant::OwnedObjectPath)>(unit, "Job").is_some_and(|(id, _)| id != 0),
        service_type: text(service, "Type"),
        remain_after_exit: get(service, "RemainAfterExit").unwrap_or(false),
        result: text(service, "Result"),
        exec_main_status: get(service, "ExecMainStatus").unwrap_or(0),
        restarts: get(service, "NRestarts").unwrap_or(0),
    }
}

fn get<T: TryFrom<OwnedValue>>(properties: &HashMap<String, OwnedValue>, name: &str) -> Option<T> {
    T::try_from(properties.get(name)?.try_clone().ok()?).ok()
}

fn text(properties: &HashMap<String, OwnedValue>, name: &str) -> String {
    get(properties, name).unwrap_or_default()
}
