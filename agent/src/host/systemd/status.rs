//! What systemd knows about a unit.

use std::fmt;

/// Enablement, in systemd's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnitFileState {
    /// Started at boot.
    Enabled,
    /// Enabled until the next boot only.
    EnabledRuntime,
    /// Its file lies elsewhere and is linked in; says nothing about the boot.
    Linked,
    /// The name is another name of a unit.
    Alias,
    /// Cannot be started.
    Masked,
    /// Cannot be started until the next boot.
    MaskedRuntime,
    /// Has no `[Install]` section.
    Static,
    /// Can be enabled, and is not.
    Disabled,
    /// Not enabled itself, but a unit that it names in `Also=` can be.
    Indirect,
    /// Made by a generator.
    Generated,
    /// Made at run time.
    Transient,
    /// Its file cannot be read.
    Bad,
    /// There is no unit file.
    Absent,
}

const STATES: [(&str, UnitFileState); 15] = [
    ("enabled", UnitFileState::Enabled),
    ("enabled-runtime", UnitFileState::EnabledRuntime),
    ("linked", UnitFileState::Linked),
    ("linked-runtime", UnitFileState::Linked),
    ("alias", UnitFileState::Alias),
    ("masked", UnitFileState::Masked),
    ("masked-runtime", UnitFileState::MaskedRuntime),
    ("static", UnitFileState::Static),
    ("disabled", UnitFileState::Disabled),
    ("indirect", UnitFileState::Indirect),
    ("generated", UnitFileState::Generated),
    ("transient", UnitFileState::Transient),
    ("bad", UnitFileState::Bad),
    ("not-found", UnitFileState::Absent),
    ("", UnitFileState::Absent),
];

impl UnitFileState {
    pub(super) fn parse(word: &str) -> UnitFileState {
        STATES.iter().find(|(name, _)| *name == word).map_or(UnitFileState::Bad, |(_, state)| *state)
    }
}

impl fmt::Display for UnitFileState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = STATES.iter().find(|(_, state)| state == self).map_or("bad", |(name, _)| *name);
        f.write_str(name)
    }
}

/// A unit, as far as the agent looks at it. Empty texts are what systemd gives for things that do not apply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnitStatus {
    /// Its main name, which differs from the one asked for when that is an alias.
    pub id: String,
    /// loaded, not-found, masked, bad-setting, error.
    pub load_state: String,
    /// active, reloading, inactive, failed, activating, deactivating.
    pub active_state: String,
    /// running, exited, dead, auto-restart …
    pub sub_state: String,
    /// Enablement on disk.
    pub unit_file_state: UnitFileState,
    /// The unit's own file.
    pub fragment: String,
    /// Drop-ins over it, in order.
    pub drop_ins: Vec<String>,
    /// Files have changed since systemd read them.
    pub need_daemon_reload: bool,
    /// The conditions in its file were met at the last start.
    pub condition: bool,
    /// Changes with each start.
    pub invocation: String,
    /// A job is waiting or running.
    pub has_job: bool,
    /// simple, notify, oneshot …; empty for units that are no services.
    pub service_type: String,
    /// A oneshot service that counts as active after its end.
    pub remain_after_exit: bool,
    /// success, exit-code, signal, timeout, start-limit-hit …
    pub result: String,
    /// Exit status of the last main process.
    pub exec_main_status: i32,
    /// Automatic restarts since it was last started.
    pub restarts: u32,
}

impl UnitStatus {
    /// A unit that does not exist.
    pub fn absent(name: &str) -> UnitStatus {
        UnitStatus {
            id: name.to_owned(),
            load_state: "not-found".to_owned(),
            active_state: "inactive".to_owned(),
            sub_state: "dead".to_owned(),
            unit_file_state: UnitFileState::Absent,
            fragment: String::new(),
            drop_ins: Vec::new(),
            need_daemon_reload: false,
            condition: true,
            invocation: String::new(),
            has_job: false,
            service_type: String::new(),
            remain_after_exit: false,
            result: String::new(),
            exec_main_status: 0,
            restarts: 0,
        }
    }

    /// True when there is such a unit; a masked one exists.
    pub fn exists(&self) -> bool {
        self.load_state != "not-found" || self.unit_file_state != UnitFileState::Absent
    }

    /// Started at each boot.
    pub fn is_enabled(&self) -> bool {
        self.unit_file_state == UnitFileState::Enabled
    }

    /// Cannot be started.
    pub fn is_masked(&self) -> bool {
        matches!(self.unit_file_state, UnitFileState::Masked | UnitFileState::MaskedRuntime)
            || self.load_state == "masked"
    }

    /// Up, or reloading its configuration while up.
    pub fn is_active(&self) -> bool {
        matches!(self.active_state.as_str(), "active" | "reloading" | "refreshing")
    }

    /// For messages: `failed (Result: exit-code, status 1, 3 restarts)`.
    pub fn in_words(&self) -> String {
        let mut text = format!("{}/{}", self.active_state, self.sub_state);
        let mut more = Vec::new();
        if !self.condition && !self.is_active() {
            more.push("a condition in its file is not met".to_owned());
        }
        if !self.result.is_empty() && self.result != "success" {
            more.push(format!("result {}", self.result));
        }
        if self.exec_main_status != 0 {
            more.push(format!("exit status {}", self.exec_main_status));
        }
        if self.restarts > 0 {
            more.push(format!("{} restarts", self.restarts));
        }
        if !more.is_empty() {
            text = format!("{text} ({})", more.join(", "));
        }
        text
    }
}
