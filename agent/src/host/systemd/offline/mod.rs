//! Enabling and masking units in a tree that does not run: the same symlinks that `systemctl --root=DIR` makes.
//!
//! Only /etc/systemd/system is written. The tree's own systemctl is not used, since nothing of the tree is executed, and the
//! build machine's may be another version or not there.

mod install;

use std::collections::BTreeSet;

use async_trait::async_trait;

use super::{JobKind, Systemd, SystemdError, Timer, Transient, UnitFileState, UnitStatus};
use crate::host::root::{Root, RootError};
use install::{Install, UnitFile, base_name, is_template};

/// Where links are made.
const CONFIG: &str = "/etc/systemd/system";

/// Where unit files are looked for, in this order.
const SEARCH: [&str; 4] = [CONFIG, "/usr/local/lib/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"];

/// Directories of links in the names of other units.
const LINK_DIRS: [&str; 3] = [".wants", ".requires", ".upholds"];

/// A unit reached through this many others by `Also=` and aliases is in a loop.
const MAX_UNITS: usize = 64;

/// The units of a tree that does not run.
pub struct Offline {
    root: Root,
}

impl Offline {
    /// The units below this root.
    pub fn new(root: Root) -> Offline {
        Offline { root }
    }

    /// Reads a unit file with its drop-ins; none when there is no such unit.
    fn find(&self, name: &str) -> Result<Option<UnitFile>, SystemdError> {
        let failed = |source| SystemdError::File { unit: name.to_owned(), source };
        if !install::is_unit_name(name) {
            return Err(SystemdError::BadName { unit: name.to_owned() });
        }
        let template = install::template_of(name);
        for wanted in std::iter::once(name).chain(template.as_deref()) {
            for dir in SEARCH {
                let path = format!("{dir}/{wanted}");
                if self.root.link_target(&path).map_err(failed)?.as_deref() == Some("/dev/null") {
                    return Ok(Some(UnitFile::masked(name)));
                }
                // a link in the config directory to a file of another name is an alias, and to one of its own name a linked unit
                let end = self.root.end_of_links(&path).map_err(failed)?;
                let Some(bytes) = self.root.read(&path).map_err(failed)? else { continue };
                if bytes.is_empty() {
                    return Ok(Some(UnitFile::masked(name)));
                }
                let mut file = UnitFile::new(name, &end);
                file.install.read(&String::from_utf8_lossy(&bytes));
                for text in self.drop_ins(wanted).map_err(failed)? {
                    file.install.read(&text);
                }
                return Ok(Some(file));
            }
        }
        Ok(None)
    }

    fn drop_ins(&self, name: &str) -> Result<Vec<String>, RootError> {
        let dirs = SEARCH.map(|dir| format!("{dir}/{name}.d"));
        let dirs: Vec<&str> = dirs.iter().map(String::as_str).collect();
        Ok(self.root.drop_ins(&dirs, ".conf")?.into_iter().map(|(_, text)| text).collect())
    }

    fn require(&self, name: &str) -> Result<UnitFile, SystemdError> {
        self.find(name)?.ok_or_else(|| SystemdError::NotFound { unit: name.to_owned() })
    }

    /// The units that go on and off together: this one and what it names in `Also=`, and so on.
    fn with_also(&self, name: &str) -> Result<Vec<UnitFile>, SystemdError> {
        let mut units: Vec<UnitFile> = Vec::new();
        let mut todo = vec![name.to_owned()];
        while let Some(next) = todo.pop() {
            if units.len() >= MAX_UNITS || units.iter().any(|unit| unit.name == next) {
                continue;
            }
            let unit = match self.find(&next)? {
                Some(unit) => unit,
                // systemd passes over an Also= that is not there
                None if next != name => continue,
                None => return Err(SystemdError::NotFound { unit: next }),
            };
            todo.extend(unit.install.also.iter().map(|also| unit.expand(also)));
            units.push(unit);
        }
        Ok(units)
    }

