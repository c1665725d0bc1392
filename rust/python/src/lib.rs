//! `drpruning._native`: conversion between Python and the crates `drpruning-core` and `chi2-ball`, and nothing else.

// PyO3 passes arguments by value.
#![allow(clippy::needless_pass_by_value)]

mod chi2;
mod corpus;
mod documents;
mod errors;
mod sampler;
mod scaling;
mod shuffle;
mod signals;

use pyo3::prelude::*;

/// The compiled part of drpruning.
///
/// It needs no GIL: every class is frozen. Results never change; a `TokenReader` reads at offsets and locks its file
/// handles; a `Sampler` locks its queue for each call.
#[pymodule(gil_used = false)]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_class::<chi2::BallSolution>()?;
    module.add_class::<chi2::BallSolutions>()?;
    module.add_class::<corpus::TokenReader>()?;
    module.add_class::<sampler::Sampler>()?;
    module.add_class::<sampler::SamplerState>()?;
    module.add_class::<scaling::LawFit>()?;
    module.add_function(wrap_pyfunction!(corpus::read_index, module)?)?;
    module.add_function(wrap_pyfunction!(documents::find_documents, module)?)?;
    module.add_function(wrap_pyfunction!(corpus::verify_index, module)?)?;
    module.add_function(wrap_pyfunction!(corpus::verify_mds, module)?)?;
    module.add_function(wrap_pyfunction!(chi2::project, module)?)?;
    module.add_function(wrap_pyfunction!(chi2::project_many, module)?)?;
    module.add_function(wrap_pyfunction!(chi2::worst_case, module)?)?;
    module.add_function(wrap_pyfunction!(chi2::worst_case_many, module)?)?;
    module.add_function(wrap_pyfunction!(scaling::fit_law, module)?)?;
    module.add_function(wrap_pyfunction!(scaling::profile_law, module)?)?;
    module.add_function(wrap_pyfunction!(shuffle::permuted, module)?)
}
