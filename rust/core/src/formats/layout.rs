//! The common result of all format readers: dtype, number and placement of a file's tokens.

use std::path::Path;
use std::sync::Arc;

use super::mds::ShardEntry;
use crate::error::Result;
use crate::source::Source;
use crate::tokens::Dtype;

/// The tokens of a file, whatever its format.
#[derive(Debug)]
pub(crate) struct Layout {
    pub(crate) dtype: Dtype,
    pub(crate) tokens: u64,
    /// Number of documents, where an index counts them.
    pub(crate) documents: Option<u64>,
    pub(crate) placement: Placement,
}

impl Layout {
    /// The layout of `tokens` contiguous tokens that start at byte `start`.
    pub(crate) fn contiguous(dtype: Dtype, start: u64, tokens: u64) -> Self {
        Self {
            dtype,
            tokens,
            documents: None,
            placement: Placement::Contiguous { start },
        }
    }
}

/// The bytes of the file that hold tokens.
#[derive(Debug)]
pub(crate) enum Placement {
    /// All bytes from `start` on.
    Contiguous { start: u64 },
    /// Samples at equal distances.
    Strided(Box<Strided>),
    /// None: the tokens are read from a flat copy in `cache`, see `materialize.rs`.
    Materialized {
        entry: Box<ShardEntry>,
        cache: Arc<Path>,
    },
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

/// Checks the dtype `found` in a file against the dtype that the user expects; `place` names where it was found.
pub(crate) fn expect_dtype(
    source: &Source,
    expected: Option<Dtype>,
    found: Dtype,
    place: &str,
) -> Result<()> {
    match expected {
        Some(expected) if expected != found => Err(source.problem(format!(
            "expected {} tokens (dtype=), found {} ({place})",
            expected.name(),
            found.name()
        ))),
        _ => Ok(()),
    }
}
