//! The order in which addresses are given out, and that both implementations can share a directory.

use super::*;
use proptest::prelude::*;
use std::collections::HashSet;

fn range(first: &str, last: &str, gateway: &str) -> Range {
    let ip = |text: &str| text.parse().unwrap();
    Range { prefix: 24, first: ip(first), last: ip(last), gateway: ip(gateway) }
}

fn owner(sandbox: &str) -> Owner<'_> {
    Owner { sandbox, interface: "eth0" }
}

fn take(directory: &Path, pools: &[Pool], sandbox: &str) -> Result<String, AddressError> {
    let leases = Store::open(directory)?.allocate(pools, owner(sandbox))?;
    Ok(leases.iter().map(|lease| lease.ip.to_string()).collect::<Vec<_>>().join(" "))
}

#[test]
fn addresses_go_round_and_leave_out_the_gateway() {
    let directory = tempfile::tempdir().unwrap();
    let path = &directory.path().join("deep/pods");
    let pools = [vec![range("10.0.0.1", "10.0.0.4", "10.0.0.2")], vec![range("fd00::1", "fd00::9", "fd00::1")]];
    assert_eq!(take(path, &pools, "a").unwrap(), "10.0.0.1 fd00::2");
    assert_eq!(take(path, &pools, "b").unwrap(), "10.0.0.3 fd00::3");
    Store::open(path).unwrap().release(owner("a"), &[]).unwrap();
    assert_eq!(take(path, &pools, "c").unwrap(), "10.0.0.4 fd00::4");
    assert_eq!(take(path, &pools, "d").unwrap(), "10.0.0.1 fd00::5");
    assert_eq!(fs::read_to_string(path.join("last_reserved_ip.0")).unwrap(), "10.0.0.1");
    let error = take(path, &[pools[1].clone(), pools[0].clone()], "e").unwrap_err();
    assert!(!path.join("fd00::2").exists(), "what the first pool gave went back");
    assert!(error.to_string().starts_with("no address left in 10.0.0.1-10.0.0.4"), "{error}");
    assert_eq!(fs::read_to_string(path.join("10.0.0.3")).unwrap(), "b\r\neth0");
}

#[test]
fn a_pool_may_have_several_ranges() {
    let directory = tempfile::tempdir().unwrap();
    let pools = [vec![range("10.0.0.2", "10.0.0.3", "10.0.0.1"), range("10.0.1.2", "10.0.1.3", "10.0.1.1")]];
    let taken: Vec<_> = ["a", "b", "c", "d"].iter().map(|id| take(directory.path(), &pools, id).unwrap()).collect();
    assert_eq!(taken, ["10.0.0.2", "10.0.0.3", "10.0.1.2", "10.0.1.3"]);
    Store::open(directory.path()).unwrap().release(owner("b"), &[]).unwrap();
    assert_eq!(take(directory.path(), &pools, "e").unwrap(), "10.0.0.3");
}

#[test]
fn only_the_owner_gives_an_address_back() {
    let directory = tempfile::tempdir().unwrap();
    let pools = [vec![range("10.0.0.2", "10.0.0.9", "10.0.0.1")]];
    take(directory.path(), &pools, "a").unwrap();
    let known = ["10.0.0.2".parse().unwrap()];
    let store = Store::open(directory.path()).unwrap();
    store.release(owner("b"), &known).unwrap();
    store.release(owner("b"), &[]).unwrap();
    assert!(directory.path().join("10.0.0.2").exists());
    store.release(owner("a"), &known).unwrap();
    store.release(owner("a"), &known).unwrap();
    assert!(!directory.path().join("10.0.0.2").exists());
}

#[test]
fn an_address_whose_owner_was_never_written_belongs_to_nobody() {
    let directory = tempfile::tempdir().unwrap();
    let pools = [vec![range("10.0.0.2", "10.0.0.3", "10.0.0.1")]];
    let empty = directory.path().join("10.0.0.2");
    fs::write(&empty, "").unwrap();
    assert_eq!(take(directory.path(), &pools, "a").unwrap(), "10.0.0.2", "a pool is not used up by crashes");
    assert_eq!(fs::read_to_string(&empty).unwrap(), "a\r\neth0");
    assert!(!directory.path().join(UNFINISHED).exists());
    fs::write(directory.path().join("10.0.0.3"), "").unwrap();
    Store::open(directory.path()).unwrap().release(owner("b"), &[]).unwrap();
    assert!(!directory.path().join("10.0.0.3").exists() && empty.exists());
}

#[test]
fn an_opened_store_waits_for_another_that_is_open() {
    let directory = tempfile::tempdir().unwrap();
    let first = Store::open(directory.path()).unwrap();
    let path = directory.path().to_owned();
    let (send, receive) = std::sync::mpsc::channel();
    let second = std::thread::spawn(move || {
        let _store = Store::open(&path).unwrap();
        send.send(()).unwrap();
    });
    assert!(receive.recv_timeout(std::time::Duration::from_millis(100)).is_err());
    drop(first);
    receive.recv().unwrap();
    second.join().unwrap();
}

proptest! {
    #[test]
    fn no_address_is_given_twice_and_none_is_lost(steps in prop::collection::vec((any::<bool>(), 0_usize..8), 1..60)) {
        let directory = tempfile::tempdir().unwrap();
        let pools = [vec![range("10.0.0.1", "10.0.0.6", "10.0.0.1")]];
        let mut held: std::collections::BTreeMap<usize, String> = Default::default();
        for (add, id) in steps {
            let name = format!("s{id}");
            if add && !held.contains_key(&id) {
                match take(directory.path(), &pools, &name) {
                    Ok(ip) => { held.insert(id, ip); }
                    Err(_) => prop_assert_eq!(held.len(), 5, "five addresses besides the gateway"),
                }
            } else if let Some(ip) = held.remove(&id) {
                let known = [ip.parse().unwrap()];
                Store::open(directory.path()).unwrap().release(owner(&name), &known).unwrap();
            }
            let distinct: HashSet<_> = held.values().collect();
            prop_assert_eq!(distinct.len(), held.len());
        }
    }

    #[test]
    fn candidates_are_all_addresses_once(last in prop::option::of(0_u8..12)) {
        let pool = vec![range("10.0.0.2", "10.0.0.4", "10.0.0.1"), range("10.0.0.7", "10.0.0.9", "10.0.0.1")];
        let last = last.map(|last| IpAddr::from([10, 0, 0, last]));
        let all: Vec<_> = candidates(&pool, last).map(|(ip, _)| ip.to_string()).collect();
        let mut sorted = all.clone();
        sorted.sort();
        prop_assert_eq!(sorted, ["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.7", "10.0.0.8", "10.0.0.9"]);
        if let Some(last) = last.filter(|last| all.contains(&last.to_string())) {
            prop_assert_eq!(all.last().unwrap(), &last.to_string());
        }
    }
}
