//! `MosaicML`'s MDS shards: the placement of a column's tokens in the samples.
//!
//! A shard is a u32 n, n + 1 u32 offsets, a text, and n samples; sample i is at offset i to offset i + 1. A sample is
//! a u32 for the size of each column of variable size, then the columns (mosaicml-streaming,
//! `streaming/base/format/mds`). `index.json`, which Python reads, describes the columns: [`ShardEntry`].
//!
//! If all samples of a shard have the same size, as packing writes them, tokens are read in place. Any other shard, and
//! any compressed one, is materialized as a flat file when it is first read: see `materialize.rs`.

use std::io::{ErrorKind, Read};
use std::ops::Range;

use super::zstd::Unzip;
use crate::error::Result;
use crate::interrupt::{self, INTERVAL};
use crate::source::{Source, failed, read_at};
use crate::tokens::Dtype;

/// The encoding of a column's tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// Only tokens: `bytes`, or an `ndarray` of fixed dtype and shape.
    Plain(Dtype),
    /// `ndarray` of fixed dtype: a shape, then tokens.
    Shaped(Dtype),
    /// `ndarray` without either: a dtype, which must be this one if any is given, a shape, then tokens.
    Typed(Option<Dtype>),
}

/// The entry of a shard in `index.json`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardEntry {
    /// Samples in the shard.
    pub samples: u64,
    /// Bytes of the shard, uncompressed.
    pub bytes: u64,
    /// Bytes of the compressed file, for zstd.
    pub zstd_bytes: Option<u64>,
    /// Bytes of each column in a sample; `None` where they vary.
    pub columns: Vec<Option<u32>>,
    /// Index of the column of tokens.
    pub token_column: usize,
    /// Encoding of that column.
    pub encoding: Encoding,
}

/// Tokens at equal distances in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Strided {
    /// Offset of the first sample's tokens.
    pub(crate) first: u64,
    /// Bytes from the start of a sample to the start of the next.
    pub(crate) stride: u64,
    /// Tokens in a sample.
    pub(crate) per_sample: u64,
    /// Bytes before the tokens of each sample: its dtype and shape.
    pub(crate) prefix: Box<[u8]>,
}

/// The head of a shard.
pub(crate) struct Head {
    pub(crate) dtype: Dtype,
    /// Tokens in the shard; `None` if only reading all samples can count them.
    pub(crate) tokens: Option<u64>,
    /// Placement of the tokens, if it is regular.
    pub(crate) strided: Option<Strided>,
}

/// Bytes read at a time. What a header or an index promises is never allocated before it is read and checked.
const CHUNK: u64 = 1 << 16;

/// A sequential reader of a shard: the head, then sample by sample, in memory of 4 bytes for each sample.
pub(crate) struct Samples<'a> {
    source: &'a Source,
    entry: &'a ShardEntry,
    bytes: Box<dyn Read + 'a>,
    /// Bytes of the columns of fixed size and of the sizes of the others, in each sample.
    fixed: u64,
    /// Number of columns of variable size.
    varying: usize,
    offsets: Vec<u32>,
    /// Bytes read so far.
    place: u64,
    dtype: Dtype,
    /// The first sample, which is read together with the head, up to its tokens.
    first: SampleTokens,
}

/// The tokens in a sample.
#[derive(Clone, Default)]
struct SampleTokens {
    /// Offset in the sample.
    start: u64,
    /// Number of tokens.
    count: u64,
    /// Bytes of the sample behind them.
    rest: u64,
    /// Bytes of their column before them: a dtype and a shape.
    prefix: Vec<u8>,
}

