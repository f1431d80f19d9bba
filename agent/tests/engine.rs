//! The engine on a fake host: crashes after every record, failures, drift, rollback.
// tests may stop at the first surprise
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use nodeagent::config::{self, settings::Settings};
use nodeagent::exit::Exit;
use nodeagent::host::Host;
use nodeagent::host::fake::{FakeHost, FakeUnit};
use nodeagent::plan::{Action, Change, Notify, Outcome, Reason, ResourceId, Stage};
use nodeagent::reconcile::journal::CrashPoint;
use nodeagent::reconcile::transaction::Transaction;
use nodeagent::reconcile::{Engine, EngineError, Options, Report, ResourceState, rollback};
use nodeagent::resource::{PlanContext, Resource, ResourceError, registry};
use tempfile::TempDir;

const CONFIG: &str = r#"
[kernel.sysctl]
"fs.inotify.max_user_instances" = { min = 8192 }
[[file]]
path = "/etc/one/two.conf"
content = "two\n"
[[file]]
path = "/etc/fstab.extra"
content = "extra\n"
mode = "0600"
[[unit]]
name = "chronyd.service"
enabled = true
state = "running"
"#;

/// A fresh fake host in a directory of its own.
struct Bench {
    dir: TempDir,
    fake: FakeHost,
    _socket: UnixListener,
}

impl Bench {
    fn new() -> Bench {
        // every record is made durable: in memory that takes no time
        let memory = Path::new("/dev/shm");
        let dir = if memory.is_dir() { TempDir::new_in(memory) } else { TempDir::new() }.unwrap();
        let fake = FakeHost::new(dir.path()).unwrap();
        fs::create_dir_all(dir.path().join("run/nodeagent")).unwrap();
        let socket = UnixListener::bind(dir.path().join("run/nodeagent/cri.sock")).unwrap();
        for unit in ["nodeagent-runtime.service", "chronyd.service"] {
            fake.systemd.set(unit, FakeUnit::disabled());
        }
        fake.edit("/etc/fstab.extra", "somebody else's\n").unwrap();
        Bench { dir, fake, _socket: socket }
    }

    async fn run(&self, config: &str, options: &Options) -> Result<Report, EngineError> {
        let settings = config::from_text(config).unwrap();
        let platform = self.fake.platform();
        let resources = registry(&settings, &platform).unwrap();
        self.run_resources(&settings, resources, options).await
    }

    async fn run_resources(
        &self,
        settings: &Settings,
        resources: Vec<Box<dyn Resource>>,
        options: &Options,
    ) -> Result<Report, EngineError> {
        let platform = self.fake.platform();
        Engine::new(&self.fake.host, &platform, &settings.reconcile, resources)?.run(options).await
    }

    /// What a node consists of: files without the agent's own records, and what is written in /proc and /sys.
    fn tree(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut files = BTreeMap::new();
        collect(self.dir.path(), self.dir.path(), &mut files);
        files.retain(|path, _| !path.starts_with("var/lib/nodeagent") && !path.starts_with("run/nodeagent"));
        // the kernel shows what it was given, with a newline of its own
        for (_, value) in files.iter_mut().filter(|(path, _)| path.starts_with("proc") || path.starts_with("sys")) {
            *value = value.trim_ascii_end().to_vec();
        }
        files
    }

    /// As [`Bench::tree`] without what loading a module leaves: modules are never unloaded.
    fn tree_without_modules(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut files = self.tree();
        files.retain(|path, _| {
            !path.starts_with("sys/module")
                && !path.starts_with("proc/sys/net/bridge")
                && *path != Path::new("proc/filesystems")
        });
        files
    }

    fn unit(&self, name: &str) -> FakeUnit {
        // how often it was started is no state of the host
        FakeUnit { starts: 0, ..self.fake.systemd.get(name).unwrap() }
    }

