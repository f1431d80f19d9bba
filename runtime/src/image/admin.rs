//! What `nodeagent-runtime image …` asks for, done by the daemon over a socket of its own, or by the command itself
//! when no daemon runs: the store has one owner at a time, and the work is the same.
//!
//! One JSON document per line: a [`Request`], answered by [`Event`]s, of which the last is `done` or `failed`.
//! Only root reaches the socket, by its mode.

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::transfer::Format;
use super::{ErrorCode, Image, ImageError, Images, PullProgress};
use crate::telemetry::chain;

/// A request is a few names and a path.
const MAX_REQUEST: u64 = 64 << 10;
const MAX_EVENT: u64 = 16 << 20;
/// How often progress is told.
const EVERY: Duration = Duration::from_millis(100);
/// Clients at a time; others wait in the backlog.
const CLIENTS: usize = 32;
/// When there are no descriptors, not even the one that is kept for that: nothing tells when there are some again.
const PAUSE: Duration = Duration::from_millis(100);

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "camelCase", deny_unknown_fields)]
pub enum Request {
    /// All images.
    List {},
    /// Pull one.
    Pull {
        /// What.
        reference: String,
    },
    /// Remove some.
    Remove {
        /// Names or ids.
        images: Vec<String>,
    },
    /// Import a file.
    Import {
        /// Absolute.
        path: PathBuf,
        /// Replaces the names in the file.
        name: Option<String>,
    },
    /// Write a file.
    Export {
        /// Names or ids.
        images: Vec<String>,
        /// Absolute.
        path: PathBuf,
        /// What to write.
        format: Format,
    },
    /// Say where a name would be looked for.
    Explain {
        /// What.
        name: String,
    },
}

/// What comes back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Event {
    /// How far it is.
    Progress(PullProgress),
    /// It is done; this came out.
    Done(Value),
    /// It went wrong.
    Failed {
        /// What went wrong.
        message: String,
        /// Asking later may help.
        temporary: bool,
    },
}

/// Does what is asked and tells how it goes. The last event is `Done` or `Failed`.
pub async fn run(images: &Images, request: Request, events: mpsc::Sender<Event>) {
    let of_interest = match &request {
        Request::Pull { .. } | Request::List {} | Request::Remove { .. } | Request::Explain { .. } => None,
        Request::Import { path, .. } | Request::Export { path, .. } => Some(path.display().to_string()),
    };
    let is_pull = matches!(request, Request::Pull { .. });
    let candidates = match &request {
        Request::Pull { reference } => match images.explain(reference).await {
            Ok(explained) => explained.candidates.into_iter().map(|one| one.reference).collect(),
            Err(_) => Vec::new(),
        },
        _ => Vec::new(),
    };
    let work = perform(images, request);
    tokio::pin!(work);
    let mut often = tokio::time::interval(EVERY);
    let outcome = loop {
        // cancel safety: the work is polled in place, a tick that is lost comes again
        tokio::select! {
            outcome = &mut work => break outcome,
            _ = often.tick() => {
                let now = images.progress().into_iter().find(|one| {
                    Some(&one.image) == of_interest.as_ref() || is_pull && candidates.contains(&one.image)
                });
                if let Some(now) = now {
                    // who went away does not stop the work
                    let _ = events.try_send(Event::Progress(now));
                }
            }
        }
    };
    let last = match outcome {
        Ok(value) => Event::Done(value),
        Err(error) => {
            let temporary = matches!(error.code(), ErrorCode::RegistryUnavailable | ErrorCode::ShuttingDown);
            Event::Failed { message: chain(&error), temporary }
        }
    };
    let _ = events.send(last).await;
}

async fn perform(images: &Images, request: Request) -> Result<Value, ImageError> {
    let shown = |image: &Image| shown(image, images.is_pinned(image));
    Ok(match request {
        Request::List {} => images.list().iter().map(|image| shown(image)).collect(),
        Request::Pull { reference } => shown(&*images.pull(&reference, None).await?),
        Request::Remove { images: names } => {
            let mut removed = Vec::new();
            for name in names {
                // who types a name wants to know that it was wrong
                let image = images.find(&name).ok_or(ImageError::NotHere { image: name })?;
                images.remove(&image.id).await?;
                removed.push(image.id.clone());
            }
            json!(removed)
        }
        Request::Import { path, name } => {
            images.import(&path, name.as_deref()).await?.iter().map(|image| shown(image)).collect()
        }
        Request::Export { images: names, path, format } => {
            images.export(&names, &path, format).await?;
            json!({ "path": path })
        }
        Request::Explain { name } => json!(images.explain(&name).await?),
    })
}

fn shown(image: &Image, pinned: bool) -> Value {
    json!({
        "id": image.id, "tags": image.tags, "digests": image.digests, "size": image.size, "pinned": pinned,
        "created": image.created, "platform": image.platform, "layers": image.chain_ids.len(),
    })
}

