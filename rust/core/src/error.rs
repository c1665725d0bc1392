//! One error type for the crate; its variants carry the values that a message needs.

use std::path::PathBuf;

use crate::tokens::Dtype;

/// An error of this crate. The Python package has one exception for each variant.
///
/// The enum is exhaustive: a caller that handles every variant does not compile when one is added.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The weights of a mixture are invalid.
    #[error(transparent)]
    Weight(#[from] WeightError),
    /// The points or the settings of a scaling-law fit are invalid.
    #[error(transparent)]
    Fit(#[from] FitError),
    /// The arguments of a constructor are invalid.
    #[error(transparent)]
    Argument(#[from] ArgumentError),
    /// A saved state does not fit this sampler, or a position is outside the stream.
    #[error(transparent)]
    State(#[from] StateError),
    /// A corpus file is missing, truncated, changed or inconsistent with its header.
    #[error("{path}: {problem}", path = path.display())]
    Corpus {
        /// The file.
        path: PathBuf,
        /// The expected and the found content.
        problem: CorpusProblem,
    },
    /// The operating system refused to read or write a file.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// The system gives no memory for the tokens of a batch.
    #[error("no memory for a batch of {tokens} tokens")]
    Memory {
        /// Tokens of the batch.
        tokens: usize,
    },
    /// The caller of [`interruptible`](crate::interruptible) has stopped it.
    #[error("the read was interrupted")]
    Interrupted,
}

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// A problem of a corpus file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CorpusProblem {
    /// No file has this path.
    #[error("expected a file, found none")]
    Missing,
    /// The path is a folder, a pipe, a socket or a device.
    #[error("expected a file, found something else")]
    NotAFile,
    /// No file can have this path: its symbolic links form a circle, or a name is too long.
    #[error("expected the path of a file, found an invalid one: {0}")]
    InvalidPath(std::io::ErrorKind),
    /// The file ends before the last byte to read.
    #[error(
        "the file is truncated: expected at least {expected} bytes, found no more than {found}"
    )]
    Truncated {
        /// End of the bytes to read.
        expected: u64,
        /// Bytes in the file, at most.
        found: u64,
    },
    /// The file changed since it was opened.
    #[error("the file changed while it was in use: {0}")]
    Changed(Change),
    /// The tokens have another dtype than the caller expects.
    #[error("expected {} tokens (dtype=), found {} ({place})", expected.name(), found.name())]
    Dtype {
        /// The dtype that the caller expects.
        expected: Dtype,
        /// The dtype of the file.
        found: Dtype,
        /// The part of the file that names it.
        place: &'static str,
    },
    /// A token id is negative.
    #[error("expected token ids of 0 and above, found {id} at token {token}")]
    NegativeId {
        /// Index of the token in the shard.
        token: u64,
        /// Its id.
        id: i64,
    },
    /// A token id does not fit the int32 that the caller reads into.
    #[error("expected token ids below 2^31 for int32, found {id} at token {token}")]
    WideId {
        /// Index of the token in the shard.
        token: u64,
        /// Its id.
        id: i64,
    },
    /// A token id is outside the vocabulary.
    #[error("expected token ids below the vocabulary's {vocab_size}, found {id} at token {token}")]
    IdOutsideVocabulary {
        /// Index of the token in the shard.
        token: u64,
        /// Its id.
        id: i64,
        /// Number of ids.
        vocab_size: u64,
    },
    /// A domain has 2^63 tokens or more up to the end of this file.
    #[error("expected fewer than 2^63 tokens so far")]
    TooManyTokens,
    /// The content does not follow the format; the text names the expected and the found values.
    #[error("{0}")]
    Format(String),
}

/// The difference between a file when it was opened and now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Change {
    /// The file has another size.
    #[error("expected {expected} bytes, found {found}")]
    Size {
        /// Bytes when it was opened.
        expected: u64,
        /// Bytes now.
        found: u64,
    },
    /// The file was deleted, or another file was renamed over it, while it was open.
    #[error("expected it to stay, found it deleted or replaced")]
    Removed,
    /// Another file has the path.
    #[error("expected it to stay, found another in its place")]
    Replaced,
    /// The file was written.
    #[error(
        "expected it last written at {}.{:09} s, found {}.{:09} s",
        expected.0, expected.1, found.0, found.1
    )]
    Modified {
        /// Modification time when it was opened: seconds and nanoseconds.
        expected: (i64, i64),
        /// Modification time now.
        found: (i64, i64),
    },
}

/// Invalid weights of a mixture.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum WeightError {
    /// The number of weights is not the number of domains.
    #[error("{weights} weights for {domains} domains; each domain needs one")]
    Count {
        /// Number of weights.
        weights: usize,
        /// Number of domains.
        domains: usize,
    },
    /// A mixture has too many domains.
    #[error("{domains} domains; a mixture has at most {max}")]
    TooManyDomains {
        /// Number of domains.
        domains: usize,
        /// Largest number of domains.
        max: usize,
    },
    /// A weight is negative, infinite or NaN.
    #[error("weight of domain {name:?} is {value}; weights must be finite and >= 0")]
    Value {
        /// The domain.
        name: String,
        /// Its weight.
        value: f64,
    },
    /// No weight is positive.
    #[error("all weights are 0; at least one must be positive")]
    AllZero,
    /// A domain without a row has a positive weight.
    #[error(
        "domain {name:?} has a weight of {weight} but not one row: it has fewer tokens than seq_len"
    )]
    NoRows {
        /// The domain.
        name: String,
        /// Its weight.
        weight: f64,
    },
}

