//! A large blob in parts, several at once: for registries and networks that give each connection only so much.
//!
//! Parts are whole in memory until it is their turn, so there are few of them, counted over all blobs. A blob for
//! which there is no room goes on with one connection.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use reqwest::StatusCode;
use tokio_util::task::AbortOnDropHandle;

use super::blob::{Pace, starts_at};
use super::request::Place;
use super::{RegistryError, Session};
use crate::content::Digest;
use crate::content::memory::{self, Lease};

/// Bytes of one part: long against a round trip, short against memory.
pub(super) const PART: u64 = (memory::PART * memory::BUFFER) as u64;
/// Parts of one blob under way.
const PARTS: usize = 4;

/// Why a part did not come.
#[derive(Debug)]
pub(super) enum PartError {
    /// The server gives whole blobs only.
    NoRanges,
    /// Others have all the memory.
    NoRoom,
    Failed(RegistryError),
}

/// Parts of one blob, in order.
#[derive(Default)]
pub(super) struct Parts {
    under_way: VecDeque<Part>,
    /// What came of the part whose turn it is.
    current: VecDeque<Bytes>,
}

struct Part {
    end: u64,
    task: AbortOnDropHandle<Result<VecDeque<Bytes>, PartError>>,
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
    /// What comes at `position` of all that is wanted until `end`. After an error, parts are asked for anew.
    pub(super) async fn next(&mut self, whole: &Whole, position: u64, end: u64) -> Result<Bytes, PartError> {
        loop {
            if let Some(piece) = self.current.pop_front() {
                return Ok(piece);
            }
            self.fill(whole, position, end);
            let Some(part) = self.under_way.pop_front() else { return Err(PartError::NoRoom) };
            let came = part.task.await.unwrap_or(Err(PartError::Failed(RegistryError::Stopping)));
            match came {
                Ok(pieces) => self.current = pieces,
                Err(error) => {
                    self.under_way.clear();
                    return Err(error);
                }
            }
        }
    }

    /// Starts as many parts as there is room for.
    fn fill(&mut self, whole: &Whole, position: u64, limit: u64) {
        while self.under_way.len() < PARTS {
            let start = self.under_way.back().map_or(position, |part| part.end);
            if start >= limit {
                return;
            }
            let Some(room) = whole.session.part() else { return };
            let end = (start + PART).min(limit);
            let task = AbortOnDropHandle::new(tokio::spawn(fetch(whole.clone(), room, start, end)));
            self.under_way.push_back(Part { end, task });
        }
    }
}

async fn fetch(whole: Whole, room: Lease, start: u64, end: u64) -> Result<VecDeque<Bytes>, PartError> {
    let failed = PartError::Failed;
    let path = format!("blobs/{}", whole.digest);
    let range = Some((start, Some(end - 1)));
    let mut response = whole.session.request(&whole.place, &path, None, range).await.map_err(failed)?;
    if response.status() != StatusCode::PARTIAL_CONTENT || starts_at(&response) != Some(start) {
        return Err(PartError::NoRanges);
    }
    let length = end - start;
    let (mut pieces, mut got) = (VecDeque::new(), 0);
    let mut buffer = room.buffer().await;
    let mut pace = Pace::default();
    loop {
        let piece = pace
            .of(response.chunk())
            .await
            .map_err(|source| failed(whole.session.unreachable(&whole.place, source)))?;
        let Some(piece) = piece else { break };
        got += piece.len() as u64;
        if got > length {
            return Err(PartError::NoRanges);
        }
        let mut rest = &piece[..];
        while !rest.is_empty() {
            if buffer.is_full() {
                pieces.push_back(std::mem::replace(&mut buffer, room.buffer().await).freeze());
            }
            rest = buffer.take(rest);
        }
        if got < length && pace.drips(got, whole.session.stall()) {
            return Err(failed(whole.session.stalled(&whole.place, whole.digest)));
        }
    }
    if got < length {
        return Err(failed(RegistryError::Short {
            registry: whole.place.endpoint.host.clone(),
            reference: whole.session.reference.to_string(),
            digest: whole.digest,
            got: start + got,
            expected: whole.size,
        }));
    }
    pieces.push_back(buffer.freeze());
    Ok(pieces)
}
