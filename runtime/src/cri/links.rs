//! What went over a pod's links, by the kernel's own table of them.

use std::fs;

use crate::sandbox::PodView;

/// More links than any pod has.
const MOST_LINKS: usize = 256;

/// A link, with what came and went since it was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Link {
    /// Its name in the pod.
    pub name: String,
    /// What came.
    pub received: Traffic,
    /// What went.
    pub sent: Traffic,
}

/// One direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Traffic {
    pub bytes: u64,
    pub packets: u64,
    pub errors: u64,
    pub dropped: u64,
}

/// The links of a pod but its loopback. None in the host's network, which is the node's and told elsewhere, and none of a
/// pod that has ended.
pub(super) fn of_pod(view: &PodView) -> Vec<Link> {
    match &view.shim {
        // the supervisor is in the pod's network namespace; of one that is gone, the number may be anybody's by now
        Some(shim) if !view.sandbox.host_network() => {
            parse(&fs::read_to_string(format!("/proc/{}/net/dev", shim.pid())).unwrap_or_default())
        }
        _ => Vec::new(),
    }
}

/// `/proc/net/dev`: two lines of heading, then a link each: eight numbers of what came, eight of what went.
fn parse(table: &str) -> Vec<Link> {
    let lines = table.lines().skip(2).take(MOST_LINKS).filter_map(|line| line.split_once(':'));
    let links = lines.filter_map(|(name, numbers)| {
        let numbers: Vec<u64> = numbers.split_whitespace().map_while(|number| number.parse().ok()).collect();
        let traffic = |numbers: Option<&[u64]>| match numbers {
            Some(&[bytes, packets, errors, dropped]) => Some(Traffic { bytes, packets, errors, dropped }),
            _ => None,
        };
        let (received, sent) = (traffic(numbers.get(..4))?, traffic(numbers.get(8..12))?);
        Some(Link { name: name.trim().to_owned(), received, sent })
    });
    links.filter(|link| link.name != "lo").collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_link_but_the_loopback_has_eight_numbers() {
        let table = "Inter-|   Receive  |  Transmit\n face |bytes packets errs drop |bytes packets errs drop\n\
            lo: 9 9 9 9 0 0 0 0 9 9 9 9 0 0 0 0\n  eth0: 1 2 3 4 0 0 0 0 5 6 7 8 0 0 0 0\nbroken\n less: 1 2\n";
        let received = Traffic { bytes: 1, packets: 2, errors: 3, dropped: 4 };
        let sent = Traffic { bytes: 5, packets: 6, errors: 7, dropped: 8 };
        assert_eq!(parse(table), [Link { name: "eth0".into(), received, sent }]);
    }
}