    /// What was changed since the last call, without the report for people.
    fn writes(&self) -> Vec<String> {
        self.fake.writes().into_iter().filter(|write| !write.contains("/run/nodeagent")).collect()
    }
}

fn collect(top: &Path, dir: &Path, files: &mut BTreeMap<PathBuf, Vec<u8>>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let kind = path.symlink_metadata().unwrap().file_type();
        let name = path.strip_prefix(top).unwrap().to_owned();
        if kind.is_dir() {
            collect(top, &path, files);
        } else if kind.is_symlink() {
            files.insert(name, fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes());
        } else if kind.is_file() {
            files.insert(name, fs::read(&path).unwrap());
        }
    }
}

fn options() -> Options {
    Options::new("apply")
}

fn crash_after(records: usize) -> Options {
    Options { crash: CrashPoint::after(records), ..options() }
}

/// How many records an undisturbed run writes.
async fn records(config: &str) -> usize {
    let bench = Bench::new();
    let options = options();
    bench.run(config, &options).await.unwrap();
    options.crash.written()
}

fn states(report: &Report) -> BTreeMap<&str, ResourceState> {
    report.resources.iter().map(|entry| (entry.id.as_str(), entry.state)).collect()
}

#[tokio::test]
async fn a_run_converges_and_the_next_one_writes_nothing() {
    let bench = Bench::new();
    let report = bench.run(CONFIG, &options()).await.unwrap();
    assert_eq!(report.exit(), Exit::Converged, "{report:#?}");
    assert!(report.transaction.is_some());
    assert_eq!(bench.tree()[Path::new("proc/sys/fs/inotify/max_user_instances")], b"8192");
    bench.writes();
    for command in ["apply", "reconcile"] {
        let again = bench.run(CONFIG, &Options { obey_policy: true, ..Options::new(command) }).await.unwrap();
        assert_eq!((again.exit(), again.transaction), (Exit::Converged, None));
        assert_eq!(bench.writes(), Vec::<String>::new(), "{command}");
    }
}

#[tokio::test]
async fn after_a_crash_at_any_record_the_next_run_completes() {
    let reference = Bench::new();
    reference.run(CONFIG, &options()).await.unwrap();
    let total = records(CONFIG).await;
    assert!(total > 20, "the run is long enough to be worth it: {total}");
    for n in 1..=total {
        let bench = Bench::new();
        let crash = bench.run(CONFIG, &crash_after(n)).await;
        assert!(matches!(crash, Err(EngineError::Journal(_))), "record {n}: {crash:?}");
        let report = bench.run(CONFIG, &options()).await.unwrap();
        assert_eq!(report.exit(), Exit::Converged, "after record {n}: {report:#?}");
        assert_eq!(bench.tree(), reference.tree(), "after record {n}");
        for unit in ["chronyd.service", "nodeagent-runtime.service"] {
            assert_eq!(bench.unit(unit), reference.unit(unit), "{unit} after record {n}");
        }
        assert!(Transaction::unfinished(&bench.fake.host).unwrap().is_empty(), "after record {n}");
        bench.writes();
        assert_eq!(bench.run(CONFIG, &options()).await.unwrap().exit(), Exit::Converged);
        assert_eq!(bench.writes(), Vec::<String>::new(), "after record {n}");
    }
}

#[tokio::test]
async fn a_crash_in_the_run_that_goes_on_is_survived_too() {
    let reference = Bench::new();
    reference.run(CONFIG, &options()).await.unwrap();
    let total = records(CONFIG).await;
    for first in (1..total).step_by(7) {
        for second in (1..total).step_by(5) {
            let bench = Bench::new();
            assert!(bench.run(CONFIG, &crash_after(first)).await.is_err());
            // the second crash may come too late to happen
            drop(bench.run(CONFIG, &crash_after(second)).await);
            let report = bench.run(CONFIG, &options()).await.unwrap();
            assert_eq!(report.exit(), Exit::Converged, "{first}, {second}: {report:#?}");
            assert_eq!(bench.tree(), reference.tree(), "{first}, {second}");
        }
    }
}

