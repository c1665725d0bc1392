//! The scaling law for Python: logarithms in, the law's numbers out.

// PyO3 passes arguments by value.
#![allow(clippy::needless_pass_by_value)]

use drpruning_core::scaling::{self, Fit};
use numpy::PyReadonlyArray1;
use pyo3::prelude::*;

use crate::errors::to_python;

/// A fitted law in the form of the core, with the objective at its parameters; see `drpruning_core::scaling`.
#[pyclass(frozen, get_all, module = "drpruning._native")]
pub(crate) struct LawFit {
    level: f64,
    share: f64,
    alpha: f64,
    beta: f64,
    objective: f64,
}

impl From<Fit> for LawFit {
    fn from(fit: Fit) -> Self {
        Self {
            level: fit.level,
            share: fit.share,
            alpha: fit.alpha,
            beta: fit.beta,
            objective: fit.objective,
        }
    }
}

/// Fits the law that minimises the Huber loss of the logarithm.
#[pyfunction]
pub(crate) fn fit_law<'py>(
    py: Python<'py>,
    x: PyReadonlyArray1<'py, f64>,
    t: PyReadonlyArray1<'py, f64>,
    y: PyReadonlyArray1<'py, f64>,
    delta: f64,
    learn_alpha: bool,
) -> PyResult<LawFit> {
    let (x, t, y) = (x.as_slice()?, t.as_slice()?, y.as_slice()?);
    py.detach(|| scaling::fit(x, t, y, delta, learn_alpha))
        .map(LawFit::from)
        .map_err(|error| to_python(&error))
}

/// Fits the law for given exponents.
#[pyfunction]
pub(crate) fn profile_law<'py>(
    py: Python<'py>,
    x: PyReadonlyArray1<'py, f64>,
    t: PyReadonlyArray1<'py, f64>,
    y: PyReadonlyArray1<'py, f64>,
    delta: f64,
    alpha: f64,
    beta: f64,
) -> PyResult<LawFit> {
    let (x, t, y) = (x.as_slice()?, t.as_slice()?, y.as_slice()?);
    py.detach(|| scaling::profile(x, t, y, delta, alpha, beta))
        .map(LawFit::from)
        .map_err(|error| to_python(&error))
}
