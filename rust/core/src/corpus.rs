//! Domains, each a string of tokens over many shards, and the reading of rows from them.

mod documents;
mod file_cache;
mod open_shards;
mod shard;

use std::mem::MaybeUninit;
use std::sync::Arc;

use crate::error::Result;
use crate::source::{Source, problem};
use crate::tokens::Token;
use file_cache::FileCache;
use shard::Piece;

pub use documents::{Documents, find_documents};
pub use open_shards::{ShardRequest, ends_sha256, open_shards};
pub use shard::Shard;

/// Files that one call has read from and not yet looked at again. Each stays open until then.
const MAX_TOUCHED: usize = 32;

/// A named string of tokens: its shards, one after the other.
#[derive(Debug)]
pub struct Domain {
    name: String,
    shards: Vec<Shard>,
    /// Where each shard ends, in tokens of the domain.
    ends: Vec<u64>,
}

impl Domain {
    /// The domain of `shards` in order.
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
                .ok_or_else(|| {
                    problem(
                        shard.path(),
                        "expected fewer than 2^63 tokens so far".into(),
                    )
                })?;
            ends.push(tokens);
        }
        Ok(Self { name, shards, ends })
    }

    /// The domain's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its shards in order.
    #[must_use]
    pub fn shards(&self) -> &[Shard] {
        &self.shards
    }

    /// Tokens in all shards.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        self.ends.last().copied().unwrap_or(0)
    }

    fn start(&self, shard: usize) -> u64 {
        shard.checked_sub(1).map_or(0, |before| self.ends[before])
    }

    /// What a row consists of: key of the shard in the file cache, the shard, first token in it, how many.
    fn stretches(
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
            let stretch = (
                u64::from(pick.domain) << 32 | number as u64,
                shard,
                start - self.start(number),
                count as usize,
            );
            start += count;
            Some(stretch)
        })
    }
}

/// A row: `row` of domain number `domain`.
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
    /// Ids, seen as unsigned numbers, are below this: 2^63 where only negative ones are wrong.
    limit: u64,
    files: FileCache,
}

impl Corpus {
    /// A corpus of `domains`, whose ids are 0 to `vocab_size - 1`, or 0 and above if that is `None`.
    #[must_use]
    pub fn new(domains: Vec<Domain>, vocab_size: Option<u32>) -> Self {
        Self {
            domains,
            limit: vocab_size.map_or(1 << 63, u64::from),
            files: FileCache::default(),
        }
    }

    /// The domains in order.
    #[must_use]
    pub fn domains(&self) -> &[Domain] {
        &self.domains
    }

    /// Rows of `seq_len` tokens in each domain.
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

    /// Reads the rows that `picks` name into `out`, `seq_len` tokens each, one row after the other. Rows that are not in
    /// memory are asked of the disk all at once, and waited for after those that are.
    ///
    /// # Errors
    ///
    /// [`Error::Corpus`](crate::Error::Corpus) if a file is missing, short, or not as it was when it was opened,
    /// or an id is outside the vocabulary or does not fit `T`; [`Error::Io`](crate::Error::Io) if the system
    /// cannot read it. What `out` then holds is unspecified.
    ///
    /// # Panics
    ///
    /// If a pick names a domain or row that does not exist, or `out` is not `picks.len() * seq_len` long.
    pub fn gather<T: Token>(&self, picks: &[Pick], seq_len: usize, out: &mut [T]) -> Result<()> {
        let places = std::ptr::from_mut(out) as *mut [MaybeUninit<T>];
        // SAFETY: the two types have one layout, and `fill` only ever sets a place, so that `out` stays valid.
        self.fill(picks, seq_len, unsafe { &mut *places })?;
        Ok(())
    }

    /// Like [`gather`](Self::gather), with `out` emptied first and its memory used as it is: none is set before it is
    /// read into. Returns whether some of the rows had to be waited for.
    ///
    /// # Errors
    ///
    /// Those of [`gather`](Self::gather); `out` is empty then.
    ///
    /// # Panics
    ///
    /// If a pick names a domain or row that does not exist, or there is no memory for so many tokens.
    pub fn gather_vec<T: Token>(
        &self,
        picks: &[Pick],
        seq_len: usize,
        out: &mut Vec<T>,
    ) -> Result<bool> {
        let len = picks.len().saturating_mul(seq_len);
        out.clear();
        out.reserve_exact(len);
        let waited = self.fill(picks, seq_len, &mut out.spare_capacity_mut()[..len])?;
        // SAFETY: so many places are reserved, and `fill`, which did not fail, has set each.
        unsafe { out.set_len(len) };
        Ok(waited)
    }

