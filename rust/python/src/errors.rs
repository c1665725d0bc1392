//! The one place where errors of the Rust crates become Python exceptions.

use std::path::Path;

use chi2_ball::Argument;
use drpruning_core::Error;
use pyo3::exceptions::{PyKeyboardInterrupt, PyMemoryError, PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyType;

/// Converts an error of the core: to a class of `drpruning.errors`, or `ValueError`.
///
/// The match is exhaustive, so a new variant does not compile before it has a class.
#[deny(clippy::wildcard_enum_match_arm)]
pub(crate) fn to_python(error: &Error) -> PyErr {
    match error {
        Error::Weight(_) | Error::Fit(_) => exception("WeightError", error.to_string()),
        Error::State(_) => exception("StateError", error.to_string()),
        Error::Corpus { .. } => exception("CorpusError", error.to_string()),
        Error::Argument(_) => PyValueError::new_err(error.to_string()),
        Error::Io { path, source } => disk_error(path, source),
        Error::Memory { .. } => PyMemoryError::new_err(error.to_string()),
        Error::Interrupted => PyKeyboardInterrupt::new_err(()),
    }
}

/// Converts an error of the operating system, with the next step for its number.
fn disk_error(path: &Path, source: &std::io::Error) -> PyErr {
    Python::attach(|py| {
        let problem = PyOSError::new_err((source.raw_os_error(), source.to_string()));
        py.import("drpruning.inputs")
            .and_then(|module| module.getattr("disk_error"))
            .and_then(|convert| convert.call1((path, problem)))
            .map_or_else(|missing| missing, PyErr::from_value)
    })
}

/// Converts an error of the ball to `WeightError`, with the argument names of `drpruning.chi2`.
pub(crate) fn ball_to_python(error: &chi2_ball::Error) -> PyErr {
    let message = error.message(|argument| match argument {
        Argument::Losses => "excess_loss",
        other => other.name(),
    });
    exception("WeightError", message)
}

/// Returns the error for an array that another thread is writing or reading.
pub(crate) fn buffer_in_use() -> PyErr {
    let message = "buffer is in use by another call; expected one buffer for each thread";
    exception("ConfigError", message.to_string())
}

fn exception(class: &str, message: String) -> PyErr {
    Python::attach(|py| {
        let class = py
            .import("drpruning.errors")
            .and_then(|module| module.getattr(class))
            .and_then(|class| Ok(class.cast_into::<PyType>()?));
        match class {
            Ok(class) => PyErr::from_type(class, message),
            Err(missing) => missing,
        }
    })
}
