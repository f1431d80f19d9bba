//! Reading a blob, going on where a broken connection left off.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use reqwest::header::CONTENT_RANGE;
use reqwest::{Response, StatusCode};

use super::ranges::{PART, PartError, Parts, Whole};
use super::request::{Place, back_off};
use super::{RegistryError, Session};
use crate::content::Digest;

/// Breaks in a row without real progress. A server that cuts every connection after a few bytes is given up.
const MAX_BREAKS: u32 = 5;
const PROGRESS: u64 = 256 << 10;
/// What has to come within the time after which a server counts as silent.
pub(super) const LEAST: u64 = 16 << 10;
/// So much is read from one connection before it is judged whether more of them would help.
const JUDGE_AFTER: u64 = 4 << 20;

/// How much of the time goes into waiting for the other side, and what comes of it.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// Since the last judgement.
    waited: Duration,
    judged_at: u64,
}

impl Pace {
    /// Waits for something and counts the time.
    pub(super) async fn of<T>(&mut self, what: impl Future<Output = T>) -> T {
        let asked = Instant::now();
        let came = what.await;
        self.waited += asked.elapsed();
        came
    }

    /// A server that keeps a connection alive with a byte now and then is as good as silent.
    pub(super) fn drips(&mut self, position: u64, stall: Duration) -> bool {
        if self.waited < stall {
            return false;
        }
        let came = position.saturating_sub(self.judged_at);
        (self.waited, self.judged_at) = (Duration::ZERO, position);
        came < LEAST
    }
}

/// A blob of known size on its way here.
pub(crate) struct Blob {
    whole: Whole,
    position: u64,
    /// Up to here and no further, for now.
    until: u64,
    response: Option<Response>,
    /// Bytes to drop because a server ignored the range.
    surplus: u64,
    breaks: u32,
    last_break: u64,
    pace: Pace,
    /// When the connection was made, how much was waited before, and where that was.
    connected: (Instant, Duration, u64),
    /// More connections than one; `None` when they would not help.
    parts: Option<Parts>,
    may_split: bool,
}

impl Blob {
    pub(super) fn new(session: Session, place: Arc<Place>, digest: Digest, size: u64) -> Blob {
        Blob {
            whole: Whole { session, place, digest, size },
            position: 0,
            until: size,
            response: None,
            surplus: 0,
            breaks: 0,
            last_break: 0,
            pace: Pace::default(),
            connected: (Instant::now(), Duration::ZERO, 0),
            parts: None,
            may_split: true,
        }
    }

    /// Ends at a position after which an earlier download kept something.
    pub(crate) fn stop_at(&mut self, position: u64) {
        self.until = position.min(self.whole.size);
    }

    /// Goes on at the position where that ends.
    pub(crate) fn skip_to(&mut self, position: u64) {
        self.position = position.min(self.whole.size);
        self.last_break = self.position;
        self.until = self.whole.size;
        (self.response, self.parts) = (None, None);
    }

    /// Who is asked.
    pub(crate) fn registry(&self) -> &str {
        &self.whole.place.endpoint.host
    }

