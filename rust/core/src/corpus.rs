//! Domains, each a sequence of tokens over many shards, and the reading of their rows.

mod documents;
mod file_cache;
mod open_shards;
mod shard;

use std::mem::MaybeUninit;
use std::sync::Arc;

use crate::error::{CorpusProblem, Error, Result};
use crate::source::{Source, problem};
use crate::tokens::Token;
use file_cache::FileCache;
use shard::Extent;

pub use documents::{Documents, find_documents};
pub use open_shards::{ShardRequest, ends_sha256, open_shards};
pub use shard::Shard;

/// Largest number of files that one call keeps open until it checks that they have not changed.
const MAX_TOUCHED: usize = 32;

/// A named sequence of tokens: the concatenation of its shards.
#[derive(Debug)]
pub struct Domain {
    name: String,
    shards: Vec<Shard>,
    /// End of each shard, in tokens of the domain.
    ends: Vec<u64>,
}

impl Domain {
    /// Creates the domain of `shards`, in order.
    ///
    /// # Errors
    ///
    /// [`Error::Corpus`](crate::Error::Corpus) if the number of tokens overflows 2^63.
    pub fn new(name: String, shards: Vec<Shard>) -> Result<Self> {
        let mut tokens = 0u64;
        let mut ends = Vec::with_capacity(shards.len());
        for shard in &shards {
            tokens = tokens
                .checked_add(shard.tokens())
                .filter(|&tokens| i64::try_from(tokens).is_ok())
                .ok_or_else(|| problem(shard.path(), CorpusProblem::TooManyTokens))?;
            ends.push(tokens);
        }
        Ok(Self { name, shards, ends })
    }

    /// Returns the domain's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the shards, in order.
    #[must_use]
    pub fn shards(&self) -> &[Shard] {
        &self.shards
    }

    /// Returns the number of tokens in all shards.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        self.ends.last().copied().unwrap_or(0)
    }

    fn start(&self, shard: usize) -> u64 {
        shard.checked_sub(1).map_or(0, |before| self.ends[before])
    }

    /// Returns the ranges of a row: key of the shard in the file cache, the shard, first token in it, number of tokens.
    fn ranges(
        &self,
        pick: Pick,
        seq_len: usize,
    ) -> impl Iterator<Item = (u64, &Shard, u64, usize)> {
        assert!(
            pick.row < self.tokens() / seq_len as u64,
            "a row of the domain"
        );
        let mut start = pick.row * seq_len as u64;
        let end = start + seq_len as u64;
        let first = self.ends.partition_point(|&end| end <= start);
        (first..self.shards.len()).map_while(move |number| {
            if start == end {
                return None;
            }
            let count = self.ends[number].min(end) - start;
            let shard = &self.shards[number];
            let range = (
                u64::from(pick.domain) << 32 | number as u64,
                shard,
                start - self.start(number),
                count as usize,
            );
            start += count;
            Some(range)
        })
    }
}

/// The address of a row: number `row` of domain number `domain`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pick {
    /// Number of the domain.
    pub domain: u32,
    /// Number of the row within the domain.
    pub row: u64,
}

/// Domains that share a vocabulary.
#[derive(Debug)]
pub struct Corpus {
    domains: Vec<Domain>,
    /// Upper limit of the ids as unsigned numbers: 2^63 if only negative ids are refused.
    limit: u64,
    files: FileCache,
}

/// Gives the empty `out` a capacity of `len` tokens.
pub(crate) fn reserve<T>(out: &mut Vec<T>, len: usize) -> Result<()> {
    out.try_reserve_exact(len)
        .map_err(|_| Error::Memory { tokens: len })
}

impl Corpus {
    /// Creates a corpus of `domains`, with ids from 0 to `vocab_size - 1`, or any ids >= 0 if that is `None`.
    #[must_use]
    pub fn new(domains: Vec<Domain>, vocab_size: Option<u32>) -> Self {
        Self {
            domains,
            limit: vocab_size.map_or(1 << 63, u64::from),
            files: FileCache::default(),
        }
    }

    /// Returns the domains, in order.
    #[must_use]
    pub fn domains(&self) -> &[Domain] {
        &self.domains
    }

    /// Returns the number of rows of `seq_len` tokens in each domain.
    ///
    /// # Panics
    ///
    /// If `seq_len` is 0.
    #[must_use]
    pub fn rows(&self, seq_len: usize) -> Vec<u64> {
        self.domains
            .iter()
            .map(|domain| domain.tokens() / seq_len as u64)
            .collect()
    }

