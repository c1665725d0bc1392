//! The one place where errors of the core become Python exceptions.

use chi2_ball::Argument;
use drpruning_core::Error;
use pyo3::exceptions::PyOSError;
use pyo3::prelude::*;
use pyo3::types::PyType;

/// The Python exception for an error of the core: a class of `drpruning.errors`, or `OSError`.
pub(crate) fn to_python(error: &Error) -> PyErr {
    let class = match error {
        Error::Weight(_) => "WeightError",
        Error::State(_) => "StateError",
        Error::Io { path, source } => {
            return PyOSError::new_err((
                source.raw_os_error(),
                source.to_string(),
                path.display().to_string(),
            ));
        }
        // `Error` is non-exhaustive; whatever is not named above comes from reading a corpus.
        _ => "CorpusError",
    };
    exception(class, error.to_string())
}

/// The `WeightError` for an argument of the ball, which has its name in `drpruning.chi2`.
pub(crate) fn ball_to_python(error: &chi2_ball::Error) -> PyErr {
    let message = error.message(|argument| match argument {
        Argument::Losses => "excess_loss",
        other => other.name(),
    });
    exception("WeightError", message)
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
