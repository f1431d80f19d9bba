//! One budget of memory for all layers on their way, however many images are pulled at the same time.
//!
//! | what | bytes |
//! |---|---|
//! | buffers of [`LAYERS`] layers, [`COMPRESSED`] + [`UNCOMPRESSED`] each | 3.5 MiB |
//! | windows of zstd frames | 8 MiB, or one of 16 |
//! | parts of blobs that come side by side | 4 MiB |
//!
//! Whoever wants more waits, or does without. Nobody waits for one kind of memory while others wait for what he has:
//! a layer gets all its buffers before it begins, a window is let go before a larger one is asked for, and parts are
//! never waited for.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Layers of all images at a time: more do not help a disk, and each takes about as much again in decoders and in what
/// the network has ready.
pub(crate) const LAYERS: usize = 4;
/// One buffer: long against a switch between threads, short against a processor's cache.
pub(crate) const BUFFER: usize = 128 << 10;
/// Buffers between the network and decompression of one layer.
const COMPRESSED: usize = 3;
/// Buffers between decompression and the disk.
const UNCOMPRESSED: usize = 4;
/// Buffers of one part of a blob.
pub(crate) const PART: usize = 8;
const PARTS: usize = 4;
/// Windows are counted in pieces of this size.
const WINDOW: usize = 64 << 10;
/// The largest one there may be: a frame may not choose how much memory we spend.
pub(crate) const WINDOW_LOG: u32 = 24;
/// All of them together. Builders of images stay at this size or below; a larger one is alone.
const WINDOWS: usize = 8 << 20;

/// The budget. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Memory {
    layers: Arc<Semaphore>,
    parts: Arc<Semaphore>,
    windows: Arc<Semaphore>,
    idle: Arc<Mutex<Idle>>,
}

/// Buffers that nobody uses at the moment. They go back to the system with the last lease.
#[derive(Debug, Default)]
struct Idle {
    buffers: Vec<Box<[u8]>>,
    leases: usize,
}

/// What one layer may use.
#[derive(Debug)]
pub(crate) struct LayerMemory {
    pub compressed: Lease,
    pub uncompressed: Lease,
    pub windows: Windows,
}

/// The right to a number of buffers. They are made when they are needed and used in turn.
#[derive(Debug, Clone)]
pub(crate) struct Lease(Arc<Leased>);

#[derive(Debug)]
struct Leased {
    idle: Arc<Mutex<Idle>>,
    buffers: Arc<Semaphore>,
    _share: Arc<OwnedSemaphorePermit>,
}

impl Memory {
    pub(crate) fn new() -> Memory {
        Memory {
            layers: Arc::new(Semaphore::new(LAYERS)),
            parts: Arc::new(Semaphore::new(PARTS)),
            windows: Arc::new(Semaphore::new(WINDOWS / WINDOW)),
            idle: Arc::default(),
        }
    }

    /// What a layer needs, once there is room for one. `None` never happens: the semaphore is not closed.
    pub(crate) async fn layer(&self) -> Option<LayerMemory> {
        let share = Arc::new(self.layers.clone().acquire_owned().await.ok()?);
        Some(LayerMemory {
            compressed: self.lease(COMPRESSED, share.clone()),
            uncompressed: self.lease(UNCOMPRESSED, share),
            windows: Windows { all: self.windows.clone(), held: None },
        })
    }

    /// Room for one part of a blob, if there is some.
    pub(crate) fn part(&self) -> Option<Lease> {
        let share = self.parts.clone().try_acquire_owned().ok()?;
        Some(self.lease(PART, Arc::new(share)))
    }

    fn lease(&self, buffers: usize, share: Arc<OwnedSemaphorePermit>) -> Lease {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).leases += 1;
        Lease(Arc::new(Leased { idle: self.idle.clone(), buffers: Arc::new(Semaphore::new(buffers)), _share: share }))
    }
}

impl Drop for Leased {
    fn drop(&mut self) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.leases -= 1;
        if idle.leases == 0 {
            let buffers = std::mem::take(&mut idle.buffers);
            drop(idle);
            drop(buffers);
        }
    }
}

impl Lease {
    /// An empty buffer, as soon as one has come back.
    pub(crate) async fn buffer(&self) -> Buffer {
        // not closed, so this is always some
        let permit = self.0.buffers.clone().acquire_owned().await.ok();
        let idle = self.0.idle.lock().unwrap_or_else(PoisonError::into_inner).buffers.pop();
        let memory = idle.unwrap_or_else(|| vec![0; BUFFER].into_boxed_slice());
        Buffer { memory, length: 0, lease: self.0.clone(), _permit: permit }
    }

    /// The same, for a worker thread of the runtime.
    pub(crate) fn blocking_buffer(&self) -> Buffer {
        tokio::runtime::Handle::current().block_on(self.buffer())
    }
}