/// Invalid points or settings of a scaling-law fit.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum FitError {
    /// The arrays are empty or differ in length.
    #[error(
        "got {parameters} parameter counts, {tokens} token counts and {losses} losses; they must have the same length, \
         at least 1"
    )]
    Length {
        /// Length of the logarithms of parameters.
        parameters: usize,
        /// Length of the logarithms of tokens.
        tokens: usize,
        /// Length of the logarithms of losses.
        losses: usize,
    },
    /// A logarithm is infinite or NaN.
    #[error("point {index} is {point:?}; logarithms must be finite")]
    Point {
        /// Index of the point.
        index: usize,
        /// Logarithms of its parameters, tokens and loss.
        point: (f64, f64, f64),
    },
    /// The width of the Huber loss is not positive or not finite.
    #[error("delta is {delta}; it must be positive and finite")]
    Delta {
        /// The width.
        delta: f64,
    },
    /// An exponent is outside its bounds.
    #[error("{name} is {value}; it must be between 0 and {max}")]
    Exponent {
        /// `alpha` or `beta`.
        name: &'static str,
        /// Its value.
        value: f64,
        /// Its upper bound.
        max: f64,
    },
}

/// Invalid arguments of the constructors of [`Sampler`](crate::Sampler) and [`Prefetch`](crate::Prefetch).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArgumentError {
    /// The numbers of names, row counts and weights differ.
    #[error(
        "got {names} names, {rows} row counts and {weights} weights; expected one of each for every domain"
    )]
    Domains {
        /// Number of names.
        names: usize,
        /// Number of row counts.
        rows: usize,
        /// Number of weights.
        weights: usize,
    },
    /// A size is 0.
    #[error("{name} is 0; it must be at least 1")]
    Zero {
        /// `seq_len` or `batch_size`.
        name: &'static str,
    },
    /// The part of a batch to read is not inside the batch.
    #[error(
        "rows {start}..{end} are not in a batch of {batch_size}; expected start <= end <= batch_size"
    )]
    Part {
        /// First row of the part.
        start: usize,
        /// The row after its last.
        end: usize,
        /// Rows in a batch.
        batch_size: usize,
    },
    /// The sampler draws from other row counts than the corpus has.
    #[error(
        "the sampler has domains of {sampler:?} rows, the corpus {corpus:?}; expected the rows of corpus.rows(seq_len)"
    )]
    OtherRows {
        /// The sampler's rows of each domain.
        sampler: Vec<u64>,
        /// The corpus's rows of each domain.
        corpus: Vec<u64>,
    },
}

/// A saved state that does not fit the sampler, or a position outside the stream.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum StateError {
    /// A list of the state has not one entry for each domain.
    #[error("the saved sampler has {found} {field} for {domains} domains")]
    Length {
        /// `drawn`, `weights` or `credit`.
        field: &'static str,
        /// Entries in the list.
        found: usize,
        /// Number of domains.
        domains: usize,
    },
    /// The rows drawn do not add up to the batches drawn.
    #[error(
        "the saved sampler drew {drawn} rows in {step} batches of {batch_size}, expected {expected}"
    )]
    Drawn {
        /// Sum of the rows drawn.
        drawn: u128,
        /// Batches drawn.
        step: u64,
        /// Rows in a batch.
        batch_size: usize,
        /// Rows in that many batches.
        expected: u128,
    },
    /// The credits are too large, or their sum is not 0.
    #[error("the saved sampler's credits sum to {sum} or exceed {limit}; expected a sum of 0")]
    Credits {
        /// Sum of the credits.
        sum: i128,
        /// Largest size of a credit.
        limit: i64,
    },
    /// A domain has a credit that its weight, or random draws, exclude.
    #[error(
        "the saved sampler has a credit of {credit} in domain {name:?}; expected 0 for a weight of 0 and for random \
         draws"
    )]
    Credit {
        /// The domain.
        name: String,
        /// Its credit.
        credit: i64,
    },
    /// The weights, in units, have another sum.
    #[error("the saved sampler's weights do not sum to {expected}")]
    Units {
        /// The sum of the units of a mixture.
        expected: u64,
    },
    /// The weights cannot be drawn from this corpus.
    #[error("the saved sampler's weights do not fit this corpus: {0}")]
    Weights(WeightError),
    /// A stream has fewer than 2^63 rows.
    #[error(
        "cannot skip {steps} batches of {batch_size} rows after batch {step}: a stream has fewer than 2^63 rows"
    )]
    PastEnd {
        /// Batches to skip.
        steps: u64,
        /// Rows in a batch.
        batch_size: usize,
        /// Batches drawn so far.
        step: u64,
    },
    /// A batch was drawn under weights that are not stored.
    #[error(
        "batch {step} is unavailable: weights were set or a state was loaded at batch {origin}, and earlier \
         weights are not stored"
    )]
    Unavailable {
        /// The batch.
        step: u64,
        /// The first batch that is available.
        origin: u64,
    },
}
