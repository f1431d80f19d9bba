//! The frames a client sends, followed just closely enough to find header blocks and to put other ones in their place.

use super::hpack::{Decoder, Field, HpackError};
use bytes::{BufMut, Bytes, BytesMut};
use http::uri::Authority;

/// SETTINGS_MAX_FRAME_SIZE that our server announces: the default of RFC 9113.
const MAX_FRAME: usize = 16 * 1024;
/// Limit for a header block as sent, and for the list of fields that it stands for. hyper takes 16 KiB.
const MAX_HEADERS: usize = 64 * 1024;
/// A block of 64 KiB needs five frames; more is someone wasting our time with empty ones (CVE-2024-27316).
const MAX_CONTINUATIONS: usize = 32;

const FRAME_HEAD: usize = 9;
const HEADERS: u8 = 0x1;
const PUSH_PROMISE: u8 = 0x5;
const CONTINUATION: u8 = 0x9;
const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
const PRIORITY_LENGTH: usize = 5;

const AUTHORITY: &[u8] = b":authority";
/// What the kubelet's own clients have sent since 1.26.
const REPLACEMENT: &[u8] = b"localhost";

/// Why a connection is closed by the filter.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum FrameError {
    #[error("frame of {0} bytes, but at most {MAX_FRAME} were allowed")]
    FrameSize(usize),
    #[error("header block larger than {MAX_HEADERS} bytes or in more than {MAX_CONTINUATIONS} pieces")]
    BlockSize,
    #[error("frame of type {0} inside a header block, or CONTINUATION outside of one")]
    Sequence(u8),
    #[error("padding or priority longer than the frame")]
    Padding,
    #[error("frame of type {0}, which clients must not send")]
    Forbidden(u8),
    #[error(transparent)]
    Hpack(#[from] HpackError),
}

/// What stands before a frame's payload.
#[derive(Debug, Clone, Copy)]
struct Head {
    length: usize,
    kind: u8,
    flags: u8,
    /// with the reserved bit, as it came
    stream: u32,
}

impl Head {
    fn parse(bytes: &[u8; FRAME_HEAD]) -> Self {
        let [l0, l1, l2, kind, flags, s0, s1, s2, s3] = *bytes;
        let length = usize::from(l0) << 16 | usize::from(l1) << 8 | usize::from(l2);
        Self { length, kind, flags, stream: u32::from_be_bytes([s0, s1, s2, s3]) }
    }

    fn write(self, out: &mut BytesMut) {
        let [.., l0, l1, l2] = self.length.to_be_bytes();
        out.put_slice(&[l0, l1, l2, self.kind, self.flags]);
        out.put_u32(self.stream);
    }
}

/// A header block that is still arriving.
#[derive(Debug)]
struct Block {
    stream: u32,
    end_stream: bool,
    priority: Option<[u8; PRIORITY_LENGTH]>,
    fragments: Vec<u8>,
    continuations: usize,
    /// the frames as they came, kept while they may still go on unchanged
    original: BytesMut,
}

#[derive(Debug)]
enum State {
    /// collecting a frame's head
    Head,
    /// collecting the payload of HEADERS or CONTINUATION
    Collect(Head),
    /// handing on the rest of another frame
    Forward(usize),
}

/// The filter proper, without any I/O: bytes in, bytes out.
#[derive(Debug)]
pub(super) struct Frames {
    state: State,
    /// head or payload under way
    partial: Vec<u8>,
    block: Option<Block>,
    decoder: Decoder,
    /// the first authority was bad: every block is written anew
    rewriting: bool,
    /// the first authority was good: nothing more to do on this connection
    finished: bool,
}

impl Frames {
    /// Begins after the connection preface.
    pub(super) fn new() -> Self {
        Self {
            state: State::Head,
            partial: Vec::new(),
            block: None,
            decoder: Decoder::new(),
            rewriting: false,
            finished: false,
        }
    }

    /// Whether everything from here on may pass without being looked at.
    pub(super) fn finished(&self) -> bool {
        self.finished
    }

