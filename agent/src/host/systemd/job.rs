//! Waiting for a job.
//!
//! The signal that a job has ended can arrive before the reply that names the job: a start that fails at once does that. So
//! signals are collected from before the call, and matched by the job's path once that is known.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::time::Instant;
use zbus::MessageStream;
use zbus::zvariant::OwnedObjectPath;

use super::connection::{CALL, Link, Links, is_broken, refused};
use super::proxy::ManagerProxy;
use super::{JobResult, SystemdError};

/// Ends of other jobs that are kept while the reply is awaited.
const KEEP: usize = 4096;

/// A lost signal must not cost the whole deadline: this often systemd is asked whether the job still exists.
const ASK_AGAIN: Duration = Duration::from_secs(5);

type End = (OwnedObjectPath, String);

/// What is to be done, and for how long.
pub(super) struct Job<'a> {
    pub(super) verb: &'static str,
    pub(super) unit: &'a str,
    pub(super) deadline: Duration,
}

impl Job<'_> {
    /// Makes the call that creates the job, and waits for its end. None: the job ended unseen, only the unit can tell how.
    pub(super) async fn run<F>(
        &self,
        links: &Links,
        start: impl FnOnce(ManagerProxy<'static>) -> F,
    ) -> Result<Option<JobResult>, SystemdError>
    where
        F: Future<Output = zbus::Result<OwnedObjectPath>>,
    {
        let end = Instant::now() + self.deadline;
        let link = links.get().await?;
        let mut signals = link.job_ends().await.map_err(|error| refused(self.verb, self.unit, error))?;
        let call = tokio::time::timeout(CALL, start(link.manager.clone()));
        tokio::pin!(call);
        let mut early: Vec<End> = Vec::new();
        let reply = loop {
            // both are safe to drop and poll again: the call is pinned, a stream keeps what it has not handed out
            tokio::select! {
                reply = &mut call => break reply,
                Some(signal) = signals.next() => {
                    if let Some(ended) = parse(signal) && early.len() < KEEP {
                        early.push(ended);
                    }
                }
            }
        };
        let path = match reply {
            Err(_) => {
                return Err(SystemdError::NoAnswer { call: self.verb, unit: self.unit.to_owned(), deadline: CALL });
            }
            // the job may exist or not: the unit's state tells
            Ok(Err(error)) if is_broken(&error) => {
                links.renew(&link).await?;
                return Ok(None);
            }
            Ok(Err(error)) => return Err(refused(self.verb, self.unit, error)),
            Ok(Ok(path)) => path,
        };
        if let Some((_, result)) = early.iter().find(|(ended, _)| *ended == path) {
            return Ok(Some(JobResult::parse(result)));
        }
        self.wait(links, link, signals, &path, end).await
    }

    async fn wait(
        &self,
        links: &Links,
        mut link: Arc<Link>,
        mut signals: MessageStream,
        path: &OwnedObjectPath,
        end: Instant,
    ) -> Result<Option<JobResult>, SystemdError> {
        let mut ask = tokio::time::interval_at(Instant::now() + ASK_AGAIN, ASK_AGAIN);
        loop {
            tokio::select! {
                signal = signals.next() => match signal {
                    Some(Err(error)) if !is_broken(&error) => log::debug!("unreadable signal: {error}"),
                    Some(Ok(message)) => {
                        if let Some((ended, result)) = parse(Ok(message)) && ended == *path {
                            return Ok(Some(JobResult::parse(&result)));
                        }
                    }
                    _ => {
                        // systemd executes itself anew; jobs live on under the same number
                        link = links.renew(&link).await?;
                        signals = link.job_ends().await.map_err(|error| refused(self.verb, self.unit, error))?;
                        if !self.exists(&link, path).await {
                            return Ok(None);
                        }
                    }
                },
                _ = ask.tick() => {
                    if !self.exists(&link, path).await {
                        // its signal may be waiting in the queue behind others
                        return Ok(drain(&mut signals, path));
                    }
                }
                () = tokio::time::sleep_until(end) => {
                    self.cancel(&link, path).await;
                    return Err(SystemdError::Deadline {
                        verb: self.verb,
                        unit: self.unit.to_owned(),
                        deadline: self.deadline,
                    });
                }
            }
        }
    }

    async fn exists(&self, link: &Link, path: &OwnedObjectPath) -> bool {
        let Some(id) = number(path) else { return true };
        match tokio::time::timeout(CALL, link.manager.get_job(id)).await {
            // only systemd saying so means that it is gone
            Ok(Err(error)) => super::connection::error_name(&error) != Some("org.freedesktop.systemd1.NoSuchJob"),
            _ => true,
        }
    }

    async fn cancel(&self, link: &Link, path: &OwnedObjectPath) {
        let Some(id) = number(path) else { return };
        match tokio::time::timeout(CALL, link.manager.cancel_job(id)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => log::warn!(unit = self.unit; "cancel job {id}: {error}"),
            Err(_) => log::warn!(unit = self.unit; "cancel job {id}: no answer"),
        }
    }
}

/// The signals that have arrived already.
fn drain(signals: &mut MessageStream, path: &OwnedObjectPath) -> Option<JobResult> {
    use futures_util::FutureExt;
    while let Some(Some(signal)) = signals.next().now_or_never() {
        if let Some((ended, result)) = parse(signal)
            && ended == *path
        {
            return Some(JobResult::parse(&result));
        }
    }
    None
}

fn parse(signal: zbus::Result<zbus::Message>) -> Option<End> {
    let message = signal.ok()?;
    let (_id, job, _unit, result): (u32, OwnedObjectPath, String, String) = message.body().deserialize().ok()?;
    Some((job, result))
}

/// 42 of `/org/freedesktop/systemd1/job/42`.
fn number(path: &OwnedObjectPath) -> Option<u32> {
    path.as_str().rsplit('/').next()?.parse().ok()
}
