//! Binding of `drpruning_core::Shuffle`.

use drpruning_core::Shuffle;
use numpy::PyArray1;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

/// Returns the first `count` numbers of the permutation of `0..size` with key `seed`.
#[pyfunction]
pub(crate) fn permuted(
    py: Python<'_>,
    seed: u64,
    size: u64,
    count: usize,
) -> PyResult<Bound<'_, PyArray1<u64>>> {
    if count as u64 > size {
        return Err(PyValueError::new_err("count must be at most size"));
    }
    let mut numbers = vec![0; count];
    if count > 0 {
        py.detach(|| Shuffle::new(seed, 0, size).fill(0, &mut numbers));
    }
    Ok(PyArray1::from_vec(py, numbers))
}
