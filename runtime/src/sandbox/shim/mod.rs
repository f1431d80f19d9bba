//! The pod's supervisor, as the daemon sees it: started once, spoken to over a socket, met again after a restart.

mod connection;
pub(in crate::sandbox) mod frame;
mod launcher;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use nodeagent_shim::protocol::{Answer, Call, ContainerState, ErrorKind, Event, ExecSpec, LaunchSpec, PodSetup};
use tokio::sync::mpsc;

use connection::Connection;
pub(in crate::sandbox) use launcher::is_of;
pub use launcher::{MemfdLauncher, ShimLauncher};

/// A shim that does not answer a simple request in that time is stepped over.
const ANSWER: Duration = Duration::from_secs(5);
/// One that lives says so in that time, however busy the machine is: only after it a running pod is given up.
const SIGN_OF_LIFE: Duration = Duration::from_secs(30);
/// Making namespaces; the kernel takes its time for a network namespace under load.
const SETUP: Duration = Duration::from_secs(30);
/// Executing a program: behind a slow disk this may take long, and kubelet gives it two minutes.
const START: Duration = Duration::from_secs(110);
/// Killing everything in a pod, including what sits in a system call.
const STOP: Duration = Duration::from_secs(15);
/// Between the end of an exec's time and the answer that says so.
const EXEC_GRACE: Duration = Duration::from_secs(10);

