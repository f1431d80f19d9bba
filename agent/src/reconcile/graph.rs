//! What has to be right before what.

use std::collections::{BTreeMap, BTreeSet};

use crate::plan::ResourceId;

/// Why the resources have no order.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GraphError {
    /// They need each other.
    #[error("resources need each other in a circle: {}", circle(.ids))]
    Cycle {
        /// Along the circle, without the first one again.
        ids: Vec<ResourceId>,
    },
    /// Two resources of one name.
    #[error("two resources are called {id}")]
    Duplicate {
        /// Their name.
        id: ResourceId,
    },
}

fn circle(ids: &[ResourceId]) -> String {
    ids.iter().chain(ids.first()).map(ResourceId::as_str).collect::<Vec<_>>().join(" → ")
}

/// An order in which everything comes after what it needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Graph {
    needs: BTreeMap<ResourceId, BTreeSet<ResourceId>>,
    levels: Vec<Vec<ResourceId>>,
}

impl Graph {
    /// Orders resources, given with what they need. Needs that are no resource here are ignored: a kubelet needs a
    /// module only on hosts that have it in their config.
    pub fn new(resources: &[(ResourceId, Vec<ResourceId>)]) -> Result<Graph, GraphError> {
        let mut needs: BTreeMap<ResourceId, BTreeSet<ResourceId>> = BTreeMap::new();
        for (id, _) in resources {
            if needs.insert(id.clone(), BTreeSet::new()).is_some() {
                return Err(GraphError::Duplicate { id: id.clone() });
            }
        }
        for (id, wanted) in resources {
            let known = wanted.iter().filter(|other| needs.contains_key(other)).cloned().collect();
            needs.insert(id.clone(), known);
        }
        let levels = levels(&needs)?;
        Ok(Graph { needs, levels })
    }

    /// Groups whose members do not need each other; each group after all that it needs. Sorted by id within a group, so
    /// that the order does not depend on the order of the config.
    pub fn levels(&self) -> &[Vec<ResourceId>] {
        &self.levels
    }

    /// All, each after what it needs.
    pub fn order(&self) -> impl Iterator<Item = &ResourceId> {
        self.levels.iter().flatten()
    }

    /// What it needs directly.
    pub fn needs(&self, id: &ResourceId) -> impl Iterator<Item = &ResourceId> {
        self.needs.get(id).into_iter().flatten()
    }
}

fn levels(needs: &BTreeMap<ResourceId, BTreeSet<ResourceId>>) -> Result<Vec<Vec<ResourceId>>, GraphError> {
    let mut levels = Vec::new();
    let mut placed: BTreeSet<ResourceId> = BTreeSet::new();
    while placed.len() < needs.len() {
        let ready: Vec<ResourceId> = needs
            .iter()
            .filter(|(id, wanted)| !placed.contains(*id) && wanted.is_subset(&placed))
            .map(|(id, _)| id.clone())
            .collect();
        if ready.is_empty() {
            return Err(GraphError::Cycle { ids: find_cycle(needs, &placed) });
        }
        placed.extend(ready.iter().cloned());
        levels.push(ready);
    }
    Ok(levels)
}

/// Follows unplaced needs until one comes up again; there is one, because every unplaced resource has such a need.
fn find_cycle(needs: &BTreeMap<ResourceId, BTreeSet<ResourceId>>, placed: &BTreeSet<ResourceId>) -> Vec<ResourceId> {
    let mut path: Vec<ResourceId> = Vec::new();
    let mut next = needs.keys().find(|id| !placed.contains(*id));
    while let Some(id) = next {
        if let Some(start) = path.iter().position(|seen| seen == id) {
            return path.split_off(start);
        }
        path.push(id.clone());
        next = needs.get(id).and_then(|wanted| wanted.iter().find(|other| !placed.contains(*other)));
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> ResourceId {
        ResourceId::single(name)
    }

    fn graph(edges: &[(&str, &[&str])]) -> Result<Graph, GraphError> {
        let resources: Vec<_> =
            edges.iter().map(|(name, needs)| (id(name), needs.iter().map(|need| id(need)).collect())).collect();
        Graph::new(&resources)
    }

    #[test]
    fn needs_come_first_and_the_rest_is_in_order_of_name() {
        let graph =
            graph(&[("sysctl", &["module"]), ("kubelet", &["sysctl", "package"]), ("package", &[]), ("module", &[])]);
        let order: Vec<_> = graph.unwrap().order().map(ToString::to_string).collect();
        assert_eq!(order, ["module", "package", "sysctl", "kubelet"]);
    }

    #[test]
    fn needs_that_are_not_there_are_ignored() {
        assert_eq!(graph(&[("a", &["b"])]).unwrap().levels().len(), 1);
    }

    #[test]
    fn a_circle_is_an_error_that_shows_it() {
        let error = graph(&[("d", &[]), ("a", &["b", "d"]), ("b", &["c"]), ("c", &["a"])]).unwrap_err();
        assert_eq!(error.to_string(), "resources need each other in a circle: a → b → c → a");
    }

    #[test]
    fn two_of_one_name_are_an_error() {
        assert_eq!(graph(&[("a", &[]), ("a", &[])]).unwrap_err(), GraphError::Duplicate { id: id("a") });
    }

    proptest::proptest! {
        #[test]
        fn the_order_does_not_depend_on_the_order_of_the_input(edges in proptest::collection::vec((0usize..8, 0usize..8), 0..20), shift in 0usize..8) {
            // edges only from higher to lower numbers: no circles
            let needs_of = |n: usize| edges.iter().filter(move |(a, b)| *a == n && b < a).map(|(_, b)| id(&format!("r{b}"))).collect::<Vec<_>>();
            let mut resources: Vec<_> = (0..8).map(|n| (id(&format!("r{n}")), needs_of(n))).collect();
            let one = Graph::new(&resources).unwrap();
            resources.rotate_left(shift);
            let other = Graph::new(&resources).unwrap();
            proptest::prop_assert_eq!(&one, &other);
            let position = |wanted: &ResourceId| one.order().position(|id| id == wanted).unwrap();
            for (id, needs) in &resources {
                for need in needs {
                    proptest::prop_assert!(position(need) < position(id));
                }
            }
        }
    }
}
