//! A shard: one file of tokens, whatever its format, and the reading of any range of them.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use sha2::{Digest, Sha256};

use crate::error::Result;
use crate::formats::layout::{Layout, Placement};
use crate::formats::materialize::{TOKENS_AT, materialized};
use crate::formats::mds::{Samples, ShardEntry};
use crate::formats::{read_bin, read_mds};
use crate::source::{Source, Stamp};
use crate::tokens::Dtype;

/// Bytes at each end of a file that identify its content.
const END_BYTES: u64 = 4096;

/// A file of tokens. It is opened when its first row is read.
#[derive(Debug)]
pub struct Shard {
    path: Box<Path>,
    layout: Layout,
    /// Size, times and inode of the file when it was first opened; it must not change afterwards.
    stamp: OnceLock<Stamp>,
}

impl Shard {
    /// Creates a shard of `tokens` contiguous tokens without opening the file, which happens when its first row is read.
    #[must_use]
    pub fn new(path: PathBuf, dtype: Dtype, tokens: u64) -> Self {
        Self {
            path: path.into(),
            layout: Layout::contiguous(dtype, 0, tokens),
            stamp: OnceLock::new(),
        }
    }

    /// Opens the `.bin` file at `path`: Megatron's if an `.idx` of the same name exists, else flat. `dtype` is the
    /// expected type of the tokens; a flat file without a header needs it.
    ///
    /// Costs a few small reads, whatever the size.
    ///
    /// # Errors
    ///
    /// [`Error::Corpus`](crate::Error::Corpus) if a file is missing or inconsistent with its header or `dtype`.
    pub fn open(path: &Path, dtype: Option<Dtype>) -> Result<Self> {
        let source = Source::open(path)?;
        let layout = read_bin(&source, dtype)?;
        Ok(Self::from_layout(&source, layout))
    }

    /// Opens the MDS shard at `path`, which `entry` describes. Shards that cannot be read in place are materialized in
    /// `cache`.
    ///
    /// Costs the head of the file, 4 bytes for each sample. Only where several columns vary in size does the whole file
    /// have to be read to count its tokens; it is materialized right away then.
    ///
    /// # Errors
    ///
    /// [`Error::Corpus`](crate::Error::Corpus) if the file is missing or inconsistent with `entry`.
    pub fn open_mds(path: &Path, entry: ShardEntry, cache: &Arc<Path>) -> Result<Self> {
        let source = Source::open(path)?;
        let layout = read_mds(&source, entry, cache)?;
        Ok(Self::from_layout(&source, layout))
    }

    fn from_layout(source: &Source, layout: Layout) -> Self {
        Self {
            path: source.path().into(),
            layout,
            stamp: source.stamp().into(),
        }
    }

    /// Returns the path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the type of the tokens.
    #[must_use]
    pub fn dtype(&self) -> Dtype {
        self.layout.dtype
    }

    /// Returns the number of tokens.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        self.layout.tokens
    }

    /// Returns the number of documents, if an index counts them.
    #[must_use]
    pub fn documents(&self) -> Option<u64> {
        self.layout.documents
    }

    /// Returns the size of the file in bytes when it was opened; 0 before that.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.stamp.get().map_or(0, |stamp| stamp.len)
    }

    /// Returns the SHA-256 of the first and last 4,096 bytes of the file, which identifies its content where no checksum
    /// exists.
    ///
    /// # Errors
    ///
    /// As reading rows.
    pub fn ends_sha256(&self) -> Result<[u8; 32]> {
        let source = self.open_file()?;
        let count = source.len().min(END_BYTES) as usize;
        let mut bytes = [0; END_BYTES as usize];
        let mut hash = Sha256::new();
        for start in [0, source.len() - count as u64] {
            source.read(start, &mut bytes[..count])?;
            hash.update(&bytes[..count]);
        }
        // Two columns of one MDS file have the same ends.
        match &self.layout.placement {
            Placement::Contiguous { .. } => {}
            Placement::Strided(strided) => hash.update(strided.first.to_le_bytes()),
            Placement::Materialized { entry, .. } => {
                hash.update((entry.token_column as u64).to_le_bytes());
            }
        }
        Ok(hash.finalize().into())
    }

    /// Reads the whole MDS file, checks it against its structure, and returns the number of tokens.
    /// [`megatron::verify`](crate::formats::megatron::verify) does the same for an index.
    ///
    /// # Errors
    ///
    /// [`Error::Corpus`](crate::Error::Corpus) for the first inconsistency.
    pub fn verify_mds(path: &Path, entry: &ShardEntry) -> Result<u64> {
        let source = Source::open(path)?;
        let samples = Samples::open(&source, entry)?;
        samples.head()?;
        samples.walk(|_| Ok(()))
    }

    fn open_file(&self) -> Result<Source> {
        if let Some(stamp) = self.stamp.get() {
            return Source::open_again(&self.path, stamp);
        }
        let source = Source::open(&self.path)?;
        let expected = self.tokens().checked_mul(self.dtype().size() as u64);
        if expected != Some(source.len()) {
            return Err(source.problem(format!(
                "expected {} {} tokens in the file, found {} bytes",
                self.tokens(),
                self.dtype().name(),
                source.len()
            )));
        }
        self.stamp.get_or_init(|| source.stamp());
        Ok(source)
    }

    /// Returns whether the tokens are read from a materialized copy.
    pub(crate) fn is_materialized(&self) -> bool {
        matches!(self.layout.placement, Placement::Materialized { .. })
    }

    /// Opens the file that the tokens are read from.
    pub(crate) fn open_tokens(&self) -> Result<Source> {
        let source = self.open_file()?;
        let Placement::Materialized { entry, cache } = &self.layout.placement else {
            return Ok(source);
        };
        let (tokens, found) = materialized(&source, entry, self.dtype(), cache)?;
        if found != self.tokens() {
            return Err(source.problem(format!(
                "expected {} tokens in the shard, found {found} when it was materialized",
                self.tokens()
            )));
        }
        Ok(tokens)
    }

    /// Returns the contiguous extents of the file that contain tokens `start..start + count`, in order.
    pub(crate) fn extents(&self, start: u64, count: u64) -> impl Iterator<Item = Extent<'_>> {
        let size = self.dtype().size() as u64;
        let end = start + count;
        let mut next = start;
        std::iter::from_fn(move || {
            if next == end {
                return None;
            }
            let extent = match &self.layout.placement {
                Placement::Contiguous { start } => Extent::whole(start + next * size, end - next),
                Placement::Materialized { .. } => {
                    Extent::whole(TOKENS_AT + next * size, end - next)
                }
                Placement::Strided(strided) => {
                    let (sample, within) = (next / strided.per_sample, next % strided.per_sample);
                    Extent {
                        offset: strided.first + sample * strided.stride + within * size,
                        count: (strided.per_sample - within).min(end - next),
                        prefix: if within == 0 { &strided.prefix } else { &[] },
                    }
                }
            };
            next += extent.count;
            Some(extent)
        })
    }
}

/// Contiguous tokens in a file: byte offset, number of tokens, and the bytes expected before them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extent<'a> {
    pub(crate) offset: u64,
    pub(crate) count: u64,
    pub(crate) prefix: &'a [u8],
}

impl Extent<'_> {
    fn whole(offset: u64, count: u64) -> Self {
        Self {
            offset,
            count,
            prefix: &[],
        }
    }
}
