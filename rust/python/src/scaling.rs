//! The scaling law for Python: logarithms in, the law's numbers out.

// PyO3 passes arguments by value.
#![allow(clippy::needless_pass_by_value)]

use drpruning_core::scaling::{self, Fit};
use numpy::PyReadonlyArray1;
use pyo3::prelude::*;

use crate::errors::to_python;

/// Level, share, alpha, beta, objective.
type Parts = (f64, f64, f64, f64, f64);

/// Fits the law that minimises the Huber loss of the logarithm.
#[pyfunction]
pub(crate) fn fit_law<'py>(
    py: Python<'py>,
    x: PyReadonlyArray1<'py, f64>,
    t: PyReadonlyArray1<'py, f64>,
    y: PyReadonlyArray1<'py, f64>,
    delta: f64,
    learn_alpha: bool,
) -> PyResult<Parts> {
    let (x, t, y) = (x.as_slice()?, t.as_slice()?, y.as_slice()?);
    py.detach(|| scaling::fit(x, t, y, delta, learn_alpha))
        .map(|fit| parts(&fit))
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
) -> PyResult<Parts> {
    let (x, t, y) = (x.as_slice()?, t.as_slice()?, y.as_slice()?);
    py.detach(|| scaling::profile(x, t, y, delta, alpha, beta))
        .map(|fit| parts(&fit))
        .map_err(|error| to_python(&error))
}

fn parts(fit: &Fit) -> Parts {
    (fit.level, fit.share, fit.alpha, fit.beta, fit.objective)
}
