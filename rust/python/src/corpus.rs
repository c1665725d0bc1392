//! Bindings of the corpus: shards, domains, the reading of rows.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use drpruning_core::formats::mds::{Encoding, ShardEntry};
use drpruning_core::formats::megatron;
use drpruning_core::{
    Corpus, CorpusProblem, Domain, Dtype, Error, Pick, Result, Shard, ShardRequest, Token,
    ends_sha256, open_shards,
};
use numpy::{Element, PyReadonlyArray1, PyReadwriteArray2};
use pyo3::exceptions::{PyIndexError, PyValueError};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedStr;
use pyo3::types::PyBytes;

use crate::errors::to_python;
use crate::signals::detached_until_signal;

/// The dtype (`NumPy` name), the number of tokens and the number of documents of a Megatron index.
type IndexSummary = (&'static str, u64, u64);

/// Reads the header of the `.idx` of the `.bin` file `path` and checks it against both files.
#[pyfunction]
pub(crate) fn read_index(py: Python<'_>, path: PathBuf) -> PyResult<IndexSummary> {
    summary(py, || megatron::read_index(&path))
}

/// Reads the whole `.idx` of the `.bin` file `path` and checks every sequence.
#[pyfunction]
pub(crate) fn verify_index(py: Python<'_>, path: PathBuf) -> PyResult<IndexSummary> {
    summary(py, || megatron::verify(&path))
}

fn summary(
    py: Python<'_>,
    read: impl FnOnce() -> Result<megatron::Index> + Send,
) -> PyResult<IndexSummary> {
    let index = py.detach(read).map_err(|error| to_python(&error))?;
    Ok((index.dtype.name(), index.tokens, index.documents))
}

/// Reads every sample of an MDS shard, checks it against its header, and returns the number of tokens.
#[pyfunction]
pub(crate) fn verify_mds(py: Python<'_>, shard: MdsShard) -> PyResult<u64> {
    detached_until_signal(py, || {
        let (path, entry) = shard.entry()?;
        Shard::verify_mds(&path, &entry)
    })
}

/// A file to open: a `.bin` file with its dtype, if known, or a `drpruning.corpus.mds.MdsShard`.
#[derive(FromPyObject)]
enum ShardArgs {
    Bin(PathBuf, Option<String>),
    #[pyo3(transparent)]
    Mds(MdsShard),
}

/// The attributes of a `drpruning.corpus.mds.MdsShard`.
#[derive(FromPyObject)]
pub(crate) struct MdsShard {
    path: PathBuf,
    samples: u64,
    bytes: u64,
    zstd_bytes: Option<u64>,
    columns: Vec<Option<u32>>,
    token_column: usize,
    dtype: Option<String>,
    encoding: EncodingName,
}

/// `MdsShard.encoding`: see [`Encoding`].
#[derive(Clone, Copy)]
enum EncodingName {
    Plain,
    Shaped,
    Typed,
}

impl<'py> FromPyObject<'_, 'py> for EncodingName {
    type Error = PyErr;

    fn extract(name: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        match name.extract::<PyBackedStr>()?.as_ref() {
            "plain" => Ok(Self::Plain),
            "shaped" => Ok(Self::Shaped),
            "typed" => Ok(Self::Typed),
            other => Err(PyValueError::new_err(format!(
                "encoding is {other:?}; expected \"plain\", \"shaped\" or \"typed\""
            ))),
        }
    }
}

impl MdsShard {
    fn entry(self) -> Result<(PathBuf, ShardEntry)> {
        let dtype = self.dtype.map(|name| dtype_of(&self.path, &name));
        let encoding = match (self.encoding, dtype.transpose()?) {
            (EncodingName::Plain, Some(dtype)) => Encoding::Plain(dtype),
            (EncodingName::Shaped, Some(dtype)) => Encoding::Shaped(dtype),
            (_, dtype) => Encoding::Typed(dtype),
        };
        if self.token_column >= self.columns.len() {
            return Err(Error::Corpus {
                path: self.path,
                problem: CorpusProblem::Format(format!(
                    "expected a column below {}, found {}",
                    self.columns.len(),
                    self.token_column
                )),
            });
        }
        let entry = ShardEntry {
            samples: self.samples,
            bytes: self.bytes,
            zstd_bytes: self.zstd_bytes,
            columns: self.columns,
            token_column: self.token_column,
            encoding,
        };
        Ok((self.path, entry))
    }
}

impl ShardArgs {
    fn request(self) -> Result<ShardRequest> {
        Ok(match self {
            Self::Bin(path, dtype) => {
                let dtype = dtype.map(|name| dtype_of(&path, &name)).transpose()?;
                ShardRequest::Bin(path, dtype)
            }
            Self::Mds(shard) => {
                let (path, entry) = shard.entry()?;
                ShardRequest::Mds(path, entry)
            }
        })
    }
}

