//! What comes and goes must leave nothing: pods in rounds, and after each what the node then has.

use std::fs;

use anyhow::{Result, ensure};

use super::figures::Figure;
use crate::leaks;
use crate::outside::run;

/// The daemon may keep that much more than after the first round, in bytes: its allocator's pages are not those of pods.
const MEMORY: u64 = 4 << 20;

/// What a node has that pods may leave behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holdings {
    memory: u64,
    descriptors: usize,
    threads: usize,
    mounts: usize,
    links: usize,
    rules: usize,
    cgroups: usize,
}

impl Holdings {
    /// Looks, when no pod is there. `memory` is the daemon's, `parent` the cgroup of all pods.
    pub fn look(daemon: u32, memory: u64, parent: &str) -> Result<Self> {
        let count = |path: &str| fs::read_dir(path).map(Iterator::count);
        let lines = |text: &str| text.lines().count();
        Ok(Self {
            memory,
            descriptors: count(&format!("/proc/{daemon}/fd"))?,
            threads: count(&format!("/proc/{daemon}/task"))?,
            mounts: lines(&fs::read_to_string(format!("/proc/{daemon}/mountinfo"))?),
            links: lines(&run("ip", ["-o", "link"])?.ok("ip link")?),
            rules: lines(&run("nft", ["list", "ruleset"])?.ok("nft list ruleset")?),
            // directories: what the kernel has not yet forgotten of those that are gone is its own affair
            cgroups: leaks::cgroups(parent)?.len(),
        })
    }

    /// Without what changes by itself.
    pub fn lasting(self) -> Self {
        Self { memory: 0, threads: 0, ..self }
    }

    /// The rounds in figures, and a failure when the last has more of something than the first.
    pub fn compare(first: Self, last: Self, name: &str) -> Result<Vec<Figure>> {
        let counts = [
            ("descriptors", first.descriptors, last.descriptors),
            ("mounts", first.mounts, last.mounts),
            ("links", first.links, last.links),
            ("firewall rules", first.rules, last.rules),
            ("cgroups", first.cgroups, last.cgroups),
        ];
        for (what, before, after) in counts {
            ensure!(after <= before, "{name}: {what} grew from {before} to {after}");
        }
        ensure!(last.memory <= first.memory + MEMORY, "{name}: memory grew: {first:?}, {last:?}");
        let grown = last.memory.saturating_sub(first.memory) as f64 / 1e6;
        // a pool that breathes: told, not judged
        let more = |before: usize, after: usize| after as f64 - before as f64;
        Ok(vec![
            Figure { name: format!("{name}: memory more, PSS"), unit: "MB", value: grown },
            Figure { name: format!("{name}: threads more"), unit: "", value: more(first.threads, last.threads) },
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEFORE: Holdings =
        Holdings { memory: 10 << 20, descriptors: 20, threads: 4, mounts: 30, links: 3, rules: 40, cgroups: 9 };

    #[test]
    fn growth_is_a_failure_that_names_what_grew() {
        assert_eq!(Holdings::compare(BEFORE, BEFORE, "pods").unwrap().len(), 2);
        let leaks = [
            (Holdings { descriptors: 21, ..BEFORE }, "descriptors grew from 20 to 21"),
            (Holdings { links: 4, ..BEFORE }, "links grew from 3 to 4"),
            (Holdings { rules: 41, ..BEFORE }, "rules grew from 40 to 41"),
            (Holdings { mounts: 31, ..BEFORE }, "mounts grew from 30 to 31"),
            (Holdings { cgroups: 10, ..BEFORE }, "cgroups grew from 9 to 10"),
            (Holdings { memory: 15 << 20, ..BEFORE }, "memory grew"),
        ];
        for (after, words) in leaks {
            let error = Holdings::compare(BEFORE, after, "pods").unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
