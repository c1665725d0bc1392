//! One error type for the crate; its variants carry the values a message needs.

use std::path::PathBuf;

/// What can go wrong in this crate.
///
/// Three families, which the Python package turns into `WeightError`, `CorpusError` and `StateError`;
/// [`Error::Io`] becomes `OSError`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A mixture, loss vector or radius is not usable.
    #[error("{0}")]
    Weight(String),
    /// A corpus file is missing, truncated, altered or not what it claims to be.
    #[error("{path}: {problem}", path = path.display())]
    Corpus {
        /// The file that is wrong.
        path: PathBuf,
        /// What was found and what was wanted.
        problem: String,
    },
    /// A saved state does not belong to this corpus, seed or version.
    #[error("{0}")]
    State(String),
    /// The operating system refused to read a file.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file being read.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, Error>;
