//! `drpruning._native`: conversion between Python and `drpruning-core`, and nothing else.

mod chi2;
mod errors;

use pyo3::prelude::*;

/// The compiled part of drpruning.
#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_function(wrap_pyfunction!(chi2::worst_case, module)?)?;
    module.add_function(wrap_pyfunction!(chi2::project, module)?)
}
