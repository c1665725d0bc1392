//! A reader of zstd streams, frame after frame.
//!
//! The decoder is `ruzstd`: safe Rust, so a damaged file is an error and never corrupts memory, and no C compiler is
//! needed. It takes about twice as long as the C library, once for each file. Its memory is the window of a frame, at
//! most [`LARGEST_WINDOW`], and one block of at most 128 KiB.

use std::io::{BufRead, BufReader, Error, Read, Result};
use std::panic::{AssertUnwindSafe, catch_unwind};

use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

/// The uncompressed bytes of a zstd file.
pub(crate) struct Unzip<R: Read> {
    input: BufReader<R>,
    decoder: FrameDecoder,
    within: bool,
}

/// Uncompressed bytes decoded at a time.
const STEP: usize = 1 << 17;
/// Bytes of the largest window that is decoded: that of level 20, of 22 levels. The format allows terabytes.
const LARGEST_WINDOW: u64 = 1 << 25;

impl<R: Read> Unzip<R> {
    pub(crate) fn new(input: R) -> Self {
        let mut decoder = FrameDecoder::new();
        decoder.set_max_window_size(LARGEST_WINDOW);
        Self {
            input: BufReader::with_capacity(1 << 16, input),
            decoder,
            within: false,
        }
    }

    fn decode(&mut self, out: &mut [u8]) -> Result<usize> {
        loop {
            if self.decoder.can_collect() > 0 {
                return self.decoder.read(out);
            }
            if self.within && self.decoder.is_finished() {
                self.check_sum()?;
                self.within = false;
            }
            if !self.within {
                if self.input.fill_buf()?.is_empty() {
                    return Ok(0);
                }
                self.decoder.reset(&mut self.input).map_err(Error::other)?;
                self.within = true;
            }
            self.decoder
                .decode_blocks(&mut self.input, BlockDecodingStrategy::UptoBytes(STEP))
                .map_err(Error::other)?;
        }
    }

    fn check_sum(&self) -> Result<()> {
        match (
            self.decoder.get_checksum_from_data(),
            self.decoder.get_calculated_checksum(),
        ) {
            (Some(expected), Some(found)) if expected != found => Err(Error::other(format!(
                "the checksum is {found:08x}, not {expected:08x}"
            ))),
            _ => Ok(()),
        }
    }
}

impl<R: Read> Read for Unzip<R> {
    /// Errors of the format have the kind `Other`; a panic of the decoder also means a damaged file.
    fn read(&mut self, out: &mut [u8]) -> Result<usize> {
        if out.is_empty() {
            return Ok(0);
        }
        catch_unwind(AssertUnwindSafe(|| self.decode(out)))
            .unwrap_or_else(|_| Err(Error::other("the decoder gave up")))
    }
}
