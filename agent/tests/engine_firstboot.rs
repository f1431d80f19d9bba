//! The stages of a first boot on a fake host: who does what, when it is done, and whose stamp it is.
// tests may stop at the first surprise
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::os::unix::net::UnixListener;
use std::time::Duration;

use nodeagent::config::{self, settings::Settings};
use nodeagent::exit::Exit;
use nodeagent::firstboot::{self, MARKER_PATH, STAMP_PATH};
use nodeagent::host::fake::{FakeHost, FakeUnit};
use nodeagent::plan::Stage;
use nodeagent::reconcile::journal::CrashPoint;
use nodeagent::reconcile::lock::{Lock, Patience};
use nodeagent::reconcile::{Engine, Options, Report, ResourceState};
use nodeagent::resource::registry;
use tempfile::TempDir;

const CONFIG: &str = "[runtime]\nready_timeout = \"200ms\"\n[[file]]\npath = \"/etc/x\"\ncontent = \"x\\n\"\n";

struct Bench {
    dir: TempDir,
    fake: FakeHost,
    settings: Settings,
}

impl Bench {
    fn new() -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let fake = FakeHost::new(dir.path()).unwrap();
        fs::create_dir_all(dir.path().join("run/nodeagent")).unwrap();
        fake.systemd.set("nodeagent-runtime.service", FakeUnit::disabled());
        Bench { dir, fake, settings: config::from_text(CONFIG).unwrap() }
    }

    /// The runtime's socket; it accepts as long as it lives.
    fn serve(&self) -> UnixListener {
        UnixListener::bind(self.dir.path().join("run/nodeagent/cri.sock")).unwrap()
    }

    async fn stage(&self, stage: Stage) -> Report {
        self.stage_with(stage, CrashPoint::default()).await.unwrap()
    }

    async fn stage_with(&self, stage: Stage, crash: CrashPoint) -> Result<Report, firstboot::FirstBootError> {
        self.stage_by(Options { stage, in_boot: true, crash, ..Options::new("apply") }).await
    }

    async fn stage_by(&self, options: Options) -> Result<Report, firstboot::FirstBootError> {
        let host = &self.fake.host;
        let platform = self.fake.platform();
        let resources = registry(&self.settings, &platform).unwrap();
        let engine = Engine::new(host, &platform, &self.settings.reconcile, resources).unwrap();
        firstboot::run(&engine, &self.settings, host, &options).await
    }

    fn exists(&self, path: &str) -> bool {
        self.dir.path().join(path.trim_start_matches('/')).exists()
    }

    fn writes(&self) -> Vec<String> {
        self.fake.writes().into_iter().filter(|write| !write.contains("/run/nodeagent")).collect()
    }
}

fn state_of(report: &Report, id: &str) -> Option<ResourceState> {
    report.resources.iter().find(|entry| entry.id.as_str() == id).map(|entry| entry.state)
}

#[tokio::test]
async fn early_prepare_and_activate_do_their_own_and_activate_stamps() {
    let bench = Bench::new();
    let early = bench.stage(Stage::Early).await;
    assert_eq!(early.exit(), Exit::Converged, "{early:#?}");
    assert_eq!(state_of(&early, "kernel-module/overlay"), Some(ResourceState::Changed));
    assert_eq!(state_of(&early, "file//etc/x"), None, "not before sysinit.target");
    assert!(!bench.exists(MARKER_PATH), "early is no part of the first boot alone");

    let prepare = bench.stage(Stage::Prepare).await;
    assert_eq!(prepare.exit(), Exit::Converged, "{prepare:#?}");
    assert_eq!(state_of(&prepare, "file//etc/x"), Some(ResourceState::Changed));
    assert_eq!(state_of(&prepare, "unit/nodeagent-runtime.service"), None, "units may be ordered after prepare");
    assert!(!bench.fake.systemd.get("nodeagent-runtime.service").unwrap().active);
    assert!(bench.exists(MARKER_PATH) && !bench.exists(STAMP_PATH));

    let _runtime = bench.serve();
    let activate = bench.stage(Stage::Activate).await;
    assert_eq!(activate.exit(), Exit::Converged, "{activate:#?}");
    assert!(activate.first_boot_done);
    assert!(bench.fake.systemd.get("nodeagent-runtime.service").unwrap().active);
    assert!(bench.exists(STAMP_PATH) && !bench.exists(MARKER_PATH));

    bench.writes();
    for stage in [Stage::Early, Stage::Prepare, Stage::Activate] {
        let again = bench.stage(stage).await;
        assert_eq!((again.exit(), again.first_boot_done), (Exit::Converged, true), "{stage:?}");
        assert_eq!(bench.writes(), Vec::<String>::new(), "{stage:?}");
    }
}

#[tokio::test]
async fn prepare_waits_for_no_run_that_may_wait_for_the_units_behind_it() {
    let bench = Bench::new();
    let waits = |stage| Options {
        stage,
        in_boot: true,
        patience: Patience::ForThoseBefore(Duration::from_secs(60)),
        ..Options::new("apply")
    };
    // by hand: it starts the runtime and waits for it, whose unit stands after prepare
    let held = Lock::take(&bench.fake.host, "agent apply --stage activate", Patience::None).await.unwrap();
    let report = bench.stage_by(waits(Stage::Prepare)).await.unwrap();
    assert_eq!((report.exit(), report.first_boot_done), (Exit::Converged, false), "{report:#?}");
    assert!(report.notes[0].ends_with("agent apply --stage activate") && report.resources.is_empty(), "{report:#?}");
    assert!(!bench.exists("/etc/x"));
    drop(held);

    // one that waits for no unit is waited for
    let held = Lock::take(&bench.fake.host, "agent apply --stage prepare", Patience::None).await.unwrap();
    let soon = async {
        tokio::task::yield_now().await;
        drop(held);
    };
    let (report, ()) = tokio::join!(bench.stage_by(waits(Stage::Prepare)), soon);
    assert_eq!(state_of(&report.unwrap(), "file//etc/x"), Some(ResourceState::Changed));
}