/// Path, dtype, tokens, documents if an index counts them, bytes.
type Described = (PathBuf, &'static str, u64, Option<u64>, u64);

/// Reads rows of tokens from the shards of many domains.
#[pyclass(frozen, module = "drpruning._native")]
pub(crate) struct TokenReader {
    pub(crate) corpus: Arc<Corpus>,
}

#[pymethods]
impl TokenReader {
    #[new]
    #[pyo3(signature = (domains, vocab_size=None, *, cache))]
    fn new(
        py: Python<'_>,
        domains: Vec<(String, Vec<ShardArgs>)>,
        vocab_size: Option<u32>,
        cache: PathBuf,
    ) -> PyResult<Self> {
        let cache: Arc<Path> = cache.into();
        let open = || {
            domains
                .into_iter()
                .map(|(name, shards)| {
                    let requests: Result<Vec<ShardRequest>> =
                        shards.into_iter().map(ShardArgs::request).collect();
                    Domain::new(name, open_shards(requests?, &cache)?)
                })
                .collect::<Result<Vec<Domain>>>()
        };
        let domains = detached_until_signal(py, open)?;
        Ok(Self {
            corpus: Arc::new(Corpus::new(domains, vocab_size)),
        })
    }

    /// Returns the number of tokens of each domain, in order.
    fn tokens(&self) -> Vec<u64> {
        self.corpus.domains().iter().map(Domain::tokens).collect()
    }

    /// Returns the shards of domain number `domain`: path, dtype, tokens, documents (None if no index counts them), bytes.
    fn shards(&self, domain: usize) -> PyResult<Vec<Described>> {
        Ok(self
            .domain(domain)?
            .shards()
            .iter()
            .map(|shard| {
                (
                    shard.path().to_owned(),
                    shard.dtype().name(),
                    shard.tokens(),
                    shard.documents(),
                    shard.bytes(),
                )
            })
            .collect())
    }

    /// Returns the SHA-256 of the first and last 4,096 bytes of each shard of domain number `domain`.
    fn ends_sha256<'py>(
        &self,
        py: Python<'py>,
        domain: usize,
    ) -> PyResult<Vec<Bound<'py, PyBytes>>> {
        let shards = self.domain(domain)?.shards();
        let digests = py
            .detach(|| ends_sha256(shards))
            .map_err(|error| to_python(&error))?;
        Ok(digests
            .iter()
            .map(|digest| PyBytes::new(py, digest))
            .collect())
    }

    /// Reads row `rows[i]` of domain `domains[i]` into `out[i]`; a row is as long as `out` is wide.
    #[pyo3(signature = (domains, rows, out, *, threads=1))]
    fn gather(
        &self,
        py: Python<'_>,
        domains: PyReadonlyArray1<'_, i32>,
        rows: PyReadonlyArray1<'_, i64>,
        out: Out<'_>,
        threads: usize,
    ) -> PyResult<()> {
        let (domains, rows) = (domains.as_slice()?, rows.as_slice()?);
        match out {
            Out::Long(out) => self.gather_into(py, domains, rows, out, threads),
            Out::Int(out) => self.gather_into(py, domains, rows, out, threads),
        }
    }
}

/// The array that tokens are written into.
#[derive(FromPyObject)]
enum Out<'py> {
    Long(PyReadwriteArray2<'py, i64>),
    Int(PyReadwriteArray2<'py, i32>),
}

impl TokenReader {
    fn domain(&self, number: usize) -> PyResult<&Domain> {
        let domains = self.corpus.domains();
        domains
            .get(number)
            .ok_or_else(|| PyIndexError::new_err(format!("there are {} domains", domains.len())))
    }

    fn gather_into<T: Token + Element>(
        &self,
        py: Python<'_>,
        domains: &[i32],
        rows: &[i64],
        mut out: PyReadwriteArray2<'_, T>,
        threads: usize,
    ) -> PyResult<()> {
        let seq_len = out.as_array().ncols();
        let sizes = self.corpus.rows(seq_len.max(1));
        if domains.len() != rows.len() {
            return Err(PyValueError::new_err(
                "domains and rows must have the same length",
            ));
        }
        let picks: Option<Vec<Pick>> = domains
            .iter()
            .zip(rows)
            .map(|(&domain, &row)| {
                let pick = Pick {
                    domain: u32::try_from(domain).ok()?,
                    row: u64::try_from(row).ok()?,
                };
                (pick.row < *sizes.get(pick.domain as usize)?).then_some(pick)
            })
            .collect();
        let picks = picks.ok_or_else(|| PyValueError::new_err("a row is outside its domain"))?;
        let out = out.as_slice_mut()?;
        if seq_len == 0 || out.len() != picks.len() * seq_len {
            return Err(PyValueError::new_err(
                "out must have shape [rows, seq_len] with seq_len >= 1",
            ));
        }
        detached_until_signal(py, || self.corpus.gather_on(threads, &picks, seq_len, out))
    }
}

fn dtype_of(path: &Path, name: &str) -> Result<Dtype> {
    Dtype::from_name(name).ok_or_else(|| Error::Corpus {
        path: path.to_owned(),
        problem: CorpusProblem::Format(format!(
            "expected an integer dtype of at most 64 bits, found {name:?}"
        )),
    })
}
