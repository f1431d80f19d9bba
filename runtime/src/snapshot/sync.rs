//! One `syncfs` for everybody who waits.
//!
//! It flushes the whole file system, so on a busy node it takes as long as all writers have work for the disk. Whoever
//! comes while one is running needs the next one, and shares that with all others who came meanwhile. A large layer
//! begins one now and then while it is unpacked, so that the disk has something to do before the end.
//!
//! The kernel tells of a lost write once. Whoever had begun to write by then must hear of it, whoever asked.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// Bytes of an archive after which the disk is given what there is.
const AHEAD: u64 = 64 << 20;

#[derive(Debug)]
pub(super) struct GroupSync {
    /// On the file system in question.
    directory: PathBuf,
    rounds: Mutex<Rounds>,
    ended: Condvar,
}

#[derive(Debug, Default)]
struct Rounds {
    started: u64,
    /// The last round that succeeded.
    done: u64,
    failed: u64,
    running: bool,
}

/// When somebody began to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Since(u64);

impl GroupSync {
    pub(super) fn new(directory: &Path) -> GroupSync {
        GroupSync { directory: directory.to_owned(), rounds: Mutex::default(), ended: Condvar::new() }
    }

    /// To be called before the first write that is to be synced.
    pub(super) fn begin(&self) -> Since {
        Since(self.rounds.lock().unwrap_or_else(PoisonError::into_inner).failed)
    }

    /// Returns when a sync that began after this call has ended, and none has failed since.
    pub(super) fn sync(&self, since: Since) -> io::Result<()> {
        self.run(since, || Ok(nix::unistd::syncfs(File::open(&self.directory)?)?))
    }

    fn run(&self, since: Since, sync: impl Fn() -> io::Result<()>) -> io::Result<()> {
        let mut rounds = self.rounds.lock().unwrap_or_else(PoisonError::into_inner);
        let needed = rounds.started + 1;
        loop {
            if rounds.failed != since.0 {
                return Err(io::Error::other("something written before did not reach the disk"));
            }
            if rounds.done >= needed {
                return Ok(());
            }
            if rounds.running {
                rounds = self.ended.wait(rounds).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            rounds.running = true;
            rounds.started += 1;
            let round = rounds.started;
            drop(rounds);
            let result = sync();
            rounds = self.rounds.lock().unwrap_or_else(PoisonError::into_inner);
            rounds.running = false;
            match result {
                Ok(()) => rounds.done = round,
                Err(_) => rounds.failed += 1,
            }
            self.ended.notify_all();
            result?;
        }
    }

    fn is_running(&self) -> bool {
        self.rounds.lock().unwrap_or_else(PoisonError::into_inner).running
    }
}

/// Gives the disk something to do while one layer is unpacked.
#[derive(Debug)]
pub(super) struct Ahead {
    group: Arc<GroupSync>,
    next: u64,
}

impl Ahead {
    pub(super) fn new(group: Arc<GroupSync>) -> Ahead {
        Ahead { group, next: AHEAD }
    }

    /// So many bytes of the archive have come.
    pub(super) fn at(&mut self, total: u64) {
        if total < self.next {
            return;
        }
        self.next = total + AHEAD;
        if !self.group.is_running() {
            let group = self.group.clone();
            // whoever waits for the layer hears of a failure
            tokio::task::spawn_blocking(move || group.sync(group.begin()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Barrier, mpsc};

    use super::*;

    #[test]
    fn those_who_come_during_a_sync_share_the_next_one() {
        let (group, count) = (GroupSync::new(Path::new("/")), AtomicUsize::new(0));
        let since = group.begin();
        let (entered, first_runs) = mpsc::channel();
        let gate = Barrier::new(2);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                group.run(since, || {
                    count.fetch_add(1, Ordering::SeqCst);
                    entered.send(()).unwrap();
                    gate.wait();
                    Ok(())
                })
            });
            first_runs.recv().unwrap();
            let others: Vec<_> = (0..5)
                .map(|_| {
                    scope.spawn(|| {
                        group.run(since, || {
                            count.fetch_add(1, Ordering::SeqCst);
                            Ok(())
                        })
                    })
                })
                .collect();
            gate.wait();
            others.into_iter().for_each(|other| other.join().unwrap().unwrap());
        });
        // one more for all five if they came in time, never none
        let rounds = count.load(Ordering::SeqCst);
        assert!((2..=6).contains(&rounds), "{rounds}");
        assert_eq!(usize::try_from(group.rounds.lock().unwrap().done).unwrap(), rounds);
    }

    #[test]
    fn a_failure_is_reported_to_all_who_had_begun_to_write() {
        let group = GroupSync::new(Path::new("/"));
        let (one, other) = (group.begin(), group.begin());
        assert!(group.run(one, || Err(io::Error::other("disk"))).is_err());
        for early in [one, other] {
            assert!(group.run(early, || Ok(())).is_err());
        }
        assert!(group.run(group.begin(), || Ok(())).is_ok());
    }
}
