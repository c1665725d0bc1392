//! Bindings of `drpruning_core::{corpus, megatron}`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use drpruning_core::corpus::{Corpus, Domain, Pick, Shard};
use drpruning_core::error::{Error, Result};
use drpruning_core::megatron;
use drpruning_core::tokens::Dtype;
use numpy::{PyReadonlyArray1, PyReadwriteArray2};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::errors::to_python;

/// What the `.idx` beside the `.bin` file `path` says: `NumPy`'s name of the dtype, tokens, documents.
#[pyfunction]
#[pyo3(signature = (path, *, full=false))]
pub(crate) fn read_index(
    py: Python<'_>,
    path: PathBuf,
    full: bool,
) -> PyResult<(&'static str, u64, u64)> {
    let index = py
        .detach(|| {
            if full {
                megatron::verify(&path)
            } else {
                megatron::read_index(&path)
            }
        })
        .map_err(|error| to_python(&error))?;
    Ok((index.dtype.name(), index.tokens, index.documents))
}

/// Path, dtype and number of tokens of a shard.
type ShardArgs = (PathBuf, String, u64);

/// Reads rows of tokens from the shards of many domains.
#[pyclass(frozen, module = "drpruning._native")]
pub(crate) struct TokenReader {
    pub(crate) corpus: Arc<Corpus>,
}

#[pymethods]
impl TokenReader {
    #[new]
    #[pyo3(signature = (domains, vocab_size=None))]
    fn new(domains: Vec<(String, Vec<ShardArgs>)>, vocab_size: Option<u32>) -> PyResult<Self> {
        let domains: Result<Vec<Domain>> = domains
            .into_iter()
            .map(|(name, shards)| {
                let shards: Result<Vec<Shard>> = shards
                    .into_iter()
                    .map(|(path, dtype, tokens)| {
                        Ok(Shard::new(path.clone(), dtype_of(&path, &dtype)?, tokens))
                    })
                    .collect();
                Domain::new(name, shards?)
            })
            .collect();
        let domains = domains.map_err(|error| to_python(&error))?;
        Ok(Self {
            corpus: Arc::new(Corpus::new(domains, vocab_size)),
        })
    }

    /// Tokens of each domain, in order.
    fn tokens(&self) -> Vec<u64> {
        self.corpus.domains().iter().map(Domain::tokens).collect()
    }

    /// Reads row `rows[i]` of domain `domains[i]` into `out[i]`; a row is as long as `out` is wide.
    fn gather(
        &self,
        py: Python<'_>,
        domains: PyReadonlyArray1<'_, i32>,
        rows: PyReadonlyArray1<'_, i64>,
        mut out: PyReadwriteArray2<'_, i64>,
    ) -> PyResult<()> {
        let seq_len = out.as_array().ncols();
        let sizes = self.corpus.rows(seq_len.max(1));
        let picks: Option<Vec<Pick>> = domains
            .as_slice()?
            .iter()
            .zip(rows.as_slice()?)
            .map(|(&domain, &row)| {
                let pick = Pick {
                    domain: u32::try_from(domain).ok()?,
                    row: u64::try_from(row).ok()?,
                };
                (pick.row < *sizes.get(pick.domain as usize)?).then_some(pick)
            })
            .collect();
        let picks = picks.ok_or_else(|| PyValueError::new_err("a row lies outside its domain"))?;
        let out = out.as_slice_mut()?;
        if seq_len == 0 || out.len() != picks.len() * seq_len {
            return Err(PyValueError::new_err(
                "out must have a line of seq_len >= 1 tokens for each row",
            ));
        }
        py.detach(|| self.corpus.gather(&picks, seq_len, out))
            .map_err(|error| to_python(&error))
    }
}

fn dtype_of(path: &Path, name: &str) -> Result<Dtype> {
    Dtype::from_name(name).ok_or_else(|| Error::Corpus {
        path: path.to_owned(),
        problem: format!("expected an integer dtype of at most 64 bits, found {name:?}"),
    })
}