#[tokio::test]
async fn after_a_crash_and_a_new_config_nothing_of_the_old_one_is_left() {
    let other = "[[file]]\npath = \"/etc/other\"\ncontent = \"other\\n\"\n[selinux]\nmode = \"keep\"";
    let reference = Bench::new();
    reference.run(other, &options()).await.unwrap();
    let total = records(CONFIG).await;
    for n in 1..total {
        let bench = Bench::new();
        assert!(bench.run(CONFIG, &crash_after(n)).await.is_err());
        let report = bench.run(other, &options()).await.unwrap();
        assert_eq!(report.exit(), Exit::Converged, "after record {n}: {report:#?}");
        assert_eq!(bench.tree_without_modules(), reference.tree_without_modules(), "after record {n}");
        assert_eq!(bench.unit("chronyd.service"), FakeUnit::disabled(), "after record {n}");
    }
}

#[tokio::test]
async fn rollback_gives_the_host_as_it_was_also_with_a_crash_in_it() {
    let before = Bench::new();
    let steps = {
        let bench = Bench::new();
        bench.run(CONFIG, &options()).await.unwrap();
        let id = Transaction::list(&bench.fake.host).unwrap().pop().unwrap();
        Transaction::load(&bench.fake.host, &id).unwrap().unwrap().steps.len()
    };
    for n in 1..=steps + 2 {
        let bench = Bench::new();
        bench.run(CONFIG, &options()).await.unwrap();
        let settings = config::from_text(CONFIG).unwrap();
        let platform = bench.fake.platform();
        let resources = registry(&settings, &platform).unwrap();
        let engine = Engine::new(&bench.fake.host, &platform, &settings.reconcile, resources).unwrap();
        let crash = rollback::rollback(&engine, None, &crash_after(n)).await;
        if crash.is_err() {
            // any later rollback, or run, finishes it
            let id = Transaction::list(&bench.fake.host).unwrap().pop().unwrap();
            let again = rollback::rollback(&engine, Some(&id), &options()).await;
            assert!(again.is_ok() || matches!(again, Err(EngineError::NothingToRollBack)), "{n}: {again:?}");
        }
        assert_eq!(bench.tree_without_modules(), before.tree_without_modules(), "after record {n}");
        assert_eq!(bench.unit("chronyd.service"), FakeUnit::disabled());
        assert_eq!(bench.unit("nodeagent-runtime.service"), FakeUnit::disabled());
    }
}

#[tokio::test]
async fn a_journal_that_is_cut_anywhere_can_be_read() {
    let bench = Bench::new();
    bench.run(CONFIG, &options()).await.unwrap();
    let id = Transaction::list(&bench.fake.host).unwrap().pop().unwrap();
    let path = bench.dir.path().join(format!("var/lib/nodeagent/txn/{id}.jsonl"));
    let bytes = fs::read(path).unwrap();
    let mut steps = 0;
    for length in (0..bytes.len()).step_by(13).chain([bytes.len() - 1, bytes.len()]) {
        let transaction = Transaction::parse("journal", &bytes[..length]).unwrap();
        let now = transaction.as_ref().map_or(0, |transaction| transaction.steps.len());
        assert!(now >= steps, "at {length}");
        steps = now;
        let over = transaction.is_some_and(|transaction| transaction.is_over());
        assert_eq!(over, length == bytes.len(), "at {length}");
    }
}

/// A resource that does what it is told, and is content when its first file is there.
struct Scripted {
    id: ResourceId,
    needs: Vec<ResourceId>,
    actions: Vec<Action>,
    notify: Vec<Notify>,
    done: Option<&'static str>,
}

fn scripted(id: &str, needs: &[&str], actions: Vec<Action>, done: Option<&'static str>) -> Scripted {
    let needs = needs.iter().map(|id| id.parse().unwrap()).collect();
    Scripted { id: id.parse().unwrap(), needs, actions, notify: Vec::new(), done }
}

