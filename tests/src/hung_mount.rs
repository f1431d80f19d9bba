//! A file system that does not answer, as one of a dead server: FUSE, of which only the root directory is known.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use tokio::sync::watch;
use tokio::time::{Duration, timeout};

/// What is read at once: the kernel asks for 8 KiB at least, and for a page and what is written besides.
const REQUEST: usize = 256 << 10;
const HEADER: usize = 40;

// <linux/fuse.h>
const LOOKUP: u32 = 1;
const FORGET: u32 = 2;
const GETATTR: u32 = 3;
const INIT: u32 = 26;
const INTERRUPT: u32 = 36;
const BATCH_FORGET: u32 = 42;

/// The mount. Dropped, it is taken off, and everybody who waits gets an error.
pub struct HungMount {
    path: PathBuf,
    waiting: watch::Receiver<usize>,
    server: Option<JoinHandle<()>>,
}

impl HungMount {
    /// Mounts it on a directory that is made.
    pub fn new(path: &Path) -> Result<Self> {
        fs::create_dir_all(path)?;
        let device = device()?;
        let options = format!("fd={},rootmode=40755,user_id=0,group_id=0,allow_other", device.as_raw_fd());
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some("hung"), path, Some("fuse"), flags, Some(options.as_str())).context("mount FUSE")?;
        let (sender, waiting) = watch::channel(0);
        let server = std::thread::spawn(move || serve(device, &sender));
        Ok(Self { path: path.to_owned(), waiting, server: Some(server) })
    }

    /// Returns when so many have asked for something and wait.
    pub async fn waited_for_by(&self, count: usize) -> Result<()> {
        let mut waiting = self.waiting.clone();
        let reached = timeout(Duration::from_secs(30), waiting.wait_for(|now| *now >= count)).await;
        reached.with_context(|| format!("{} wait for {}", *self.waiting.borrow(), self.path.display()))??;
        Ok(())
    }
}

impl Drop for HungMount {
    fn drop(&mut self) {
        // aborts the connection, wherever else it is mounted
        let _ = umount2(&self.path, MntFlags::MNT_FORCE);
        let _ = umount2(&self.path, MntFlags::MNT_DETACH);
        if let Some(server) = self.server.take() {
            let _ = server.join();
        }
    }
}

/// `/dev/fuse`, also where nobody has made it.
fn device() -> Result<File> {
    let open = |path: &Path| File::options().read(true).write(true).open(path);
    match open(Path::new("/dev/fuse")) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let place = tempfile::tempdir()?;
            let path = place.path().join("fuse");
            mknod(&path, SFlag::S_IFCHR, Mode::S_IRUSR | Mode::S_IWUSR, makedev(10, 229)).context("make /dev/fuse")?;
            open(&path).context("open a /dev/fuse of our own")
        }
        device => device.context("open /dev/fuse"),
    }
}

/// Until the connection is aborted.
fn serve(mut device: File, waiting: &watch::Sender<usize>) {
    let mut buffer = vec![0; REQUEST];
    loop {
        let length = match device.read(&mut buffer) {
            Ok(length) => length,
            // a request that was taken back, before it was read
            Err(error) if error.kind() == ErrorKind::Interrupted || error.raw_os_error() == Some(libc::ENOENT) => {
                continue;
            }
            Err(_) => return,
        };
        let Some(request) = buffer.get(..length.min(HEADER)).filter(|head| head.len() == HEADER) else { return };
        let number = |at: usize| u32::from_ne_bytes([request[at], request[at + 1], request[at + 2], request[at + 3]]);
        let (opcode, unique) = (number(4), [number(8), number(12)]);
        let answer = match opcode {
            INIT => Ok(init()),
            GETATTR => Ok(root_attributes()),
            LOOKUP => {
                waiting.send_modify(|count| *count += 1);
                continue;
            }
            FORGET | BATCH_FORGET | INTERRUPT => continue,
            _ => Err(Errno::ENOSYS),
        };
        let (error, body) = match answer {
            Ok(body) => (0, body),
            Err(errno) => (-(errno as i32), Vec::new()),
        };
        let total = u32::try_from(16 + body.len()).unwrap_or_default();
        let head = [total, error.cast_unsigned(), unique[0], unique[1]];
        let mut message: Vec<u8> = head.iter().flat_map(|word| word.to_ne_bytes()).collect();
        message.extend(body);
        // one that was aborted meanwhile wants no answer
        let _ = device.write_all(&message);
    }
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// `fuse_init_out`: version 7.23, writes of a page.
fn init() -> Vec<u8> {
    let mut out = [0; 16];
    (out[0], out[1], out[5]) = (7, 23, 4096);
    words(&out)
}

/// `fuse_attr_out`: a directory of root's, valid for an hour.
fn root_attributes() -> Vec<u8> {
    let mut out = [0; 26];
    // valid, then inode 1; behind six 64-bit fields and three of nanoseconds: mode, links
    (out[0], out[4], out[19], out[20]) = (3600, 1, 0o40755, 2);
    words(&out)
}
