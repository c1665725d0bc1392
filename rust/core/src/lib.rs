//! The fast parts of `drpruning`, without Python.
//!
//! A [`Sampler`] decides which rows make up each batch, and a [`Corpus`] reads them:
//!
//! ```
//! use drpruning_core::{Corpus, Domain, Draw, Dtype, Sampler, Shard, Weights};
//!
//! # let folder = tempfile::TempDir::new()?;
//! # let folder = folder.path();
//! let mut domains = Vec::new();
//! for name in ["web", "code"] {
//!     let path = folder.join(name);
//!     std::fs::write(&path, [7u8; 1_000])?;
//!     domains.push(Domain::new(name.into(), vec![Shard::new(path, Dtype::U8, 1_000)])?);
//! }
//! let corpus = Corpus::new(domains, Some(256));
//!
//! let (seq_len, batch_size, seed) = (10, 8, 17);
//! let names = vec!["web".to_string(), "code".to_string()];
//! let weights = Weights::new(&names, &[0.75, 0.25])?;
//! let mut sampler = Sampler::new(names, &corpus.rows(seq_len), &weights, batch_size, seed, Draw::Balanced)?;
//!
//! let mut batch = Vec::new();
//! let mut tokens = vec![0i64; batch_size * seq_len];
//! sampler.next_batch(&mut batch);
//! corpus.gather(&batch, seq_len, &mut tokens)?;
//! assert_eq!(sampler.drawn(), [6, 2]);
//! assert!(tokens.iter().all(|&id| id == 7));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! [`Prefetch`] does both on a background thread. Imports run downwards only:
//!
//! | module | content |
//! |---|---|
//! | `prefetch` | batches read in advance |
//! | `sampler`, `corpus` | the plan of a batch; domains, shards and the reading of rows |
//! | [`draw`], `shuffle` | the domain of each row; the order of a domain's rows |
//! | [`formats`] | layouts of flat, Megatron and MDS files |
//! | [`scaling`] | the fit of the scaling law |
//! | `source`, `interrupt`, `tokens`, `weights`, `error` | files, interruption, dtypes, mixtures, errors |

mod corpus;
pub mod draw;
mod error;
pub mod formats;
mod interrupt;
mod prefetch;
mod sampler;
pub mod scaling;
mod shuffle;
mod source;
mod tokens;
mod weights;

pub use corpus::{
    Corpus, Documents, Domain, Pick, Shard, ShardRequest, ends_sha256, find_documents, open_shards,
};
pub use error::{
    ArgumentError, Change, CorpusProblem, Error, FitError, Result, StateError, WeightError,
};
pub use interrupt::interruptible;
pub use prefetch::{Batch, Prefetch};
pub use sampler::{Draw, Sampler, SamplerState};
pub use shuffle::Shuffle;
pub use tokens::{Dtype, Token};
pub use weights::Weights;
