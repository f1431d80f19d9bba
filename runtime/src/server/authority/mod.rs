//! Lets clients in whose `:authority` is a socket's path.
//!
//! Kubelets up to 1.25, older crictl and other programs on grpc-go send the target they dialled, `/run/x.sock` or
//! `%2Frun%2Fx.sock`, as `:authority`. That is no URI authority, and the h2 crate answers PROTOCOL_ERROR without a way
//! to say otherwise (hyperium/h2 #487, kubernetes #112597). So the bytes from client to server pass here first.
//!
//! Until the first header block the filter only follows the frames. If that block's authority is good, which is so for
//! every current client, the filter is done and the connection is read directly from then on. If it is bad, every header
//! block of the connection is decoded (HPACK's table lives as long as the connection) and written anew, literally,
//! with `localhost` in its place.

mod frames;
mod hpack;
mod huffman;
mod static_table;

use bytes::{Buf, Bytes, BytesMut};
use frames::Frames;
use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, ReadBuf};

/// What is read at a time while the frames are looked at: one frame of the largest size.
const CHUNK: usize = 16 * 1024;

/// The reading side of a connection, with the filter on it.
#[derive(Debug)]
pub(super) struct AuthorityFilter<T> {
    inner: T,
    /// gone when there is nothing more to look at
    frames: Option<Box<Frames>>,
    /// what the server shall read before anything else
    ready: BytesMut,
    chunk: Box<[u8]>,
}

impl<T> AuthorityFilter<T> {
    /// `preface` is what was read of the connection: the whole HTTP/2 preface and nothing else.
    pub(super) fn new(preface: &Bytes, inner: T) -> Self {
        Self {
            inner,
            frames: Some(Box::new(Frames::new())),
            ready: BytesMut::from(preface.as_ref()),
            chunk: vec![0; CHUNK].into_boxed_slice(),
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for AuthorityFilter<T> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if !this.ready.is_empty() {
                let length = this.ready.len().min(buffer.remaining());
                buffer.put_slice(&this.ready[..length]);
                this.ready.advance(length);
                return Poll::Ready(Ok(()));
            }
            let Some(frames) = &mut this.frames else {
                return Pin::new(&mut this.inner).poll_read(context, buffer);
            };
            let mut chunk = ReadBuf::new(&mut this.chunk);
            ready!(Pin::new(&mut this.inner).poll_read(context, &mut chunk))?;
            if chunk.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            frames
                .push(chunk.filled(), &mut this.ready)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            if frames.finished() {
                this.frames = None;
                this.chunk = Box::default();
            }
        }
    }
}
