//! The fast parts of `drpruning`, without Python.

pub mod error;
