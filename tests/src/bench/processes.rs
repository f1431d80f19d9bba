//! What a runtime's processes take: memory by PSS, processor time by `/proc/PID/stat`.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::unistd::{SysconfVar, sysconf};

/// A word in the command line of a container's shell, so that it is not taken for the runtime.
pub const WORKLOAD: &str = "nodeagent-workload";

/// How long that shell's child sleeps, in seconds: its word, which no other sleeping process has.
pub const SLEEPS: &str = "86397";

/// Processes of a runtime at one moment.
#[derive(Debug, Clone, Copy, Default)]
pub struct Taken {
    /// Proportional set size of the daemon, in bytes.
    pub daemon: u64,
    /// The same of everything else that is not a container: shims, monitors, pause processes.
    pub helpers: u64,
    /// How many of those.
    pub count: usize,
    /// Processor time of all of them since they were started.
    pub time: Duration,
}

/// Sums up what `daemon` and its helpers take. Only sensible in a PID namespace where nothing else runs but `others`.
pub fn taken(daemon: u32, others: &[u32]) -> Result<Taken> {
    let mut sum = Taken::default();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        // one that ends meanwhile has no files any more
        let Ok(command) = fs::read(format!("/proc/{pid}/cmdline")) else { continue };
        let says = |word: &str| command.windows(word.len()).any(|part| part == word.as_bytes());
        let workload = says(WORKLOAD) || says(SLEEPS);
        if others.contains(&pid) || pid == std::process::id() || pid == 1 || workload {
            continue;
        }
        let (Ok(memory), Ok(stat)) =
            (fs::read_to_string(format!("/proc/{pid}/smaps_rollup")), fs::read_to_string(format!("/proc/{pid}/stat")))
        else {
            continue;
        };
        let pss = pss(&memory);
        if pid == daemon {
            sum.daemon += pss;
        } else {
            sum.helpers += pss;
            sum.count += 1;
        }
        sum.time += time(&stat)?;
    }
    Ok(sum)
}

fn pss(rollup: &str) -> u64 {
    let line = rollup.lines().find(|line| line.starts_with("Pss:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|number| number.parse::<u64>().ok()).unwrap_or_default() * 1024
}

/// Fields 14 and 15 of proc_pid_stat(5), counted after the name, which may hold anything.
fn time(stat: &str) -> Result<Duration> {
    let (_, rest) = stat.rsplit_once(')').context("a stat file without a name")?;
    let ticks: u64 = rest.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    let per_second = sysconf(SysconfVar::CLK_TCK)?.context("no clock ticks")?;
    Ok(Duration::from_secs_f64(ticks as f64 / per_second as f64))
}
