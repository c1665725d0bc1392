//! Megatron's indexed dataset: an `.idx` file that describes a `.bin` file of the same name.
//!
//! The layout is in `docs/corpus.md` (and in Megatron-LM, `core/datasets/indexed_dataset.py`). Each count in a
//! header is checked against the sizes of both files before memory is allocated or data read by it.

use std::path::Path;

use super::layout::Layout;
use crate::error::Result;
use crate::source::Source;
use crate::tokens::Dtype;

const MAGIC: &[u8; 9] = b"MMIDIDX\0\0";
const HEADER_BYTES: u64 = 34;
/// Sequences checked at each end of an index on opening; [`verify`] checks the others.
const SAMPLE: u64 = 256;
/// Sequences read at a time by [`verify`].
const CHUNK: u64 = 1 << 16;

/// The content of an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Index {
    /// Type of the tokens.
    pub dtype: Dtype,
    /// Tokens in the `.bin`.
    pub tokens: u64,
    /// Documents in the `.bin`.
    pub documents: u64,
    /// Whether each sequence has a mode, as in multimodal data. Rows ignore modes.
    pub modes: bool,
}

/// Reads the header of the `.idx` of `bin` and checks it against both files. Costs a few small reads.
///
/// # Errors
///
/// [`Error::Corpus`](crate::Error::Corpus) naming the file, what was expected and what was found.
pub fn read_index(bin: &Path) -> Result<Index> {
    let index = Source::open(&bin.with_extension("idx"))?;
    Ok(check(&Source::open(bin)?, index)?.index)
}

/// Reads the layout of `bin`, whose `.idx` is `index`.
pub(crate) fn layout(bin: &Source, index: Source) -> Result<Layout> {
    let Index {
        dtype,
        tokens,
        documents,
        ..
    } = check(bin, index)?.index;
    Ok(Layout {
        documents: Some(documents),
        ..Layout::contiguous(dtype, 0, tokens)
    })
}

fn check(bin: &Source, index: Source) -> Result<Opened> {
    let opened = Opened::new(bin, index)?;
    let count = opened.sequences;
    opened.check_sequences(0, count.min(SAMPLE))?;
    if count > SAMPLE {
        opened.check_sequences((count - SAMPLE).max(SAMPLE), count)?;
    }
    Ok(opened)
}

/// Reads the whole `.idx` of `bin`: every sequence must start where the previous one ends.
///
/// # Errors
///
/// As [`read_index`].
pub fn verify(bin: &Path) -> Result<Index> {
    let index = Source::open(&bin.with_extension("idx"))?;
    let opened = Opened::new(&Source::open(bin)?, index)?;
    for start in (0..opened.sequences).step_by(CHUNK as usize) {
        opened.check_sequences(start, opened.sequences.min(start + CHUNK))?;
    }
    opened.check_documents()?;
    Ok(opened.index)
}

struct Opened {
    source: Source,
    index: Index,
    sequences: u64,
    bin_bytes: u64,
}

impl Opened {
    fn new(bin: &Source, source: Source) -> Result<Self> {
        let bin_bytes = bin.len();
        if source.len() < HEADER_BYTES {
            return Err(source.problem(format!(
                "expected a header of {HEADER_BYTES} bytes, found {} bytes in all",
                source.len()
            )));
        }
        let header: [u8; HEADER_BYTES as usize] = source.array(0)?;
        let (magic, rest) = header.split_at(MAGIC.len());
        if magic != MAGIC {
            return Err(source.problem(format!(
                "expected the magic \"{}\", found \"{}\"; this is not a Megatron index",
                MAGIC.escape_ascii(),
                magic.escape_ascii()
            )));
        }
        let version = word(&rest[..8]) as u64;
        if version != 1 {
            return Err(source.problem(format!("expected version 1, found {version}")));
        }
        let dtype = dtype_of(&source, rest[8])?;
        let sequences = word(&rest[9..17]) as u64;
        let boundaries = word(&rest[17..]) as u64;
        let expected = 34 + 12 * u128::from(sequences) + 8 * u128::from(boundaries);
        let found = u128::from(source.len());
        let modes = sequences > 0 && found == expected + u128::from(sequences);
        if expected != found && !modes {
            return Err(source.problem(format!(
                "expected {expected} bytes for {sequences} sequences and {boundaries} document boundaries (or \
                 {sequences} more with modes), found {found}"
            )));
        }
        let size = dtype.size() as u64;
        if !bin_bytes.is_multiple_of(size) {
            return Err(bin.problem(format!(
                "expected a multiple of {size} bytes ({}), found {bin_bytes}",
                dtype.name()
            )));
        }
        let opened = Self {
            source,
            index: Index {
                dtype,
                tokens: bin_bytes / size,
                documents: boundaries.saturating_sub(1),
                modes,
            },
            sequences,
            bin_bytes,
        };
        opened.check_ends(boundaries)?;
        Ok(opened)
    }