    /// Reads the rows `picks` into `out`, `seq_len` tokens each, row after row.
    ///
    /// # Performance
    ///
    /// O(tokens read), and one `preadv2(RWF_NOWAIT)` for each range of a shard. Rows that are not in the page cache are
    /// requested all at once (`posix_fadvise`) and read after the others, so the disk works on many requests. Files come
    /// from an LRU cache of handles; one `fstat` for each file and call checks that it has not changed. 32 rows of 4,096
    /// `u16` take 36 us from the page cache (`benches/README.md`).
    ///
    /// # Examples
    ///
    /// See the [crate](crate).
    ///
    /// # Errors
    ///
    /// [`Error::Corpus`](crate::Error::Corpus) if a file is missing, truncated or changed since it was opened, or an id is
    /// outside the vocabulary or does not fit `T`; [`Error::Io`](crate::Error::Io) if the system cannot read it. The
    /// contents of `out` are then unspecified.
    ///
    /// # Panics
    ///
    /// If a pick names a domain or row that does not exist, or `out` is not `picks.len() * seq_len` long.
    pub fn gather<T: Token>(&self, picks: &[Pick], seq_len: usize, out: &mut [T]) -> Result<()> {
        let places = std::ptr::from_mut(out) as *mut [MaybeUninit<T>];
        // SAFETY: the two types have the same layout, and `fill` only writes tokens, so `out` stays valid.
        self.fill(picks, seq_len, unsafe { &mut *places })?;
        Ok(())
    }

    /// Like [`gather`](Self::gather), into the memory of `out` without initialising it first. Returns whether the call had
    /// to wait for rows that were not in memory.
    ///
    /// # Errors
    ///
    /// As [`gather`](Self::gather), or [`Error::Memory`]; `out` is then empty.
    ///
    /// # Panics
    ///
    /// If a pick names a domain or row that does not exist.
    pub fn gather_vec<T: Token>(
        &self,
        picks: &[Pick],
        seq_len: usize,
        out: &mut Vec<T>,
    ) -> Result<bool> {
        let len = picks.len().saturating_mul(seq_len);
        out.clear();
        reserve(out, len)?;
        let waited = self.fill(picks, seq_len, &mut out.spare_capacity_mut()[..len])?;
        // SAFETY: the capacity is at least `len`, and `fill`, which succeeded, has written each element.
        unsafe { out.set_len(len) };
        Ok(waited)
    }

    /// Writes every element of `out` unless it fails; returns whether it had to wait.
    fn fill<T: Token>(
        &self,
        picks: &[Pick],
        seq_len: usize,
        out: &mut [MaybeUninit<T>],
    ) -> Result<bool> {
        assert_eq!(
            out.len(),
            picks.len() * seq_len,
            "out has picks.len() * seq_len tokens"
        );
        let mut reading = Reading {
            corpus: self,
            bytes: Vec::new(),
            touched: Vec::new(),
        };
        let mut late = Vec::new();
        for (number, tokens) in out.chunks_exact_mut(seq_len).enumerate() {
            if !reading.row(picks[number], tokens, picks.len() == 1)? {
                late.push(number);
            }
        }
        for &number in &late {
            let tokens = &mut out[number * seq_len..][..seq_len];
            let complete = reading.row(picks[number], tokens, true)?;
            assert!(complete, "a row that is waited for is read");
        }
        reading.check_unchanged()?;
        Ok(!late.is_empty())
    }

    /// Requests the rows `picks` from the operating system, which reads them into memory in the background. Checks
    /// nothing and never fails: errors appear when the rows are read. Does nothing except on Linux.
    pub fn will_need(&self, picks: &[Pick], seq_len: usize) {
        for pick in picks {
            let domain = &self.domains[pick.domain as usize];
            for (key, shard, start, count) in domain.ranges(*pick, seq_len) {
                // Materializing a shard takes seconds, and an earlier batch would wait for it.
                let source = if shard.is_materialized() {
                    self.files.find(key)
                } else {
                    self.files.get(key, || shard.open_tokens()).ok()
                };
                let Some(source) = source else {
                    continue;
                };
                for extent in shard.extents(start, count as u64) {
                    let bytes = extent.count as usize * shard.dtype().size();
                    source.will_need(extent.offset, bytes);
                }
            }
        }
    }

