//! The chi-square ball for Python: arrays in, arrays out.

// pyo3 hands arguments over by value.
#![allow(clippy::needless_pass_by_value)]

use chi2_ball::{Batch, Buffers, Outcome, PerRow, Result};
use numpy::{Element, PyArray, PyReadonlyArray1, PyReadonlyArray2, PyReadonlyArrayDyn};
use numpy::{PyArray1, PyArray2, PyArrayMethods, PyUntypedArrayMethods};
use pyo3::prelude::*;

use crate::errors::ball_to_python;

/// Below this many entries a problem is solved before another thread could take the interpreter.
const WORTH_RELEASING: usize = 2_000;

/// Weights, divergence, status, multipliers of ball and sum, multipliers of the floors, and where the floor is reached.
type One<'py> = (
    Bound<'py, PyArray1<f64>>,
    f64,
    &'static str,
    f64,
    f64,
    Bound<'py, PyArray1<f64>>,
    Bound<'py, PyArray1<bool>>,
);

/// The same with a leading axis of rows, in place of single numbers arrays.
type Rows<'py> = (
    Bound<'py, PyArray2<f64>>,
    Bound<'py, PyArray1<f64>>,
    Vec<&'static str>,
    Bound<'py, PyArray1<f64>>,
    Bound<'py, PyArray1<f64>>,
    Bound<'py, PyArray2<f64>>,
    Bound<'py, PyArray2<bool>>,
);

/// Maximises `<q, losses>` over the ball, less a penalty for each entry that moves.
#[pyfunction]
pub(crate) fn worst_case<'py>(
    py: Python<'py>,
    losses: PyReadonlyArray1<'py, f64>,
    p: PyReadonlyArray1<'py, f64>,
    rho: f64,
    floor: f64,
    penalties: PyReadonlyArray1<'py, f64>,
) -> PyResult<One<'py>> {
    let penalties = penalties.as_slice()?;
    one(py, &losses, &p, |losses, p, buffers| {
        chi2_ball::penalised_worst_case_into(losses, p, rho, floor, penalties, buffers)
    })
}

/// Minimises `1/2 |q - y|^2` over the ball.
#[pyfunction]
pub(crate) fn project<'py>(
    py: Python<'py>,
    y: PyReadonlyArray1<'py, f64>,
    p: PyReadonlyArray1<'py, f64>,
    rho: f64,
    floor: f64,
) -> PyResult<One<'py>> {
    one(py, &y, &p, |y, p, buffers| {
        chi2_ball::project_into(y, p, rho, floor, buffers)
    })
}

/// `worst_case` for each row; `p` has one row for all or one for each, and so have `rho` and `floor` entries.
#[pyfunction]
pub(crate) fn worst_case_many<'py>(
    py: Python<'py>,
    losses: PyReadonlyArray2<'py, f64>,
    p: PyReadonlyArrayDyn<'py, f64>,
    rho: PyReadonlyArray1<'py, f64>,
    floor: PyReadonlyArray1<'py, f64>,
) -> PyResult<Rows<'py>> {
    many(
        py,
        &losses,
        &p,
        &rho,
        &floor,
        chi2_ball::worst_case_batch_into,
    )
}

/// `project` for each row.
#[pyfunction]
pub(crate) fn project_many<'py>(
    py: Python<'py>,
    y: PyReadonlyArray2<'py, f64>,
    p: PyReadonlyArrayDyn<'py, f64>,
    rho: PyReadonlyArray1<'py, f64>,
    floor: PyReadonlyArray1<'py, f64>,
) -> PyResult<Rows<'py>> {
    many(py, &y, &p, &rho, &floor, chi2_ball::project_batch_into)
}

fn one<'py>(
    py: Python<'py>,
    values: &PyReadonlyArray1<'py, f64>,
    p: &PyReadonlyArray1<'py, f64>,
    solve: impl FnOnce(&[f64], &[f64], &mut Buffers<'_>) -> Result<Outcome> + Send,
) -> PyResult<One<'py>> {
    let n = values.len();
    let weights = PyArray1::zeros(py, n, false);
    let multipliers = PyArray1::zeros(py, n, false);
    let at_floor = PyArray1::zeros(py, n, false);
    let (values, p) = (values.as_slice()?, p.as_slice()?);
    let found = with_buffers(py, &weights, &multipliers, &at_floor, |buffers| {
        solve(values, p, buffers)
    })?;
    Ok((
        weights,
        found.divergence,
        found.status.name(),
        found.ball_multiplier,
        found.sum_multiplier,
        multipliers,
        at_floor,
    ))
}

fn many<'py>(
    py: Python<'py>,
    values: &PyReadonlyArray2<'py, f64>,
    p: &PyReadonlyArrayDyn<'py, f64>,
    rho: &PyReadonlyArray1<'py, f64>,
    floor: &PyReadonlyArray1<'py, f64>,
    solve: impl FnOnce(&Batch<'_>, &mut Buffers<'_>) -> Result<Vec<Outcome>> + Send,
) -> PyResult<Rows<'py>> {
    let shape = [values.shape()[0], values.shape()[1]];
    let weights = PyArray2::zeros(py, shape, false);
    let multipliers = PyArray2::zeros(py, shape, false);
    let at_floor = PyArray2::zeros(py, shape, false);
    let batch = Batch {
        values: values.as_slice()?,
        p: p.as_slice()?,
        rho: each(rho.as_slice()?),
        floor: each(floor.as_slice()?),
        columns: shape[1],
    };
    let found = with_buffers(py, &weights, &multipliers, &at_floor, |buffers| {
        solve(&batch, buffers)
    })?;
    let column = |number: fn(&Outcome) -> f64| PyArray1::from_iter(py, found.iter().map(number));
    Ok((
        weights,
        column(|row| row.divergence),
        found.iter().map(|row| row.status.name()).collect(),
        column(|row| row.ball_multiplier),
        column(|row| row.sum_multiplier),
        multipliers,
        at_floor,
    ))
}

fn each(values: &[f64]) -> PerRow<'_> {
    match values {
        [value] => PerRow::All(*value),
        _ => PerRow::Each(values),
    }
}

/// Runs the core on fresh arrays, without the interpreter if there is much to do.
fn with_buffers<D, R: Send>(
    py: Python<'_>,
    weights: &Bound<'_, PyArray<f64, D>>,
    multipliers: &Bound<'_, PyArray<f64, D>>,
    at_floor: &Bound<'_, PyArray<bool, D>>,
    solve: impl FnOnce(&mut Buffers<'_>) -> Result<R> + Send,
) -> PyResult<R>
where
    D: numpy::ndarray::Dimension,
    f64: Element,
{
    let n = weights.len();
    // SAFETY: the arrays were made by the caller, contiguous, and nobody else has seen them yet.
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
    let found = if n < WORTH_RELEASING {
        solve(&mut buffers)
    } else {
        py.detach(|| solve(&mut buffers))
    };
    found.map_err(|error| ball_to_python(&error))
}
