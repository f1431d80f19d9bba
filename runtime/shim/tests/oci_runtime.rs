//! Containers that another runtime makes, here a shell script that does what a test wants. Needs root.
#![allow(missing_docs, clippy::unwrap_used, reason = "clippy.toml's exception for tests does not reach their helpers")]

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nodeagent_shim::protocol::*;
use support::*;

const PATIENCE: Duration = Duration::from_secs(30);

/// Its `--root` is the bundle, where files say what is to happen.
const RUNTIME: &str = r#"#!/bin/sh
while :; do
    case $1 in
        --log) log=$2; shift 2 ;;
        --root) bundle=$2; shift 2 ;;
        --*) shift 2 ;;
        *) break ;;
    esac
done
verb=$1
shift
if [ -f "$bundle/fail-$verb" ]; then
    cat "$bundle/fail-$verb" > "$log"
    exit 1
fi
while [ $# -gt 1 ]; do
    case $1 in
        --pid-file) pid=$2 ;;
        --process) process=$2 ;;
    esac
    shift 2
done
case $verb in
    create)
        [ -f "$bundle/hang-create" ] && { echo > "$bundle/hangs"; exec sleep 1000; }
        ls "$bundle/../rootfs/bin/busybox" > "$bundle/seen" 2>&1
        mkfifo "$bundle/go"
        setsid sh -c "read go < '$bundle/go'; exec sh '$bundle/program'" &
        printf %s $! > "$pid"
        ;;
    start)
        echo > "$bundle/go"
        # until the shim has waited for it
        [ -f "$bundle/slow-start" ] && while [ -d "/proc/$(cat "$bundle/pid")" ]; do sleep 0.01; done
        exit 0
        ;;
    exec)
        setsid sh "$process" &
        printf %s $! > "$pid"
        wait $!
        ;;
esac
"#;

struct ByRuntime {
    pod: Pod,
    spec: LaunchSpec,
    bundle: PathBuf,
}

/// A container of that program, by the script.
fn by_runtime(program: &str) -> ByRuntime {
    let pod = Pod::new();
    let mut spec = pod.container("");
    let bundle = PathBuf::from(&spec.rootfs.target).parent().unwrap().join("bundle");
    fs::create_dir_all(&bundle).unwrap();
    fs::write(bundle.join("program"), program).unwrap();
    let runtime = bundle.join("runtime");
    fs::write(&runtime, RUNTIME).unwrap();
    fs::set_permissions(&runtime, fs::Permissions::from_mode(0o755)).unwrap();
    let path = |path: &PathBuf| path.to_str().unwrap().to_owned();
    spec.oci = Some(nodeagent_shim::protocol::OciRuntime {
        program: path(&runtime),
        options: vec!["--root".into(), path(&bundle)],
        bundle: path(&bundle),
        stand_in: false,
    });
    ByRuntime { pod, spec, bundle }
}

impl ByRuntime {
    fn says(&self, file: &str, text: &str) {
        fs::write(self.bundle.join(file), text).unwrap();
    }

    fn exec(&mut self, script: &str, timeout_ms: u64) -> Answer {
        let exec = ExecSpec { oci: Some(script.into()), timeout_ms, ..support::exec(&self.spec.container, "unused") };
        self.pod.daemon.call(Call::Exec(Box::new(exec)))
    }

    fn end(mut self) {
        self.pod.daemon.done(Call::StopPod);
        self.pod.end();
    }
}

#[test]
fn a_program_is_started_by_the_runtime_and_ends_with_its_own_code() {
    if !root() {
        return;
    }
    let mut this = by_runtime("echo out; echo err >&2; exit 3");
    let pid = this.pod.daemon.start(&this.spec);
    let state = this.pod.daemon.exited(&this.spec.container);
    assert_eq!((state.exit_code, state.message.as_str()), (Some(3), ""));
    assert_eq!(fs::read_to_string(this.bundle.join("pid")).unwrap(), pid.to_string());
    let log = this.pod.log(&this.spec);
    assert!(log.contains("stdout F out\n") && log.contains("stderr F err\n"), "{log}");
    let seen = fs::read_to_string(this.bundle.join("seen")).unwrap();
    assert!(!seen.contains("No such file"), "the runtime saw no layers: {seen}");
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(&this.spec.rootfs.target), "the host sees them");
    this.end();
}

#[test]
fn a_program_that_ends_before_the_runtime_says_that_it_started_was_started() {
    if !root() {
        return;
    }
    let mut this = by_runtime("exit 7");
    this.says("slow-start", "");
    this.pod.daemon.start(&this.spec);
    assert_eq!(this.pod.daemon.exited(&this.spec.container).exit_code, Some(7));
    this.end();
}