/// A buffer that is being filled.
#[derive(Debug)]
pub(crate) struct Buffer {
    memory: Box<[u8]>,
    length: usize,
    lease: Arc<Leased>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Buffer {
    /// What is still free.
    pub(crate) fn space(&mut self) -> &mut [u8] {
        &mut self.memory[self.length..]
    }

    /// So many bytes were written to the space.
    pub(crate) fn add(&mut self, bytes: usize) {
        self.length = self.memory.len().min(self.length + bytes);
    }

    /// Takes as many bytes as fit, and gives the others back.
    pub(crate) fn take<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let (taken, rest) = bytes.split_at(bytes.len().min(self.space().len()));
        self.space()[..taken.len()].copy_from_slice(taken);
        self.add(taken.len());
        rest
    }

    pub(crate) fn is_full(&self) -> bool {
        self.length == self.memory.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// What was filled in, to be read by many; the memory comes back when the last of them is done.
    pub(crate) fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.memory[..self.length]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let memory = std::mem::take(&mut self.memory);
        self.lease.idle.lock().unwrap_or_else(PoisonError::into_inner).buffers.push(memory);
    }
}

/// The window of one decoder, taken from what there is for all.
#[derive(Debug)]
pub(crate) struct Windows {
    all: Arc<Semaphore>,
    held: Option<OwnedSemaphorePermit>,
}

impl Windows {
    /// Whether a window of this size is covered by what is held.
    pub(crate) fn covers(&self, bytes: u64) -> bool {
        self.held.as_ref().is_some_and(|held| held.num_permits() >= pieces(bytes))
    }

    /// Lets go of what is held and waits for more. The decoder must have freed its window before.
    pub(crate) fn exchange(&mut self, bytes: u64) {
        self.held = None;
        let pieces = u32::try_from(pieces(bytes)).unwrap_or(u32::MAX);
        self.held = tokio::runtime::Handle::current().block_on(self.all.clone().acquire_many_owned(pieces)).ok();
    }
}

fn pieces(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX).clamp(1, WINDOWS).div_ceil(WINDOW)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_lease_has_its_number_of_buffers_and_uses_them_in_turn() {
        let memory = Memory::new();
        let layer = memory.layer().await.unwrap();
        let mut out = Vec::new();
        for _ in 0..COMPRESSED {
            let mut buffer = layer.compressed.buffer().await;
            assert!(buffer.take(b"some").is_empty() && !buffer.is_full());
            out.push(buffer.freeze());
        }
        let waiting = layer.compressed.buffer();
        tokio::pin!(waiting);
        assert!(futures_util::poll!(&mut waiting).is_pending());
        let half = out.pop().unwrap().slice(2..);
        assert!(futures_util::poll!(&mut waiting).is_pending(), "a part of it is still read");
        assert_eq!(half, &b"me"[..]);
        drop(half);
        assert!(waiting.await.is_empty());
    }

    #[tokio::test]
    async fn layers_wait_for_each_other_and_the_last_one_leaves_nothing() {
        let memory = Memory::new();
        let mut layers = Vec::new();
        for _ in 0..LAYERS {
            layers.push(memory.layer().await.unwrap());
        }
        let waiting = memory.layer();
        tokio::pin!(waiting);
        assert!(futures_util::poll!(&mut waiting).is_pending());
        let kept = layers[0].uncompressed.buffer().await.freeze();
        layers.remove(0);
        assert!(futures_util::poll!(&mut waiting).is_pending(), "its buffer is still in use");
        drop(kept);
        drop(waiting.await);
        layers.clear();
        let idle = memory.idle.lock().unwrap();
        assert!(idle.buffers.is_empty() && idle.leases == 0);
    }

    #[tokio::test]
    async fn parts_are_never_waited_for() {
        let memory = Memory::new();
        let parts: Vec<_> = std::iter::from_fn(|| memory.part()).collect();
        assert_eq!(parts.len(), PARTS);
        drop(parts);
        assert!(memory.part().is_some());
    }

    #[tokio::test]
    async fn a_larger_window_waits_without_keeping_the_smaller_one() {
        let memory = Memory::new();
        let mut one = memory.layer().await.unwrap().windows;
        let mut other = memory.layer().await.unwrap().windows;
        let (one, other) = tokio::task::spawn_blocking(move || {
            one.exchange(5 << 20);
            other.exchange(3 << 20);
            assert!(one.covers(5 << 20) && !one.covers(6 << 20) && other.covers(1));
            (one, other)
        })
        .await
        .unwrap();
        // both want all of it: one gets it when the other has ended
        let grown = [one, other].map(|mut windows| {
            tokio::task::spawn_blocking(move || {
                windows.exchange(u64::MAX);
                assert!(windows.covers(u64::MAX));
            })
        });
        for grown in grown {
            grown.await.unwrap();
        }
    }
}
