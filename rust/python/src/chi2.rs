//! The chi-square ball for Python: arrays in, typed results out.

// pyo3 hands arguments over by value.
#![allow(clippy::needless_pass_by_value)]

use chi2_ball::{Batch, Buffers, Outcome, PerRow, Result};
use numpy::{Element, PyArray, PyReadonlyArray1, PyReadonlyArray2, PyReadonlyArrayDyn};
use numpy::{PyArray1, PyArray2, PyArrayMethods, PyUntypedArrayMethods};
use pyo3::prelude::*;

use crate::errors::ball_to_python;

/// Number of entries below which a problem is solved with the GIL held.
///
/// The worst case of 2,000 entries takes about 20 us (`benches/README.md`: 15.6 us for 1,000 from Python). To get the GIL
/// back after a release can take 5 ms: another thread may keep it for a whole switch interval
/// (`sys.getswitchinterval()`).
const RELEASE_GIL_FROM: usize = 2_000;

/// A point of the ball with its certificate; see `drpruning.Solution`.
#[pyclass(frozen, get_all, module = "drpruning._native")]
pub(crate) struct BallSolution {
    weights: Py<PyArray1<f64>>,
    divergence: f64,
    status: &'static str,
    ball_multiplier: f64,
    sum_multiplier: f64,
    floor_multipliers: Py<PyArray1<f64>>,
    at_floor: Py<PyArray1<bool>>,
}

/// The solutions of a batch: the attributes of `BallSolution` with a leading axis of rows.
#[pyclass(frozen, get_all, module = "drpruning._native")]
pub(crate) struct BallSolutions {
    weights: Py<PyArray2<f64>>,
    divergence: Py<PyArray1<f64>>,
    status: Vec<&'static str>,
    ball_multiplier: Py<PyArray1<f64>>,
    sum_multiplier: Py<PyArray1<f64>>,
    floor_multipliers: Py<PyArray2<f64>>,
    at_floor: Py<PyArray2<bool>>,
}

/// Maximises `<q, losses>` over the ball, less a penalty for each entry that moves.
#[pyfunction]
pub(crate) fn worst_case(
    py: Python<'_>,
    losses: PyReadonlyArray1<'_, f64>,
    p: PyReadonlyArray1<'_, f64>,
    rho: f64,
    floor: f64,
    penalties: PyReadonlyArray1<'_, f64>,
) -> PyResult<BallSolution> {
    let penalties = penalties.as_slice()?;
    solve(py, &losses, &p, |losses, p, buffers| {
        chi2_ball::penalised_worst_case_into(losses, p, rho, floor, penalties, buffers)
    })
}

/// Minimises `1/2 |q - y|^2` over the ball.
#[pyfunction]
pub(crate) fn project(
    py: Python<'_>,
    y: PyReadonlyArray1<'_, f64>,
    p: PyReadonlyArray1<'_, f64>,
    rho: f64,
    floor: f64,
) -> PyResult<BallSolution> {
    solve(py, &y, &p, |y, p, buffers| {
        chi2_ball::project_into(y, p, rho, floor, buffers)
    })
}

/// Solves `worst_case` for each row; `p` has one row for all or one for each, and so have `rho` and `floor` entries.
#[pyfunction]
pub(crate) fn worst_case_many(
    py: Python<'_>,
    losses: PyReadonlyArray2<'_, f64>,
    p: PyReadonlyArrayDyn<'_, f64>,
    rho: PyReadonlyArray1<'_, f64>,
    floor: PyReadonlyArray1<'_, f64>,
) -> PyResult<BallSolutions> {
    let solver = chi2_ball::worst_case_batch_into;
    solve_batch(py, &losses, &p, &rho, &floor, solver)
}

/// Solves `project` for each row.
#[pyfunction]
pub(crate) fn project_many(
    py: Python<'_>,
    y: PyReadonlyArray2<'_, f64>,
    p: PyReadonlyArrayDyn<'_, f64>,
    rho: PyReadonlyArray1<'_, f64>,
    floor: PyReadonlyArray1<'_, f64>,
) -> PyResult<BallSolutions> {
    let solver = chi2_ball::project_batch_into;
    solve_batch(py, &y, &p, &rho, &floor, solver)
}

