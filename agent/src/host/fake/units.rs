//! systemd in small: a map of units, and drop-ins that only count after a reload.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use crate::host::ledger::Ledger;
use crate::host::root::Root;
use crate::host::systemd::{JobKind, Systemd, SystemdError, Timer, Transient, UnitFileState, UnitStatus};

/// Where the fake's drop-ins are looked for.
const DROP_INS: [&str; 2] = ["/etc/systemd/system", "/usr/lib/systemd/system"];

/// A unit of a fake host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FakeUnit {
    /// Enablement.
    pub state: UnitFileState,
    /// Running.
    pub active: bool,
    /// It dies when it is started.
    pub broken: bool,
    /// How often it was started.
    pub starts: u32,
}

impl FakeUnit {
    /// Installed, not enabled, not running.
    pub fn disabled() -> FakeUnit {
        FakeUnit { state: UnitFileState::Disabled, active: false, broken: false, starts: 0 }
    }

    /// Enabled and running.
    pub fn running() -> FakeUnit {
        FakeUnit { state: UnitFileState::Enabled, active: true, broken: false, starts: 1 }
    }
}

/// What of a unit's drop-ins systemd has read.
type DropIns = Vec<(String, String)>;

#[derive(Default)]
struct State {
    units: BTreeMap<String, FakeUnit>,
    read: BTreeMap<String, DropIns>,
    /// What a masked unit is again when it is unmasked: its links stay.
    beneath: BTreeMap<String, UnitFileState>,
    timers: BTreeMap<String, Timer>,
    dead: bool,
}

/// The units of a fake host.
pub struct FakeSystemd {
    root: Root,
    ledger: Ledger,
    state: Mutex<State>,
}

