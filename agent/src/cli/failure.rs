//! A command that ends without having done its work: for people, for scripts, and with its exit code.

use serde::Serialize;

use crate::config::{ConfigError, ConfigErrors};
use crate::exit::Exit;
use crate::firstboot::FirstBootError;
use crate::firstboot::seal::SealError;
use crate::host::watch::WatchError;
use crate::host::{ActionError, PlatformError, RootError};
use crate::plan::ResourceId;
use crate::reconcile::EngineError;
use crate::reconcile::confirm::ConfirmError;
use crate::reconcile::lock::LockError;
use crate::reconcile::state::StateError;
use crate::reconcile::transaction::TransactionError;
use crate::resource::ResourceError;
use crate::telemetry::chain;

/// Why a command ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// With what code.
    #[serde(skip)]
    pub exit: Exit,
    /// The same, for JSON.
    pub exit_code: u8,
    /// The whole chain of causes.
    pub error: String,
    /// Each error of a config.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub config_errors: Vec<ConfigProblem>,
}

/// One error of a config, for JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ConfigProblem {
    file: String,
    line: usize,
    column: usize,
    key: String,
    problem: String,
    hint: Option<String>,
}

impl Failure {
    /// A failure with its code.
    pub fn new(exit: Exit, error: impl Into<String>) -> Failure {
        Failure { exit, exit_code: exit.code(), error: error.into(), config_errors: Vec::new() }
    }

    /// A precondition that is not met.
    pub fn precondition(error: impl Into<String>) -> Failure {
        Failure::new(Exit::Precondition, error)
    }

    /// A resource that is none of this host's.
    pub fn no_resource<'a>(wanted: &ResourceId, known: impl Iterator<Item = &'a ResourceId>) -> Failure {
        let known: Vec<&str> = known.map(ResourceId::as_str).collect();
        let hint = crate::config::error::nearest(wanted.as_str(), &known).unwrap_or_default();
        Failure::precondition(format!("this host has no resource {wanted}; {hint}"))
    }

    /// Prints it: to stderr for people, to stdout as JSON for scripts that asked for JSON.
    pub fn print(&self, json: bool) {
        if json {
            super::output::json(self);
        } else {
            super::output::complain(&self.error);
        }
    }
}

impl From<ConfigErrors> for Failure {
    fn from(errors: ConfigErrors) -> Failure {
        let problem = |error: &ConfigError| ConfigProblem {
            file: error.origin.file.to_string(),
            line: error.origin.line,
            column: error.origin.column,
            key: error.key.clone(),
            problem: error.problem.clone(),
            hint: error.hint.clone(),
        };
        let config_errors = errors.0.iter().map(problem).collect();
        let text = format!("the config is not valid; nothing was touched\n{errors}");
        Failure { config_errors, ..Failure::new(Exit::ConfigInvalid, text) }
    }
}

impl From<PlatformError> for Failure {
    fn from(error: PlatformError) -> Failure {
        let exit = match error {
            PlatformError::Unsupported { .. } | PlatformError::NoOsRelease => Exit::UnsupportedPlatform,
            PlatformError::NoSystemd => Exit::Precondition,
            PlatformError::Read(_) => Exit::Internal,
        };
        Failure::new(exit, chain(&error))
    }
}

impl From<RootError> for Failure {
    fn from(error: RootError) -> Failure {
        let exit = match error {
            RootError::OpenRoot { .. } => Exit::Precondition,
            _ => Exit::Internal,
        };
        Failure::new(exit, chain(&error))
    }
}

impl From<ResourceError> for Failure {
    fn from(error: ResourceError) -> Failure {
        let exit = match error {
            ResourceError::Setting { .. } => Exit::ConfigInvalid,
            _ => Exit::Internal,
        };
        Failure::new(exit, chain(&error))
    }
}

impl From<WatchError> for Failure {
    fn from(error: WatchError) -> Failure {
        Failure::new(Exit::Internal, chain(&error))
    }
}

impl From<ActionError> for Failure {
    fn from(error: ActionError) -> Failure {
        Failure::new(Exit::Internal, chain(&error))
    }
}

impl From<FirstBootError> for Failure {
    fn from(error: FirstBootError) -> Failure {
        match error {
            FirstBootError::Engine(error) => error.into(),
            FirstBootError::Stamp(error) => Failure::new(Exit::Internal, chain(&error)),
            FirstBootError::Seal(error) => error.into(),
        }
    }
}

impl From<SealError> for Failure {
    fn from(error: SealError) -> Failure {
        Failure::new(Exit::Internal, chain(&error))
    }
}

impl From<ConfirmError> for Failure {
    fn from(error: ConfirmError) -> Failure {
        EngineError::from(error).into()
    }
}

impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Failure {
        let exit = match &error {
            EngineError::Lock(LockError::Busy { .. } | LockError::Ahead { .. }) => Exit::Busy,
            EngineError::State(StateError::Newer { .. })
            | EngineError::Transaction(TransactionError::Newer { .. } | TransactionError::Unknown { .. })
            | EngineError::Confirm(ConfirmError::Pending { .. } | ConfirmError::Arm(_) | ConfirmError::Nothing)
            | EngineError::NotTheLast { .. }
            | EngineError::NothingToRollBack
            | EngineError::NotAdopted { .. } => Exit::Precondition,
            EngineError::Graph(_) => Exit::ConfigInvalid,
            _ => Exit::Internal,
        };
        Failure::new(exit, chain(&error))
    }
}
