//! The capability sets a container gets from its configuration.

use nodeagent_shim::protocol::Capabilities;

use crate::capability::{NAMES, number};

/// A name that is no capability.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown capability `{name}`")]
pub struct UnknownCapability {
    /// As it was given.
    pub name: String,
}

/// What a container asks for.
#[derive(Debug, Clone, Copy, Default)]
pub struct Request<'a> {
    /// Everything the host has.
    pub privileged: bool,
    /// To be added, `ALL` for everything.
    pub add: &'a [String],
    /// To be dropped, `ALL` for everything; what is also added by name stays.
    pub drop: &'a [String],
    /// To be added to the ambient set too.
    pub ambient: &'a [String],
}

/// The sets of a container. `available` is the daemon's bounding set: nobody can hand on what they do not have.
pub fn sets(request: Request<'_>, defaults: &[String], available: u64) -> Result<Capabilities, UnknownCapability> {
    if request.privileged {
        return Ok(same(available));
    }
    let mut mask = bits(defaults)?;
    let all = |names: &[String]| names.iter().any(|name| name.eq_ignore_ascii_case("ALL"));
    if all(request.add) {
        mask = available;
    }
    if all(request.drop) {
        mask = 0;
    }
    mask &= !bits(request.drop)?;
    // `add: ALL` with some dropped keeps them dropped; a capability added by name wins over `drop: ALL`
    mask |= bits(request.add)?;
    let ambient = bits(request.ambient)? & available;
    mask = (mask | ambient) & available;
    // an ambient capability must be inheritable; others are not, or a file capability could revive them
    Ok(Capabilities { bounding: mask, effective: mask, permitted: mask, inheritable: ambient, ambient })
}

fn same(mask: u64) -> Capabilities {
    Capabilities { bounding: mask, effective: mask, permitted: mask, inheritable: 0, ambient: 0 }
}

fn bits(names: &[String]) -> Result<u64, UnknownCapability> {
    let mut mask = 0;
    for name in names.iter().filter(|name| !name.eq_ignore_ascii_case("ALL")) {
        mask |= 1 << number(name).ok_or_else(|| UnknownCapability { name: name.clone() })?;
    }
    Ok(mask)
}

/// Reads the bounding set from `/proc/<pid>/status`; everything this build knows when it cannot be found.
pub fn bounding_of(status: &str) -> u64 {
    let known = (1 << NAMES.len()) - 1;
    let line = status.lines().find_map(|line| line.strip_prefix("CapBnd:"));
    line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).map_or(known, |mask| mask & known)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERYTHING: u64 = (1 << 41) - 1;

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|name| (*name).to_owned()).collect()
    }

    fn mask(list: &[&str]) -> u64 {
        list.iter().map(|name| 1u64 << number(name).unwrap()).sum()
    }

    fn bounding(add: &[&str], drop: &[&str]) -> u64 {
        let (add, drop) = (names(add), names(drop));
        let request = Request { add: &add, drop: &drop, ..Request::default() };
        sets(request, &names(&["CHOWN", "KILL"]), EVERYTHING).unwrap().bounding
    }

    #[test]
    fn names_are_known_with_and_without_prefix_in_any_case() {
        assert_eq!(number("CAP_NET_ADMIN"), Some(12));
        assert_eq!(number("net_admin"), Some(12));
        assert_eq!(number("CAP_CHECKPOINT_RESTORE"), Some(40));
        assert_eq!(number("NET_ADMINN"), None);
    }

    #[test]
    fn adding_and_dropping_starts_from_the_defaults() {
        assert_eq!(bounding(&[], &[]), mask(&["CHOWN", "KILL"]));
        assert_eq!(bounding(&["NET_ADMIN"], &["KILL"]), mask(&["CHOWN", "NET_ADMIN"]));
    }

    #[test]
    fn all_can_be_added_or_dropped_with_exceptions() {
        assert_eq!(bounding(&["ALL"], &[]), EVERYTHING);
        assert_eq!(bounding(&["ALL"], &["SYS_ADMIN"]), EVERYTHING & !mask(&["SYS_ADMIN"]));
        assert_eq!(bounding(&[], &["ALL"]), 0);
        assert_eq!(bounding(&["NET_RAW"], &["ALL"]), mask(&["NET_RAW"]));
    }

    #[test]
    fn ambient_ones_are_in_every_set() {
        let ambient = names(&["NET_BIND_SERVICE"]);
        let sets = sets(Request { ambient: &ambient, ..Request::default() }, &[], EVERYTHING).unwrap();
        let expected = mask(&["NET_BIND_SERVICE"]);
        assert_eq!((sets.ambient, sets.inheritable, sets.permitted), (expected, expected, expected));
    }

    #[test]
    fn nothing_beyond_what_the_daemon_has() {
        let available = EVERYTHING & !mask(&["SYS_RESOURCE"]);
        let add = names(&["SYS_RESOURCE", "SYS_TIME"]);
        let some = sets(Request { add: &add, ..Request::default() }, &[], available).unwrap();
        assert_eq!(some.effective, mask(&["SYS_TIME"]));
        let privileged = sets(Request { privileged: true, ..Request::default() }, &[], available).unwrap();
        assert_eq!(privileged.bounding, available);
    }

    #[test]
    fn an_unknown_name_is_an_error() {
        let add = names(&["CAP_FLY"]);
        let error = sets(Request { add: &add, ..Request::default() }, &[], EVERYTHING).unwrap_err();
        assert_eq!(error.to_string(), "unknown capability `CAP_FLY`");
    }

    #[test]
    fn the_bounding_set_is_read_from_proc() {
        assert_eq!(bounding_of("Name:\tx\nCapBnd:\t00000000000000ff\nCapAmb:\t0\n"), 0xff);
        assert_eq!(bounding_of("nothing of the kind"), EVERYTHING);
    }
}
