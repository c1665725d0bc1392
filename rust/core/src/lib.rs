//! The fast parts of `drpruning`, without Python.
//!
//! A [`sampler`] decides which rows make up each batch, and a [`corpus`] reads them:
//!
//! ```
//! use drpruning_core::corpus::{Corpus, Domain, Shard};
//! use drpruning_core::sampler::{Draw, Sampler};
//! use drpruning_core::tokens::Dtype;
//! use drpruning_core::weights::Weights;
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

mod advance;
pub mod chi2;
mod cipher;
pub mod corpus;
pub mod documents;
pub mod error;
mod file;
mod flat;
mod independent;
pub mod mds;
pub mod megatron;
pub mod mixture;
pub mod opening;
mod philox;
mod pool;
pub mod prefetch;
pub mod sampler;
mod shard;
pub mod shuffle;
pub mod tokens;
mod unpack;
pub mod weights;
mod zstd;