    /// Runs [`Self::gather`] on `threads` threads: for files that are not in memory, on a disk that serves several requests
    /// at once.
    ///
    /// # Errors
    ///
    /// As [`Self::gather`]; of several errors the one for the first row.
    ///
    /// # Panics
    ///
    /// As [`Self::gather`].
    pub fn gather_on<T: Token>(
        &self,
        threads: usize,
        picks: &[Pick],
        seq_len: usize,
        out: &mut [T],
    ) -> Result<()> {
        assert_eq!(
            out.len(),
            picks.len() * seq_len,
            "out has picks.len() * seq_len tokens"
        );
        let share = picks.len().div_ceil(threads.max(1)).max(1);
        let mut parts = picks.chunks(share).zip(out.chunks_mut(share * seq_len));
        let Some((mine, place)) = parts.next() else {
            return Ok(());
        };
        std::thread::scope(|scope| {
            let others: Vec<_> = parts
                .map(|(picks, out)| scope.spawn(|| self.gather(picks, seq_len, out)))
                .collect();
            let first = self.gather(mine, seq_len, place);
            others.into_iter().fold(first, |result, other| {
                let other = other
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                result.and(other)
            })
        })
    }
}

/// One call of [`Corpus::gather`].
struct Reading<'a> {
    corpus: &'a Corpus,
    bytes: Vec<u8>,
    touched: Vec<Arc<Source>>,
}

impl Reading<'_> {
    /// Reads a row into `out`. Without `wait`, returns false if a part of the row is not in memory.
    fn row<T: Token>(
        &mut self,
        pick: Pick,
        mut out: &mut [MaybeUninit<T>],
        wait: bool,
    ) -> Result<bool> {
        let domain = &self.corpus.domains[pick.domain as usize];
        let mut complete = true;
        for (key, shard, start, count) in domain.ranges(pick, out.len()) {
            let (now, rest) = out.split_at_mut(count);
            complete &= self.shard(key, shard, start, now, wait)?;
            out = rest;
        }
        assert!(out.is_empty(), "the ranges are a whole row");
        Ok(complete)
    }

    fn shard<T: Token>(
        &mut self,
        key: u64,
        shard: &Shard,
        start: u64,
        out: &mut [MaybeUninit<T>],
        wait: bool,
    ) -> Result<bool> {
        if out.is_empty() {
            return Ok(true);
        }
        let source = self.corpus.files.get(key, || shard.open_tokens())?;
        let (mut next, mut rest, mut complete) = (start, out, true);
        for extent in shard.extents(start, rest.len() as u64) {
            let (now, after) = rest.split_at_mut(extent.count as usize);
            match self.extent(shard, &source, extent, next, now, wait) {
                Ok(read) => complete &= read,
                // If the file changed, report the change and not its consequence.
                Err(error) => return source.unchanged().and(Err(error)),
            }
            next += extent.count;
            rest = after;
        }
        assert!(rest.is_empty(), "the extents are a whole range");
        if !self.touched.iter().any(|known| Arc::ptr_eq(known, &source)) {
            self.touched.push(source);
            if self.touched.len() == MAX_TOUCHED {
                self.check_unchanged()?;
            }
        }
        Ok(complete)
    }

    /// Reads a extent, whose first token is number `start` of the shard.
    fn extent<T: Token>(
        &mut self,
        shard: &Shard,
        source: &Source,
        extent: Extent<'_>,
        start: u64,
        out: &mut [MaybeUninit<T>],
        wait: bool,
    ) -> Result<bool> {
        let dtype = shard.dtype();
        let ahead = extent.prefix.len();
        self.bytes.resize(ahead + out.len() * dtype.size(), 0);
        let offset = extent.offset - ahead as u64;
        if wait {
            source.read(offset, &mut self.bytes)?;
        } else if !source.read_from_memory(offset, &mut self.bytes)? {
            return Ok(false);
        }
        let (prefix, bytes) = self.bytes.split_at(ahead);
        if prefix != extent.prefix {
            return Err(source.problem(format!(
                "expected {:?} before token {start} as in the first sample, found {prefix:?}",
                extent.prefix
            )));
        }
        let limit = self.corpus.limit.min(T::LIMIT);
        if dtype.widen(bytes, out) < limit {
            return Ok(true);
        }
        let (place, id) = dtype.find_outside(bytes, limit).unwrap_or_default();
        let token = start + place as u64;
        let found = if id < 0 && self.corpus.limit >= T::LIMIT {
            CorpusProblem::NegativeId { token, id }
        } else if self.corpus.limit > T::LIMIT {
            CorpusProblem::WideId { token, id }
        } else {
            CorpusProblem::IdOutsideVocabulary {
                token,
                id,
                vocab_size: limit,
            }
        };
        Err(problem(shard.path(), found))
    }

    /// Checks that the files read from have not changed since the corpus was opened.
    fn check_unchanged(&mut self) -> Result<()> {
        self.touched
            .drain(..)
            .try_for_each(|source| source.unchanged())
    }
}
