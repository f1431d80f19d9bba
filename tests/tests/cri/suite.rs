//! How trials are made and run: an async function on a node of its own, and a look at what it left behind.

use std::env;
use std::fs;
use std::future::Future;
use std::mem;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use libtest_mimic::{Arguments, Trial};
use nodeagent_tests::leaks;
use tokio::runtime::Runtime;
use tokio::time::sleep;

use crate::node::{Driver, Node, peer};
use crate::world::World;

/// A shim may need a moment to end after its pod was removed; what is there after that stays.
const SETTLES_WITHIN: Duration = Duration::from_secs(5);

/// All trials, and what they share.
pub struct Suite {
    runtime: Arc<Runtime>,
    world: Arc<World>,
    driver: Driver,
    trials: Vec<Trial>,
}

impl Suite {
    /// A suite whose daemons leave cgroups to that driver. Another's socket is asked for its own.
    pub fn new(driver: Driver) -> Result<Self> {
        let runtime = Runtime::new().context("start the asynchronous runtime")?;
        let driver = match peer() {
            Some(socket) => runtime.block_on(Driver::of(&socket))?,
            None => driver,
        };
        Ok(Self { runtime: Arc::new(runtime), world: Arc::default(), driver, trials: Vec::new() })
    }

    /// Who makes the cgroups.
    pub fn driver(&self) -> Driver {
        self.driver
    }

    /// A trial on a fresh node.
    pub fn add<F, Fut>(&mut self, name: &str, test: F)
    where
        F: FnOnce(Arc<Node>) -> Fut + Send + 'static,
        Fut: Future<Output = Result<()>> + Send,
    {
        self.add_with(name, "", test);
    }

    /// A trial on a fresh node with these settings at the top of its configuration.
    pub fn add_with<F, Fut>(&mut self, name: &str, settings: &'static str, test: F)
    where
        F: FnOnce(Arc<Node>) -> Fut + Send + 'static,
        Fut: Future<Output = Result<()>> + Send,
    {
        let (runtime, world, driver) = (self.runtime.clone(), self.world.clone(), self.driver);
        self.trials.push(Trial::test(name, move || {
            // a channel belongs to the runtime in which it is made
            let _entered = runtime.enter();
            let node = Arc::new(Node::start(world, driver, settings).map_err(|error| format!("{error:#}"))?);
            let result = runtime.block_on(async {
                test(node.clone()).await?;
                tidy(&node).await
            });
            result.map_err(|error| {
                let log = node.log_tail();
                node.purge();
                if node.daemon().is_none() {
                    // through the socket, as far as that goes
                    let _ = runtime.block_on(node.remove_all());
                }
                format!("{error:#}\n--- daemon:\n{log}").into()
            })
        }));
    }

    /// A trial that looks behind the socket: not for another runtime.
    pub fn add_own<F, Fut>(&mut self, name: &str, test: F)
    where
        F: FnOnce(Arc<Node>) -> Fut + Send + 'static,
        Fut: Future<Output = Result<()>> + Send,
    {
        self.add_own_with(name, "", test);
    }

    /// The same with settings.
    pub fn add_own_with<F, Fut>(&mut self, name: &str, settings: &'static str, test: F)
    where
        F: FnOnce(Arc<Node>) -> Fut + Send + 'static,
        Fut: Future<Output = Result<()>> + Send,
    {
        self.add_with(name, settings, test);
        if peer().is_some() {
            let trial = self.trials.pop().map(|trial| trial.with_ignored_flag(true));
            self.trials.extend(trial);
        }
    }

    /// Runs those that were asked for.
    pub fn run(mut self, arguments: &Arguments) -> Result<ExitCode> {
        if let Some(file) = env::var_os("NODEAGENT_CRI_ONLY") {
            let text = fs::read_to_string(&file).with_context(|| format!("read NODEAGENT_CRI_ONLY {file:?}"))?;
            self.keep(text.lines().filter(|line| !line.is_empty()))?;
        }
        let conclusion = libtest_mimic::run(arguments, self.trials);
        // registries end here: exit() below would leave them behind
        drop(self.world);
        Ok(conclusion.exit_code())
    }

    /// Forgets all trials but those. A name that none has is an error: whoever wrote it relies on that trial.
    fn keep<'a>(&mut self, names: impl Iterator<Item = &'a str>) -> Result<()> {
        let mut all = mem::take(&mut self.trials);
        for name in names {
            let at = all.iter().position(|trial| trial.name() == name);
            self.trials.push(all.swap_remove(at.with_context(|| format!("no trial is named {name:?} here"))?));
        }
        Ok(())
    }
}

/// Removes every pod and looks at what is left.
async fn tidy(node: &Node) -> Result<()> {
    node.remove_all().await.context("remove the pods that the test left")?;
    let Some(daemon) = node.daemon() else { return node.remove_cgroup_parent() };
    let daemon = daemon.lock().await;
    let deadline = Instant::now() + SETTLES_WITHIN;
    loop {
        let found = leaks::find(&daemon, &node.known_ids(), node.cgroup_parent())?;
        if found.is_empty() {
            return leaks::remove_cgroup_parent(node.cgroup_parent()).context("remove the test's own cgroup");
        }
        if Instant::now() > deadline {
            bail!("left behind:\n{}", found.join("\n"));
        }
        sleep(Duration::from_millis(20)).await;
    }
}
