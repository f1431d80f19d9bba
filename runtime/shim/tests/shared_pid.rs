//! The PID namespace that the containers of a pod share. Needs root.
#![allow(missing_docs)]

mod support;

use nodeagent_shim::protocol::*;
use support::*;

fn pod() -> Pod {
    let mut pod = Pod::of(static_shim());
    let setup = PodSetup { new_net: true, new_ipc: true, new_uts: true, shared_pid: true, ..PodSetup::default() };
    pod.daemon.done(Call::Setup(setup));
    pod
}

fn shared(pod: &Pod, script: &str) -> LaunchSpec {
    LaunchSpec { pid_namespace: PidNamespace::Pod, ..pod.container(script) }
}

#[test]
fn containers_see_each_other_and_the_reaper_is_process_1() {
    if !root() {
        return;
    }
    let mut pod = pod();
    let one = shared(&pod, "exec sleep 4321");
    pod.daemon.start(&one);
    let two = shared(&pod, "echo $$; tr '\\000' ' ' < /proc/1/cmdline; echo; ps -o args | grep -c '^sleep 4321'");
    assert_eq!(pod.run(&two).exit_code, Some(0));
    let output = pod.output(&two);
    let lines: Vec<&str> = output.lines().collect();
    assert!(lines[0] != "1" && lines[1].starts_with("nodeagent-reaper ") && lines[2] == "1", "{output}");
    // a container of its own namespace is still possible beside
    let own = pod.container("echo $$");
    pod.run(&own);
    assert_eq!(pod.output(&own), "1\n");
    pod.end();
}

#[test]
fn the_reaper_takes_in_orphans() {
    if !root() {
        return;
    }
    let mut pod = pod();
    let spec = shared(&pod, "exec sleep 1000");
    pod.daemon.start(&spec);
    pod.daemon.exec(&spec.container, "for n in 1 2 3 4 5; do (sh -c 'true' &); done");
    eventually("no zombie is left", || {
        let (_, out, _) = pod.daemon.exec(&spec.container, "cat /proc/[0-9]*/stat | cut -d' ' -f3 | grep -c Z");
        out == "0\n"
    });
    pod.end();
}

#[test]
fn the_reaper_can_do_nothing_and_nothing_can_be_done_to_it() {
    if !root() {
        return;
    }
    let mut pod = pod();
    let spec = shared(&pod, "exec sleep 1000");
    pod.daemon.start(&spec);
    let script = "grep -E '^(Uid|Gid|Groups|Cap|NoNewPrivs|Seccomp:)' /proc/1/status; ls /proc/1/root 2>&1; \
                  readlink /proc/1/exe /proc/1/fd/0; echo 'links: none'; cat /proc/1/environ; for s in 9 15 1 2 11; do kill -$s 1; done; echo sent; test -d /proc/1 && echo alive";
    let (_, out, err) = pod.daemon.exec(&spec.container, script);
    let zero = "0000000000000000";
    for line in [
        "Uid:\t65534\t65534\t65534\t65534",
        "Gid:\t65534\t65534\t65534\t65534",
        &format!("CapPrm:\t{zero}"),
        &format!("CapEff:\t{zero}"),
        &format!("CapBnd:\t{zero}"),
        &format!("CapAmb:\t{zero}"),
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
    ] {
        assert!(out.contains(line), "{line} in {out}");
    }
    assert!(out.ends_with("sent\nalive\n"), "{out} {err}");
    assert!(out.contains("/proc/1/root: Permission denied\nlinks: none\n"), "{out}");
    // seen by the host: an empty root, three null streams
    let reaper = support::children(pod.child.id())
        .into_iter()
        .find(|pid| std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap().starts_with("nodeagent-reaper"))
        .unwrap();
    assert_eq!(std::fs::read_dir(format!("/proc/{reaper}/root")).unwrap().count(), 0);
    for entry in std::fs::read_dir(format!("/proc/{reaper}/fd")).unwrap() {
        assert_eq!(std::fs::read_link(entry.unwrap().path()).unwrap(), std::path::Path::new("/dev/null"));
    }
    assert_eq!(std::fs::read_to_string(format!("/proc/{reaper}/mountinfo")).unwrap().lines().count(), 1);
    pod.end();
}

#[test]
fn with_the_reaper_all_containers_end() {
    if !root() {
        return;
    }
    let mut pod = pod();
    let spec = shared(&pod, "exec sleep 1000");
    let pid = pod.daemon.start(&spec);
    let reaper = support::children(pod.child.id()).into_iter().find(|child| *child != pid).unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(reaper), nix::sys::signal::Signal::SIGTERM).unwrap();
    assert_eq!(pod.daemon.exited(&spec.container).exit_code, Some(137));
    // the reaper itself is reaped after those in its namespace
    eventually("the namespace is known to be gone", || {
        let spec = shared(&pod, "true");
        pod.daemon.refused(&spec).0 == ErrorKind::WrongState
    });
    pod.end();
}

#[test]
fn stopping_the_pod_ends_the_reaper() {
    if !root() {
        return;
    }
    let mut pod = pod();
    let mut spec = shared(&pod, "exec sleep 1000");
    pod.cgroup(&mut spec, &["memory"]);
    pod.daemon.start(&spec);
    assert_eq!(support::children(pod.child.id()).len(), 2);
    pod.daemon.done(Call::StopPod);
    assert_eq!(support::children(pod.child.id()), Vec::<i32>::new());
    pod.end();
}

#[test]
fn without_a_shared_namespace_there_is_none_to_be_in() {
    if !root() {
        return;
    }
    let mut pod = Pod::new();
    assert_eq!(pod.daemon.refused(&shared(&pod, "true")).0, ErrorKind::WrongState);
    pod.end();
}
