//! Flat token files: contiguous tokens, without a header (nanoGPT) or after llm.c's header.
//!
//! The header is 256 32-bit integers: a magic number, a version, the number of tokens, and zeros (llm.c,
//! `dev/data/data_common.py`).

use super::layout::Layout;
use crate::error::Result;
use crate::source::Source;
use crate::tokens::Dtype;

const HEADER_BYTES: u64 = 1024;

/// Magic number, version, and dtype of the tokens.
const KINDS: [(u32, u32, Dtype); 2] = [
    (20_240_520, 1, Dtype::U16), // "gpt-2"
    (20_240_801, 7, Dtype::U32), // "llama-3"
];
/// Multiple-choice questions instead of tokens.
const EVALUATION_MAGIC: u32 = 20_240_522;

/// Reads the layout of `bin`, which has no index. A header names the dtype; without a header `dtype` is required.
pub(crate) fn layout(bin: &Source, dtype: Option<Dtype>) -> Result<Layout> {
    if let Some((found, tokens)) = read_header(bin)? {
        bin.expect_dtype(dtype, found, "header")?;
        return Ok(Layout::contiguous(found, HEADER_BYTES, tokens));
    }
    let Some(dtype) = dtype else {
        let index = bin.path().with_extension("idx");
        return Err(bin.problem(format!(
            "expected an index next to it ({}) or a header, found neither; name the dtype of a flat \
             token file, for instance dtype=\"uint16\"",
            index.file_name().unwrap_or_default().to_string_lossy()
        )));
    };
    let size = dtype.size() as u64;
    if !bin.len().is_multiple_of(size) {
        return Err(bin.problem(format!(
            "expected a multiple of {size} bytes ({}), found {}",
            dtype.name(),
            bin.len()
        )));
    }
    Ok(Layout::contiguous(dtype, 0, bin.len() / size))
}

fn read_header(bin: &Source) -> Result<Option<(Dtype, u64)>> {
    if bin.len() < HEADER_BYTES {
        return Ok(None);
    }
    let bytes: [u8; HEADER_BYTES as usize] = bin.array(0)?;
    let word = |number: usize| {
        let at = 4 * number;
        u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
    };
    let (magic, version, tokens) = (word(0), word(1), word(2));
    let size_of = |dtype: Dtype| HEADER_BYTES + u64::from(tokens) * dtype.size() as u64;
    if magic == EVALUATION_MAGIC {
        return Err(bin.problem(
            "expected tokens, found an llm.c file of multiple-choice questions (magic 20240522)"
                .into(),
        ));
    }
    let Some(&(_, expected, dtype)) = KINDS.iter().find(|kind| kind.0 == magic) else {
        // Zeros and a count that fits: otherwise a header with a damaged magic would be read as tokens.
        let zeros = bytes[12..].iter().all(|&byte| byte == 0);
        if zeros && KINDS.iter().any(|kind| size_of(kind.2) == bin.len()) {
            return Err(bin.problem(format!(
                "expected llm.c's magic 20240520 or 20240801 before {tokens} tokens, found {magic}"
            )));
        }
        return Ok(None);
    };
    if version != expected {
        return Err(bin.problem(format!(
            "expected version {expected} behind llm.c's magic {magic}, found {version}"
        )));
    }
    if size_of(dtype) != bin.len() {
        return Err(bin.problem(format!(
            "expected {} bytes for the {tokens} {} tokens in llm.c's header, found {}",
            size_of(dtype),
            dtype.name(),
            bin.len()
        )));
    }
    Ok(Some((dtype, u64::from(tokens))))
}
