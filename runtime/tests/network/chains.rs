//! Which plugins are run with what, in which order, and what is remembered.

use super::scripts::{ANSWER, DEADLINE, Scripts, pod, text};
use nodeagent_runtime::network::{NetworkError, NotReady, PodNetwork, PortMapping};
use serde_json::json;
use std::{fs, time::Duration};

#[tokio::test]
async fn plugins_of_a_list_are_told_what_the_specification_says() {
    let scripts = Scripts::new();
    scripts.plugin("first", r#"echo '{"ips":[{"address":"10.0.0.1/24"}],"first":true}'"#);
    scripts.recording("second");
    scripts.conf(
        "10-test.conflist",
        r#"{"cniVersion":"1.0.0","name":"test","plugins":[
            {"type":"first","own":{"key":[1,2]}},
            {"type":"second","capabilities":{"portMappings":true}}]}"#,
    );
    let network = scripts.network();
    let pod = PodNetwork {
        netns: "/proc/self/ns/net".into(),
        port_mappings: vec![PortMapping { host_port: 80, container_port: 8080, protocol: "tcp".into(), host_ip: None }],
        ..pod("aa")
    };
    let attachment = network.add(&pod).await.unwrap();
    assert_eq!(attachment.ips, ["10.9.0.2".parse::<std::net::IpAddr>().unwrap()]);
    network.check(&pod).await.unwrap();
    network.del(&pod).await.unwrap();

    let calls = scripts.calls();
    let names: Vec<_> = calls.iter().map(|call| call.name.as_str()).collect();
    assert_eq!(names, ["first ADD", "second ADD", "first CHECK", "second CHECK", "second DEL", "first DEL"]);
    let result = json!({"ips": [{"address": "10.9.0.2/24", "interface": 0}],
        "interfaces": [{"name": "eth0", "sandbox": "/n"}], "cniVersion": "1.0.0"});
    let first = json!({"type": "first", "own": {"key": [1, 2]}, "name": "test", "cniVersion": "1.0.0"});
    let second = json!({"type": "second", "capabilities": {"portMappings": true}, "name": "test", "cniVersion": "1.0.0",
        "runtimeConfig": {"portMappings": [{"hostPort": 80, "containerPort": 8080, "protocol": "tcp"}]}});
    let with = |conf: &serde_json::Value, previous: &serde_json::Value| {
        let mut conf = conf.clone();
        conf["prevResult"] = previous.clone();
        conf
    };
    let of_first = json!({"ips": [{"address": "10.0.0.1/24"}], "first": true, "cniVersion": "1.0.0"});
    let inputs: Vec<_> = calls.iter().map(|call| call.input.clone()).collect();
    let expected = [
        first.clone(),
        with(&second, &of_first),
        with(&first, &result),
        with(&second, &result),
        with(&second, &result),
        with(&first, &result),
    ];
    assert_eq!(inputs, expected);

    let variables: Vec<_> = calls[0]
        .environment
        .iter()
        // what the shell itself adds
        .filter(|line| !["PWD=", "OLDPWD=", "SHLVL=", "_="].iter().any(|own| line.starts_with(own)))
        .map(|line| line.split_once('=').unwrap().0)
        .collect();
    let all = ["CNI_ARGS", "CNI_COMMAND", "CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS", "CNI_PATH", "PATH"];
    assert_eq!(variables, all);
    for (name, value) in [
        ("CNI_CONTAINERID", "aa"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_NETNS", "/proc/self/ns/net"),
        (
            "CNI_ARGS",
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=pod-aa;K8S_POD_INFRA_CONTAINER_ID=aa;K8S_POD_UID=uid-aa",
        ),
        ("CNI_PATH", &format!("{}:{}", scripts.path("missing").display(), scripts.path("bin").display())),
    ] {
        assert_eq!(calls[0].variable(name), Some(value));
    }
}

#[tokio::test]
async fn versions_before_0_4_have_no_check_and_no_result_on_del() {
    let scripts = Scripts::new();
    scripts.recording("only");
    scripts.list("0.3.1", &["only"]);
    let network = scripts.network();
    network.add(&pod("aa")).await.unwrap();
    network.check(&pod("aa")).await.unwrap();
    network.del(&pod("aa")).await.unwrap();
    let calls = scripts.calls();
    assert_eq!(scripts.call_names(), ["only ADD", "only DEL"]);
    assert!(calls.iter().all(|call| call.input.get("prevResult").is_none()));
}