fn write(path: &str) -> Action {
    Action::WriteFile { path: path.to_owned(), content: "x".to_owned(), mode: 0o644, uid: 0, gid: 0, secret: false }
}

fn no_such_module() -> Action {
    Action::LoadModule { name: "no_such_module".to_owned() }
}

#[async_trait]
impl Resource for Scripted {
    fn id(&self) -> &ResourceId {
        &self.id
    }

    fn needs(&self) -> Vec<ResourceId> {
        self.needs.clone()
    }

    async fn plan(&self, host: &Host, _: &PlanContext<'_>) -> Result<Outcome, ResourceError> {
        if self.done.is_some_and(|path| host.root.exists(path).unwrap()) {
            return Ok(Outcome::converged());
        }
        Ok(Outcome::Change(Change {
            id: self.id.clone(),
            reason: Reason::Missing,
            summary: "do it".to_owned(),
            diffs: Vec::new(),
            actions: self.actions.clone(),
            notify: self.notify.clone(),
            reboot: None,
        }))
    }

    fn explain(&self) -> String {
        String::new()
    }

    fn applied(&self) -> serde_json::Value {
        serde_json::json!(self.actions)
    }
}

async fn run_scripted(bench: &Bench, resources: Vec<Scripted>, options: &Options) -> Report {
    let settings = config::from_text("").unwrap();
    let resources = resources.into_iter().map(|it| Box::new(it) as Box<dyn Resource>).collect();
    bench.run_resources(&settings, resources, options).await.unwrap()
}

#[tokio::test]
async fn what_fails_is_undone_what_needs_it_waits_and_the_rest_goes_on() {
    let bench = Bench::new();
    let resources = || {
        vec![
            scripted("broken", &[], vec![write("/etc/half"), no_such_module()], Some("/etc/never")),
            scripted("dependent", &["broken"], vec![write("/etc/dependent")], Some("/etc/dependent")),
            scripted("far", &["dependent"], vec![write("/etc/far")], Some("/etc/far")),
            scripted("free", &[], vec![write("/etc/free")], Some("/etc/free")),
        ]
    };
    let report = run_scripted(&bench, resources(), &options()).await;
    assert_eq!(report.exit(), Exit::Degraded);
    let want = BTreeMap::from([
        ("broken", ResourceState::Failed),
        ("dependent", ResourceState::Skipped),
        ("far", ResourceState::Skipped),
        ("free", ResourceState::Changed),
    ]);
    assert_eq!(states(&report), want);
    let tree = bench.tree();
    let has = |path: &str| tree.contains_key(Path::new(path));
    assert!(has("etc/free") && !has("etc/half") && !has("etc/dependent") && !has("etc/far"));
    let broken = &report.resources.iter().find(|entry| entry.id.as_str() == "broken").unwrap().detail;
    assert!(broken.contains("no_such_module"), "{broken}");
}

#[tokio::test]
async fn atomic_takes_everything_back_when_anything_fails() {
    let bench = Bench::new();
    let before = bench.tree();
    let resources = vec![
        scripted("a-fine", &[], vec![write("/etc/fstab"), write("/etc/fine")], Some("/etc/fine")),
        scripted("broken", &["a-fine"], vec![no_such_module()], Some("/etc/never")),
    ];
    let report = run_scripted(&bench, resources, &Options { atomic: true, ..options() }).await;
    assert_eq!(report.exit(), Exit::Undone, "{report:#?}");
    assert_eq!(bench.tree(), before);
    assert_eq!(states(&report)["a-fine"], ResourceState::Undone);
    let fine = ResourceId::single("a-fine");
    let state = nodeagent::reconcile::state::State::load(&bench.fake.host).unwrap();
    assert!(state.is_none_or(|state| !state.resources.contains_key(&fine)));
}