#[test]
fn what_the_runtime_says_is_why_a_container_could_not_be_made() {
    if !root() {
        return;
    }
    let mut this = by_runtime("");
    this.says("fail-create", r#"{"level":"error","msg":"exec: \"x\": executable file not found in $PATH"}"#);
    let (kind, message) = this.pod.daemon.refused(&this.spec);
    assert_eq!(kind, ErrorKind::CannotExecute);
    assert_eq!(message, r#"runtime create: exec: "x": executable file not found in $PATH"#);
    assert_eq!(this.pod.daemon.exited(&this.spec.container).exit_code, Some(127));
    this.end();

    let mut this = by_runtime("sleep 1000");
    this.says("fail-start", "no more of anything\n");
    let (kind, message) = this.pod.daemon.refused(&this.spec);
    assert_eq!((kind, message.as_str()), (ErrorKind::System, "runtime start: no more of anything"));
    let state = this.pod.daemon.exited(&this.spec.container);
    assert_eq!(state.exit_code, Some(128));
    let pid = fs::read_to_string(this.bundle.join("pid")).unwrap();
    assert!(!PathBuf::from(format!("/proc/{pid}")).exists(), "its process was left");
    this.end();

    let mut this = by_runtime("");
    if let Some(oci) = &mut this.spec.oci {
        oci.program = "/no/such/runtime".into();
    }
    let (_, message) = this.pod.daemon.refused(&this.spec);
    assert!(message.contains("/no/such/runtime"), "{message}");
    this.end();
}

#[test]
fn a_runtime_that_hangs_can_be_killed() {
    if !root() {
        return;
    }
    let mut this = by_runtime("");
    this.says("hang-create", "");
    let start = this.pod.daemon.ask(Call::Start(Box::new(this.spec.clone())));
    let hangs = this.bundle.join("hangs");
    eventually("the runtime is executed", || hangs.exists());
    this.pod.daemon.done(Call::Signal { container: this.spec.container.clone(), signal: 9, all: true });
    assert!(matches!(this.pod.daemon.answer(start), Answer::Error { .. }));
    assert_eq!(this.pod.daemon.exited(&this.spec.container).exit_code, Some(128));
    this.end();
}

#[test]
fn one_that_stands_in_for_a_container_is_told_to_have_that_killed() {
    if !root() {
        return;
    }
    let mut this = by_runtime("trap 'echo told; exit 7' 64; echo ready; while :; do sleep 0.02; done");
    if let Some(oci) = &mut this.spec.oci {
        oci.stand_in = true;
    }
    this.pod.daemon.start(&this.spec);
    let log = PathBuf::from(this.spec.log_path.clone().unwrap());
    eventually("it waits for the signal", || fs::read_to_string(&log).is_ok_and(|log| log.contains("ready")));
    this.says("oom", "");
    this.pod.daemon.done(Call::Signal { container: this.spec.container.clone(), signal: 9, all: true });
    let state = this.pod.daemon.exited(&this.spec.container);
    assert_eq!((state.exit_code, state.oom_killed), (Some(7), true));
    assert!(this.pod.log(&this.spec).contains("stdout F told\n"));
    this.end();
}

#[test]
fn a_further_process_has_its_own_code_and_its_own_end() {
    if !root() {
        return;
    }
    let mut this = by_runtime("sleep 1000");
    this.pod.daemon.start(&this.spec);
    match this.exec("echo out; echo err >&2; exit 4", 0) {
        Answer::Executed { exit_code, stdout, stderr, timed_out } => {
            let expected = (4, "out\n".to_owned(), "err\n".to_owned(), false);
            assert_eq!((exit_code, decode(&stdout), decode(&stderr), timed_out), expected);
        }
        other => panic!("{other:?}"),
    }
    let began = Instant::now();
    match this.exec("sleep 1234567 & setsid sleep 1234567 & sleep 1234567", 300) {
        Answer::Executed { timed_out, .. } => assert!(timed_out),
        other => panic!("{other:?}"),
    }
    assert!(began.elapsed() < PATIENCE);
    let left = std::process::Command::new("pgrep").args(["-f", "sleep 1234567"]).output().unwrap().stdout;
    assert_eq!(String::from_utf8_lossy(&left), "");
    this.says("fail-exec", "no such container\n");
    match this.exec("true", 0) {
        Answer::Error { message, .. } => assert_eq!(message, "runtime exec: no such container"),
        other => panic!("{other:?}"),
    }
    let files = fs::read_dir(&this.bundle).unwrap().flatten();
    let names: Vec<String> = files.map(|file| file.file_name().into_string().unwrap()).collect();
    assert!(!names.iter().any(|name| name.starts_with("exec-")), "{names:?}");
    this.end();
}
