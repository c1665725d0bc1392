//! Criterion benchmarks live beside this file, one for each part of the core.
