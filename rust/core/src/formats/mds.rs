//! `MosaicML`'s MDS shards: the placement of a column's tokens in the samples.
//!
//! A shard is a u32 n, n + 1 u32 offsets, a text, and n samples; sample i is at offset i to offset i + 1. A sample is
//! a u32 for the size of each column of variable size, then the columns (mosaicml-streaming,
//! `streaming/base/format/mds`). `index.json`, which Python reads, describes the columns: [`ShardEntry`].
//!
//! If all samples of a shard have the same size, as packing writes them, tokens are read in place. Any other shard, and
//! any compressed one, is materialized as a flat file when it is first read: see `materialize.rs`.

use std::io::{ErrorKind, Read};

use super::zstd::Unzip;
use crate::error::Result;
use crate::source::{Source, failed};
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

/// A sequential reader of a shard: the head, then sample by sample.
pub(crate) struct Samples<'a> {
    source: &'a Source,
    entry: &'a ShardEntry,
    bytes: Box<dyn Read + 'a>,
    offsets: Vec<u32>,
    /// Bytes read so far.
    place: u64,
    dtype: Dtype,
    /// The first sample, which is read together with the head.
    first: Vec<u8>,
}

impl<'a> Samples<'a> {
    /// Reads the head of the shard in `source`, and its first sample.
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
            offsets: Vec::new(),
            place: 0,
            dtype: Dtype::U8,
            first: Vec::new(),
        };
        samples.read_offsets()?;
        let text = u64::from(samples.offsets[0]) - samples.place;
        samples.take(text)?;
        samples.first = samples.take(samples.size(0))?;
        samples.dtype = match entry.encoding {
            Encoding::Plain(dtype) | Encoding::Shaped(dtype) => dtype,
            Encoding::Typed(expected) => {
                let column = samples.column(0, &samples.first)?;
                let found = samples.dtype_of(column.first().copied())?;
                source.expect_dtype(expected, found, "sample 0")?;
                found
            }
        };
        Ok(samples)
    }

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
        self.offsets = self
            .take(table)?
            .chunks_exact(4)
            .map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]]))
            .collect();
        let mut before = self.place;
        for (sample, &offset) in self.offsets.iter().enumerate() {
            if u64::from(offset) < before {
                return Err(self.source.problem(format!(
                    "expected sample {sample} to start at byte {before} or later, found {offset}"
                )));
            }
            before = u64::from(offset);
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
        let varying = columns.iter().filter(|size| size.is_none()).count();
        let size = self.size(0);
        let uniform = (1..self.entry.samples as usize).all(|sample| self.size(sample) == size);
        let mut tokens = Some(0u64);
        for sample in 0..self.entry.samples as usize {
            tokens = match (tokens, columns[self.entry.token_column]) {
                (Some(total), Some(fixed)) => {
                    self.varying_bytes(sample, self.size(sample))?;
                    Some(total + u64::from(fixed) / self.dtype.size() as u64)
                }
                (Some(total), None) if varying == 1 => {
                    let bytes = self.varying_bytes(sample, self.size(sample))?;
                    Some(total + self.tokens_in(sample, bytes)?)
                }
                _ => None,
            };
        }
        // The first sample represents all samples of the same size, so it is checked completely.
        let column = self.column(0, &self.first)?;
        let inside = self.tokens_of(0, column)?;
        let regular = uniform && varying <= 1 && self.entry.zstd_bytes.is_none();
        let strided = regular.then(|| {
            let prefix = column.len() - inside.len();
            let start = inside.as_ptr().addr() - self.first.as_ptr().addr();
            Strided {
                first: u64::from(self.offsets[0]) + start as u64,
                stride: size,
                per_sample: (inside.len() / self.dtype.size()) as u64,
                prefix: column[..prefix].into(),
            }
        });
        Ok(Head {
            dtype: self.dtype,
            tokens,
            strided,
        })
    }

    /// Passes the tokens of each sample to `sink` and returns their number.
    pub(crate) fn walk(mut self, mut sink: impl FnMut(&[u8]) -> Result<()>) -> Result<u64> {
        let mut tokens = 0;
        let mut sample = std::mem::take(&mut self.first);
        for number in 0..self.entry.samples as usize {
            if number > 0 {
                sample = self.take(self.size(number))?;
            }
            let inside = self.tokens_of(number, self.column(number, &sample)?)?;
            tokens += (inside.len() / self.dtype.size()) as u64;
            sink(inside)?;
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
        let columns = &self.entry.columns;
        let fixed: u64 = columns.iter().map(|size| size.map_or(4, u64::from)).sum();
        let varying = columns.iter().any(Option::is_none);
        size.checked_sub(fixed)
            .filter(|&rest| varying || rest == 0)
            .ok_or_else(|| {
                let bound = if varying { "at least" } else { "exactly" };
                self.source.problem(format!(
                    "expected {bound} {fixed} bytes in sample {sample}, found {size}"
                ))
            })
    }

    /// Returns the column of tokens in a sample.
    fn column<'b>(&self, number: usize, sample: &'b [u8]) -> Result<&'b [u8]> {
        let rest = self.varying_bytes(number, sample.len() as u64)?;
        let (mut head, mut start, mut varying, mut tokens) = (0, 0u64, 0u64, 0..0);
        for (column, size) in self.entry.columns.iter().enumerate() {
            let size = size.map_or_else(
                || {
                    let word = &sample[head..head + 4];
                    head += 4;
                    let size = u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
                    varying += u64::from(size);
                    u64::from(size)
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
        Ok(&sample[head + tokens.start as usize..head + tokens.end as usize])
    }

    /// Returns the tokens in a column, after its dtype and shape.
    fn tokens_of<'b>(&self, sample: usize, column: &'b [u8]) -> Result<&'b [u8]> {
        let count = self.tokens_in(sample, column.len() as u64)?;
        let bytes = count as usize * self.dtype.size();
        let (mut prefix, tokens) = column.split_at(column.len() - bytes);
        if matches!(self.entry.encoding, Encoding::Typed(_)) {
            let found = self.dtype_of(prefix.first().copied())?;
            if found != self.dtype {
                return Err(self.source.problem(format!(
                    "expected {} tokens in sample {sample} as in the first, found {}",
                    self.dtype.name(),
                    found.name()
                )));
            }
            prefix = &prefix[1..];
        }
        if let Some((&kind, shape)) = prefix.split_first() {
            let mut word = [0; 8];
            word[..shape.len()].copy_from_slice(shape);
            let (axes, width) = (kind >> 2, 1 << (kind & 3));
            if axes != 1 || width != shape.len() || u64::from_le_bytes(word) != count {
                return Err(self.source.problem(format!(
                    "expected an array of {count} tokens in one axis in sample {sample}, found {axes} axes of {shape:?}"
                )));
            }
        }
        Ok(tokens)
    }

    /// Returns the number of tokens in a column of `bytes` bytes: the shape before them takes 1, 2 or 4 bytes, as few as
    /// possible.
    fn tokens_in(&self, sample: usize, bytes: u64) -> Result<u64> {
        let size = self.dtype.size() as u64;
        let whole = |bytes: u64| (bytes % size == 0).then_some(bytes / size);
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

    /// Reads the next `count` bytes. Memory grows with the bytes found, not with `count`.
    fn take(&mut self, count: u64) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        if let Err(error) = self.bytes.by_ref().take(count).read_to_end(&mut bytes) {
            return Err(self.broken(error));
        }
        self.place += bytes.len() as u64;
        if (bytes.len() as u64) < count {
            return Err(self.source.problem(format!(
                "expected {} bytes uncompressed (index.json), found {}",
                self.entry.bytes, self.place
            )));
        }
        Ok(bytes)
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
        use std::os::unix::fs::FileExt;
        let count = self.source.file().read_at(out, self.place)?;
        self.place += count as u64;
        Ok(count)
    }
}
