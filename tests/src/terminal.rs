//! This terminal as that of a machine elsewhere.

use std::io::{Read, Write, stdin, stdout};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use nix::unistd::read;

/// Ctrl-], as telnet has it.
const LEAVE: u8 = 0x1d;

/// The terminal's settings, restored when dropped.
struct Raw(Termios);

impl Raw {
    fn enter() -> Result<Self> {
        let before = tcgetattr(stdin()).context("this is no terminal")?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(stdin(), SetArg::TCSADRAIN, &raw).context("set up the terminal")?;
        Ok(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // nothing more can be done for a terminal that is gone
        let _ = tcsetattr(stdin(), SetArg::TCSADRAIN, &self.0);
    }
}

/// Connects the terminal to a machine's shell until Ctrl-] or the machine's end.
pub fn attach(socket: &Path) -> Result<()> {
    let mut there = UnixStream::connect(socket).with_context(|| format!("connect to {}", socket.display()))?;
    ensure!(nix::unistd::isatty(stdin()).unwrap_or(false), "a shell needs a terminal on standard input");
    println!("a shell in the test host; Ctrl-] leaves it");
    let _raw = Raw::enter()?;
    // it has been waiting since the boot: a line break makes it say where it is
    there.write_all(b"\r")?;
    let mut buffer = [0; 4096];
    loop {
        let (here_ready, there_ready) = {
            let input = stdin();
            let mut both =
                [PollFd::new(input.as_fd(), PollFlags::POLLIN), PollFd::new(there.as_fd(), PollFlags::POLLIN)];
            poll(&mut both, PollTimeout::NONE).context("wait for input")?;
            let [here, there] = &both;
            (here.any().unwrap_or(true), there.any().unwrap_or(true))
        };
        if here_ready {
            // past std's buffer, which poll knows nothing of
            let length = read(stdin(), &mut buffer).context("read the terminal")?;
            let typed = buffer.get(..length).unwrap_or_default();
            if typed.is_empty() || typed.contains(&LEAVE) {
                return Ok(());
            }
            there.write_all(typed)?;
        }
        if there_ready {
            let length = there.read(&mut buffer)?;
            if length == 0 {
                return Ok(());
            }
            stdout().write_all(buffer.get(..length).unwrap_or_default())?;
            stdout().flush()?;
        }
    }
}
