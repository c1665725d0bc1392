//! The fast parts of `drpruning`, without Python.

pub mod chi2;
pub mod error;
