//! Binding of the sampler with its prefetch thread.

use std::sync::Arc;
use std::time::Duration;

use drpruning_core::{Batch, Domain, Draw, Pick, Prefetch, Result, Token, Weights};
use numpy::{Element, PyArray1, PyArray2, PyArrayMethods, PyReadwriteArray2};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedStr;

use crate::corpus::TokenReader;
use crate::errors::{buffer_in_use, to_python};

/// Longest wait for a batch between two checks for signals, so that Ctrl-C ends a wait for a disk that does not answer.
/// A tenth of a second is the longest delay that a person perceives as immediate (Miller 1968).
const SIGNAL_INTERVAL: Duration = Duration::from_millis(100);

/// The number of each row's domain.
type DomainArray<'py> = Bound<'py, PyArray1<i32>>;
/// The number of each row within its domain.
type RowArray<'py> = Bound<'py, PyArray1<i64>>;

/// An endless stream of batches; see `drpruning.DomainSampler`.
#[pyclass(frozen, module = "drpruning._native")]
pub(crate) struct Sampler {
    names: Vec<String>,
    shape: [usize; 2],
    batches: Batches,
}

/// The state to save; see `drpruning_core::SamplerState`.
#[pyclass(frozen, get_all, module = "drpruning._native")]
pub(crate) struct SamplerState {
    step: u64,
    rows: Vec<u64>,
    weights: Vec<u64>,
    credit: Vec<i64>,
}

/// `draw=`: `"balanced"` or `"random"`.
struct DrawName(Draw);

impl<'py> FromPyObject<'_, 'py> for DrawName {
    type Error = PyErr;

    fn extract(name: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        match name.extract::<PyBackedStr>()?.as_ref() {
            "balanced" => Ok(Self(Draw::Balanced)),
            "random" => Ok(Self(Draw::Random)),
            other => Err(PyValueError::new_err(format!(
                "draw is {other:?}; expected \"balanced\" or \"random\""
            ))),
        }
    }
}

/// `dtype=`: the type of the tokens in a batch, `"int64"` or `"int32"`.
enum TokenType {
    Int64,
    Int32,
}

impl<'py> FromPyObject<'_, 'py> for TokenType {
    type Error = PyErr;

    fn extract(name: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        match name.extract::<PyBackedStr>()?.as_ref() {
            "int64" => Ok(Self::Int64),
            "int32" => Ok(Self::Int32),
            other => Err(PyValueError::new_err(format!(
                "dtype is {other:?}; expected \"int64\" or \"int32\""
            ))),
        }
    }
}

/// Batches of either token type.
enum Batches {
    I32(Prefetch<i32>),
    I64(Prefetch<i64>),
}

/// Evaluates an expression for the batches of either token type.
macro_rules! with {
    ($sampler:expr, $batches:ident => $what:expr) => {
        match &$sampler.batches {
            Batches::I32($batches) => $what,
            Batches::I64($batches) => $what,
        }
    };
}

#[pymethods]
impl Sampler {
    #[new]
    #[expect(clippy::too_many_arguments, reason = "each has its name in Python")]
    #[pyo3(signature = (reader, weights, *, seq_len, batch_size, start, count, seed, draw, dtype, prefetch))]
    fn new(
        reader: &TokenReader,
        weights: Vec<f64>,
        seq_len: usize,
        batch_size: usize,
        start: usize,
        count: usize,
        seed: u64,
        draw: DrawName,
        dtype: TokenType,
        prefetch: usize,
    ) -> PyResult<Self> {
        if seq_len == 0 {
            return Err(PyValueError::new_err("seq_len is 0; it must be at least 1"));
        }
        let part = start..start.saturating_add(count);
        let corpus = Arc::clone(&reader.corpus);
        let domains = corpus.domains().iter().map(Domain::name);
        let names: Vec<String> = domains.map(str::to_owned).collect();
        let rows = corpus.rows(seq_len);
        let sampler = Weights::new(&names, &weights)
            .and_then(|weights| {
                drpruning_core::Sampler::new(
                    names.clone(),
                    &rows,
                    &weights,
                    batch_size,
                    seed,
                    draw.0,
                )
            })
            .map_err(|error| to_python(&error))?;
        Ok(Self {
            names,
            shape: [count, seq_len],
            batches: match dtype {
                TokenType::Int64 => {
                    Prefetch::new(corpus, sampler, seq_len, part, prefetch).map(Batches::I64)
                }
                TokenType::Int32 => {
                    Prefetch::new(corpus, sampler, seq_len, part, prefetch).map(Batches::I32)
                }
            }
            .map_err(|error| to_python(&error))?,
        })
    }