impl<'a> Samples<'a> {
    /// Reads the head of the shard in `source`, and its first sample up to the tokens.
    pub(crate) fn open(source: &'a Source, entry: &'a ShardEntry) -> Result<Self> {
        let expected = entry.zstd_bytes.unwrap_or(entry.bytes);
        if source.len() != expected {
            return Err(source.problem(format!(
                "expected {expected} bytes (index.json), found {}",
                source.len()
            )));
        }
        let file = Forward { source, place: 0 };
        let bytes: Box<dyn Read> = if entry.zstd_bytes.is_some() {
            Box::new(Unzip::new(file))
        } else {
            Box::new(std::io::BufReader::with_capacity(1 << 15, file))
        };
        let mut samples = Self {
            source,
            entry,
            bytes,
            fixed: entry
                .columns
                .iter()
                .map(|size| size.map_or(4, u64::from))
                .sum(),
            varying: entry.columns.iter().filter(|size| size.is_none()).count(),
            offsets: Vec::new(),
            place: 0,
            dtype: match entry.encoding {
                Encoding::Plain(dtype) | Encoding::Shaped(dtype) => dtype,
                Encoding::Typed(_) => Dtype::U8,
            },
            first: SampleTokens::default(),
        };
        samples.read_offsets()?;
        samples.skip(u64::from(samples.offsets[0]) - samples.place)?;
        samples.first = samples.find_tokens(0)?;
        Ok(samples)
    }

    /// Reads the table of offsets. Each is checked when it is read, so a table that promises more samples than the shard
    /// has room for is an error before it is in memory.
    fn read_offsets(&mut self) -> Result<()> {
        let ShardEntry { samples, bytes, .. } = *self.entry;
        let table = samples
            .checked_add(1)
            .and_then(|count| count.checked_mul(4))
            .filter(|table| samples > 0 && table.checked_add(4).is_some_and(|end| end <= bytes));
        let Some(table) = table else {
            return Err(self.source.problem(format!(
                "expected at least 1 sample, and room for all offsets, in {bytes} bytes; found {samples} samples \
                 (index.json)"
            )));
        };
        let count = self.take(4)?;
        let count = u32::from_le_bytes([count[0], count[1], count[2], count[3]]);
        if u64::from(count) != samples {
            return Err(self.source.problem(format!(
                "expected {samples} samples (index.json), found {count}"
            )));
        }
        let mut before = self.place + table;
        let mut rest = table;
        while rest > 0 {
            let part = self.take(rest.min(CHUNK))?;
            rest -= part.len() as u64;
            for word in part.chunks_exact(4) {
                let offset = u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
                let sample = self.offsets.len();
                if u64::from(offset) < before {
                    return Err(self.source.problem(format!(
                        "expected sample {sample} to start at byte {before} or later, found {offset}"
                    )));
                }
                if sample > 0 {
                    self.varying_bytes(sample - 1, u64::from(offset) - before)?;
                }
                before = u64::from(offset);
                self.offsets.push(offset);
            }
        }
        if before != bytes {
            return Err(self.source.problem(format!(
                "expected the samples to end with the shard at byte {bytes}, found {before}"
            )));
        }
        Ok(())
    }

    /// Computes the head without reading further.
    pub(crate) fn head(&self) -> Result<Head> {
        let columns = &self.entry.columns;
        let size = self.size(0);
        let uniform = (1..self.entry.samples as usize).all(|sample| self.size(sample) == size);
        let mut tokens = Some(0u64);
        for sample in 0..self.entry.samples as usize {
            tokens = match (tokens, columns[self.entry.token_column]) {
                (Some(total), Some(fixed)) => {
                    Some(total + u64::from(fixed) / self.dtype.size() as u64)
                }
                (Some(total), None) if self.varying == 1 => {
                    let bytes = self.varying_bytes(sample, self.size(sample))?;
                    Some(total + self.tokens_in(sample, bytes)?)
                }
                _ => None,
            };
        }
        // The first sample, which was checked, represents all samples of the same size.
        let regular = uniform && self.varying <= 1 && self.entry.zstd_bytes.is_none();
        let strided = regular.then(|| Strided {
            first: u64::from(self.offsets[0]) + self.first.start,
            stride: size,
            per_sample: self.first.count,
            prefix: self.first.prefix.clone().into(),
        });
        Ok(Head {
            dtype: self.dtype,
            tokens,
            strided,
        })
    }

