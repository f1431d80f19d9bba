//! The line to the guest's commands: one at a time, its output as it comes, its exit status.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// Beyond the command's own time, for a guest that is emulated and busy.
const GRACE: Duration = Duration::from_secs(20);
/// A command that says more has gone wrong.
const MAX_OUTPUT: usize = 64 << 20;

/// What a command said, and how it ended.
#[derive(Debug)]
pub struct Answer {
    /// Exit status; 124 when its time was up.
    pub status: i32,
    /// Both streams, as they came.
    pub text: String,
}

impl Answer {
    /// The output of a command that exited with 0.
    pub fn ok(self) -> Result<String> {
        ensure!(self.status == 0, "exit {}:\n{}", self.status, self.text);
        Ok(self.text)
    }
}

/// The host's end of the line.
#[derive(Debug)]
pub struct Channel {
    stream: UnixStream,
    pending: Vec<u8>,
    commands: u64,
}

impl Channel {
    /// Over an accepted connection.
    pub fn new(stream: UnixStream) -> Self {
        Self { stream, pending: Vec::new(), commands: 0 }
    }

    /// Waits until the guest takes commands.
    pub fn wait_ready(&mut self, limit: Duration) -> Result<()> {
        self.read_until(b"READY\n", Instant::now() + limit, &mut |_| {})
    }

    /// Waits until the machine is gone.
    pub fn wait_end(&mut self, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        while self.receive(deadline)? {
            self.pending.clear();
        }
        Ok(())
    }

    /// Sends a script without waiting for its answer, which never comes: it stops the machine.
    pub fn send_off(&mut self, script: &str) -> Result<()> {
        self.send("off", script, false, Duration::from_secs(60))
    }

    /// Runs a script in the guest's bash. `sink` gets the output as it comes. `shared`: in /share.
    pub fn run(&mut self, script: &str, shared: bool, limit: Duration, sink: &mut dyn FnMut(&[u8])) -> Result<i32> {
        self.commands += 1;
        let token = format!("-{:08x}-{}-", std::process::id(), self.commands);
        self.send(&token, script, shared, limit)?;
        let deadline = Instant::now() + limit + GRACE;
        self.read_until(format!("{token} ").as_bytes(), deadline, sink)?;
        let mut status = Vec::new();
        self.read_until(b"\n", deadline, &mut |piece| status.extend(piece))?;
        let status = String::from_utf8_lossy(&status);
        status.parse().with_context(|| format!("the guest answered with the exit status {status:?}"))
    }

    fn send(&mut self, token: &str, script: &str, shared: bool, limit: Duration) -> Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let script = STANDARD.encode(script);
        let line = format!("{token} {now:.3} {} {} {script}\n", limit.as_secs().max(1), u8::from(shared));
        self.stream.write_all(line.as_bytes()).context("send a command to the guest")
    }

    /// Gives what comes before `mark` to `sink`.
    fn read_until(&mut self, mark: &[u8], deadline: Instant, sink: &mut dyn FnMut(&[u8])) -> Result<()> {
        let mut passed = 0;
        loop {
            if let Some(at) = self.pending.windows(mark.len()).position(|window| window == mark) {
                sink(self.pending.get(..at).unwrap_or_default());
                self.pending.drain(..at + mark.len());
                return Ok(());
            }
            // the end may be the beginning of the mark
            let safe = self.pending.len().saturating_sub(mark.len() - 1);
            sink(self.pending.get(..safe).unwrap_or_default());
            self.pending.drain(..safe);
            passed += safe;
            ensure!(passed <= MAX_OUTPUT, "the guest's command says more than {MAX_OUTPUT} bytes");
            ensure!(self.receive(deadline)?, "the machine went away");
        }
    }

    /// Takes in what comes next; false when the machine is gone.
    fn receive(&mut self, deadline: Instant) -> Result<bool> {
        let left = deadline.saturating_duration_since(Instant::now());
        ensure!(!left.is_zero(), "the guest does not answer");
        self.stream.set_read_timeout(Some(left))?;
        let mut piece = [0; 16384];
        match self.stream.read(&mut piece) {
            Ok(0) => return Ok(false),
            Ok(length) => self.pending.extend(piece.get(..length).unwrap_or_default()),
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted) => {}
            Err(error) => return Err(error).context("read from the guest"),
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::thread;

    use super::*;

    /// A guest that answers each command with what `answer` makes of its token.
    fn guest(answer: fn(&str) -> Vec<String>) -> Result<Channel> {
        let (here, there) = UnixStream::pair()?;
        thread::spawn(move || -> Result<()> {
            let mut writer = there.try_clone()?;
            for line in BufReader::new(there).lines() {
                let line = line?;
                for piece in answer(line.split(' ').next().unwrap_or_default()) {
                    writer.write_all(piece.as_bytes())?;
                    thread::yield_now();
                }
            }
            Ok(())
        });
        Ok(Channel::new(here))
    }

    #[test]
    fn output_and_status_are_told_apart_however_the_answer_is_cut() -> Result<()> {
        let mut channel =
            guest(|token| format!("out {}x{token} 7\n", &token[..5]).chars().map(String::from).collect())?;
        let mut text = Vec::new();
        let status = channel.run("true", false, Duration::from_secs(5), &mut |piece| text.extend(piece))?;
        assert_eq!(status, 7);
        assert!(text.starts_with(b"out -") && text.ends_with(b"x"), "{text:?}");
        Ok(())
    }

    #[test]
    fn a_guest_that_goes_away_is_an_error() -> Result<()> {
        let (here, there) = UnixStream::pair()?;
        drop(there);
        let error = Channel::new(here).wait_ready(Duration::from_secs(5)).err().context("went well")?;
        assert_eq!(error.to_string(), "the machine went away");
        Ok(())
    }

    #[test]
    fn a_guest_that_is_silent_is_an_error_in_time() -> Result<()> {
        let (here, _there) = UnixStream::pair()?;
        let error = Channel::new(here).wait_ready(Duration::from_millis(20)).err().context("went well")?;
        assert_eq!(error.to_string(), "the guest does not answer");
        Ok(())
    }
}
