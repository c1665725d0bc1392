//! The chi-square ball for Python: arrays in, arrays out.

// pyo3 hands arguments over by value.
#![allow(clippy::needless_pass_by_value)]

use drpruning_core::chi2::{self, Solution};
use drpruning_core::error::Result;
use numpy::{IntoPyArray, PyArray1, PyReadonlyArray1};
use pyo3::prelude::*;

use crate::errors::to_python;

/// Weights, divergence, status, multipliers of ball and sum, multipliers of the floors, and where the floor is reached.
type Parts<'py> = (
    Bound<'py, PyArray1<f64>>,
    f64,
    &'static str,
    f64,
    f64,
    Bound<'py, PyArray1<f64>>,
    Bound<'py, PyArray1<bool>>,
);

/// Maximises `<q, losses>` over the ball.
#[pyfunction]
pub(crate) fn worst_case<'py>(
    py: Python<'py>,
    losses: PyReadonlyArray1<'py, f64>,
    p: PyReadonlyArray1<'py, f64>,
    rho: f64,
    floor: f64,
) -> PyResult<Parts<'py>> {
    let (losses, p) = (losses.as_slice()?, p.as_slice()?);
    parts(py, py.detach(|| chi2::worst_case(losses, p, rho, floor)))
}

/// Minimises `1/2 |q - y|^2` over the ball.
#[pyfunction]
pub(crate) fn project<'py>(
    py: Python<'py>,
    y: PyReadonlyArray1<'py, f64>,
    p: PyReadonlyArray1<'py, f64>,
    rho: f64,
    floor: f64,
) -> PyResult<Parts<'py>> {
    let (y, p) = (y.as_slice()?, p.as_slice()?);
    parts(py, py.detach(|| chi2::project(y, p, rho, floor)))
}

fn parts(py: Python<'_>, solution: Result<Solution>) -> PyResult<Parts<'_>> {
    let solution = solution.map_err(|error| to_python(&error))?;
    Ok((
        solution.weights.into_pyarray(py),
        solution.divergence,
        solution.status.name(),
        solution.ball_multiplier,
        solution.sum_multiplier,
        solution.floor_multipliers.into_pyarray(py),
        solution.at_floor.into_pyarray(py),
    ))
}