#[tokio::test]
async fn version_1_1_is_asked_for_its_status_and_told_what_to_keep() {
    let scripts = Scripts::new();
    scripts.plugin(
        "only",
        r#"[ $CNI_COMMAND != STATUS ] || [ ! -e $dir/busy ] || { echo '{"code":50,"msg":"no uplink"}'; exit 1; }"#,
    );
    scripts.list("1.1.0", &["only"]);
    let network = scripts.network();
    network.status().await.unwrap();
    fs::write(scripts.path("busy"), "").unwrap();
    let error = network.status().await.unwrap_err();
    assert_eq!(text(&error), "network test: plugin only on STATUS: no uplink (code 50)");

    scripts.forget_calls();
    network.gc(&["aa".into(), "bb".into()]).await.unwrap();
    let calls = scripts.calls();
    assert_eq!(scripts.call_names(), ["only GC"]);
    let valid = json!([{"containerID": "aa", "ifname": "eth0"}, {"containerID": "bb", "ifname": "eth0"}]);
    assert_eq!(calls[0].input["cni.dev/valid-attachments"], valid);
    assert_eq!((calls[0].variable("CNI_CONTAINERID"), calls[0].variable("CNI_NETNS")), (None, None));

    scripts.forget_calls();
    scripts.list("1.0.0", &["only"]);
    network.status().await.unwrap();
    network.gc(&[]).await.unwrap();
    assert!(scripts.calls().is_empty(), "1.0.0 knows neither");
}

