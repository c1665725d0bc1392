//! The fast parts of `drpruning`, without Python.

pub mod corpus;
pub mod error;
mod file;
pub mod megatron;
pub mod mixture;
mod philox;
pub mod sampler;
pub mod shuffle;
pub mod tokens;
pub mod weights;