    /// Takes what the client sent and appends what the server shall read.
    pub(super) fn push(&mut self, mut input: &[u8], out: &mut BytesMut) -> Result<(), FrameError> {
        while !input.is_empty() {
            if self.finished {
                out.put_slice(input);
                return Ok(());
            }
            match self.state {
                State::Head => {
                    take(&mut self.partial, &mut input, FRAME_HEAD);
                    if let Ok(bytes) = <&[u8; FRAME_HEAD]>::try_from(self.partial.as_slice()) {
                        let head = Head::parse(bytes);
                        self.partial.clear();
                        self.begin(head, out)?;
                    }
                }
                State::Forward(remaining) => {
                    let (now, later) = input.split_at(remaining.min(input.len()));
                    out.put_slice(now);
                    input = later;
                    self.forward(remaining - now.len());
                }
                State::Collect(head) => {
                    take(&mut self.partial, &mut input, head.length);
                    if self.partial.len() == head.length {
                        self.collected(head, out)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn forward(&mut self, remaining: usize) {
        self.state = if remaining == 0 { State::Head } else { State::Forward(remaining) };
    }

    fn begin(&mut self, head: Head, out: &mut BytesMut) -> Result<(), FrameError> {
        if head.length > MAX_FRAME {
            return Err(FrameError::FrameSize(head.length));
        }
        match (head.kind, &self.block) {
            (HEADERS, None) => {}
            (CONTINUATION, Some(block)) if block.stream == head.stream => {}
            (HEADERS | CONTINUATION, _) | (_, Some(_)) => return Err(FrameError::Sequence(head.kind)),
            // carries a header block, which would have to pass the decoder; only servers may send it
            (PUSH_PROMISE, None) => return Err(FrameError::Forbidden(head.kind)),
            (_, None) => {
                head.write(out);
                self.forward(head.length);
                return Ok(());
            }
        }
        self.state = State::Collect(head);
        // nothing would come to trigger the end of an empty payload
        if head.length == 0 { self.collected(head, out) } else { Ok(()) }
    }

    fn collected(&mut self, head: Head, out: &mut BytesMut) -> Result<(), FrameError> {
        let payload = std::mem::take(&mut self.partial);
        self.state = State::Head;
        let mut block = match self.block.take() {
            None => open_block(head, &payload)?,
            Some(mut block) => {
                block.continuations += 1;
                block.fragments.extend_from_slice(&payload);
                block
            }
        };
        if block.fragments.len() > MAX_HEADERS || block.continuations > MAX_CONTINUATIONS {
            return Err(FrameError::BlockSize);
        }
        if !self.rewriting {
            head.write(&mut block.original);
            block.original.put_slice(&payload);
        }
        if head.flags & END_HEADERS == 0 {
            self.block = Some(block);
            return Ok(());
        }
        self.close_block(block, out)
    }

    fn close_block(&mut self, block: Block, out: &mut BytesMut) -> Result<(), FrameError> {
        let mut fields = self.decoder.decode(&block.fragments, MAX_HEADERS)?;
        if !self.rewriting {
            if fields.iter().all(|field| field.name != AUTHORITY || acceptable(&field.value)) {
                out.put_slice(&block.original);
                self.finished = true;
                return Ok(());
            }
            self.rewriting = true;
        }
        for field in fields.iter_mut().filter(|field| field.name == AUTHORITY) {
            field.value = Bytes::from_static(REPLACEMENT);
        }
        emit(&block, &fields, out);
        Ok(())
    }
}

/// The very check that h2 makes: what passes here passes there.
fn acceptable(authority: &[u8]) -> bool {
    Authority::try_from(authority).is_ok()
}

fn open_block(head: Head, payload: &[u8]) -> Result<Block, FrameError> {
    let mut content = payload;
    if head.flags & PADDED != 0 {
        let (&padding, rest) = content.split_first().ok_or(FrameError::Padding)?;
        let end = rest.len().checked_sub(usize::from(padding)).ok_or(FrameError::Padding)?;
        content = &rest[..end];
    }
    let mut priority = None;
    if head.flags & PRIORITY != 0 {
        let (bytes, rest) = content.split_first_chunk::<PRIORITY_LENGTH>().ok_or(FrameError::Padding)?;
        priority = Some(*bytes);
        content = rest;
    }
    Ok(Block {
        stream: head.stream,
        end_stream: head.flags & END_STREAM != 0,
        priority,
        fragments: content.to_vec(),
        continuations: 0,
        original: BytesMut::new(),
    })
}

/// Writes a block as HEADERS, and CONTINUATION where one frame does not hold it.
fn emit(block: &Block, fields: &[Field], out: &mut BytesMut) {
    let mut encoded = BytesMut::with_capacity(block.fragments.len() * 2);
    for field in fields {
        field.encode(&mut encoded);
    }
    let first = encoded.split_to(encoded.len().min(MAX_FRAME - PRIORITY_LENGTH));
    let mut flags = 0;
    for (flag, set) in
        [(END_STREAM, block.end_stream), (PRIORITY, block.priority.is_some()), (END_HEADERS, encoded.is_empty())]
    {
        if set {
            flags |= flag;
        }
    }
    let priority = block.priority.as_ref().map_or(&[][..], |bytes| &bytes[..]);
    Head { length: priority.len() + first.len(), kind: HEADERS, flags, stream: block.stream }.write(out);
    out.put_slice(priority);
    out.put_slice(&first);
    while !encoded.is_empty() {
        let piece = encoded.split_to(encoded.len().min(MAX_FRAME));
        let flags = if encoded.is_empty() { END_HEADERS } else { 0 };
        Head { length: piece.len(), kind: CONTINUATION, flags, stream: block.stream }.write(out);
        out.put_slice(&piece);
    }
}

/// Moves bytes from `input` until `partial` has `wanted` of them or the input is used up.
fn take(partial: &mut Vec<u8>, input: &mut &[u8], wanted: usize) {
    let (now, later) = input.split_at((wanted - partial.len()).min(input.len()));
    partial.extend_from_slice(now);
    *input = later;
}

#[cfg(test)]
#[path = "frames_tests.rs"]
mod tests;