    /// Checks that the first document starts at the first sequence and the last ends with the last.
    fn check_ends(&self, boundaries: u64) -> Result<()> {
        if boundaries == 0 {
            return Err(self
                .source
                .problem("expected at least 1 document boundary, found 0".into()));
        }
        for (place, expected) in [(0, 0), (boundaries - 1, self.sequences)] {
            let found = i64::from_le_bytes(self.source.array(self.documents_at() + 8 * place)?);
            if u64::try_from(found) != Ok(expected) {
                return Err(self.source.problem(format!(
                    "expected document boundary {place} at sequence {expected}, found {found}"
                )));
            }
        }
        if self.sequences == 0 && self.bin_bytes != 0 {
            return Err(self.source.problem(format!(
                "expected sequences for {} bytes of tokens, found none",
                self.bin_bytes
            )));
        }
        Ok(())
    }

    /// Checks that sequences `start..end` are contiguous; the first of all starts at 0, the last ends with the `.bin`.
    fn check_sequences(&self, start: u64, end: u64) -> Result<()> {
        let count = (end - start) as usize;
        let mut lengths = vec![0; 4 * count];
        let mut offsets = vec![0; 8 * count];
        self.source.read(HEADER_BYTES + 4 * start, &mut lengths)?;
        self.source
            .read(HEADER_BYTES + 4 * self.sequences + 8 * start, &mut offsets)?;
        let lengths = lengths
            .chunks_exact(4)
            .map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        let offsets = offsets.chunks_exact(8).map(word);
        let mut expected = (start == 0).then_some(0);
        for (sequence, (length, offset)) in (start..end).zip(lengths.zip(offsets)) {
            let found = u64::try_from(offset).ok();
            if found.is_none() || (expected.is_some() && expected != found) {
                let expected = expected.map_or("0 or more".into(), |byte: u64| byte.to_string());
                return Err(self.source.problem(format!(
                    "expected sequence {sequence} to start at byte {expected}, found {offset}"
                )));
            }
            let next = u64::try_from(length)
                .ok()
                .and_then(|tokens| found?.checked_add(tokens * self.index.dtype.size() as u64))
                .filter(|&next| next <= self.bin_bytes);
            if next.is_none() || (sequence + 1 == self.sequences && next != Some(self.bin_bytes)) {
                return Err(self.source.problem(format!(
                    "expected the sequences to fill the .bin of {} bytes, found sequence {sequence} with {length} {} \
                     tokens from byte {offset} on",
                    self.bin_bytes,
                    self.index.dtype.name()
                )));
            }
            expected = next;
        }
        Ok(())
    }

    fn check_documents(&self) -> Result<()> {
        let boundaries = self.index.documents + 1;
        let mut last = 0;
        for start in (0..boundaries).step_by(CHUNK as usize) {
            let mut bytes = vec![0; 8 * CHUNK.min(boundaries - start) as usize];
            self.source
                .read(self.documents_at() + 8 * start, &mut bytes)?;
            for (place, boundary) in (start..).zip(bytes.chunks_exact(8)) {
                let found = word(boundary);
                if found < last {
                    return Err(self.source.problem(format!(
                        "expected document boundary {place} at sequence {last} or later, found {found}"
                    )));
                }
                last = found;
            }
        }
        Ok(())
    }

    fn documents_at(&self) -> u64 {
        HEADER_BYTES + 12 * self.sequences
    }
}

fn word(bytes: &[u8]) -> i64 {
    let mut word = [0; 8];
    word.copy_from_slice(bytes);
    i64::from_le_bytes(word)
}

fn dtype_of(source: &Source, code: u8) -> Result<Dtype> {
    Ok(match code {
        1 => Dtype::U8,
        2 => Dtype::I8,
        3 => Dtype::I16,
        4 => Dtype::I32,
        5 => Dtype::I64,
        8 => Dtype::U16,
        _ => {
            let found = match code {
                6 => " (float64)",
                7 => " (float32)",
                _ => "",
            };
            return Err(source.problem(format!(
                "expected dtype code 1, 2, 3, 4, 5 or 8, found {code}{found}"
            )));
        }
    })
}
