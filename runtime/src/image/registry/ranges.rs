//! A large blob in parts, several at once: for registries and networks that give each connection only so much.
//!
//! Parts are whole in memory until it is their turn, so there are few of them, counted over all blobs.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use reqwest::StatusCode;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::task::AbortOnDropHandle;

use super::blob::{Pace, starts_at};
use super::request::Place;
use super::{RegistryError, Session};
use crate::content::Digest;

/// Bytes of one part: long against a round trip, short against memory.
pub(super) const PART: u64 = 2 << 20;
/// Parts of one blob under way.
const PARTS: usize = 4;
/// Parts of all blobs in memory.
pub(super) const ALL_PARTS: usize = 6;

/// Why a part did not come.
#[derive(Debug)]
pub(super) enum PartError {
    /// The server gives whole blobs only.
    NoRanges,
    Failed(RegistryError),
}

/// Parts of one blob, in order.
#[derive(Default)]
pub(super) struct Parts {
    under_way: VecDeque<Part>,
    /// What was taken out of a part and is handed on piece by piece.
    current: Bytes,
    permit: Option<OwnedSemaphorePermit>,
}

struct Part {
    end: u64,
    task: AbortOnDropHandle<Result<Bytes, PartError>>,
    permit: OwnedSemaphorePermit,
}

/// What a blob is, for its parts.
#[derive(Clone)]
pub(super) struct Whole {
    pub session: Session,
    pub place: Arc<Place>,
    pub digest: Digest,
    pub size: u64,
}

impl Parts {
    /// The piece at `position`, at most `limit` bytes of it. After an error, parts are asked for anew.
    pub(super) async fn next(&mut self, whole: &Whole, position: u64, limit: usize) -> Result<Bytes, PartError> {
        if self.current.is_empty() {
            self.permit = None;
            self.fill(whole, position).await;
            let Some(part) = self.under_way.pop_front() else { return Err(PartError::NoRanges) };
            let came = match part.task.await {
                Ok(came) => came,
                Err(_) => Err(PartError::Failed(RegistryError::Stopping)),
            };
            match came {
                Ok(bytes) => (self.current, self.permit) = (bytes, Some(part.permit)),
                Err(error) => {
                    self.under_way.clear();
                    return Err(error);
                }
            }
        }
        Ok(self.current.split_to(limit.min(self.current.len())))
    }

    /// Starts as many parts as are allowed, one at least.
    async fn fill(&mut self, whole: &Whole, position: u64) {
        let allowed = whole.session.parts();
        while self.under_way.len() < PARTS {
            let start = self.under_way.back().map_or(position, |part| part.end);
            if start >= whole.size {
                return;
            }
            let permit = match allowed.clone().try_acquire_owned() {
                Ok(permit) => permit,
                Err(_) if !self.under_way.is_empty() => return,
                // others have them all, and give them back as their parts are used
                Err(_) => match allowed.clone().acquire_owned().await {
                    Ok(permit) => permit,
                    Err(_) => return,
                },
            };
            let end = (start + PART).min(whole.size);
            let task = AbortOnDropHandle::new(tokio::spawn(fetch(whole.clone(), start, end)));
            self.under_way.push_back(Part { end, task, permit });
        }
    }
}

/// Who may hold parts in memory.
pub(super) fn allowed() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(ALL_PARTS))
}

async fn fetch(whole: Whole, start: u64, end: u64) -> Result<Bytes, PartError> {
    let failed = PartError::Failed;
    let path = format!("blobs/{}", whole.digest);
    let range = Some((start, Some(end - 1)));
    let mut response = whole.session.request(&whole.place, &path, None, range).await.map_err(failed)?;
    if response.status() != StatusCode::PARTIAL_CONTENT || starts_at(&response) != Some(start) {
        return Err(PartError::NoRanges);
    }
    let length = usize::try_from(end - start).unwrap_or(usize::MAX);
    let mut bytes = BytesMut::with_capacity(length);
    let mut pace = Pace::default();
    loop {
        let piece = pace
            .of(response.chunk())
            .await
            .map_err(|source| failed(whole.session.unreachable(&whole.place, source)))?;
        let Some(piece) = piece else { break };
        if bytes.len() + piece.len() > length {
            return Err(PartError::NoRanges);
        }
        bytes.extend_from_slice(&piece);
        if bytes.len() < length && pace.drips(bytes.len() as u64, whole.session.stall()) {
            return Err(failed(whole.session.stalled(&whole.place, whole.digest)));
        }
    }
    if bytes.len() < length {
        return Err(failed(RegistryError::Short {
            registry: whole.place.endpoint.host.clone(),
            reference: whole.session.reference.to_string(),
            digest: whole.digest,
            got: start + bytes.len() as u64,
            expected: whole.size,
        }));
    }
    Ok(bytes.freeze())
}
