//! File formats: each reader returns the layout of a file's tokens.

pub(crate) mod flat;
pub(crate) mod layout;
pub(crate) mod materialize;
pub mod mds;
pub mod megatron;
mod zstd;

use std::path::Path;
use std::sync::Arc;

use crate::error::Result;
use crate::source::Source;
use crate::tokens::Dtype;
use layout::{Layout, Placement};
use materialize::materialized;
use mds::{Samples, ShardEntry};

/// Reads the layout of a `.bin` file: Megatron's if an `.idx` of the same name exists, else flat. `dtype` is the
/// expected type of the tokens; a flat file without a header needs it.
pub(crate) fn read_bin(bin: &Source, dtype: Option<Dtype>) -> Result<Layout> {
    let index = bin.path().with_extension("idx");
    if !index.exists() {
        return flat::layout(bin, dtype);
    }
    let layout = megatron::layout(bin, Source::open(&index)?)?;
    bin.expect_dtype(dtype, layout.dtype, "index")?;
    Ok(layout)
}

/// Reads the layout of the MDS shard `source`. A shard whose tokens cannot be read in place is materialized in `cache`;
/// that happens here only where its tokens cannot be counted otherwise.
pub(crate) fn read_mds(source: &Source, entry: ShardEntry, cache: &Arc<Path>) -> Result<Layout> {
    let head = Samples::open(source, &entry)?.head()?;
    let tokens = match head.tokens {
        Some(tokens) => tokens,
        None => materialized(source, &entry, head.dtype, cache)?.1,
    };
    let placement = match head.strided {
        Some(strided) => Placement::Strided(Box::new(strided)),
        None => Placement::Materialized {
            entry: Box::new(entry),
            cache: Arc::clone(cache),
        },
    };
    Ok(Layout {
        dtype: head.dtype,
        tokens,
        documents: None,
        placement,
    })
}