fn solve(
    py: Python<'_>,
    values: &PyReadonlyArray1<'_, f64>,
    p: &PyReadonlyArray1<'_, f64>,
    solver: impl FnOnce(&[f64], &[f64], &mut Buffers<'_>) -> Result<Outcome> + Send,
) -> PyResult<BallSolution> {
    let n = values.len();
    let weights = PyArray1::zeros(py, n, false);
    let multipliers = PyArray1::zeros(py, n, false);
    let at_floor = PyArray1::zeros(py, n, false);
    let (values, p) = (values.as_slice()?, p.as_slice()?);
    let found = with_buffers(py, &weights, &multipliers, &at_floor, |buffers| {
        solver(values, p, buffers)
    })?;
    Ok(BallSolution {
        weights: weights.unbind(),
        divergence: found.divergence,
        status: found.status.name(),
        ball_multiplier: found.ball_multiplier,
        sum_multiplier: found.sum_multiplier,
        floor_multipliers: multipliers.unbind(),
        at_floor: at_floor.unbind(),
    })
}

fn solve_batch(
    py: Python<'_>,
    values: &PyReadonlyArray2<'_, f64>,
    p: &PyReadonlyArrayDyn<'_, f64>,
    rho: &PyReadonlyArray1<'_, f64>,
    floor: &PyReadonlyArray1<'_, f64>,
    solver: impl FnOnce(&Batch<'_>, &mut Buffers<'_>) -> Result<Vec<Outcome>> + Send,
) -> PyResult<BallSolutions> {
    let shape = [values.shape()[0], values.shape()[1]];
    let weights = PyArray2::zeros(py, shape, false);
    let multipliers = PyArray2::zeros(py, shape, false);
    let at_floor = PyArray2::zeros(py, shape, false);
    let batch = Batch {
        values: values.as_slice()?,
        p: p.as_slice()?,
        rho: per_row(rho.as_slice()?),
        floor: per_row(floor.as_slice()?),
        columns: shape[1],
    };
    let found = with_buffers(py, &weights, &multipliers, &at_floor, |buffers| {
        solver(&batch, buffers)
    })?;
    let column =
        |number: fn(&Outcome) -> f64| PyArray1::from_iter(py, found.iter().map(number)).unbind();
    Ok(BallSolutions {
        weights: weights.unbind(),
        divergence: column(|row| row.divergence),
        status: found.iter().map(|row| row.status.name()).collect(),
        ball_multiplier: column(|row| row.ball_multiplier),
        sum_multiplier: column(|row| row.sum_multiplier),
        floor_multipliers: multipliers.unbind(),
        at_floor: at_floor.unbind(),
    })
}

fn per_row(values: &[f64]) -> PerRow<'_> {
    match values {
        [value] => PerRow::All(*value),
        _ => PerRow::Each(values),
    }
}

/// Calls `solver` with the memory of new arrays, and without the GIL if there are many entries.
fn with_buffers<D, R: Send>(
    py: Python<'_>,
    weights: &Bound<'_, PyArray<f64, D>>,
    multipliers: &Bound<'_, PyArray<f64, D>>,
    at_floor: &Bound<'_, PyArray<bool, D>>,
    solver: impl FnOnce(&mut Buffers<'_>) -> Result<R> + Send,
) -> PyResult<R>
where
    D: numpy::ndarray::Dimension,
    f64: Element,
{
    let n = weights.len();
    // SAFETY: the caller has just made the arrays, contiguous, and holds the only references to them.
    let (weights, multipliers, at_floor) = unsafe {
        (
            weights.as_slice_mut()?,
            multipliers.as_slice_mut()?,
            at_floor.as_slice_mut()?,
        )
    };
    let mut buffers = Buffers {
        weights,
        floor_multipliers: multipliers,
        at_floor,
    };
    let found = if n < RELEASE_GIL_FROM {
        solver(&mut buffers)
    } else {
        py.detach(|| solver(&mut buffers))
    };
    found.map_err(|error| ball_to_python(&error))
}