#[tokio::test]
async fn a_change_that_has_no_effect_is_a_failure_and_is_undone() {
    let bench = Bench::new();
    let resources = vec![scripted("liar", &[], vec![write("/etc/x")], Some("/etc/elsewhere"))];
    let report = run_scripted(&bench, resources, &options()).await;
    assert_eq!(report.exit(), Exit::Degraded);
    assert!(report.resources[0].detail.contains("the host does not show it"), "{report:#?}");
    assert!(!bench.tree().contains_key(Path::new("etc/x")));
}

#[tokio::test]
async fn reloads_and_restarts_happen_once_and_reloads_come_first() {
    let bench = Bench::new();
    bench.fake.systemd.set("a.service", FakeUnit::running());
    bench.fake.systemd.set("b.service", FakeUnit::disabled());
    let restart = |unit: &str| Notify::RestartUnit(unit.to_owned());
    let change = |id: &str, path: &'static str| {
        let notify = vec![restart("a.service"), restart("b.service"), Notify::DaemonReload];
        Scripted { notify, ..scripted(id, &[], vec![write(path)], Some(path)) }
    };
    let report = run_scripted(&bench, vec![change("one", "/etc/1"), change("two", "/etc/2")], &options()).await;
    assert_eq!(report.exit(), Exit::Converged, "{report:#?}");
    let writes = bench.writes();
    let count = |text: &str| writes.iter().filter(|write| write.contains(text)).count();
    assert_eq!((count("reload"), count("restart a.service"), count("restart b.service")), (1, 1, 0), "{writes:?}");
    let place = |text: &str| writes.iter().position(|write| write.contains(text)).unwrap();
    assert!(place("reload") < place("restart a.service"), "{writes:?}");
}

#[tokio::test]
async fn a_restart_that_a_crash_prevented_is_made_up_for() {
    let bench = Bench::new();
    bench.fake.systemd.set("a.service", FakeUnit::running());
    let change = || {
        let notify = vec![Notify::RestartUnit("a.service".to_owned())];
        vec![Scripted { notify, ..scripted("one", &[], vec![write("/etc/1")], Some("/etc/1")) }]
    };
    let settings = config::from_text("").unwrap();
    let boxed = || change().into_iter().map(|it| Box::new(it) as Box<dyn Resource>).collect();
    // begin, intent, done, and there it ends
    assert!(bench.run_resources(&settings, boxed(), &crash_after(3)).await.is_err());
    assert!(bench.tree().contains_key(Path::new("etc/1")));
    bench.writes();
    let report = bench.run_resources(&settings, boxed(), &options()).await.unwrap();
    assert_eq!(report.exit(), Exit::Converged);
    assert!(bench.writes().iter().any(|write| write.contains("restart a.service")));
}

#[tokio::test]
async fn an_early_run_leaves_a_later_stage_alone() {
    let bench = Bench::new();
    assert!(bench.run(CONFIG, &crash_after(12)).await.is_err());
    let early = Options { stage: Stage::Early, in_boot: true, ..options() };
    let report = bench.run(CONFIG, &early).await.unwrap();
    assert_eq!(report.exit(), Exit::Converged, "{report:#?}");
    assert_eq!(Transaction::unfinished(&bench.fake.host).unwrap().len(), 1, "left for the stage that began it");
    assert_eq!(bench.run(CONFIG, &options()).await.unwrap().exit(), Exit::Converged);
    assert!(Transaction::unfinished(&bench.fake.host).unwrap().is_empty());
}