#[tokio::test]
async fn a_runtime_that_does_not_answer_is_not_a_first_boot_that_is_done() {
    let bench = Bench::new();
    bench.stage(Stage::Prepare).await;
    let activate = bench.stage(Stage::Activate).await;
    assert_eq!(activate.exit(), Exit::Degraded, "{activate:#?}");
    assert_eq!(state_of(&activate, "runtime/cri"), Some(ResourceState::Failed));
    assert!(!bench.exists(STAMP_PATH) && bench.exists(MARKER_PATH));

    let _runtime = bench.serve();
    let again = bench.stage(Stage::Activate).await;
    assert_eq!(again.exit(), Exit::Converged, "a second run completes: {again:#?}");
    assert!(bench.exists(STAMP_PATH));
}

#[tokio::test]
async fn a_first_boot_compares_with_what_the_bake_sealed_and_opens_it() {
    let bench = Bench::new();
    let _runtime = bench.serve();
    let step =
        |id: &str, desired: &str| format!(r#"{{"id":"{id}","stage":"activate","desired":{desired},"reason":"r"}}"#);
    let right = r#"{"enabled":true,"masked":null,"state":"running"}"#;
    let steps = [
        step("unit/nodeagent-runtime.service", right),
        step("kernel-module/overlay", r#"{"module":"other"}"#),
        step("kernel-module/gone", "{}"),
    ];
    let sealed = format!(r#"{{"schema":1,"agent_version":"0.1.0","steps":[{}]}}"#, steps.join(","));
    bench.fake.edit("/var/lib/nodeagent/sealed-plan.json", &sealed).unwrap();
    bench.stage(Stage::Prepare).await;
    assert!(bench.exists("/var/lib/nodeagent/sealed-plan.json"));
    let activate = bench.stage(Stage::Activate).await;
    assert!(activate.first_boot_done, "{activate:#?}");
    let about = |id: &str| activate.notes.iter().filter(|note| note.starts_with(id)).count();
    assert_eq!(
        (about("unit/"), about("kernel-module/overlay"), about("kernel-module/gone")),
        (0, 1, 1),
        "{activate:#?}"
    );
    assert!(!bench.exists("/var/lib/nodeagent/sealed-plan.json"));
}

#[tokio::test]
async fn a_clone_does_its_own_first_boot() {
    let bench = Bench::new();
    bench.fake.edit("/var/lib/cloud/data/instance-id", "i-1\n").unwrap();
    let _runtime = bench.serve();
    bench.stage(Stage::Prepare).await;
    bench.stage(Stage::Activate).await;
    assert!(bench.exists(STAMP_PATH));

    for (path, text) in
        [("/etc/machine-id", "ffffffffffffffffffffffffffffffff\n"), ("/var/lib/cloud/data/instance-id", "i-2\n")]
    {
        bench.fake.edit(path, text).unwrap();
        let prepare = bench.stage(Stage::Prepare).await;
        assert!(!prepare.first_boot_done, "{path}");
        assert!(prepare.notes.iter().any(|note| note.contains("copy of another")), "{prepare:#?}");
        assert!(!bench.exists(STAMP_PATH), "{path}: the stamp was the template's");
        assert!(bench.stage(Stage::Activate).await.first_boot_done, "{path}");
    }
}

#[tokio::test]
async fn a_power_cut_in_any_stage_is_made_up_for_by_the_next_boot() {
    for stage in [Stage::Prepare, Stage::Activate] {
        for record in [1, 2, 3, 6] {
            let bench = Bench::new();
            let _runtime = bench.serve();
            if stage == Stage::Activate {
                bench.stage(Stage::Prepare).await;
            }
            let cut = bench.stage_with(stage, CrashPoint::after(record)).await;
            if cut.is_ok() {
                continue; // that stage has fewer records
            }
            for stage in [Stage::Early, Stage::Prepare, Stage::Activate] {
                let report = bench.stage(stage).await;
                assert_eq!(report.exit(), Exit::Converged, "{stage:?} after record {record}: {report:#?}");
            }
            assert!(bench.exists(STAMP_PATH));
            assert!(bench.exists("/etc/x"));
        }
    }
}

#[tokio::test]
async fn a_run_that_was_cut_after_the_first_boot_is_gone_on_with_at_boot() {
    let bench = Bench::new();
    let _runtime = bench.serve();
    bench.stage(Stage::Prepare).await;
    bench.stage(Stage::Activate).await;
    bench.fake.edit("/etc/x", "drifted\n").unwrap();
    let platform = bench.fake.platform();
    let resources = registry(&bench.settings, &platform).unwrap();
    let engine = Engine::new(&bench.fake.host, &platform, &bench.settings.reconcile, resources).unwrap();
    let options = Options { crash: CrashPoint::after(2), ..Options::new("apply") };
    assert!(engine.run(&options).await.is_err());

    bench.stage(Stage::Activate).await;
    assert_eq!(fs::read_to_string(bench.dir.path().join("etc/x")).unwrap(), "x\n");
}