/// What can go wrong between daemon and shim.
#[derive(Debug, thiserror::Error)]
pub enum ShimError {
    /// The program could not be made ready to be executed.
    #[error("cannot load the shim from {}", path.display())]
    Load {
        /// The program.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The socket could not be made.
    #[error("cannot make the shim's socket {}", path.display())]
    Socket {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The process could not be started.
    #[error("cannot start the shim")]
    Spawn(#[source] nix::Error),
    /// Nobody answers at the socket.
    #[error("cannot connect to the shim at {}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The greeting was not one.
    #[error("the shim at {} does not introduce itself as {expected}", path.display())]
    Stranger {
        /// The socket.
        path: PathBuf,
        /// The pod it should be.
        expected: String,
    },
    /// It ended, or closed the connection.
    #[error("the shim is gone")]
    Gone,
    /// It lives and says nothing.
    #[error("the shim did not answer within {0:?}")]
    Silent(Duration),
    /// It answered with an error.
    #[error("{message}")]
    Refused {
        /// Class of the failure.
        kind: ErrorKind,
        /// For people.
        message: String,
    },
    /// It answered something else than was asked.
    #[error("the shim gave an answer that does not fit the question")]
    Unexpected,
    /// The output of a command is not what it should be.
    #[error("the shim sent output that cannot be decoded")]
    Output(#[source] base64::DecodeError),
}

impl ShimError {
    /// Whether asking again cannot help: there is nobody to ask.
    pub fn is_gone(&self) -> bool {
        matches!(self, ShimError::Gone | ShimError::Connect { .. })
    }

    /// Class of an error that the shim answered.
    pub fn kind(&self) -> Option<ErrorKind> {
        match self {
            ShimError::Refused { kind, .. } => Some(*kind),
            _ => None,
        }
    }
}

/// What a shim tells unasked.
#[derive(Debug)]
pub enum ShimEvent {
    /// As the shim put it.
    Said(Event),
    /// The connection is closed; nothing follows.
    Gone,
}

/// A container that was started.
#[derive(Debug, Clone)]
pub struct Started {
    /// Its first process.
    pub pid: i32,
    /// Nanoseconds since the epoch.
    pub at: i64,
    /// What had to be given up.
    pub warnings: Vec<String>,
}

/// What a command left.
#[derive(Debug, Clone)]
pub struct Executed {
    /// Exit code, 128 + signal.
    pub exit_code: i32,
    /// What it wrote.
    pub stdout: Vec<u8>,
    /// What it wrote.
    pub stderr: Vec<u8>,
    /// It was killed at its timeout.
    pub timed_out: bool,
}

/// One shim; cheap to clone, safe to use from many tasks.
#[derive(Debug, Clone)]
pub struct Shim {
    connection: Arc<Connection>,
    pid: i32,
    hooks: bool,
}

impl Shim {
    /// Connects to the shim of `sandbox` and exchanges greetings. Its events come through the receiver.
    pub async fn connect(socket: &Path, sandbox: &str) -> Result<(Shim, mpsc::Receiver<ShimEvent>), ShimError> {
        Self::connect_within(socket, sandbox, SIGN_OF_LIFE).await
    }

    /// The same, for what is to be ended anyway.
    pub async fn connect_to_end(socket: &Path, sandbox: &str) -> Result<Shim, ShimError> {
        Ok(Self::connect_within(socket, sandbox, ANSWER).await?.0)
    }

    async fn connect_within(
        socket: &Path,
        sandbox: &str,
        limit: Duration,
    ) -> Result<(Shim, mpsc::Receiver<ShimEvent>), ShimError> {
        let (connection, hello, events) = connection::open(socket, sandbox, limit).await?;
        Ok((Shim { connection: Arc::new(connection), pid: hello.pid, hooks: hello.hooks }, events))
    }

    /// Its process.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Whether it runs hooks; one from before an update would leave them out.
    pub fn knows_hooks(&self) -> bool {
        self.hooks
    }

    /// Makes the pod's namespaces.
    pub async fn setup(&self, setup: PodSetup) -> Result<(), ShimError> {
        self.done(Call::Setup(setup), SETUP).await
    }

    /// Launches a container.
    pub async fn start(&self, spec: LaunchSpec) -> Result<Started, ShimError> {
        match self.connection.call(Call::Start(Box::new(spec)), Some(START)).await? {
            Answer::Started { pid, started_at, warnings } => Ok(Started { pid, at: started_at, warnings }),
            _ => Err(ShimError::Unexpected),
        }
    }

    /// Lets a launcher go on that waited.
    pub async fn go_on(&self, container: &str) -> Result<(), ShimError> {
        self.done(Call::Continue { container: container.to_owned() }, ANSWER).await
    }

    /// Sends a signal to the container's first process.
    pub async fn signal(&self, container: &str, signal: i32) -> Result<(), ShimError> {
        self.done(Call::Signal { container: container.to_owned(), signal, all: false }, ANSWER).await
    }

    /// Kills every process of the container.
    pub async fn kill(&self, container: &str) -> Result<(), ShimError> {
        let signal = nix::sys::signal::Signal::SIGKILL as i32;
        self.done(Call::Signal { container: container.to_owned(), signal, all: true }, ANSWER).await
    }

    /// Runs a command in a container; its own timeout is in the specification.
    pub async fn exec(&self, spec: ExecSpec) -> Result<Executed, ShimError> {
        let limit = (spec.timeout_ms > 0).then(|| Duration::from_millis(spec.timeout_ms) + EXEC_GRACE);
        match self.connection.call(Call::Exec(Box::new(spec)), limit).await? {
            Answer::Executed { exit_code, stdout, stderr, timed_out } => {
                let decode = |text: String| STANDARD.decode(text).map_err(ShimError::Output);
                Ok(Executed { exit_code, stdout: decode(stdout)?, stderr: decode(stderr)?, timed_out })
            }
            _ => Err(ShimError::Unexpected),
        }
    }

    /// Opens the container's log anew.
    pub async fn reopen_log(&self, container: &str) -> Result<(), ShimError> {
        self.done(Call::ReopenLog { container: container.to_owned() }, ANSWER).await
    }

    /// Every container it has not been told to forget.
    pub async fn list(&self) -> Result<Vec<ContainerState>, ShimError> {
        match self.connection.call(Call::List, Some(SIGN_OF_LIFE)).await? {
            Answer::Containers { containers } => Ok(containers),
            _ => Err(ShimError::Unexpected),
        }
    }

    /// Drops what is known of an exited container; one that it does not know is forgotten already.
    pub async fn forget(&self, container: &str) -> Result<(), ShimError> {
        match self.done(Call::Forget { container: container.to_owned() }, ANSWER).await {
            Err(error) if error.kind() == Some(ErrorKind::NotFound) => Ok(()),
            other => other,
        }
    }

    /// Kills what runs and leaves the pod's network namespace.
    pub async fn stop_pod(&self) -> Result<(), ShimError> {
        self.done(Call::StopPod, STOP).await
    }

    /// Ends the shim.
    pub async fn exit(&self) -> Result<(), ShimError> {
        match self.done(Call::Exit, ANSWER).await {
            // it may be gone before its answer arrives
            Err(ShimError::Gone) => Ok(()),
            other => other,
        }
    }

    /// Waits until it closes the connection.
    pub async fn closed(&self) {
        self.connection.closed().await;
    }

    async fn done(&self, call: Call, limit: Duration) -> Result<(), ShimError> {
        match self.connection.call(call, Some(limit)).await? {
            Answer::Done => Ok(()),
            _ => Err(ShimError::Unexpected),
        }
    }
}