#[tokio::test]
async fn a_failed_add_is_undone_by_every_plugin_and_leaves_nothing() {
    let scripts = Scripts::new();
    scripts.recording("first");
    scripts.plugin("second", r#"[ $CNI_COMMAND = DEL ] || { echo '{"cniVersion":"1.0.0","code":7,"msg":"bad subnet","details":"10.0.0.0/33"}'; exit 1; }"#);
    scripts.recording("third");
    scripts.list("1.0.0", &["first", "second", "third"]);
    let network = scripts.network();
    let error = network.add(&pod("aa")).await.unwrap_err();
    assert_eq!(text(&error), "network test: plugin second on ADD: bad subnet: 10.0.0.0/33 (code 7)");
    assert!(!error.is_temporary());
    assert_eq!(scripts.call_names(), ["first ADD", "second ADD", "third DEL", "second DEL", "first DEL"]);
    assert!(scripts.records().is_empty());
}

#[tokio::test]
async fn what_could_not_be_undone_is_on_record_until_it_is() {
    let scripts = Scripts::new();
    scripts.recording("first");
    scripts.plugin("second", "[ -e $dir/works ] || exit 3");
    scripts.recording("third");
    scripts.list("1.0.0", &["first", "second", "third"]);
    let network = scripts.network();
    let error = network.add(&pod("aa")).await.unwrap_err();
    assert!(
        text(&error).starts_with("network test: plugin second on ADD: failed with exit status: 3"),
        "{}",
        text(&error)
    );
    assert_eq!(scripts.call_names(), ["first ADD", "second ADD", "third DEL", "second DEL", "first DEL"]);
    assert_eq!(scripts.records().len(), 1);
    assert!(network.del(&pod("aa")).await.is_err());
    assert_eq!(scripts.records().len(), 1);
    assert_eq!(network.attachment("aa").unwrap(), None);

    fs::write(scripts.path("works"), "").unwrap();
    network.gc(&[]).await.unwrap();
    assert!(scripts.records().is_empty());
}

#[tokio::test]
async fn del_uses_what_add_used_and_is_done_once() {
    let scripts = Scripts::new();
    scripts.recording("old");
    scripts.recording("new");
    scripts.list("1.0.0", &["old"]);
    let network = scripts.network();
    let attachment = network.add(&pod("aa")).await.unwrap();
    scripts.list("1.0.0", &["new"]);
    network.ready().unwrap();
    // a daemon that was started anew
    let network = scripts.network();
    assert_eq!(network.attachment("aa").unwrap(), Some(attachment));
    network.del(&pod("aa")).await.unwrap();
    network.del(&pod("aa")).await.unwrap();
    network.del(&pod("never-added")).await.unwrap();
    assert_eq!(scripts.call_names(), ["old ADD", "old DEL"]);
    let calls = scripts.calls();
    assert_eq!(calls[1].variable("CNI_NETNS"), Some(""), "there is no such namespace");
    assert_eq!(calls[1].input["prevResult"]["ips"][0]["address"], "10.9.0.2/24");
    assert!(matches!(network.check(&pod("aa")).await, Err(NetworkError::Unknown(_))));
}

#[tokio::test]
async fn a_configuration_that_is_gone_does_not_keep_pods_from_being_deleted() {
    let scripts = Scripts::new();
    scripts.recording("only");
    scripts.list("0.4.0", &["only"]);
    let network = scripts.network();
    network.add(&pod("aa")).await.unwrap();
    fs::remove_file(scripts.path("net.d/10-test.conflist")).unwrap();
    assert!(matches!(network.ready(), Err(NotReady::Empty { .. })));
    assert!(matches!(network.add(&pod("bb")).await, Err(NetworkError::NotReady(_))));
    network.del(&pod("aa")).await.unwrap();
    assert_eq!(scripts.call_names(), ["only ADD", "only DEL"]);
}

#[tokio::test]
async fn a_second_add_for_a_sandbox_first_undoes_the_one_before() {
    let scripts = Scripts::new();
    scripts.recording("only");
    scripts.list("1.0.0", &["only"]);
    let network = scripts.network();
    network.add(&pod("aa")).await.unwrap();
    network.add(&pod("aa")).await.unwrap();
    assert_eq!(scripts.call_names(), ["only ADD", "only DEL", "only ADD"]);
}

#[tokio::test]
async fn an_unreadable_record_is_removed_by_todays_configuration() {
    let scripts = Scripts::new();
    scripts.recording("only");
    scripts.list("1.0.0", &["only"]);
    let network = scripts.network();
    network.add(&pod("aa")).await.unwrap();
    let record = scripts.records().pop().unwrap();
    // what a power cut leaves
    fs::write(&record, "").unwrap();
    network.del(&pod("aa")).await.unwrap();
    assert_eq!(scripts.call_names(), ["only ADD", "only DEL"]);
    assert!(scripts.records().is_empty());
}

#[tokio::test]
async fn a_network_without_address_is_none() {
    let scripts = Scripts::new();
    scripts.plugin("only", "echo '{}'");
    scripts.list("1.0.0", &["only"]);
    let error = scripts.network().add(&pod("aa")).await.unwrap_err();
    assert_eq!(error.to_string(), "network test gave the pod no address");
    assert_eq!(scripts.call_names(), ["only ADD", "only DEL"]);
}

#[tokio::test]
async fn readiness_names_the_plugin_that_is_not_installed_and_follows_its_arrival() {
    let scripts = Scripts::new();
    scripts.list("1.0.0", &["late"]);
    let network = scripts.network();
    let message = network.ready().unwrap_err().to_string();
    assert!(message.starts_with("CNI plugin late of "), "{message}");
    assert!(message.contains("10-test.conflist is in none of "), "{message}");
    fs::write(scripts.path("bin/late"), "not executable").unwrap();
    assert!(network.ready().is_err());
    scripts.recording("late");
    network.ready().unwrap();
}

#[tokio::test]
async fn different_pods_are_added_side_by_side_and_one_pod_in_order() {
    let scripts = Scripts::new();
    // waits until the other pod's plugin has arrived: only possible side by side
    scripts.raw_plugin(
        "meet",
        &format!(
            "dir={}\n: > $dir/$CNI_CONTAINERID.$CNI_COMMAND\n[ $CNI_COMMAND = DEL ] || until [ -e $dir/aa.ADD ] && [ -e $dir/bb.ADD ]; do sleep 0.01; done\necho '{ANSWER}'",
            scripts.path("").display()
        ),
    );
    scripts.list("1.0.0", &["meet"]);
    let network = scripts.network();
    let (a, b) = (pod("aa"), pod("bb"));
    let both = async { tokio::join!(network.add(&a), network.add(&b)) };
    let (a, b) = tokio::time::timeout(DEADLINE, both).await.unwrap();
    a.unwrap();
    b.unwrap();

    scripts.plugin("slow", &format!("sleep 0.1; echo '{ANSWER}'"));
    scripts.list("1.0.0", &["slow"]);
    let pod = pod("cc");
    let (added, deleted) = tokio::join!(network.add(&pod), async {
        // begins when the ADD holds the sandbox
        while scripts.calls_begun() == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        network.del(&pod).await
    });
    added.unwrap();
    deleted.unwrap();
    assert_eq!(scripts.call_names(), ["slow ADD", "slow DEL"]);
    assert!(scripts.records().iter().all(|path| !path.ends_with("cc.json")));
}
