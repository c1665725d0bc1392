//! Criterion benchmarks are next to this file, one for each part of the core.
