//! The process that a container runs: user, rights, limits, environment, terminal. Needs root.
#![allow(missing_docs)]

mod support;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use nodeagent_shim::protocol::*;
use support::*;

fn output_of(change: impl FnOnce(&mut LaunchSpec), script: &str) -> String {
    let mut pod = Pod::new();
    let mut spec = pod.container(script);
    change(&mut spec);
    let state = pod.run(&spec);
    let output = pod.output(&spec);
    assert_eq!(state.exit_code, Some(0), "{} {output}", state.message);
    pod.end();
    output
}

#[test]
fn user_groups_umask_and_directory() {
    if !root() {
        return;
    }
    let output = output_of(
        |spec| {
            let process = &mut spec.process;
            (process.uid, process.gid, process.groups) = (1000, 2000, vec![3000, 10, 2000]);
            process.umask = Some(0o027);
            process.cwd = "/srv/made".into();
        },
        "id -u; id -g; grep Groups /proc/self/status; umask; pwd; echo x > /dev/stdout; grep -E 'Cap(Eff|Prm)' /proc/self/status",
    );
    let words: Vec<&str> = output.split_whitespace().collect();
    assert_eq!(words[..9], ["1000", "2000", "Groups:", "10", "2000", "3000", "0027", "/srv/made", "x"]);
    assert_eq!(words[9..], ["CapPrm:", "0000000000000000", "CapEff:", "0000000000000000"]);
}

#[test]
fn capabilities_are_those_asked_for() {
    if !root() {
        return;
    }
    let caps = "grep Cap /proc/self/status";
    let output = output_of(
        |spec| {
            spec.process.capabilities =
                Capabilities { bounding: 0x3, effective: 0x1, permitted: 0x3, ..Default::default() }
        },
        caps,
    );
    // for root, exec raises to the bounding set
    let zero = "0000000000000000";
    let three = "0000000000000003";
    let expected = format!("CapInh:\t{zero}\nCapPrm:\t{three}\nCapEff:\t{three}\nCapBnd:\t{three}\nCapAmb:\t{zero}\n");
    assert_eq!(output, expected);
    let ambient = output_of(
        |spec| {
            spec.process.uid = 1000;
            let set = 0x400;
            spec.process.capabilities =
                Capabilities { bounding: set, effective: set, permitted: set, inheritable: set, ambient: set };
        },
        caps,
    );
    assert!(ambient.lines().all(|line| line.ends_with("0000000000000400")), "{ambient}");
}

#[test]
fn a_capability_that_this_host_lacks_is_a_warning() {
    if !root() {
        return;
    }
    let mut pod = Pod::new();
    let mut spec = pod.container("true");
    spec.process.capabilities = Capabilities { bounding: !0, effective: !0, permitted: !0, ..Default::default() };
    spec.process.oom_score_adj = Some(-1000);
    match pod.daemon.call(Call::Start(Box::new(spec))) {
        Answer::Started { warnings, .. } => {
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            let permitted = status.lines().find_map(|line| line.strip_prefix("CapPrm:\t")).unwrap();
            let resource = u64::from_str_radix(permitted, 16).unwrap() & 1 << 24 != 0;
            let told = |what: &str| warnings.iter().any(|warning| warning.contains(what));
            assert_eq!(
                (told("oom_score_adj -1000"), told("capabilities 0x1000000")),
                (!resource, !resource),
                "{warnings:?}"
            );
        }
        other => panic!("{other:?}"),
    }
    pod.end();
}

#[test]
fn nothing_is_inherited() {
    if !root() {
        return;
    }
    let output = output_of(
        |spec| spec.process.rlimits = vec![(7, 100, 200), (1, 5 << 20, 5 << 20)],
        "env | grep -v -E '^(PWD|SHLVL)=' | sort; grep -E 'Sig(Blk|Ign)|NoNewPrivs|Seccomp:' /proc/self/status; cat /proc/self/oom_score_adj; \
         umask; grep -E 'open files|Max file size' /proc/self/limits | tr -s ' '",
    );
    let expected = "HOME=/root\nPATH=/bin\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\nNoNewPrivs:\t0\nSeccomp:\t0\n\
                    0\n0022\nMax file size 5242880 5242880 bytes \nMax open files 100 200 files \n";
    assert_eq!(output, expected);
}

