//! zstd, frame by frame, because every frame says how much memory its window takes: that much is taken from the
//! budget of all pulls before the decoder sees the frame.

use std::io::{self, BufRead, Read};

use zstd::zstd_safe::{self, DCtx, DParameter, InBuffer, OutBuffer};

use crate::content::memory::{WINDOW_LOG, Windows};

const MAGIC: u32 = 0xfd2f_b528;
/// The last four bits are free.
const SKIPPABLE: u32 = 0x184d_2a50;
/// Magic, descriptor, window, dictionary, content size.
const MAX_HEAD: usize = 4 + 1 + 1 + 4 + 8;

/// A compressed stream as a reader of what is in it.
pub(super) struct Frames<R> {
    input: R,
    windows: Windows,
    decoder: Option<DCtx<'static>>,
    within: bool,
}

impl<R: BufRead> Frames<R> {
    pub(super) fn new(input: R, windows: Windows) -> Frames<R> {
        Frames { input, windows, decoder: None, within: false }
    }

    /// Goes to the next frame and gives its head to the decoder; false at the end.
    fn begin(&mut self) -> io::Result<bool> {
        let Some(head) = Head::read(&mut self.input)? else { return Ok(false) };
        let window = head.window();
        if window > 1 << WINDOW_LOG {
            return Err(damaged(format!("its window of {window} bytes is larger than {}", 1u64 << WINDOW_LOG)));
        }
        let decoder = match &mut self.decoder {
            Some(decoder) if self.windows.covers(window) => decoder,
            decoder => {
                // what it has must be free before others may count on it
                *decoder = None;
                self.windows.exchange(window);
                let mut fresh = DCtx::try_create().ok_or(io::ErrorKind::OutOfMemory)?;
                fresh.set_parameter(DParameter::WindowLogMax(WINDOW_LOG)).map_err(refused)?;
                decoder.insert(fresh)
            }
        };
        let mut bytes = InBuffer::around(&head.bytes[..head.length]);
        let mut nothing = [0; 0];
        decoder.decompress_stream(&mut OutBuffer::around(&mut nothing[..]), &mut bytes).map_err(refused)?;
        self.within = true;
        Ok(true)
    }
}

