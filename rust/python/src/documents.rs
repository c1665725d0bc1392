//! Binding of `drpruning_core::find_documents`.

use drpruning_core::Token;
use numpy::{Element, PyArray1, PyArray2, PyArrayMethods, PyReadonlyArray2};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

type Found<'py> = (Bound<'py, PyArray1<i32>>, Bound<'py, PyArray2<i64>>, usize);

/// Returns `cu_seqlens` of the documents in rows of int32 or int64 tokens, the position of each token in its document,
/// and the length of the longest document.
#[pyfunction]
pub(crate) fn find_documents<'py>(
    py: Python<'py>,
    tokens: &Bound<'py, PyAny>,
    end_token: i64,
) -> PyResult<Found<'py>> {
    if let Ok(tokens) = tokens.extract::<PyReadonlyArray2<'py, i32>>() {
        find(py, &tokens, i32::try_from(end_token)?)
    } else {
        find(py, &tokens.extract()?, end_token)
    }
}

fn find<'py, T: Token + Element>(
    py: Python<'py>,
    tokens: &PyReadonlyArray2<'py, T>,
    end_token: T,
) -> PyResult<Found<'py>> {
    let shape = [tokens.as_array().nrows(), tokens.as_array().ncols()];
    let tokens = tokens.as_slice()?;
    if i32::try_from(tokens.len()).is_err() || shape[1] == 0 {
        return Err(PyValueError::new_err(
            "rows must have tokens, fewer than 2^31 in all",
        ));
    }
    let found = py.detach(|| drpruning_core::find_documents(tokens, shape[1], end_token));
    let positions = PyArray1::from_vec(py, found.positions).reshape(shape)?;
    Ok((PyArray1::from_vec(py, found.ends), positions, found.longest))
}
