//! Signals during long calls of the core.

use std::sync::{Arc, Mutex, PoisonError};

use drpruning_core::{Result, interruptible};
use pyo3::prelude::*;

use crate::errors::to_python;

/// Calls `act` without the GIL. A handler that raises, as that of Ctrl-C does, ends a read of a whole shard in `act`; its
/// exception is returned.
///
/// Handlers run within `act`, so it must hold no lock.
pub(crate) fn detached_until_signal<T: Send>(
    py: Python<'_>,
    act: impl FnOnce() -> Result<T> + Send,
) -> PyResult<T> {
    let raised = Arc::new(Mutex::new(None));
    let slot = Arc::clone(&raised);
    let check = move || {
        Python::attach(|py| match py.check_signals() {
            Ok(()) => false,
            Err(exception) => {
                *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(exception);
                true
            }
        })
    };
    py.detach(move || interruptible(check, act))
        .map_err(|error| {
            let raised = raised.lock().unwrap_or_else(PoisonError::into_inner).take();
            raised.unwrap_or_else(|| to_python(&error))
        })
}