impl<R: BufRead> Read for Frames<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if !self.within && !self.begin()? {
                return Ok(0);
            }
            let Some(decoder) = &mut self.decoder else { return Ok(0) };
            let input = self.input.fill_buf()?;
            let at_end = input.is_empty();
            let (mut from, mut to) = (InBuffer::around(input), OutBuffer::around(&mut *buffer));
            let missing = decoder.decompress_stream(&mut to, &mut from).map_err(refused)?;
            let (read, written) = (from.pos(), to.pos());
            self.input.consume(read);
            self.within = missing != 0;
            if written > 0 {
                return Ok(written);
            }
            if self.within && at_end {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

/// What stands before the blocks of a frame.
struct Head {
    bytes: [u8; MAX_HEAD],
    length: usize,
}

impl Head {
    /// The next frame's, over all that may be skipped; `None` at the end.
    fn read(input: &mut impl BufRead) -> io::Result<Option<Head>> {
        loop {
            let mut head = Head { bytes: [0; MAX_HEAD], length: 0 };
            if input.fill_buf()?.is_empty() {
                return Ok(None);
            }
            let magic = head.number(input, 4)?;
            if magic & 0xffff_fff0 == u64::from(SKIPPABLE) {
                let length = head.number(input, 4)?;
                let skipped = io::copy(&mut input.take(length), &mut io::sink())?;
                if skipped < length {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                continue;
            }
            if magic != u64::from(MAGIC) {
                return Err(damaged("something other than a frame is in it".to_owned()));
            }
            let descriptor = head.number(input, 1)?;
            let single = descriptor & 0x20 != 0;
            let window = usize::from(!single);
            let dictionary = [0, 1, 2, 4][usize::try_from(descriptor & 3).unwrap_or(0)];
            let content = match descriptor >> 6 {
                0 => usize::from(single),
                log => 1 << log,
            };
            head.number(input, window + dictionary + content)?;
            return Ok(Some(head));
        }
    }

    /// Reads bytes, the last eight of which are a number.
    fn number(&mut self, input: &mut impl BufRead, bytes: usize) -> io::Result<u64> {
        let end = self.length + bytes;
        input.read_exact(&mut self.bytes[self.length..end])?;
        self.length = end;
        Ok(little_endian(&self.bytes[end - bytes..end]))
    }

    /// What the decoder has to remember of the output.
    fn window(&self) -> u64 {
        let descriptor = self.bytes[4];
        if descriptor & 0x20 == 0 {
            let (exponent, mantissa) = (self.bytes[5] >> 3, u64::from(self.bytes[5] & 7));
            let base = 1u64 << (10 + exponent);
            return base + base / 8 * mantissa;
        }
        // all of it
        match descriptor >> 6 {
            0 => little_endian(&self.bytes[self.length - 1..self.length]),
            1 => 256 + little_endian(&self.bytes[self.length - 2..self.length]),
            log => little_endian(&self.bytes[self.length - (1 << log)..self.length]),
        }
    }
}

fn little_endian(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

fn refused(code: usize) -> io::Error {
    damaged(zstd_safe::get_error_name(code).to_owned())
}

fn damaged(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("zstd stream cannot be used: {what}"))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use crate::content::Memory;

    fn compressed(level: i32, window_log: Option<u32>, size: Option<u64>, bytes: &[u8]) -> Vec<u8> {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), level).unwrap();
        if let Some(log) = window_log {
            encoder.window_log(log).unwrap();
        }
        encoder.set_pledged_src_size(size).unwrap();
        encoder.include_contentsize(size.is_some()).unwrap();
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn skippable(bytes: &[u8]) -> Vec<u8> {
        [&0x184d_2a57u32.to_le_bytes()[..], &u32::try_from(bytes.len()).unwrap().to_le_bytes(), bytes].concat()
    }

    /// Read through buffers of every small size, which cut heads and blocks anywhere.
    async fn read(stream: Vec<u8>, piece: usize) -> io::Result<Vec<u8>> {
        let windows = Memory::new().layer().await.unwrap().windows;
        tokio::task::spawn_blocking(move || {
            let mut out = Vec::new();
            Frames::new(io::BufReader::with_capacity(piece, &stream[..]), windows).read_to_end(&mut out).map(|_| out)
        })
        .await
        .unwrap()
    }

    #[tokio::test]
    async fn frames_of_all_sizes_follow_each_other() {
        let noise: Vec<u8> = (0..700_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13).to_le_bytes()[0]).collect();
        let mut stream = skippable(b"first");
        let mut expected = Vec::new();
        for (bytes, level, log, size) in [
            (&noise[..100], 1, None, Some(100)),
            (&noise[..], 3, None, None),
            (&noise[..], 3, Some(17), Some(700_000)),
            (&noise[..70_000], 3, None, Some(70_000)),
            (&b""[..], 3, None, Some(0)),
            (&noise[..300], 3, None, None),
            (&noise[..], 19, Some(23), None),
        ] {
            stream.extend(compressed(level, log, size, bytes));
            stream.extend(skippable(&noise[..1000]));
            expected.extend_from_slice(bytes);
        }
        for piece in [1, 7, 4096, 1 << 20] {
            assert!(read(stream.clone(), piece).await.unwrap() == expected, "in pieces of {piece}");
        }
    }

    #[tokio::test]
    async fn a_frame_may_not_choose_how_much_memory_it_gets() {
        let large = compressed(3, Some(27), None, &[7; 1000]);
        let error = read(large, 100).await.unwrap_err();
        assert!(error.to_string().contains("window of 134217728 bytes"), "{error}");
    }

    #[tokio::test]
    async fn what_is_cut_or_no_frame_is_an_error() {
        let whole = compressed(3, None, None, &[7; 100_000]);
        for cut in [3, 5, 7, whole.len() - 1] {
            let error = read(whole[..cut].to_vec(), 64).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{cut}: {error}");
        }
        let followed = [&whole[..], b"something else"].concat();
        assert_eq!(read(followed, 64).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
        let skipped = skippable(b"more than there is");
        assert_eq!(read(skipped[..10].to_vec(), 64).await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
