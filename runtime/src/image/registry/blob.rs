//! Reading a blob, going on where a broken connection left off.

use std::sync::Arc;

use bytes::Bytes;
use reqwest::header::CONTENT_RANGE;
use reqwest::{Response, StatusCode};

use super::request::{Place, back_off};
use super::{RegistryError, Session};
use crate::content::Digest;

/// Breaks in a row without real progress. A server that cuts every connection after a few bytes is given up.
const MAX_BREAKS: u32 = 5;
const PROGRESS: u64 = 256 << 10;

/// A blob of known size on its way here.
pub(crate) struct Blob {
    session: Session,
    place: Arc<Place>,
    digest: Digest,
    size: u64,
    position: u64,
    response: Option<Response>,
    /// Bytes to drop because a server ignored the range.
    surplus: u64,
    breaks: u32,
    last_break: u64,
}

impl Blob {
    pub(super) fn new(session: Session, place: Arc<Place>, digest: Digest, size: u64) -> Blob {
        Blob { session, place, digest, size, position: 0, response: None, surplus: 0, breaks: 0, last_break: 0 }
    }

    /// Who is asked.
    pub(crate) fn registry(&self) -> &str {
        &self.place.endpoint.host
    }

    /// The next bytes, `None` after exactly the announced size.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, RegistryError> {
        loop {
            let response = match &mut self.response {
                Some(response) => response,
                None if self.position == self.size => return Ok(None),
                None => self.connect().await?,
            };
            let error = match response.chunk().await {
                Ok(Some(mut piece)) => {
                    if self.surplus > 0 {
                        let dropped = self.surplus.min(piece.len() as u64);
                        self.surplus -= dropped;
                        piece = piece.slice(usize::try_from(dropped).unwrap_or(piece.len())..);
                    }
                    if piece.is_empty() {
                        continue;
                    }
                    self.position += piece.len() as u64;
                    if self.position > self.size {
                        return Err(self.too_large());
                    }
                    return Ok(Some(piece));
                }
                Ok(None) if self.position == self.size => {
                    self.response = None;
                    return Ok(None);
                }
                Ok(None) => self.short(),
                Err(source) => self.session.unreachable(&self.place, source),
            };
            self.response = None;
            self.pause(error).await?;
        }
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
            registry = self.registry(), blob:% = self.digest, position = self.position, error:% = error;
            "download broke off, going on"
        );
        tokio::time::sleep(back_off(self.breaks)).await;
        Ok(())
    }

    async fn connect(&mut self) -> Result<&mut Response, RegistryError> {
        let path = format!("blobs/{}", self.digest);
        let from = (self.position > 0).then_some(self.position);
        let response = self.session.request(&self.place, &path, None, from).await?;
        let start = match response.status() {
            StatusCode::PARTIAL_CONTENT => starts_at(&response).unwrap_or(0),
            _ => 0,
        };
        // a server that ignores the range sends the whole blob again: read up to where we were
        self.surplus = self.position.checked_sub(start).ok_or_else(|| self.short())?;
        if let Some(length) = response.content_length()
            && self.position - self.surplus + length > self.size
        {
            return Err(self.too_large());
        }
        Ok(self.response.insert(response))
    }

    fn short(&self) -> RegistryError {
        RegistryError::Short {
            registry: self.registry().to_owned(),
            reference: self.session.reference.to_string(),
            digest: self.digest,
            got: self.position,
            expected: self.size,
        }
    }

    fn too_large(&self) -> RegistryError {
        RegistryError::TooLarge {
            registry: self.registry().to_owned(),
            reference: self.session.reference.to_string(),
            what: format!("blob {}", self.digest),
            limit: self.size,
        }
    }
}

/// The first byte of a partial answer: `bytes 100-199/200`.
fn starts_at(response: &Response) -> Option<u64> {
    let value = response.headers().get(CONTENT_RANGE)?.to_str().ok()?;
    value.strip_prefix("bytes ")?.split('-').next()?.parse().ok()
}