    /// The links that enabling this unit makes: path and target.
    fn links_of(&self, unit: &UnitFile) -> Vec<(String, String)> {
        let mut links = Vec::new();
        for alias in &unit.install.alias {
            links.push((format!("{CONFIG}/{}", unit.expand(alias)), unit.path.clone()));
        }
        let Some(instance) = unit.enabled_name() else { return links };
        for (dir, targets) in LINK_DIRS.iter().zip(unit.install.link_lists()) {
            for target in targets {
                links.push((format!("{CONFIG}/{}{dir}/{instance}", unit.expand(target)), unit.path.clone()));
            }
        }
        // an instance of a template, or a file outside the search path, is found by its own link only
        links
    }

    fn is_enabled(&self, unit: &UnitFile) -> Result<bool, RootError> {
        for (path, _) in self.links_of(unit) {
            if self.root.link_target(&path)?.is_some() {
                return Ok(true);
            }
        }
        // an administrator may have hung it onto another target
        Ok(!self.links_to(&BTreeSet::from([unit.name.clone()]))?.is_empty())
    }

    /// Links in the config directory that stand for one of these units, by their own name or by what they point to.
    fn links_to(&self, names: &BTreeSet<String>) -> Result<Vec<String>, RootError> {
        let mut found = Vec::new();
        for entry in self.root.list(CONFIG)?.unwrap_or_default() {
            let path = format!("{CONFIG}/{entry}");
            if LINK_DIRS.iter().any(|suffix| entry.ends_with(suffix)) {
                for name in self.root.list(&path)?.unwrap_or_default() {
                    let link = format!("{path}/{name}");
                    if let Some(target) = self.root.link_target(&link)?
                        && (names.contains(&name) || names.contains(base_name(&target)) || of_template(names, &name))
                    {
                        found.push(link);
                    }
                }
            } else if let Some(target) = self.root.link_target(&path)?
                && target != "/dev/null"
                && names.contains(base_name(&target))
            {
                found.push(path);
            }
        }
        Ok(found)
    }

    fn state(&self, name: &str) -> Result<UnitFileState, SystemdError> {
        let failed = |source| SystemdError::File { unit: name.to_owned(), source };
        let Some(unit) = self.find(name)? else { return Ok(UnitFileState::Absent) };
        if unit.masked {
            return Ok(UnitFileState::Masked);
        }
        if self.is_enabled(&unit).map_err(failed)? {
            return Ok(UnitFileState::Enabled);
        }
        if base_name(&unit.path) != name && install::template_of(name).as_deref() != Some(base_name(&unit.path)) {
            return Ok(UnitFileState::Alias);
        }
        Ok(match unit.install {
            Install { ref also, .. } if unit.install.is_empty() && !also.is_empty() => UnitFileState::Indirect,
            ref install if install.is_empty() => UnitFileState::Static,
            _ if is_template(name) && unit.install.default_instance.is_none() => UnitFileState::Indirect,
            _ => UnitFileState::Disabled,
        })
    }
}

fn of_template(names: &BTreeSet<String>, link: &str) -> bool {
    install::template_of(link).is_some_and(|template| names.contains(&template))
}

#[async_trait]
impl Systemd for Offline {
    async fn unit(&self, name: &str) -> Result<UnitStatus, SystemdError> {
        let unit_file_state = self.state(name)?;
        let Some(unit) = self.find(name)? else { return Ok(UnitStatus::absent(name)) };
        let load_state = if unit.masked { "masked" } else { "loaded" };
        Ok(UnitStatus {
            load_state: load_state.to_owned(),
            fragment: unit.path,
            unit_file_state,
            ..UnitStatus::absent(name)
        })
    }

