//! Domains, each a string of tokens over many shards, and the reading of rows from them.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::error::{Error, Result};
use crate::file::Source;
use crate::tokens::{Dtype, Token};

/// Files that stay open. Any further one is opened for each read, since systems commonly allow a process 1024.
const MAX_OPEN: usize = 256;

/// A file of tokens, back to back. It is opened when its first row is read.
#[derive(Debug)]
pub struct Shard {
    path: PathBuf,
    dtype: Dtype,
    tokens: u64,
    source: OnceLock<Source>,
}

impl Shard {
    /// A shard of `tokens` tokens at `path`.
    #[must_use]
    pub fn new(path: PathBuf, dtype: Dtype, tokens: u64) -> Self {
        Self {
            path,
            dtype,
            tokens,
            source: OnceLock::new(),
        }
    }

    fn open(&self) -> Result<Source> {
        let source = Source::open(&self.path)?;
        let expected = self.tokens.checked_mul(self.dtype.size() as u64);
        if expected != Some(source.len()) {
            return Err(source.problem(format!(
                "expected {} {} tokens in the file, found {} bytes",
                self.tokens,
                self.dtype.name(),
                source.len()
            )));
        }
        Ok(source)
    }

    fn read<T: Token>(&self, start: u64, out: &mut [T], scratch: &mut Scratch<'_>) -> Result<u64> {
        let size = self.dtype.size();
        scratch.bytes.resize(out.len() * size, 0);
        let offset = start * size as u64;
        if let Some(source) = self.source.get() {
            source.read(offset, &mut scratch.bytes)?;
        } else {
            let source = self.open()?;
            source.read(offset, &mut scratch.bytes)?;
            if scratch.kept_open.fetch_add(1, Ordering::Relaxed) < MAX_OPEN {
                self.source.get_or_init(|| source);
            }
        }
        Ok(self.dtype.widen(&scratch.bytes, out))
    }
}

/// What reading needs besides the place to put tokens.
struct Scratch<'a> {
    bytes: Vec<u8>,
    kept_open: &'a AtomicUsize,
}

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
    /// [`Error::Corpus`] if the number of tokens overflows 2^63.
    pub fn new(name: String, shards: Vec<Shard>) -> Result<Self> {
        let mut tokens = 0u64;
        let mut ends = Vec::with_capacity(shards.len());
        for shard in &shards {
            tokens = tokens
                .checked_add(shard.tokens)
                .filter(|&tokens| i64::try_from(tokens).is_ok())
                .ok_or_else(|| {
                    crate::file::problem(
                        &shard.path,
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

    /// Tokens in all shards.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        self.ends.last().copied().unwrap_or(0)
    }

    /// The file that holds token `token`, and the token's place in it.
    fn locate(&self, token: u64) -> (&Path, u64) {
        let shard = self.ends.partition_point(|&end| end <= token);
        (&self.shards[shard].path, token - self.start(shard))
    }

    fn start(&self, shard: usize) -> u64 {
        shard.checked_sub(1).map_or(0, |before| self.ends[before])
    }

    /// Reads `out.len()` tokens from `start` on; returns the largest id.
    fn read<T: Token>(
        &self,
        mut start: u64,
        mut out: &mut [T],
        scratch: &mut Scratch<'_>,
    ) -> Result<u64> {
        let mut largest = 0;
        let mut shard = self.ends.partition_point(|&end| end <= start);
        while !out.is_empty() {
            let count = (self.ends[shard] - start).min(out.len() as u64) as usize;
            let (now, rest) = out.split_at_mut(count);
            largest =
                largest.max(self.shards[shard].read(start - self.start(shard), now, scratch)?);
            out = rest;
            start += count as u64;
            shard += 1;
        }
        Ok(largest)
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
    kept_open: AtomicUsize,
}

impl Corpus {
    /// A corpus of `domains`, whose ids are 0 to `vocab_size - 1`, or 0 and above if that is `None`.
    #[must_use]
    pub fn new(domains: Vec<Domain>, vocab_size: Option<u32>) -> Self {
        Self {
            domains,
            limit: vocab_size.map_or(1 << 63, u64::from),
            kept_open: AtomicUsize::new(0),
        }
    }

    /// The domains in order.
    #[must_use]
    pub fn domains(&self) -> &[Domain] {
        &self.domains
    }

    /// Rows of `seq_len` tokens in each domain.
    #[must_use]
    pub fn rows(&self, seq_len: usize) -> Vec<u64> {
        self.domains
            .iter()
            .map(|domain| domain.tokens() / seq_len as u64)
            .collect()
    }

    /// Reads the rows that `picks` name into `out`, `seq_len` tokens each, one row after the other.
    ///
    /// # Errors
    ///
    /// [`Error::Corpus`] if a file is missing, short or not of the size it had, or an id is outside the vocabulary;
    /// [`Error::Io`] if the system cannot read it. What `out` then holds is unspecified.
    ///
    /// # Panics
    ///
    /// If a pick names a domain or row that does not exist, or `out` is not `picks.len() * seq_len` long.
    pub fn gather<T: Token>(&self, picks: &[Pick], seq_len: usize, out: &mut [T]) -> Result<()> {
        assert_eq!(out.len(), picks.len() * seq_len, "a place for each token");
        let mut scratch = Scratch {
            bytes: Vec::new(),
            kept_open: &self.kept_open,
        };
        for (pick, tokens) in picks.iter().zip(out.chunks_exact_mut(seq_len)) {
            let domain = &self.domains[pick.domain as usize];
            assert!(
                pick.row < domain.tokens() / seq_len as u64,
                "a row of the domain"
            );
            let start = pick.row * seq_len as u64;
            let limit = self.limit.min(T::LIMIT);
            if domain.read(start, tokens, &mut scratch)? >= limit {
                return Err(outside(domain, start, seq_len, limit, &mut scratch));
            }
        }
        Ok(())
    }
}

/// The error for the row from `start` on, of which an id is not below `limit`.
fn outside(
    domain: &Domain,
    start: u64,
    seq_len: usize,
    limit: u64,
    scratch: &mut Scratch<'_>,
) -> Error {
    let mut tokens = vec![0i64; seq_len];
    if let Err(error) = domain.read(start, &mut tokens, scratch) {
        return error;
    }
    let place = tokens
        .iter()
        .position(|&id| id as u64 >= limit)
        .unwrap_or(0);
    let (path, token) = domain.locate(start + place as u64);
    let id = tokens[place];
    Error::Corpus {
        path: path.to_owned(),
        problem: if limit >= i64::LIMIT {
            format!("expected token ids of 0 and above, found {id} at token {token}")
        } else {
            format!(
                "expected token ids below the vocabulary's {limit}, found {id} at token {token}"
            )
        },
    }
}