#[tokio::test]
async fn a_state_from_a_newer_agent_is_refused_before_anything_is_touched() {
    let bench = Bench::new();
    bench.fake.edit("/var/lib/nodeagent/state.json", "{\"schema\": 99}").unwrap();
    let before = bench.tree();
    assert!(matches!(bench.run(CONFIG, &options()).await, Err(EngineError::State(_))));
    assert_eq!(bench.tree(), before);
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(24))]

    #[test]
    fn plans_do_not_depend_on_the_order_of_the_config_and_are_empty_after_apply(
        names in proptest::collection::btree_set("[a-z]{1,8}", 1..6),
        shift in 0usize..6,
    ) {
        let names: Vec<String> = names.into_iter().collect();
        let mut other = names.clone();
        other.rotate_left(shift % names.len());
        let config = |names: &[String]| -> String {
            names.iter().map(|name| format!("[[file]]\npath = \"/etc/p/{name}\"\ncontent = \"{name}\"\n")).collect()
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let bench = Bench::new();
            let platform = bench.fake.platform();
            let plan = async |text: &str| {
                let settings = config::from_text(text).unwrap();
                let resources = registry(&settings, &platform).unwrap();
                let engine = Engine::new(&bench.fake.host, &platform, &settings.reconcile, resources).unwrap();
                engine.plan(Stage::Activate, None).await
            };
            let one = plan(&config(&names)).await;
            let two = plan(&config(&other)).await;
            assert_eq!(one, two);
            assert_eq!(one.hash(), two.hash());
            let report = bench.run(&config(&names), &options()).await.unwrap();
            assert_eq!(report.exit(), Exit::Converged);
            assert!(plan(&config(&other)).await.is_empty());
            let ids: BTreeSet<_> = one.resources.iter().map(|planned| &planned.id).collect();
            assert_eq!(ids.len(), one.resources.len());
        });
    }
}

#[tokio::test]
async fn a_tree_that_does_not_run_survives_a_crash_at_any_record_too() {
    let tree = || {
        let dir = tempfile::tempdir().unwrap();
        // the fake leaves the files of a system behind
        FakeHost::new(dir.path()).unwrap();
        let unit = dir.path().join("usr/lib/systemd/system/nodeagent-runtime.service");
        fs::write(unit, "[Service]\nExecStart=/bin/true\n[Install]\nWantedBy=multi-user.target\n").unwrap();
        dir
    };
    let config = "[selinux]\nmode = \"permissive\"\n[packages]\nsource = \"preinstalled\"\n[[file]]\npath = \"/etc/a/b\"\ncontent = \"b\"";
    let settings = config::from_text(config).unwrap();
    let run = async |dir: &Path, options: &Options| {
        let host = Host::offline(dir).unwrap();
        let platform = nodeagent::host::Platform::detect(&host).unwrap();
        let resources = registry(&settings, &platform).unwrap();
        Engine::new(&host, &platform, &settings.reconcile, resources).unwrap().run(options).await
    };
    let files = |dir: &Path| {
        let mut files = BTreeMap::new();
        collect(dir, dir, &mut files);
        files.retain(|path, _| !path.starts_with("var/lib/nodeagent"));
        files
    };
    let reference = tree();
    let undisturbed = options();
    let report = run(reference.path(), &undisturbed).await.unwrap();
    assert_eq!(report.exit(), Exit::Converged, "{report:#?}");
    for n in 1..=undisturbed.crash.written() {
        let dir = tree();
        assert!(run(dir.path(), &crash_after(n)).await.is_err(), "record {n}");
        let report = run(dir.path(), &options()).await.unwrap();
        assert_eq!(report.exit(), Exit::Converged, "after record {n}: {report:#?}");
        assert_eq!(files(dir.path()), files(reference.path()), "after record {n}");
    }
}

#[tokio::test]
async fn old_journals_go_and_the_last_ones_stay() {
    let bench = Bench::new();
    for n in 0..40 {
        let path: &'static str = if n % 2 == 0 { "/etc/even" } else { "/etc/odd" };
        drop(fs::remove_file(bench.dir.path().join(path.trim_start_matches('/'))));
        run_scripted(&bench, vec![scripted("one", &[], vec![write(path)], Some(path))], &options()).await;
    }
    let ids = Transaction::list(&bench.fake.host).unwrap();
    assert_eq!(ids.len(), 32);
    assert!(ids.last().unwrap().starts_with("000040-"), "{ids:?}");
}
