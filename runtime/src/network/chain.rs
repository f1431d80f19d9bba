//! A verb on all plugins of a list, in the order and with the results that the specification wants.

use super::{
    conf::{ConfList, Plugin},
    error::{NetworkError, PluginError},
    inputs::Inputs,
    plugin::{Call, Verb},
    pod::PodNetwork,
    result::AddResult,
};
use serde_json::{Map, Value, json};
use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

/// A list and the means to run it, with one time limit for the whole pass.
#[derive(Debug)]
pub(super) struct Chain<'a> {
    pub(super) list: &'a ConfList,
    pub(super) directories: &'a [PathBuf],
    pub(super) inputs: &'a Inputs,
    pub(super) limit: Duration,
}

impl<'a> Chain<'a> {
    /// Each plugin gets the result of the one before; the last result is the network's.
    pub(super) async fn add(&self, pod: &PodNetwork) -> Result<AddResult, NetworkError> {
        let call = self.call(Verb::Add, Some(pod));
        let started = Instant::now();
        let mut result: Option<AddResult> = None;
        for plugin in &self.list.plugins {
            let previous = result.as_ref().map(|result| &result.raw);
            let answer = self.run(&call, plugin, previous, started).await?;
            let answer = AddResult::parse(&answer, self.list.version)
                .map_err(|error| self.error(plugin, Verb::Add, PluginError::Result(error)))?;
            result = Some(answer);
        }
        // lists without plugins do not pass validation
        result.ok_or_else(|| NetworkError::NoAddress { network: self.list.name.clone() })
    }

    /// In reverse. A plugin that fails does not keep the others from cleaning up: all are run, the first error is
    /// returned.
    pub(super) async fn del(
        &self,
        pod: &PodNetwork,
        result: Option<&Value>,
        netns_exists: bool,
    ) -> Result<(), NetworkError> {
        let call = Call { without_netns: !netns_exists, ..self.call(Verb::Del, Some(pod)) };
        let previous = result.filter(|_| self.list.version.has_check());
        let started = Instant::now();
        let mut first_error = None;
        for plugin in self.list.plugins.iter().rev() {
            if let Err(error) = self.run(&call, plugin, previous, started).await {
                let expired = matches!(error, NetworkError::TimedOut { .. });
                first_error.get_or_insert(error);
                if expired {
                    break;
                }
            }
        }
        first_error.map_or(Ok(()), Err)
    }

    /// In the order of ADD, each with the final result.
    pub(super) async fn check(&self, pod: &PodNetwork, result: &Value) -> Result<(), NetworkError> {
        if !self.list.version.has_check() || self.list.disable_check {
            return Ok(());
        }
        let call = self.call(Verb::Check, Some(pod));
        let started = Instant::now();
        for plugin in &self.list.plugins {
            self.run(&call, plugin, Some(result), started).await?;
        }
        Ok(())
    }

    /// Tells every plugin which attachments are to stay.
    pub(super) async fn gc(&self, valid: &[Value]) -> Result<(), NetworkError> {
        if !self.list.version.has_gc_and_status() || self.list.disable_gc {
            return Ok(());
        }
        let mut extra = Map::new();
        extra.insert("cni.dev/valid-attachments".to_owned(), json!(valid));
        // the key of the specification's draft, which plugins of that time read
        extra.insert("cni.dev/attachments".to_owned(), json!(valid));
        let call = Call { extra, ..self.call(Verb::Gc, None) };
        let started = Instant::now();
        let mut first_error = None;
        for plugin in &self.list.plugins {
            if let Err(error) = self.run(&call, plugin, None, started).await {
                first_error.get_or_insert(error);
            }
        }
        first_error.map_or(Ok(()), Err)
    }

    /// Asks every plugin whether it could do an ADD now.
    pub(super) async fn status(&self) -> Result<(), NetworkError> {
        if !self.list.version.has_gc_and_status() {
            return Ok(());
        }
        let call = self.call(Verb::Status, None);
        let started = Instant::now();
        for plugin in &self.list.plugins {
            self.run(&call, plugin, None, started).await?;
        }
        Ok(())
    }

    fn call<'b>(&self, verb: Verb, pod: Option<&'b PodNetwork>) -> Call<'b>
    where
        'a: 'b,
    {
        let (list, directories, inputs) = (self.list, self.directories, self.inputs);
        Call { verb, list, pod, without_netns: false, extra: Map::new(), directories, inputs }
    }

    async fn run(
        &self,
        call: &Call<'_>,
        plugin: &Plugin,
        previous: Option<&Value>,
        started: Instant,
    ) -> Result<Vec<u8>, NetworkError> {
        let remaining = self.limit.saturating_sub(started.elapsed());
        if remaining.is_zero() {
            return Err(NetworkError::TimedOut {
                network: self.list.name.clone(),
                verb: call.verb.as_str(),
                seconds: self.limit.as_secs(),
            });
        }
        call.run(plugin, previous, remaining).await.map_err(|source| self.error(plugin, call.verb, source))
    }

    fn error(&self, plugin: &Plugin, verb: Verb, source: PluginError) -> NetworkError {
        NetworkError::Plugin {
            network: self.list.name.clone(),
            plugin: plugin.kind.clone(),
            verb: verb.as_str(),
            source: Box::new(source),
        }
    }
}