impl FakeSystemd {
    pub(super) fn new(root: Root, ledger: Ledger) -> FakeSystemd {
        FakeSystemd { root, ledger, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a unit or replaces it, as somebody else would.
    pub fn set(&self, name: &str, unit: FakeUnit) {
        let read = self.drop_ins(name);
        let mut state = self.state();
        state.read.entry(name.to_owned()).or_insert(read);
        state.units.insert(name.to_owned(), unit);
    }

    /// A unit as it is now.
    pub fn get(&self, name: &str) -> Option<FakeUnit> {
        self.state().units.get(name).cloned()
    }

    /// A timer that is armed.
    pub fn timer(&self, name: &str) -> Option<Timer> {
        self.state().timers.get(name).cloned()
    }

    /// systemd does not answer any more, or again.
    pub fn die(&self, dead: bool) {
        self.state().dead = dead;
    }

    fn drop_ins(&self, name: &str) -> DropIns {
        let dirs = DROP_INS.map(|dir| format!("{dir}/{name}.d"));
        let dirs: Vec<&str> = dirs.iter().map(String::as_str).collect();
        self.root.drop_ins(&dirs, ".conf").unwrap_or_default()
    }

    fn alive(&self, call: &'static str, unit: &str) -> Result<(), SystemdError> {
        let deadline = std::time::Duration::from_secs(25);
        if self.state().dead {
            return Err(SystemdError::NoAnswer { call, unit: unit.to_owned(), deadline });
        }
        Ok(())
    }

    fn change(
        &self,
        call: &'static str,
        name: &str,
        from: &[UnitFileState],
        to: UnitFileState,
    ) -> Result<bool, SystemdError> {
        self.alive(call, name)?;
        let mut state = self.state();
        let state = &mut *state;
        let unit = match state.units.get_mut(name) {
            Some(unit) => unit,
            // masking needs no unit
            None if call == "mask" => state.units.entry(name.to_owned()).or_insert_with(FakeUnit::disabled),
            None => return Err(SystemdError::NotFound { unit: name.to_owned() }),
        };
        match unit.state {
            now if now == to => return Ok(false),
            UnitFileState::Masked if call == "enable" => {
                return Err(SystemdError::Masked { unit: name.to_owned() });
            }
            UnitFileState::Static if call == "enable" => {
                return Err(SystemdError::NotInstallable { unit: name.to_owned(), state: "static".to_owned() });
            }
            now if !from.is_empty() && !from.contains(&now) => return Ok(false),
            _ => {}
        }
        self.ledger.note(format!("{call} {name}"));
        let before = std::mem::replace(&mut unit.state, to);
        if call == "mask" {
            state.beneath.insert(name.to_owned(), before);
        } else if call == "unmask" {
            unit.state = state.beneath.remove(name).unwrap_or(to);
        }
        Ok(true)
    }

    fn job(&self, kind: JobKind, name: &str) -> Result<(), SystemdError> {
        self.alive(kind.verb(), name)?;
        let mut state = self.state();
        let Some(unit) = state.units.get_mut(name) else {
            return Err(SystemdError::NotFound { unit: name.to_owned() });
        };
        if unit.state == UnitFileState::Masked && kind != JobKind::Stop {
            return Err(SystemdError::Masked { unit: name.to_owned() });
        }
        if matches!(kind, JobKind::TryRestart | JobKind::TryReload) && !unit.active {
            return Ok(());
        }
        self.ledger.note(format!("{} {name}", kind.verb()));
        if kind == JobKind::TryReload {
            return Ok(());
        }
        if kind == JobKind::Stop {
            unit.active = false;
            return Ok(());
        }
        if unit.broken {
            unit.active = false;
            let state = "failed/failed (result exit-code, exit status 1)".to_owned();
            return Err(SystemdError::Unhealthy { unit: name.to_owned(), state });
        }
        if kind != JobKind::Start || !unit.active {
            unit.starts += 1;
        }
        unit.active = true;
        Ok(())
    }
}

#[async_trait]
impl Systemd for FakeSystemd {
    async fn unit(&self, name: &str) -> Result<UnitStatus, SystemdError> {
        self.alive("load", name)?;
        let now = self.drop_ins(name);
        let state = self.state();
        let Some(unit) = state.units.get(name) else { return Ok(UnitStatus::absent(name)) };
        let masked = unit.state == UnitFileState::Masked;
        let word = |active: &str, other: &str| if unit.active { active.to_owned() } else { other.to_owned() };
        Ok(UnitStatus {
            load_state: if masked { "masked".to_owned() } else { "loaded".to_owned() },
            active_state: word("active", if unit.broken && unit.starts > 0 { "failed" } else { "inactive" }),
            sub_state: word("running", "dead"),
            unit_file_state: unit.state,
            // a mask is a link in /etc, by which systemd then finds the unit
            fragment: format!("{}/systemd/system/{name}", if masked { "/etc" } else { "/usr/lib" }),
            drop_ins: now.iter().map(|(path, _)| path.clone()).collect(),
            need_daemon_reload: state.read.get(name).is_some_and(|read| *read != now),
            invocation: format!("{:032x}", unit.starts),
            service_type: if name.ends_with(".service") { "simple".to_owned() } else { String::new() },
            result: "success".to_owned(),
            ..UnitStatus::absent(name)
        })
    }

    async fn enable(&self, name: &str) -> Result<bool, SystemdError> {
        self.change("enable", name, &[], UnitFileState::Enabled)
    }

    async fn disable(&self, name: &str) -> Result<bool, SystemdError> {
        self.change("disable", name, &[UnitFileState::Enabled], UnitFileState::Disabled)
    }

    async fn mask(&self, name: &str) -> Result<bool, SystemdError> {
        self.change("mask", name, &[], UnitFileState::Masked)
    }

    async fn unmask(&self, name: &str) -> Result<bool, SystemdError> {
        self.change("unmask", name, &[UnitFileState::Masked], UnitFileState::Disabled)
    }

    async fn run_job(&self, kind: JobKind, name: &str) -> Result<(), SystemdError> {
        self.job(kind, name)
    }

    async fn enqueue(&self, kind: JobKind, name: &str) -> Result<(), SystemdError> {
        // the queue is empty at once, and nobody looks at how the job ended
        match self.job(kind, name) {
            Err(SystemdError::Unhealthy { .. }) => Ok(()),
            other => other,
        }
    }

    async fn daemon_reload(&self) -> Result<(), SystemdError> {
        self.alive("reload", "systemd")?;
        self.ledger.note("daemon-reload");
        let names: Vec<String> = self.state().units.keys().cloned().collect();
        for name in names {
            let read = self.drop_ins(&name);
            self.state().read.insert(name, read);
        }
        Ok(())
    }

    async fn run_transient(&self, unit: &Transient) -> Result<i32, SystemdError> {
        // a host that needs this has the agent inside a unit; the fake has it outside
        Err(SystemdError::Offline { call: "run", unit: unit.name.clone() })
    }

    async fn start_timer(&self, timer: &Timer) -> Result<(), SystemdError> {
        self.alive("start timer", &timer.name)?;
        self.ledger.note(format!("start timer {}", timer.name));
        self.state().timers.insert(timer.name.clone(), timer.clone());
        Ok(())
    }

    async fn stop_timer(&self, name: &str) -> Result<(), SystemdError> {
        self.alive("stop timer", name)?;
        self.state().timers.remove(name);
        Ok(())
    }
}
