//! One `syncfs` for everybody who waits.
//!
//! It flushes the whole file system, so on a busy node it takes as long as all writers have work for the disk. Whoever
//! comes while one is running needs the next one, and shares that with all others who came meanwhile.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::{Condvar, Mutex, PoisonError};

#[derive(Debug, Default)]
pub(super) struct GroupSync {
    rounds: Mutex<Rounds>,
    ended: Condvar,
}

#[derive(Debug, Default)]
struct Rounds {
    started: u64,
    /// The last round that succeeded.
    done: u64,
    running: bool,
}

impl GroupSync {
    /// Returns when a sync that began after this call has ended.
    pub(super) fn sync(&self, path: &Path) -> io::Result<()> {
        self.run(|| Ok(nix::unistd::syncfs(File::open(path)?)?))
    }

    fn run(&self, sync: impl Fn() -> io::Result<()>) -> io::Result<()> {
        let mut rounds = self.rounds.lock().unwrap_or_else(PoisonError::into_inner);
        let needed = rounds.started + 1;
        loop {
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
            if result.is_ok() {
                rounds.done = round;
            }
            // after a failure each of the others finds out for itself
            self.ended.notify_all();
            result?;
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
        let (group, count) = (GroupSync::default(), AtomicUsize::new(0));
        let (entered, first_runs) = mpsc::channel();
        let gate = Barrier::new(2);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                group.run(|| {
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
                        group.run(|| {
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
    fn a_failure_is_reported_to_each() {
        let group = GroupSync::default();
        assert!(group.run(|| Err(io::Error::other("disk"))).is_err());
        assert!(group.run(|| Ok(())).is_ok());
    }
}