#[test]
fn huge_pages_that_the_daemon_does_without_are_there_for_containers() {
    if !root() {
        return;
    }
    // as the daemon does for itself; a shim inherits it
    nix::sys::prctl::set_thp_disable(true).unwrap();
    assert_eq!(output_of(|_| {}, "grep THP_enabled /proc/self/status"), "THP_enabled:\t1\n");
}

#[test]
fn the_environment_may_be_any_bytes() {
    if !root() {
        return;
    }
    let output = output_of(
        |spec| spec.process.env.push(STANDARD.encode(b"ODD=a\xff\nb=c".as_slice())),
        "printf %s \"$ODD\" | wc -c",
    );
    assert_eq!(output, "6\n");
}

#[test]
fn the_oom_score_is_set() {
    if !root() {
        return;
    }
    let output = output_of(|spec| spec.process.oom_score_adj = Some(997), "cat /proc/self/oom_score_adj");
    assert_eq!(output, "997\n");
}

/// mkdir(2) on x86-64.
const MKDIR: u32 = 83;

/// `struct sock_filter[]`: EPERM for one system call of x86-64, everything else allowed.
fn deny(syscall: u32) -> String {
    let mut program = Vec::new();
    for (code, jt, jf, k) in
        [(0x20u16, 0u8, 0u8, 0u32), (0x15, 0, 1, syscall), (0x06, 0, 0, 0x0005_0001), (0x06, 0, 0, 0x7fff_0000)]
    {
        program.extend_from_slice(&code.to_ne_bytes());
        program.extend_from_slice(&[jt, jf]);
        program.extend_from_slice(&k.to_ne_bytes());
    }
    STANDARD.encode(program)
}

#[test]
fn seccomp_is_loaded_with_and_without_no_new_privs() {
    if !root() {
        return;
    }
    for (no_new_privs, uid) in [(true, 0), (false, 0), (true, 1000), (false, 1000)] {
        let output = output_of(
            |spec| {
                (spec.process.no_new_privs, spec.process.uid) = (no_new_privs, uid);
                spec.process.seccomp = Some(deny(MKDIR));
            },
            "mkdir /tmp/x; grep -E 'NoNewPrivs|Seccomp:' /proc/self/status; true",
        );
        assert!(output.starts_with("mkdir: can't create directory '/tmp/x': Operation not permitted\n"), "{output}");
        let expected = format!("NoNewPrivs:\t{}\nSeccomp:\t2\n", u8::from(no_new_privs));
        assert!(output.ends_with(&expected), "{output}");
    }
}

#[test]
fn a_broken_filter_or_no_program_is_an_invalid_request() {
    if !root() {
        return;
    }
    let mut pod = Pod::new();
    let mut filter = pod.container("true");
    filter.process.seccomp = Some("%".into());
    let mut environment = pod.container("true");
    environment.process.env.push("not base64!".into());
    let mut program = pod.container("true");
    program.process.args.clear();
    for spec in [filter, environment, program] {
        match pod.daemon.call(Call::Start(Box::new(spec))) {
            Answer::Error { kind: ErrorKind::Invalid, .. } => {}
            other => panic!("{other:?}"),
        }
    }
    pod.end();
}

#[test]
fn a_terminal_is_the_containers_own() {
    if !root() {
        return;
    }
    let output = output_of(
        |spec| spec.process.terminal = true,
        "tty; test -t 0 && test -t 1 && test -t 2 && echo all; stat -c %t:%T /dev/console /dev/pts/0; echo x > /dev/tty; echo err >&2",
    );
    assert_eq!(output, "/dev/pts/0\nall\n88:0\n88:0\nx\nerr\n");
}

#[test]
fn input_is_empty_or_held_open() {
    if !root() {
        return;
    }
    assert_eq!(output_of(|_| {}, "cat; readlink /proc/self/fd/0"), "/dev/null\n");
    let mut pod = Pod::new();
    let mut spec = pod.container("echo begin; cat; echo end");
    spec.stdin = true;
    pod.daemon.start(&spec);
    eventually("it waits for input", || pod.output(&spec) == "begin\n");
    eventually("it reads", || pod.daemon.exec(&spec.container, "ps -o args | grep -c '^cat$'").1 == "1\n");
    assert_eq!(pod.daemon.list()[0].exit_code, None);
    pod.end();
}