    async fn enable(&self, name: &str) -> Result<bool, SystemdError> {
        let failed = |source| SystemdError::File { unit: name.to_owned(), source };
        let first = self.require(name)?;
        if first.masked {
            return Err(SystemdError::Masked { unit: name.to_owned() });
        }
        if first.install.is_empty() && first.install.also.is_empty() {
            let state = self.state(name)?.to_string();
            return Err(SystemdError::NotInstallable { unit: name.to_owned(), state });
        }
        let mut changed = false;
        for unit in self.with_also(base_name_if_alias(&first, name))?.iter().filter(|unit| !unit.masked) {
            for (path, target) in self.links_of(unit) {
                if self.root.end_of_links(&path).map_err(failed)? != target {
                    self.root.symlink(&path, &target).map_err(failed)?;
                    changed = true;
                }
            }
        }
        Ok(changed)
    }

    async fn disable(&self, name: &str) -> Result<bool, SystemdError> {
        let failed = |source| SystemdError::File { unit: name.to_owned(), source };
        // another name of a unit takes the unit itself with it, and with that all its names
        let main = base_name_if_alias(&self.require(name)?, name).to_owned();
        let mut names: BTreeSet<String> = self.with_also(&main)?.into_iter().map(|unit| unit.name).collect();
        names.insert(name.to_owned());
        let links = self.links_to(&names).map_err(failed)?;
        for link in &links {
            self.root.remove(link).map_err(failed)?;
            if let Some((dir, _)) = link.rsplit_once('/')
                && dir != CONFIG
            {
                self.root.remove_empty_directory(dir).map_err(failed)?;
            }
        }
        Ok(!links.is_empty())
    }

    async fn mask(&self, name: &str) -> Result<bool, SystemdError> {
        let failed = |source| SystemdError::File { unit: name.to_owned(), source };
        if !install::is_unit_name(name) {
            return Err(SystemdError::BadName { unit: name.to_owned() });
        }
        let path = format!("{CONFIG}/{name}");
        match self.root.link_target(&path).map_err(failed)?.as_deref() {
            Some("/dev/null") => return Ok(false),
            None if self.root.link_metadata(&path).map_err(failed)?.is_none() => {}
            // a linked unit or an alias, or a file: masking would lose it
            _ => return Err(SystemdError::InTheWay { unit: name.to_owned(), path }),
        }
        self.root.symlink(&path, "/dev/null").map_err(failed)?;
        Ok(true)
    }

    async fn unmask(&self, name: &str) -> Result<bool, SystemdError> {
        let failed = |source| SystemdError::File { unit: name.to_owned(), source };
        let path = format!("{CONFIG}/{name}");
        if self.root.link_target(&path).map_err(failed)?.as_deref() != Some("/dev/null") {
            return Ok(false);
        }
        self.root.remove(&path).map_err(failed)
    }

    async fn run_job(&self, kind: JobKind, name: &str) -> Result<(), SystemdError> {
        Err(SystemdError::Offline { call: kind.verb(), unit: name.to_owned() })
    }

    async fn enqueue(&self, kind: JobKind, name: &str) -> Result<(), SystemdError> {
        Err(SystemdError::Offline { call: kind.verb(), unit: name.to_owned() })
    }

    async fn daemon_reload(&self) -> Result<(), SystemdError> {
        Err(SystemdError::Offline { call: "reload", unit: "systemd".to_owned() })
    }

    async fn run_transient(&self, unit: &Transient) -> Result<i32, SystemdError> {
        Err(SystemdError::Offline { call: "run", unit: unit.name.clone() })
    }

    async fn start_timer(&self, timer: &Timer) -> Result<(), SystemdError> {
        Err(SystemdError::Offline { call: "start timer", unit: timer.name.clone() })
    }

    async fn stop_timer(&self, _name: &str) -> Result<(), SystemdError> {
        Ok(())
    }
}

/// Enabling an alias enables the unit itself.
fn base_name_if_alias<'a>(unit: &'a UnitFile, asked: &'a str) -> &'a str {
    let main = base_name(&unit.path);
    if main == asked || install::template_of(asked).as_deref() == Some(main) { asked } else { main }
}
