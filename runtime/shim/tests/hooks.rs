//! Programs that run while a container is made. Needs root.
#![allow(missing_docs, clippy::unwrap_used, reason = "clippy.toml's exception for tests does not reach their helpers")]

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nodeagent_shim::protocol::*;
use support::*;

/// A program of the host; what it does is said in shell.
fn program(pod: &Pod, name: &str, script: &str) -> Hook {
    let path = pod.dir.path().join(name);
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    let path = path.to_str().unwrap().to_owned();
    Hook {
        path: path.clone(),
        args: vec![path, "argument".into()],
        env: vec!["VARIABLE=value".into()],
        timeout_ms: 20_000,
    }
}

fn with(mut spec: LaunchSpec, hooks: Hooks) -> LaunchSpec {
    let state = format!(r#"{{"ociVersion":"1.0.2","id":"{}","bundle":"/bundle"}}"#, spec.container);
    spec.hooks = Some(Box::new(Hooks { state, ..hooks }));
    spec
}

fn state(path: &Path) -> serde_json::Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn a_program_of_the_host_changes_the_root_that_is_not_there_yet() {
    if !root() {
        return;
    }
    let mut pod = Pod::new();
    let spec = pod.container("cat /made; ls -l /link; cat /bound/file");
    let read = pod.dir.path().join("state.json");
    let bound = pod.dir.path().join("bound");
    fs::create_dir(&bound).unwrap();
    fs::write(bound.join("file"), "of the host\n").unwrap();
    // its directory is the root; the host's files are still there, and mounts are the container's alone
    let script = format!(
        "cat > {}; echo $1 $VARIABLE $(env | wc -l) > made; ln -s elsewhere link; mkdir bound; mount --bind {} bound",
        read.display(),
        bound.display()
    );
    let script = format!("PATH=/usr/bin:/bin\n{script}");
    let hooks = Hooks { create: vec![program(&pod, "create", &script)], ..Hooks::default() };
    // what is written before is not forbidden by what is read-only after
    let mut spec = with(spec, hooks);
    spec.readonly_rootfs = true;
    assert_eq!(pod.run(&spec).exit_code, Some(0), "{}", pod.log(&spec));
    let output = pod.output(&spec);
    assert!(output.starts_with("argument value ") && output.contains("/link -> elsewhere"), "{output}");
    assert!(output.ends_with("of the host\n"), "{output}");
    let state = state(&read);
    assert_eq!(state["id"], spec.container.as_str());
    assert_eq!((&state["status"], &state["pid"]), (&"creating".into(), &1.into()), "as the container sees it");
    assert!(!fs::read_to_string("/proc/self/mountinfo").unwrap().contains(bound.to_str().unwrap()));
    pod.end();
}

#[test]
fn a_program_of_the_container_runs_before_its_own_with_its_rights() {
    if !root() {
        return;
    }
    let mut pod = Pod::new();
    let mut spec = pod.container("cat /tmp/said");
    spec.mounts.push(file_system("tmpfs", "/tmp", "mode=1777"));
    (spec.process.uid, spec.process.gid) = (1000, 1000);
    // what was open before it listed its descriptors is 0, 1, 2 and the list itself
    let script = "set -- /proc/self/fd/*; echo $# > /tmp/said; id -u >> /tmp/said; cat >> /tmp/said";
    let args = ["sh", "-c", script].map(str::to_owned).to_vec();
    let hook = Hook { path: "/bin/sh".into(), args, env: vec!["PATH=/bin".into()], timeout_ms: 20_000 };
    let spec = with(spec, Hooks { start: vec![hook], ..Hooks::default() });
    assert_eq!(pod.run(&spec).exit_code, Some(0), "{}", pod.log(&spec));
    let output = pod.output(&spec);
    let [open, user, said] = output.splitn(3, '\n').collect::<Vec<_>>()[..] else { panic!("{output}") };
    assert_eq!(open, "4", "nothing of the host is open in it");
    let said: serde_json::Value = serde_json::from_str(said).unwrap();
    assert_eq!((user, &said["status"]), ("1000", &"created".into()));
    pod.end();
}

#[test]
fn one_that_fails_hangs_or_is_not_there_is_the_failure_of_the_start() {
    if !root() {
        return;
    }
    let mut pod = Pod::new();
    let flood = "PATH=/usr/bin:/bin\necho the reason >&2; head -c 100000 /dev/zero | tr '\\0' x >&2; exit 3";
    let fails = program(&pod, "fails", flood);
    let hangs = program(&pod, "hangs", "PATH=/usr/bin:/bin\necho waits; sleep 86391 & sleep 86391");
    let hangs = Hook { timeout_ms: 300, ..hangs };
    let dies = program(&pod, "dies", "kill -9 $$");
    let absent = Hook { path: "/no/such/hook".into(), timeout_ms: 20_000, ..Hook::default() };
    let cases = [
        (fails, "exit code 3: the reason"),
        (hangs, "no end within 300 ms: waits"),
        (dies, "ended by signal 9"),
        (absent, "/no/such/hook: exit code 127: No such file"),
    ];
    for (hook, words) in cases {
        let spec = with(pod.container("echo it ran"), Hooks { create: vec![hook], ..Hooks::default() });
        let began = Instant::now();
        let (kind, message) = pod.daemon.refused(&spec);
        assert!(kind == ErrorKind::System && message.starts_with("createContainer hook /"), "{message}");
        assert!(message.contains(words) && message.len() < 3000, "{message}");
        assert!(began.elapsed() < Duration::from_secs(20), "{message}");
        let state = pod.daemon.exited(&spec.container);
        assert_eq!((state.exit_code, state.started_at), (Some(128), 0));
        assert_eq!(pod.log(&spec), "");
    }
    eventually("what the one that hung has started is gone", || {
        let all = fs::read_dir("/proc").unwrap().flatten();
        let mut lines = all.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
        !lines.any(|line| line == b"sleep\x0086391\0")
    });
    pod.end();
}

#[test]
fn a_launcher_waits_for_programs_outside_with_everything_mounted() {
    if !root() {
        return;
    }
    let mut pod = Pod::new();
    assert!(pod.daemon.hello.hooks);
    let spec = with(pod.container("cat /from-outside"), Hooks { outside: true, ..Hooks::default() });
    let asked = pod.daemon.ask(Call::Start(Box::new(spec.clone())));
    let pid = match pod.daemon.event() {
        Event::Made { container, pid } if container == spec.container => pid,
        other => panic!("{other:?}"),
    };
    // seen through the launcher, whose root is still the host's
    let made = format!("/proc/{pid}/root{}", spec.rootfs.target);
    assert!(Path::new(&format!("{made}/bin/busybox")).exists());
    fs::write(format!("{made}/from-outside"), "hello\n").unwrap();
    // a daemon that was started meanwhile is told again
    let mut other = pod.reconnect();
    let again = other.ask(Call::Start(Box::new(spec.clone())));
    assert!(matches!(other.event(), Event::Made { pid: same, .. } if same == pid));
    other.done(Call::Continue { container: spec.container.clone() });
    assert!(matches!(other.answer(again), Answer::Started { .. }));
    assert!(matches!(pod.daemon.answer(asked), Answer::Started { .. }));
    assert_eq!(pod.daemon.exited(&spec.container).exit_code, Some(0));
    assert_eq!(pod.output(&spec), "hello\n");
    pod.end();
}

#[test]
fn one_that_waits_for_programs_outside_can_be_killed() {
    if !root() {
        return;
    }
    let mut pod = Pod::new();
    let spec = with(pod.container("true"), Hooks { outside: true, ..Hooks::default() });
    let asked = pod.daemon.ask(Call::Start(Box::new(spec.clone())));
    assert!(matches!(pod.daemon.event(), Event::Made { .. }));
    pod.daemon.done(Call::Signal { container: spec.container.clone(), signal: libc::SIGKILL, all: true });
    assert!(matches!(pod.daemon.answer(asked), Answer::Error { .. }));
    assert_eq!(pod.daemon.exited(&spec.container).exit_code, Some(137));
    pod.end();
}