/// Serves requests until told to stop. The directory of the socket exists already.
pub fn serve(images: Images, socket: &Path, stop: CancellationToken) -> io::Result<impl Future<Output = ()> + use<>> {
    // It gets its name when it listens and is closed to others: a client that sees it is served, or it would believe that no
    // daemon runs. Whatever has that name was left by a daemon that was killed; two daemons never get here, the CRI socket
    // is bound first.
    let mut fresh = socket.as_os_str().to_owned();
    fresh.push(".new");
    match std::fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&fresh)?;
    std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&fresh, socket)?;
    let socket = socket.to_owned();
    Ok(async move {
        let tasks = TaskTracker::new();
        let mut door = Door { listener, places: Arc::new(Semaphore::new(CLIENTS)), spare: spare() };
        // cancel safety: a connection that was not accepted yet stays in the backlog
        while let Some((stream, place)) = stop.run_until_cancelled(door.next()).await.flatten() {
            let images = images.clone();
            tasks.spawn(async move {
                if let Err(error) = answer(&images, stream).await {
                    log::debug!("a client of the image socket went away: {error}");
                }
                drop(place);
            });
        }
        let _ = std::fs::remove_file(&socket);
        // whoever waits for a pull is told when the pulls are stopped
        tasks.close();
    })
}

/// Where clients come in.
struct Door {
    listener: UnixListener,
    places: Arc<Semaphore>,
    /// A descriptor for the moment at which there is no other: enough to take a client and tell it by hanging up,
    /// instead of letting it wait for nobody knows what.
    spare: Option<std::fs::File>,
}

fn spare() -> Option<std::fs::File> {
    std::fs::File::open("/dev/null").ok()
}

impl Door {
    /// The next client and its place; `None` when nobody can come any more.
    async fn next(&mut self) -> Option<(UnixStream, OwnedSemaphorePermit)> {
        let place = self.places.clone().acquire_owned().await.ok()?;
        loop {
            let error = match self.listener.accept().await {
                Ok((stream, _)) => return Some((stream, place)),
                Err(error) => error,
            };
            log::warn!("cannot accept on the image socket: {error}");
            if matches!(error.raw_os_error(), Some(libc::ECONNABORTED | libc::EINTR)) {
                continue;
            }
            if self.spare.take().is_some() {
                drop(self.listener.accept().await);
            } else {
                tokio::time::sleep(PAUSE).await;
            }
            self.spare = spare();
        }
    }
}

async fn answer(images: &Images, stream: UnixStream) -> io::Result<()> {
    let (input, mut output) = stream.into_split();
    let mut line = String::new();
    BufReader::new(input.take(MAX_REQUEST)).read_line(&mut line).await?;
    let (events, mut told) = mpsc::channel(16);
    match serde_json::from_str::<Request>(&line) {
        Ok(request) => {
            let images = images.clone();
            // on its own: what was begun is finished, also when the client is gone
            tokio::spawn(async move { run(&images, request, events).await });
        }
        Err(error) => {
            let message = format!("the request cannot be understood: {error}");
            let _ = events.send(Event::Failed { message, temporary: false }).await;
        }
    }
    while let Some(event) = told.recv().await {
        let mut line = serde_json::to_vec(&event)?;
        line.push(b'\n');
        output.write_all(&line).await?;
    }
    Ok(())
}

/// Sends a request to a daemon; `None` when none listens there.
pub async fn ask(socket: &Path, request: &Request) -> io::Result<Option<mpsc::Receiver<Event>>> {
    let stream = match UnixStream::connect(socket).await {
        Ok(stream) => stream,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let (input, mut output) = stream.into_split();
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    output.write_all(&line).await?;
    let (events, told) = mpsc::channel(16);
    tokio::spawn(async move {
        // the daemon answers as long as this side is open
        let _open = output;
        let mut lines = BufReader::new(input);
        loop {
            let mut line = String::new();
            match (&mut lines).take(MAX_EVENT).read_line(&mut line).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
            let Ok(event) = serde_json::from_str(&line) else { return };
            if events.send(event).await.is_err() {
                return;
            }
        }
    });
    Ok(Some(told))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::ImagesConfig;

    async fn last(mut told: mpsc::Receiver<Event>) -> Option<Event> {
        let mut last = None;
        while let Some(event) = told.recv().await {
            last = Some(event);
        }
        last
    }

    #[tokio::test]
    async fn a_daemon_answers_on_its_socket_and_takes_it_away() {
        let dir = tempfile::tempdir().unwrap();
        let images = Images::open(ImagesConfig::isolated(dir.path().join("images"))).await.unwrap();
        let (socket, stop) = (dir.path().join("s"), CancellationToken::new());
        assert!(ask(&socket, &Request::List {}).await.unwrap().is_none());
        let serving = tokio::spawn(serve(images, &socket, stop.clone()).unwrap());
        assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
        let told = ask(&socket, &Request::List {}).await.unwrap().unwrap();
        assert_eq!(last(told).await, Some(Event::Done(json!([]))));
        let told = ask(&socket, &Request::Remove { images: vec!["nothing".into()] }).await.unwrap().unwrap();
        let Some(Event::Failed { message, temporary }) = last(told).await else { panic!("removed nothing") };
        assert!(message.contains("nothing") && !temporary, "{message}");
        let told = ask(&socket, &Request::Explain { name: "busybox".into() }).await.unwrap().unwrap();
        let Some(Event::Done(explained)) = last(told).await else { panic!("not explained") };
        assert_eq!(
            explained["candidates"][0]["endpoints"][0]["url"],
            "https://registry-1.docker.io/v2/library/busybox/manifests/latest"
        );
        stop.cancel();
        serving.await.unwrap();
        assert!(!socket.exists());
    }
}
