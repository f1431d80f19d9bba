//! Plugins that hang, crash, flood, and leave things behind.

use super::scripts::{ANSWER, DEADLINE, Scripts, pod, text};
use nodeagent_runtime::network::{ExecError, Network, NetworkConfig, NetworkError, PluginError};
use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

fn impatient(scripts: &Scripts, limit: Duration) -> Network {
    Network::new(NetworkConfig { add_timeout: limit, del_timeout: limit, query_timeout: limit, ..scripts.config() })
}

async fn add_error(scripts: &Scripts, network: &Network) -> NetworkError {
    scripts.list("1.0.0", &["bad"]);
    tokio::time::timeout(DEADLINE, network.add(&pod("aa"))).await.unwrap().unwrap_err()
}

fn exec_error(error: &NetworkError) -> &ExecError {
    match error {
        NetworkError::Plugin { source, .. } => match &**source {
            PluginError::Exec(error) => error,
            other => panic!("{other}"),
        },
        other => panic!("{other}"),
    }
}

fn runs(pid: &str) -> bool {
    // a zombie that its new parent has not waited for does not run
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit_once(')').is_some_and(|(_, rest)| rest.starts_with(" Z")))
}

async fn gone(pid: &str) {
    let deadline = Instant::now() + DEADLINE;
    while runs(pid) {
        assert!(Instant::now() < deadline, "process {pid} still runs");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn written(path: &Path) -> String {
    let deadline = Instant::now() + DEADLINE;
    loop {
        match fs::read_to_string(path) {
            Ok(text) if text.ends_with('\n') => return text.trim().to_owned(),
            _ => assert!(Instant::now() < deadline, "{} was not written", path.display()),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_plugin_that_hangs_is_killed_with_its_children() {
    let scripts = Scripts::new();
    scripts.raw_plugin(
        "bad",
        &format!(
            "[ $CNI_COMMAND = ADD ] || exit 0\necho waiting for the controller >&2\nsleep 1000 &\necho $! > {}\nwait",
            scripts.path("child").display()
        ),
    );
    let network = impatient(&scripts, Duration::from_millis(500));
    let error = add_error(&scripts, &network).await;
    assert!(matches!(exec_error(&error), ExecError::TimedOut { .. }));
    assert!(text(&error).contains("was killed: waiting for the controller"), "{}", text(&error));
    gone(&written(&scripts.path("child")).await).await;
    assert!(scripts.records().is_empty(), "DEL worked");
}

#[tokio::test]
async fn a_call_that_is_given_up_takes_its_processes_along() {
    let scripts = Scripts::new();
    let child = scripts.path("child");
    scripts.raw_plugin("bad", &format!("sleep 1000 &\necho $! > {}\nwait", child.display()));
    scripts.list("1.0.0", &["bad"]);
    let network = scripts.network();
    let task = tokio::spawn({
        let network = network.clone();
        async move { network.add(&pod("aa")).await }
    });
    let pid = written(&child).await;
    task.abort();
    assert!(task.await.unwrap_err().is_cancelled());
    gone(&pid).await;
    assert_eq!(scripts.records().len(), 1, "the unfinished ADD is on record");
    scripts.recording("bad");
    network.gc(&[]).await.unwrap();
    assert!(scripts.records().is_empty());
}

/// What a daemon that was killed leaves: a plugin that reads from a locked file.
fn orphan(scripts: &Scripts, what: &str) -> std::process::Child {
    let folder = scripts.config().cache_dir.join("calls");
    fs::create_dir_all(&folder).unwrap();
    let file = fs::File::create_new(folder.join("aa.1.0")).unwrap();
    file.try_lock().unwrap();
    std::process::Command::new("sh").args(["-c", what]).stdin(file).spawn().unwrap()
}

#[tokio::test]
async fn what_a_killed_daemon_began_is_undone_when_its_plugin_has_ended_and_not_before() {
    let scripts = Scripts::new();
    let (go, taken, seen) = (scripts.path("go"), scripts.path("taken"), scripts.path("seen"));
    scripts.raw_plugin("bad", "exit 1");
    add_error(&scripts, &impatient(&scripts, DEADLINE)).await;
    // its record is there, and the one plugin that is at work has nothing yet
    let del = format!("[ $CNI_COMMAND != DEL ] || {{ test -e {}; echo $? > {}; }}", taken.display(), seen.display());
    scripts.raw_plugin("bad", &del);
    let work = format!("until [ -e {} ]; do sleep 0.01; done; echo 10.9.0.2 > {}", go.display(), taken.display());
    let mut left = orphan(&scripts, &work);
    let network = scripts.network();
    let swept = tokio::spawn(async move { network.gc(&[]).await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    fs::write(&go, "").unwrap();
    tokio::time::timeout(DEADLINE, swept).await.unwrap().unwrap().unwrap();
    assert_eq!(written(&seen).await, "0", "DEL came before the plugin had taken what it was to give back");
    assert!(scripts.records().is_empty());
    assert_eq!(fs::read_dir(scripts.config().cache_dir.join("calls")).unwrap().count(), 0);
    left.wait().unwrap();
}

#[tokio::test]
async fn a_plugin_of_a_killed_daemon_that_never_ends_holds_nothing_up_for_good() {
    let scripts = Scripts::new();
    scripts.raw_plugin("bad", "exit 1");
    add_error(&scripts, &impatient(&scripts, DEADLINE)).await;
    scripts.recording("bad");
    let mut left = orphan(&scripts, "exec sleep 1000");
    let swept = tokio::time::timeout(DEADLINE, impatient(&scripts, Duration::from_millis(300)).gc(&[])).await;
    left.kill().unwrap();
    left.wait().unwrap();
    swept.unwrap().unwrap();
    assert!(scripts.records().is_empty());
}

#[tokio::test]
async fn a_plugin_that_crashes_or_answers_rubbish_is_reported_as_such() {
    let scripts = Scripts::new();
    let network = scripts.network();
    for (body, expected) in [
        ("echo about to crash >&2; kill -SEGV $$", "failed with signal: 11"),
        ("echo about to crash >&2; kill -SEGV $$", "about to crash"),
        ("echo no such subnet; exit 2", "failed with exit status: 2: no such subnet"),
        ("echo '{\"code\":11,\"msg\":\"try later\"}'; exit 1", "try later (code 11)"),
        ("echo ok", "unusable answer: answer is not a CNI result: \"ok\\n\""),
        ("exit 0", "unusable answer: answer is not a CNI result: \"\""),
        ("printf '\\377\\376'", "unusable answer: answer is not a CNI result"),
        ("echo '{\"ips\":[{\"address\":\"localhost\"}]}'", "answer has the address \"localhost\""),
    ] {
        scripts.raw_plugin("bad", &format!("[ $CNI_COMMAND = ADD ] || exit 0\n{body}"));
        let error = add_error(&scripts, &network).await;
        assert!(text(&error).contains(expected), "{body}: {}", text(&error));
        assert_eq!(error.is_temporary(), body.contains("11,"));
    }
}

#[tokio::test]
async fn a_plugin_that_floods_us_is_stopped_and_its_messages_are_cut() {
    let scripts = Scripts::new();
    let network = scripts.network();
    scripts.raw_plugin("bad", "[ $CNI_COMMAND = ADD ] || exit 0\nhead -c 10000000 /dev/zero | tr '\\0' x");
    let error = add_error(&scripts, &network).await;
    assert!(matches!(exec_error(&error), ExecError::TooMuchOutput { .. }), "{}", text(&error));

    scripts.raw_plugin(
        "bad",
        &format!(
            "head -c 10000000 /dev/zero | tr '\\0' x >&2; echo the end >&2; echo '{ANSWER}'; [ $CNI_COMMAND = DEL ]"
        ),
    );
    let error = add_error(&scripts, &network).await;
    let message = text(&error);
    assert!(message.ends_with("the end") && message.len() < 5000, "{} bytes", message.len());

    // endless, and never reading its input
    scripts.raw_plugin("bad", "[ $CNI_COMMAND = ADD ] || exit 0\nexec yes");
    let error = add_error(&scripts, &network).await;
    assert!(matches!(exec_error(&error), ExecError::TooMuchOutput { .. }), "{}", text(&error));
}

#[tokio::test]
async fn a_child_that_keeps_the_pipes_open_does_not_hold_up_the_answer() {
    let scripts = Scripts::new();
    let child = scripts.path("child");
    scripts.raw_plugin("keeper", &format!("sleep 1000 &\necho $! > {}\necho '{ANSWER}'", child.display()));
    scripts.list("1.0.0", &["keeper"]);
    let network = impatient(&scripts, DEADLINE);
    let started = Instant::now();
    network.add(&pod("aa")).await.unwrap();
    assert!(started.elapsed() < DEADLINE / 2);
    let pid: i32 = written(&child).await.parse().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
}

#[tokio::test]
async fn plugins_inherit_no_descriptors_and_a_large_configuration_arrives_whole() {
    let scripts = Scripts::new();
    let _open = fs::File::open(scripts.path("net.d")).unwrap();
    let _socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    scripts.recording("only");
    // larger than a pipe holds
    let large = "x".repeat(300_000);
    scripts.conf(
        "10-test.conflist",
        &format!(r#"{{"cniVersion":"1.0.0","name":"test","plugins":[{{"type":"only","large":"{large}"}}]}}"#),
    );
    scripts.network().add(&pod("aa")).await.unwrap();
    let calls = scripts.calls();
    assert_eq!(calls[0].input["large"], large);
    let script = scripts.path("bin/only").display().to_string();
    let from_outside = inherited();
    let calls_of_pods = scripts.config().cache_dir.join("calls").display().to_string();
    for target in &calls[0].descriptors {
        let expected = target.starts_with("pipe:")
            || target.starts_with(&calls_of_pods)
            || *target == script
            || from_outside.contains(target);
        assert!(expected, "{target}");
    }
    assert!(calls[0].descriptors.len() >= 3);
}

/// What whoever started the tests left open without close-on-exec, which is not ours to judge.
fn inherited() -> Vec<String> {
    let numbers = fs::read_dir("/proc/self/fd").unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let kept = |number: &String| {
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{number}")).unwrap_or_default();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap_or("0");
        u32::from_str_radix(flags.trim(), 8).unwrap() & nix::libc::O_CLOEXEC.unsigned_abs() == 0
    };
    let target = |number: String| fs::read_link(format!("/proc/self/fd/{number}")).ok()?.to_str().map(str::to_owned);
    numbers.filter(kept).filter_map(target).collect()
}

#[tokio::test]
async fn a_plugin_that_does_not_read_its_input_can_still_work() {
    let scripts = Scripts::new();
    scripts.raw_plugin("deaf", &format!("exec <&-; echo '{ANSWER}'"));
    let large = "x".repeat(300_000);
    scripts.conf(
        "10-test.conflist",
        &format!(r#"{{"cniVersion":"1.0.0","name":"test","plugins":[{{"type":"deaf","large":"{large}"}}]}}"#),
    );
    scripts.network().add(&pod("aa")).await.unwrap();
}