    /// Sets every place of `out`, unless it fails; returns whether it had to wait for some.
    fn fill<T: Token>(
        &self,
        picks: &[Pick],
        seq_len: usize,
        out: &mut [MaybeUninit<T>],
    ) -> Result<bool> {
        assert_eq!(out.len(), picks.len() * seq_len, "a place for each token");
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
        reading.look_again()?;
        Ok(!late.is_empty())
    }

    /// Has the system fetch the rows that `picks` name into memory, in the background: for whoever knows them some batches
    /// ahead. Nothing is checked and nothing fails here; reading them will tell. Does nothing but on Linux.
    pub fn will_need(&self, picks: &[Pick], seq_len: usize) {
        for pick in picks {
            let domain = &self.domains[pick.domain as usize];
            for (key, shard, start, count) in domain.stretches(*pick, seq_len) {
                // To unpack a shard takes seconds, which whoever reads an earlier batch first would wait for.
                let source = if shard.is_materialized() {
                    self.files.find(key)
                } else {
                    self.files.get(key, || shard.open_tokens()).ok()
                };
                let Some(source) = source else {
                    continue;
                };
                for piece in shard.pieces(start, count as u64) {
                    let bytes = piece.count as usize * shard.dtype().size();
                    source.will_need(piece.offset, bytes);
                }
            }
        }
    }

    /// [`Self::gather`] on `threads` threads: for files that are not in memory, whose disk serves several at once.
    ///
    /// # Errors
    ///
    /// As [`Self::gather`]; of several the one for the first row.
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
        assert_eq!(out.len(), picks.len() * seq_len, "a place for each token");
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
    /// Reads a row, and sets every place of `out`; or, unless it may wait, returns false if some of it is not in memory.
    fn row<T: Token>(
        &mut self,
        pick: Pick,
        mut out: &mut [MaybeUninit<T>],
        wait: bool,
    ) -> Result<bool> {
        let domain = &self.corpus.domains[pick.domain as usize];
        let mut complete = true;
        for (key, shard, start, count) in domain.stretches(pick, out.len()) {
            let (now, rest) = out.split_at_mut(count);
            complete &= self.shard(key, shard, start, now, wait)?;
            out = rest;
        }
        assert!(out.is_empty(), "stretches are a whole row");
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
        for piece in shard.pieces(start, rest.len() as u64) {
            let (now, after) = rest.split_at_mut(piece.count as usize);
            match self.piece(shard, &source, piece, next, now, wait) {
                Ok(read) => complete &= read,
                // Of a file that changed, say that, and not what came of it.
                Err(error) => return source.unchanged().and(Err(error)),
            }
            next += piece.count;
            rest = after;
        }
        assert!(rest.is_empty(), "pieces are a whole stretch");
        if !self.touched.iter().any(|known| Arc::ptr_eq(known, &source)) {
            self.touched.push(source);
            if self.touched.len() == MAX_TOUCHED {
                self.look_again()?;
            }
        }
        Ok(complete)
    }

    /// Reads a piece, whose first token is number `start` of the shard.
    fn piece<T: Token>(
        &mut self,
        shard: &Shard,
        source: &Source,
        piece: Piece<'_>,
        start: u64,
        out: &mut [MaybeUninit<T>],
        wait: bool,
    ) -> Result<bool> {
        let dtype = shard.dtype();
        let ahead = piece.prefix.len();
        self.bytes.resize(ahead + out.len() * dtype.size(), 0);
        let offset = piece.offset - ahead as u64;
        if wait {
            source.read(offset, &mut self.bytes)?;
        } else if !source.read_from_memory(offset, &mut self.bytes)? {
            return Ok(false);
        }
        let (prefix, bytes) = self.bytes.split_at(ahead);
        if prefix != piece.prefix {
            return Err(problem(
                shard.path(),
                format!(
                    "expected {:?} before token {start} as in the first sample, found {prefix:?}",
                    piece.prefix
                ),
            ));
        }
        let limit = self.corpus.limit.min(T::LIMIT);
        if dtype.widen(bytes, out) < limit {
            return Ok(true);
        }
        let (place, id) = dtype.find_outside(bytes, limit).unwrap_or_default();
        let token = start + place as u64;
        Err(problem(
            shard.path(),
            if id < 0 && self.corpus.limit >= T::LIMIT {
                format!("expected token ids of 0 and above, found {id} at token {token}")
            } else if self.corpus.limit > T::LIMIT {
                format!("expected token ids below 2^31 for int32, found {id} at token {token}")
            } else {
                format!(
                    "expected token ids below the vocabulary's {limit}, found {id} at token {token}"
                )
            },
        ))
    }

    /// Makes sure that what was read came from files as they were when the corpus was opened.
    fn look_again(&mut self) -> Result<()> {
        self.touched
            .drain(..)
            .try_for_each(|source| source.unchanged())
    }
}
