//! The user namespace that a pod asks for.

use nodeagent_cri_api::{IdMapping, NamespaceMode, UserNamespace};
use nodeagent_shim::protocol::{IdMap, IdMaps};

/// The ids of a user namespace asked for; none when it is to be the node's. What cannot be is refused in a sentence.
pub fn id_maps(asked: Option<&UserNamespace>) -> Result<Option<IdMaps>, String> {
    let Some(asked) = asked else { return Ok(None) };
    match asked.mode() {
        NamespaceMode::Node if asked.uids.is_empty() && asked.gids.is_empty() => Ok(None),
        NamespaceMode::Node => Err("the user namespace of the node has no mappings of a pod".to_owned()),
        NamespaceMode::Pod => {
            Ok(Some(IdMaps { uids: vec![one("uid", &asked.uids)?], gids: vec![one("gid", &asked.gids)?] }))
        }
        NamespaceMode::Container => Err("user namespace mode CONTAINER: a user namespace is the pod's".to_owned()),
        NamespaceMode::Target => Err("user namespace mode TARGET: a user namespace is the pod's".to_owned()),
    }
}

fn one(what: &str, mappings: &[IdMapping]) -> Result<IdMap, String> {
    let [mapping] = mappings else {
        return Err(format!("user namespace: {} {what} mappings, and it has to be one", mappings.len()));
    };
    let IdMapping { host_id, container_id, length } = *mapping;
    if container_id != 0 {
        return Err(format!("user namespace: the {what} mapping begins at {container_id}, and {what} 0 needs one"));
    }
    // the last id means "none" to the kernel
    if length == 0 || host_id.checked_add(length).is_none_or(|end| end == u32::MAX) {
        return Err(format!("user namespace: {length} {what}s from {host_id} on"));
    }
    Ok(IdMap { inside: container_id, outside: host_id, length })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(mode: NamespaceMode, mappings: &[(u32, u32, u32)]) -> Result<Option<IdMaps>, String> {
        let mapping = |(container_id, host_id, length): &(u32, u32, u32)| IdMapping {
            container_id: *container_id,
            host_id: *host_id,
            length: *length,
        };
        let mappings: Vec<_> = mappings.iter().map(mapping).collect();
        id_maps(Some(&UserNamespace { mode: mode.into(), uids: mappings.clone(), gids: mappings }))
    }

    #[test]
    fn a_pod_has_one_mapping_that_begins_at_root() {
        let map = vec![IdMap { inside: 0, outside: 1000, length: 65_536 }];
        let expected = IdMaps { uids: map.clone(), gids: map };
        assert_eq!(asked(NamespaceMode::Pod, &[(0, 1000, 65_536)]), Ok(Some(expected)));
        for wrong in [&[][..], &[(0, 1000, 1), (1, 5000, 1)], &[(1, 1000, 9)], &[(0, 1000, 0)], &[(0, 9, u32::MAX)]] {
            assert!(asked(NamespaceMode::Pod, wrong).unwrap_err().starts_with("user namespace: "), "{wrong:?}");
        }
    }

    #[test]
    fn only_pods_and_the_node_have_one() {
        assert_eq!(id_maps(None), Ok(None));
        assert_eq!(asked(NamespaceMode::Node, &[]), Ok(None));
        assert!(asked(NamespaceMode::Node, &[(0, 1000, 9)]).is_err());
        assert!(asked(NamespaceMode::Container, &[(0, 1000, 9)]).unwrap_err().contains("CONTAINER"));
        assert!(asked(NamespaceMode::Target, &[]).unwrap_err().contains("TARGET"));
    }
}