    /// The next bytes, `None` after exactly the announced size, or where it has to stop.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, RegistryError> {
        loop {
            if self.position == self.until {
                self.response = None;
                self.parts = None;
                return Ok(None);
            }
            let came = if self.parts.is_some() { self.next_of_parts().await } else { self.next_of_connection().await };
            match came {
                Ok(Some(piece)) => return Ok(Some(piece)),
                Ok(None) => {}
                Err(Broken::Pause(error)) => {
                    self.response = None;
                    self.pause(error).await?;
                }
                Err(Broken::Over(error)) => return Err(error),
            }
        }
    }

    async fn next_of_parts(&mut self) -> Result<Option<Bytes>, Broken> {
        let Some(parts) = &mut self.parts else { return Ok(None) };
        match parts.next(&self.whole, self.position, self.until).await {
            Ok(piece) => {
                self.position += piece.len() as u64;
                Ok(Some(piece))
            }
            Err(PartError::NoRanges) => {
                (self.parts, self.may_split) = (None, false);
                Ok(None)
            }
            Err(PartError::NoRoom) => {
                // asked again after a while
                (self.parts, self.may_split) = (None, true);
                Ok(None)
            }
            Err(PartError::Failed(error)) => Err(Broken::Pause(error)),
        }
    }

    async fn next_of_connection(&mut self) -> Result<Option<Bytes>, Broken> {
        if self.response.is_none() {
            self.connect().await.map_err(Broken::Over)?;
        }
        let Some(response) = &mut self.response else { return Ok(None) };
        match self.pace.of(response.chunk()).await {
            Ok(Some(mut piece)) => {
                if self.surplus > 0 {
                    let dropped = self.surplus.min(piece.len() as u64);
                    self.surplus -= dropped;
                    piece = piece.slice(usize::try_from(dropped).unwrap_or(piece.len())..);
                }
                if piece.is_empty() {
                    return Ok(None);
                }
                self.position += piece.len() as u64;
                if self.position > self.whole.size {
                    return Err(Broken::Over(self.too_large()));
                }
                // a server that gives more than it was asked for
                let beyond = usize::try_from(self.position.saturating_sub(self.until)).unwrap_or(usize::MAX);
                piece.truncate(piece.len().saturating_sub(beyond));
                self.position = self.position.min(self.until);
                self.judge().await.map_err(Broken::Over)?;
                Ok(Some(piece))
            }
            Ok(None) => Err(Broken::Pause(self.short())),
            Err(source) => Err(Broken::Pause(self.whole.session.unreachable(&self.whole.place, source))),
        }
    }

    /// Looks at how the connection does: drops one that drips, and asks for parts where it is the bottleneck.
    async fn judge(&mut self) -> Result<(), RegistryError> {
        let (since, waited_before, from) = self.connected;
        if self.position < self.until && self.pace.drips(self.position, self.whole.session.stall()) {
            self.response = None;
            return self.pause(self.whole.session.stalled(&self.whole.place, self.whole.digest)).await;
        }
        if self.may_split && self.position - from >= JUDGE_AFTER {
            self.may_split = false;
            let waited = self.pace.waited.saturating_sub(waited_before);
            // most of the time nothing was there to be read: neither processor nor disk hold this up
            if waited * 3 > since.elapsed() * 2 && self.until - self.position > 2 * PART {
                log::debug!(registry = self.registry(), blob:% = self.whole.digest; "asking for parts side by side");
                self.response = None;
                self.parts = Some(Parts::default());
            }
        }
        Ok(())
    }

    /// Waits before another attempt, or gives up with what went wrong.
    async fn pause(&mut self, error: RegistryError) -> Result<(), RegistryError> {
        if self.position >= self.last_break + PROGRESS {
            self.breaks = 0;
        }
        self.last_break = self.position;
        self.breaks += 1;
        if self.breaks >= MAX_BREAKS {
            return Err(error);
        }
        log::info!(
            registry = self.registry(), blob:% = self.whole.digest, position = self.position, error:% = error;
            "download broke off, going on"
        );
        tokio::time::sleep(back_off(self.breaks)).await;
        Ok(())
    }

    async fn connect(&mut self) -> Result<(), RegistryError> {
        let path = format!("blobs/{}", self.whole.digest);
        let last = (self.until < self.whole.size).then(|| self.until - 1);
        let from = (self.position > 0 || last.is_some()).then_some((self.position, last));
        let response = self.whole.session.request(&self.whole.place, &path, None, from).await?;
        self.connected = (Instant::now(), self.pace.waited, self.position);
        let start = match response.status() {
            // one that does not say what it sends sends what it was asked for
            StatusCode::PARTIAL_CONTENT => starts_at(&response).unwrap_or(self.position),
            _ => 0,
        };
        // a server that ignores the range sends the whole blob again: read up to where we were
        self.surplus = self.position.checked_sub(start).ok_or_else(|| self.short())?;
        if let Some(length) = response.content_length()
            && self.position - self.surplus + length > self.whole.size
        {
            return Err(self.too_large());
        }
        self.response = Some(response);
        Ok(())
    }

    fn short(&self) -> RegistryError {
        RegistryError::Short {
            registry: self.registry().to_owned(),
            reference: self.whole.session.reference.to_string(),
            digest: self.whole.digest,
            got: self.position,
            expected: self.whole.size,
        }
    }

    fn too_large(&self) -> RegistryError {
        RegistryError::TooLarge {
            registry: self.registry().to_owned(),
            reference: self.whole.session.reference.to_string(),
            what: format!("blob {}", self.whole.digest),
            limit: self.whole.size,
        }
    }
}

/// What to do about something that went wrong.
enum Broken {
    /// Try again, from where we are.
    Pause(RegistryError),
    /// Give up.
    Over(RegistryError),
}

/// The first byte of a partial answer: `bytes 100-199/200`.
pub(super) fn starts_at(response: &Response) -> Option<u64> {
    let value = response.headers().get(CONTENT_RANGE)?.to_str().ok()?;
    value.strip_prefix("bytes ")?.split('-').next()?.parse().ok()
}
