//! The common result of all format readers: dtype, number and placement of a file's tokens.

use std::path::Path;
use std::sync::Arc;

use super::mds::{ShardEntry, Strided};
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
