//! `agent doctor`

use std::collections::BTreeSet;

use clap::Args;
use schemars::JsonSchema;
use serde::Serialize;

use super::failure::Failure;
use super::output::{Tone, tone};
use super::session::Session;
use super::{Global, apply, output};
use crate::config::error::nearest;
use crate::doctor::facts::Facts;
use crate::doctor::fix::FixResource;
use crate::doctor::{Examined, Fix, Severity, Subject, examine};
use crate::exit::Exit;
use crate::plan::Stage;
use crate::reconcile::state::State;
use crate::reconcile::{Engine, EngineError, Options};
use crate::resource::Resource;

/// Look for what would keep this host from being a node, with the fix of each finding
///
/// Makes kubeadm's preflight checks, by kubeadm's names, those that kubeadm no longer makes, and looks at every resource of the
/// config. Changes nothing unless --fix is given. Exits with 0 when nothing is wrong, and with 2 when something is.
#[derive(Debug, Args)]
pub struct Doctor {
    /// Do what the check of this name proposes; journaled, and taken back by `agent rollback`
    #[arg(long, value_name = "ID")]
    fix: Option<String>,
    /// Only kubeadm's preflight checks
    #[arg(long)]
    kubeadm: bool,
    /// List what is as it should be, too
    #[arg(long)]
    all: bool,
}

/// What scripts get.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Diagnosis {
    /// Version of the format.
    pub schema: u32,
    /// How many checks found an error.
    pub errors: usize,
    /// How many checks found something that is worth knowing.
    pub warnings: usize,
    /// Every check that was made.
    pub checks: Vec<Examined>,
}

impl Doctor {
    pub(super) async fn run(self, global: &Global) -> Result<Exit, Failure> {
        let session = Session::open(global)?;
        if session.host.is_offline() {
            return Err(Failure::precondition(
                "doctor looks at a running system; use `agent --root DIR plan` for a tree",
            ));
        }
        let found = look(&session).await?;
        match &self.fix {
            Some(id) => fix(&session, id, found, global).await,
            None => Ok(self.show(found.into_iter().map(|(examined, _)| examined).collect(), global)),
        }
    }

    fn show(&self, mut checks: Vec<Examined>, global: &Global) -> Exit {
        checks.retain(|check| check.kubeadm || !self.kubeadm);
        let count = |severity| checks.iter().filter(|check| check.severity == severity).count();
        let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
        let exit = if errors + warnings == 0 { Exit::Converged } else { Exit::Differences };
        if global.json {
            output::json(&Diagnosis { schema: 1, errors, warnings, checks });
            return exit;
        }
        let color = global.color.resolve();
        for check in checks.iter().filter(|check| self.all || check.severity >= Severity::Warning) {
            let (word, kind) = match check.severity {
                Severity::Ok => ("ok", Tone::Add),
                Severity::Skipped => ("skipped", Tone::Faint),
                Severity::Warning => ("warning", Tone::Change),
                Severity::Error => ("error", Tone::Trouble),
            };
            output::say(&format!("{}  {}: {}", tone(&format!("{word:>8}"), kind, color), check.id, check.message));
            if let Some(fix) = &check.fix {
                let how = if check.fixable { format!(" (or: agent doctor --fix {})", check.id) } else { String::new() };
                output::say(&format!("{:>10}fix: {fix}{how}", ""));
            }
        }
        output::say(&format!("{} checks, {errors} errors, {warnings} warnings", checks.len()));
        exit
    }
}

type Found = Vec<(Examined, Option<Fix>)>;

async fn look(session: &Session) -> Result<Found, Failure> {
    let engine = session.engine()?;
    let state = State::load(&session.host).map_err(EngineError::from)?;
    let plan = engine.plan(Stage::Activate, state.as_ref()).await;
    let settings = &session.config.settings;
    let facts = Facts::gather(&session.host, &session.platform, settings)
        .await
        .map_err(|error| Failure::new(Exit::Internal, crate::telemetry::chain(&error)))?;
    Ok(examine(&Subject { settings, facts: &facts }, &plan))
}

async fn fix(session: &Session, id: &str, found: Found, global: &Global) -> Result<Exit, Failure> {
    let known: Vec<&str> = found.iter().map(|(examined, _)| examined.id.as_str()).collect();
    let Some((examined, fix)) = found.iter().find(|(examined, _)| examined.id == id) else {
        let hint = nearest(id, &known).unwrap_or_default();
        return Err(Failure::precondition(format!("there is no check {id}; {hint}")));
    };
    if examined.severity < Severity::Warning {
        output::say(&format!("{id}: nothing to fix: {}", examined.message));
        return Ok(Exit::Converged);
    }
    let (engine, ids) = match fix {
        Some(Fix::Actions(actions, _)) => {
            let resource = FixResource::new(id, &examined.message, actions.clone());
            let ids = BTreeSet::from([resource.id().clone()]);
            (with(session, Box::new(resource))?, ids)
        }
        Some(Fix::Resources(ids, _)) if examined.fixable => (session.engine()?, ids.iter().cloned().collect()),
        other => {
            let how = other.as_ref().map_or("nobody knows how", Fix::text);
            return Err(Failure::precondition(format!("{id}: {}; a person has to do it: {how}", examined.message)));
        }
    };
    let report = engine.limited_to(&ids).run(&Options::new("doctor")).await?;
    let exit = apply::show(&report, global);
    let again = look(session).await?;
    match again.into_iter().find(|(examined, _)| examined.id == id) {
        Some((still, _)) if exit == Exit::Converged && still.severity >= Severity::Warning => {
            Err(Failure::new(Exit::Degraded, format!("{id}: done, but it still says: {}", still.message)))
        }
        _ => Ok(exit),
    }
}

fn with(session: &Session, resource: Box<dyn Resource>) -> Result<Engine<'_>, Failure> {
    let mut resources = crate::resource::registry(&session.config.settings, &session.platform)?;
    resources.push(resource);
    Ok(Engine::new(&session.host, &session.platform, &session.config.settings.reconcile, resources)?)
}
