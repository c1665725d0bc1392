//! Bindings of `drpruning_core::sampler`.

use std::sync::{Mutex, MutexGuard, PoisonError};

use drpruning_core::corpus::Pick;
use drpruning_core::sampler::{Draw, Sampler as Core, State};
use drpruning_core::weights::Weights;
use numpy::{PyReadwriteArray1, PyReadwriteArray2};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::corpus::TokenReader;
use crate::errors::to_python;

/// An endless stream of batches; see `drpruning.DomainSampler`.
#[pyclass(frozen, module = "drpruning._native")]
pub(crate) struct Sampler {
    batch_size: usize,
    // One batch at a time, whichever thread asks for it.
    inner: Mutex<Inner>,
}

struct Inner {
    core: Core,
    batch: Vec<Pick>,
}

impl Sampler {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[pymethods]
impl Sampler {
    #[new]
    #[pyo3(signature = (names, rows, weights, *, batch_size, seed, balanced))]
    fn new(
        names: Vec<String>,
        rows: Vec<u64>,
        weights: Vec<f64>,
        batch_size: usize,
        seed: u64,
        balanced: bool,
    ) -> PyResult<Self> {
        if rows.len() != names.len() || batch_size == 0 {
            return Err(PyValueError::new_err(
                "one number of rows for each name, and at least one row in a batch",
            ));
        }
        let draw = if balanced {
            Draw::Balanced
        } else {
            Draw::Random
        };
        let core = Weights::new(&names, &weights)
            .and_then(|weights| Core::new(names, &rows, &weights, batch_size, seed, draw))
            .map_err(|error| to_python(&error))?;
        Ok(Self {
            batch_size,
            inner: Mutex::new(Inner {
                core,
                batch: Vec::new(),
            }),
        })
    }

    /// Draws the next batch and reads rows `start` up to `start + len(tokens)` of it; returns the batch's number. After
    /// an error the sampler is where it was.
    fn next_into(
        &self,
        py: Python<'_>,
        reader: &TokenReader,
        start: usize,
        mut domains: PyReadwriteArray1<'_, i32>,
        mut rows: PyReadwriteArray1<'_, i64>,
        mut tokens: PyReadwriteArray2<'_, i64>,
    ) -> PyResult<u64> {
        let (count, seq_len) = (tokens.as_array().nrows(), tokens.as_array().ncols());
        let (domains, rows, tokens) = (
            domains.as_slice_mut()?,
            rows.as_slice_mut()?,
            tokens.as_slice_mut()?,
        );
        if domains.len() != count || rows.len() != count || seq_len == 0 {
            return Err(PyValueError::new_err(
                "domains, rows and tokens must have one line for each row",
            ));
        }
        if start
            .checked_add(count)
            .is_none_or(|end| end > self.batch_size)
        {
            return Err(PyValueError::new_err(
                "the rows asked for lie outside the batch",
            ));
        }
        // The lock is released before an error becomes an exception: that needs the GIL, and whoever has it may be
        // waiting for the lock.
        let read = py.detach(|| {
            let mut inner = self.lock();
            let Inner { core, batch } = &mut *inner;
            let before = core.state();
            core.next_batch(batch);
            let mine = &batch[start..start + count];
            for ((pick, domain), row) in mine.iter().zip(domains).zip(rows) {
                *domain = pick.domain as i32;
                *row = pick.row as i64;
            }
            match reader.corpus.gather(mine, seq_len, tokens) {
                Ok(()) => Ok(before.step),
                Err(error) => {
                    core.restore(before)?;
                    Err(error)
                }
            }
        });
        read.map_err(|error| to_python(&error))
    }

    /// Draws by `weights` from the next batch on.
    fn set_weights(&self, weights: Vec<f64>) -> PyResult<()> {
        let core = &mut self.lock().core;
        Weights::new(core.names(), &weights)
            .and_then(|weights| core.set_weights(weights))
            .map_err(|error| to_python(&error))
    }

    /// The mixture of the next batch, as fractions.
    fn weights(&self) -> Vec<f64> {
        self.lock().core.weights().fractions()
    }

    /// Batches drawn so far.
    fn step(&self) -> u64 {
        self.lock().core.step()
    }

    /// Rows drawn from each domain so far.
    fn drawn(&self) -> Vec<u64> {
        self.lock().core.drawn().to_vec()
    }

    /// What has to be saved: step, rows drawn, weights, credits.
    fn state(&self) -> (u64, Vec<u64>, Vec<u64>, Vec<i64>) {
        let state = self.lock().core.state();
        (state.step, state.drawn, state.weights, state.credit)
    }

    /// Goes on from what `state` returned.
    fn restore(
        &self,
        step: u64,
        drawn: Vec<u64>,
        weights: Vec<u64>,
        credit: Vec<i64>,
    ) -> PyResult<()> {
        let state = State {
            step,
            drawn,
            weights,
            credit,
        };
        self.lock()
            .core
            .restore(state)
            .map_err(|error| to_python(&error))
    }
}
