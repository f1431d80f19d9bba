//! One connection to a shim: requests in any order, each answered by its number, events in between.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nodeagent_shim::protocol::{Answer, Call, FromShim, Hello, Request, VERSION};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{ShimError, ShimEvent, frame};

/// Requests that may wait to be written; more make their callers wait.
const QUEUE: usize = 64;
/// Events that may wait for the pod's task.
const EVENTS: usize = 64;

/// Callers by the number of their request. Empty for good once the connection is closed.
#[derive(Debug, Default)]
struct Pending {
    callers: HashMap<u64, oneshot::Sender<Answer>>,
    closed: bool,
    last: u64,
}

type Shared = Arc<Mutex<Pending>>;

#[derive(Debug)]
pub(super) struct Connection {
    requests: mpsc::Sender<Request>,
    pending: Shared,
    end: CancellationToken,
}

/// Connects and exchanges greetings, the answer to come within `limit`.
pub(super) async fn open(
    socket: &Path,
    sandbox: &str,
    limit: Duration,
) -> Result<(Connection, Hello, mpsc::Receiver<ShimEvent>), ShimError> {
    let failed = |source| ShimError::Connect { path: socket.to_owned(), source };
    let stranger = || ShimError::Stranger { path: socket.to_owned(), expected: sandbox.to_owned() };
    let stream = UnixStream::connect(socket).await.map_err(failed)?;
    let (mut reader, mut writer) = stream.into_split();
    let own = Hello { version: VERSION, sandbox: sandbox.to_owned(), pid: own_pid(), hooks: false };
    frame::write(&mut writer, &own).await.map_err(failed)?;
    let hello = timeout(limit, frame::read::<Hello>(&mut reader)).await.map_err(|_| ShimError::Silent(limit))?;
    let hello = hello.map_err(failed)?.filter(|hello| hello.sandbox == sandbox).ok_or_else(stranger)?;
    if hello.version != VERSION {
        log::info!(sandbox = sandbox, version = hello.version; "the shim speaks another version of the protocol");
    }
    let (requests, queue) = mpsc::channel(QUEUE);
    let (told, events) = mpsc::channel(EVENTS);
    let pending = Shared::default();
    tokio::spawn(write_requests(writer, queue));
    let end = CancellationToken::new();
    let reading = read_frames(reader, Arc::clone(&pending), told, sandbox.to_owned());
    let ended = end.clone().drop_guard();
    tokio::spawn(async move {
        reading.await;
        drop(ended);
    });
    Ok((Connection { requests, pending, end }, hello, events))
}

fn own_pid() -> i32 {
    i32::try_from(std::process::id()).unwrap_or(0)
}

impl Connection {
    /// Waits for the end of the connection.
    pub(super) async fn closed(&self) {
        self.end.cancelled().await;
    }

    /// Asks, and waits for the answer, at most `limit`.
    pub(super) async fn call(&self, call: Call, limit: Option<Duration>) -> Result<Answer, ShimError> {
        let (caller, answer) = oneshot::channel();
        let seq = lock(&self.pending).enter(caller).ok_or(ShimError::Gone)?;
        // a caller that stops waiting must not leave its entry behind
        let _entry = Entry { pending: &self.pending, seq };
        let asked = async {
            self.requests.send(Request { seq, call }).await.map_err(|_| ShimError::Gone)?;
            answer.await.map_err(|_| ShimError::Gone)
        };
        let answer = match limit {
            Some(limit) => timeout(limit, asked).await.map_err(|_| ShimError::Silent(limit))??,
            None => asked.await?,
        };
        match answer {
            Answer::Error { kind, message } => Err(ShimError::Refused { kind, message }),
            answer => Ok(answer),
        }
    }
}

struct Entry<'a> {
    pending: &'a Shared,
    seq: u64,
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        lock(self.pending).callers.remove(&self.seq);
    }
}

impl Pending {
    fn enter(&mut self, caller: oneshot::Sender<Answer>) -> Option<u64> {
        if self.closed {
            return None;
        }
        self.last += 1;
        self.callers.insert(self.last, caller);
        Some(self.last)
    }

    fn close(&mut self) {
        self.closed = true;
        // dropping the senders is what tells the callers
        self.callers.clear();
    }
}

fn lock(pending: &Shared) -> std::sync::MutexGuard<'_, Pending> {
    pending.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn write_requests(mut writer: OwnedWriteHalf, mut queue: mpsc::Receiver<Request>) {
    while let Some(request) = queue.recv().await {
        if frame::write(&mut writer, &request).await.is_err() {
            // the reader sees the end of the connection and tells everybody
            return;
        }
    }
}

async fn read_frames(mut reader: OwnedReadHalf, pending: Shared, events: mpsc::Sender<ShimEvent>, sandbox: String) {
    if let Err(error) = read_until_end(&mut reader, &pending, &events).await {
        log::warn!(sandbox = sandbox.as_str(); "the connection to the shim broke: {error}");
    }
    lock(&pending).close();
    // nobody listens when the pod is gone too
    let _ = events.send(ShimEvent::Gone).await;
}

async fn read_until_end(
    reader: &mut OwnedReadHalf,
    pending: &Shared,
    events: &mpsc::Sender<ShimEvent>,
) -> io::Result<()> {
    while let Some(received) = frame::read::<FromShim>(reader).await? {
        match received {
            FromShim::Reply(reply) => {
                let caller = lock(pending).callers.remove(&reply.seq);
                // whoever asked may have stopped waiting
                let _ = caller.map(|caller| caller.send(reply.result));
            }
            FromShim::Event(event) => {
                // somebody may talk to the shim without listening to it
                let _ = events.send(ShimEvent::Said(event)).await;
            }
        }
    }
    Ok(())
}