    /// Passes the tokens of each sample to `sink`, in parts of whole tokens, and returns their number.
    pub(crate) fn walk(mut self, mut sink: impl FnMut(&[u8]) -> Result<()>) -> Result<u64> {
        let mut tokens = 0;
        let mut sample = std::mem::take(&mut self.first);
        for number in 0..self.entry.samples as usize {
            if number > 0 {
                sample = self.find_tokens(number)?;
            }
            self.read(sample.count * self.dtype.size() as u64, &mut sink)?;
            self.skip(sample.rest)?;
            tokens += sample.count;
        }
        let mut more = [0];
        match self.bytes.read(&mut more) {
            Ok(0) => Ok(tokens),
            Ok(_) => Err(self.source.problem(format!(
                "expected {} bytes uncompressed (index.json), found more",
                self.entry.bytes
            ))),
            Err(error) => Err(self.broken(error)),
        }
    }

    fn size(&self, sample: usize) -> u64 {
        u64::from(self.offsets[sample + 1] - self.offsets[sample])
    }

    /// Returns the bytes of the columns of variable size, in a sample of `size` bytes.
    fn varying_bytes(&self, sample: usize, size: u64) -> Result<u64> {
        let (fixed, varying) = (self.fixed, self.varying > 0);
        size.checked_sub(fixed)
            .filter(|&rest| varying || rest == 0)
            .ok_or_else(|| {
                let bound = if varying { "at least" } else { "exactly" };
                self.source.problem(format!(
                    "expected {bound} {fixed} bytes in sample {sample}, found {size}"
                ))
            })
    }

    /// Reads a sample up to its tokens, and checks the dtype and shape before them.
    fn find_tokens(&mut self, number: usize) -> Result<SampleTokens> {
        let head = self.take(4 * self.varying as u64)?;
        let column = self.column(number, &head)?;
        self.skip(column.start - head.len() as u64)?;
        let bytes = column.end - column.start;
        let mut prefix = Vec::new();
        if let Encoding::Typed(expected) = self.entry.encoding {
            if bytes > 0 {
                prefix = self.take(1)?;
            }
            let found = self.dtype_of(prefix.first().copied())?;
            if number == 0 {
                self.source.expect_dtype(expected, found, "sample 0")?;
                self.dtype = found;
            } else if found != self.dtype {
                return Err(self.source.problem(format!(
                    "expected {} tokens in sample {number} as in the first, found {}",
                    self.dtype.name(),
                    found.name()
                )));
            }
        }
        let count = self.tokens_in(number, bytes)?;
        let before = bytes - count * self.dtype.size() as u64;
        let shape = self.take(before - prefix.len() as u64)?;
        self.check_shape(number, count, &shape)?;
        prefix.extend(shape);
        Ok(SampleTokens {
            start: column.start + before,
            count,
            rest: self.size(number) - column.end,
            prefix,
        })
    }

    /// Returns the place of the column of tokens in a sample that begins with `head`, the sizes of its columns.
    fn column(&self, number: usize, head: &[u8]) -> Result<Range<u64>> {
        let rest = self.varying_bytes(number, self.size(number))?;
        let mut sizes = head
            .chunks_exact(4)
            .map(|word| u64::from(u32::from_le_bytes([word[0], word[1], word[2], word[3]])));
        let (mut start, mut varying, mut tokens) = (head.len() as u64, 0, 0..0);
        for (column, size) in self.entry.columns.iter().enumerate() {
            let size = size.map_or_else(
                || {
                    let size = sizes.next().unwrap_or(0);
                    varying += size;
                    size
                },
                u64::from,
            );
            if column == self.entry.token_column {
                tokens = start..start + size;
            }
            start += size;
        }
        if varying != rest {
            return Err(self.source.problem(format!(
                "expected columns of {rest} bytes in sample {number}, found {varying}"
            )));
        }
        // The sizes add up to the sample, so the column is inside it.
        Ok(tokens)
    }