    /// Returns the next batch: its number, and domain, row and tokens of each row of the part. After an error the sampler
    /// is unchanged.
    fn next<'py>(
        &self,
        py: Python<'py>,
    ) -> PyResult<(u64, DomainArray<'py>, RowArray<'py>, Bound<'py, PyAny>)> {
        with!(self, batches => self.next_of(py, batches))
    }

    /// Returns the next batch without its tokens, which are written into `tokens`.
    fn next_into<'py>(
        &self,
        py: Python<'py>,
        tokens: &Bound<'py, PyAny>,
    ) -> PyResult<(u64, DomainArray<'py>, RowArray<'py>)> {
        with!(self, batches => self.next_into_of(py, batches, tokens))
    }

    /// Sets the weights of the next batch.
    fn set_weights(&self, py: Python<'_>, weights: Vec<f64>) -> PyResult<()> {
        detached(py, || {
            let weights = Weights::new(&self.names, &weights)?;
            with!(self, batches => batches.set_weights(weights))
        })
    }

    /// Returns the mixture of the next batch, as fractions.
    fn weights(&self, py: Python<'_>) -> Vec<f64> {
        py.detach(|| with!(self, batches => batches.weights()).fractions())
    }

    /// Returns the state to save.
    fn state(&self, py: Python<'_>) -> SamplerState {
        let state = py.detach(|| with!(self, batches => batches.state()));
        SamplerState {
            step: state.step,
            rows: state.drawn,
            weights: state.weights,
            credit: state.credit,
        }
    }

    /// Resumes from the attributes of a `SamplerState`.
    #[pyo3(signature = (*, step, rows, weights, credit))]
    fn restore(
        &self,
        py: Python<'_>,
        step: u64,
        rows: Vec<u64>,
        weights: Vec<u64>,
        credit: Vec<i64>,
    ) -> PyResult<()> {
        let state = drpruning_core::SamplerState {
            step,
            drawn: rows,
            weights,
            credit,
        };
        detached(py, || with!(self, batches => batches.restore(state)))
    }

    /// Skips `steps` batches.
    fn skip(&self, py: Python<'_>, steps: u64) -> PyResult<()> {
        detached(py, || with!(self, batches => batches.skip(steps)))
    }

    /// Returns domain and row of each row of batch `step`, over all ranks.
    fn peek<'py>(&self, py: Python<'py>, step: u64) -> PyResult<(DomainArray<'py>, RowArray<'py>)> {
        let picks = detached(py, || with!(self, batches => batches.peek(step)))?;
        Ok(arrays(py, &picks))
    }

    /// Stops the prefetch thread until `resume`.
    fn pause(&self, py: Python<'_>) {
        py.detach(|| with!(self, batches => batches.pause()));
    }

    /// Allows the next batch to start the thread again.
    fn resume(&self) {
        with!(self, batches => batches.resume());
    }
}

impl Sampler {
    fn next_of<'py, T: Token + Element>(
        &self,
        py: Python<'py>,
        batches: &Prefetch<T>,
    ) -> PyResult<(u64, DomainArray<'py>, RowArray<'py>, Bound<'py, PyAny>)> {
        let Batch {
            step,
            picks,
            tokens,
        } = wait(py, || batches.next(SIGNAL_INTERVAL))?;
        let (domains, rows) = arrays(py, &picks);
        let tokens = PyArray1::from_vec(py, tokens).reshape(self.shape)?;
        Ok((step, domains, rows, tokens.into_any()))
    }

    fn next_into_of<'py, T: Token + Element>(
        &self,
        py: Python<'py>,
        batches: &Prefetch<T>,
        tokens: &Bound<'py, PyAny>,
    ) -> PyResult<(u64, DomainArray<'py>, RowArray<'py>)> {
        let mut tokens: PyReadwriteArray2<'_, T> = tokens
            .cast::<PyArray2<T>>()?
            .try_readwrite()
            .map_err(|_| buffer_in_use())?;
        let out = tokens.as_slice_mut()?;
        if out.len() != self.shape[0] * self.shape[1] {
            return Err(PyValueError::new_err(
                "tokens must have shape [rows of the part, seq_len]",
            ));
        }
        let (step, picks) = wait(py, || batches.next_into(out, SIGNAL_INTERVAL))?;
        let (domains, rows) = arrays(py, &picks);
        Ok((step, domains, rows))
    }
}

/// Repeats `poll` until it returns a result or a signal handler raises.
///
/// Locks are released before an error becomes an exception: that needs the GIL, and its holder may wait for a lock.
fn wait<T: Send>(
    py: Python<'_>,
    mut poll: impl FnMut() -> Option<Result<T>> + Send,
) -> PyResult<T> {
    loop {
        match py.detach(&mut poll) {
            Some(result) => return result.map_err(|error| to_python(&error)),
            None => py.check_signals()?,
        }
    }
}

fn detached<T: Send>(py: Python<'_>, act: impl FnOnce() -> Result<T> + Send) -> PyResult<T> {
    py.detach(act).map_err(|error| to_python(&error))
}

fn arrays<'py>(py: Python<'py>, picks: &[Pick]) -> (DomainArray<'py>, RowArray<'py>) {
    let domains: Vec<i32> = picks.iter().map(|pick| pick.domain as i32).collect();
    let rows: Vec<i64> = picks.iter().map(|pick| pick.row as i64).collect();
    (
        PyArray1::from_vec(py, domains),
        PyArray1::from_vec(py, rows),
    )
}
