//! The shared PID namespace of the pod, as the shim sees it: a reaper that is being made, is there, or is not.

use super::{Pod, Refusal};
use crate::context::{Caller, Outbox};
use crate::io::complain;
use crate::launch;
use crate::launcher::{Birth, Launcher};
use crate::protocol::{Answer, ErrorKind};
use crate::sys::{self, Ended};

/// The reaper.
#[derive(Debug)]
pub(super) struct Reaper {
    pub number: u32,
    pub pid: i32,
    /// While it is being made, with those who wait for it.
    launcher: Option<Launcher>,
    callers: Vec<Caller>,
}

impl Reaper {
    /// Hears from it; those who wait are answered once it reaps.
    pub fn hear(&mut self, outbox: &mut Outbox) {
        if let Some(launcher) = &mut self.launcher
            && launcher.hear()
            && launcher.executed()
        {
            self.launcher = None;
            for caller in self.callers.drain(..) {
                outbox.reply(caller, Answer::Done);
            }
        }
    }

    fn ready(&self) -> bool {
        self.launcher.is_none()
    }

    /// Kills it, and with it whatever is left in its namespace.
    pub fn kill(&self) {
        // not reaped yet, so the number is its own; SIGKILL from outside is the one signal that process 1 cannot refuse
        let _ = sys::send_signal(self.pid, libc::SIGKILL);
    }

    /// It has ended.
    pub fn ended(mut self, ended: Ended, expected: bool, outbox: &mut Outbox) {
        self.hear(outbox);
        match self.launcher {
            Some(launcher) => {
                let failure = launcher.failure(ended.code);
                for caller in self.callers {
                    let message = format!("start the reaper: {}", failure.message);
                    outbox.reply(caller, Answer::Error { kind: failure.kind, message });
                }
            }
            // the kernel has ended all processes of the namespace by now
            None if !expected => complain(&format!("the reaper ended with code {}", ended.code)),
            None => {}
        }
    }
}

impl Pod {
    /// Makes the reaper, or waits for the one being made; the answer comes when it reaps.
    pub(super) fn share_pid(&mut self, caller: Caller, selinux_label: Option<&str>) -> Result<(), Refusal> {
        match &mut self.reaper {
            Some(reaper) if reaper.ready() => self.outbox.reply(caller, Answer::Done),
            Some(reaper) => reaper.callers.push(caller),
            None => {
                let number = self.number();
                let birth = Birth { new_pid: true, ..Birth::default() };
                let launcher =
                    Launcher::fork(&self.poller, number, &birth, |status, _| launch::reaper(selinux_label, status))?;
                let callers = vec![caller];
                self.reaper = Some(Reaper { number, pid: launcher.pid, launcher: Some(launcher), callers });
            }
        }
        Ok(())
    }

    /// Process 1 of the shared namespace.
    pub(super) fn reaper_pid(&self) -> Result<i32, Refusal> {
        match &self.reaper {
            Some(reaper) if reaper.ready() => Ok(reaper.pid),
            _ => Err(Refusal::new(ErrorKind::WrongState, "the pod has no shared PID namespace")),
        }
    }
}