    /// Checks the shape before `count` tokens.
    fn check_shape(&self, sample: usize, count: u64, shape: &[u8]) -> Result<()> {
        let Some((&kind, shape)) = shape.split_first() else {
            return Ok(());
        };
        let mut word = [0; 8];
        word[..shape.len()].copy_from_slice(shape);
        let (axes, width) = (kind >> 2, 1 << (kind & 3));
        if axes != 1 || width != shape.len() || u64::from_le_bytes(word) != count {
            return Err(self.source.problem(format!(
                "expected an array of {count} tokens in one axis in sample {sample}, found {axes} axes of {shape:?}"
            )));
        }
        Ok(())
    }

    /// Returns the number of tokens in a column of `bytes` bytes: the shape before them takes 1, 2 or 4 bytes, as few as
    /// possible.
    fn tokens_in(&self, sample: usize, bytes: u64) -> Result<u64> {
        let size = self.dtype.size() as u64;
        let whole = |bytes: u64| bytes.is_multiple_of(size).then_some(bytes / size);
        let shaped = |bytes: u64| {
            [(1, 1..1 << 8), (2, 1 << 8..1 << 16), (4, 1 << 16..1 << 32)]
                .into_iter()
                .find_map(|(width, counts)| {
                    whole(bytes.checked_sub(1 + width)?).filter(|count| counts.contains(count))
                })
        };
        let tokens = match self.entry.encoding {
            Encoding::Plain(_) => whole(bytes),
            Encoding::Shaped(_) => shaped(bytes),
            Encoding::Typed(_) => bytes.checked_sub(1).and_then(shaped),
        };
        tokens.ok_or_else(|| {
            self.source.problem(format!(
                "expected {} tokens in one axis in sample {sample}, found {bytes} bytes",
                self.dtype.name()
            ))
        })
    }

    fn dtype_of(&self, code: Option<u8>) -> Result<Dtype> {
        Ok(match code {
            Some(8) => Dtype::U8,
            Some(9) => Dtype::I8,
            Some(16) => Dtype::U16,
            Some(17) => Dtype::I16,
            Some(32) => Dtype::U32,
            Some(33) => Dtype::I32,
            Some(65) => Dtype::I64,
            _ => {
                return Err(self.source.problem(format!(
                    "expected dtype code 8, 9, 16, 17, 32, 33 or 65, found {}",
                    code.map_or("none".into(), |code| code.to_string())
                )));
            }
        })
    }

    /// Reads the next `count` bytes, which the caller has checked to be few.
    fn take(&mut self, count: u64) -> Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(count as usize);
        self.read(count, |part| {
            bytes.extend_from_slice(part);
            Ok(())
        })?;
        Ok(bytes)
    }

    fn skip(&mut self, count: u64) -> Result<()> {
        self.read(count, |_| Ok(()))
    }

    /// Passes the next `count` bytes to `sink`, in parts of [`CHUNK`] bytes.
    fn read(&mut self, count: u64, mut sink: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let mut part = vec![0; count.min(CHUNK) as usize];
        let mut rest = count;
        while rest > 0 {
            let out = &mut part[..rest.min(CHUNK) as usize];
            let mut done = 0;
            while done < out.len() {
                match self.bytes.read(&mut out[done..]) {
                    Ok(0) => {
                        return Err(self.source.problem(format!(
                            "expected {} bytes uncompressed (index.json), found {}",
                            self.entry.bytes,
                            self.place + done as u64
                        )));
                    }
                    Ok(read) => done += read,
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) => return Err(self.broken(error)),
                }
            }
            let before = self.place / INTERVAL;
            self.place += done as u64;
            rest -= done as u64;
            if self.place / INTERVAL > before {
                interrupt::check()?;
            }
            sink(out)?;
        }
        Ok(())
    }

    fn broken(&self, error: std::io::Error) -> crate::error::Error {
        match error.kind() {
            ErrorKind::Other if self.entry.zstd_bytes.is_some() => self.source.problem(format!(
                "expected zstd data, found it damaged behind {} uncompressed bytes: {error}",
                self.place
            )),
            _ => failed(self.source.path(), error),
        }
    }
}

/// A sequential reader of a file, with its own position.
struct Forward<'a> {
    source: &'a Source,
    place: u64,
}

impl Read for Forward<'_> {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let count = read_at(self.source.file(), out, self.place)?;
        self.place += count as u64;
        Ok(count)
    }
}
