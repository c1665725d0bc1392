//! Which rows make up each batch: the mixture decides on domains, a shuffle of each domain on rows.
//!
//! This is planning only; [`Corpus::gather`](crate::corpus::Corpus::gather) reads what is planned. The plan for all
//! ranks is made on every rank, which costs some tens of nanoseconds a row and needs no communication.

use crate::corpus::Pick;
use crate::error::{Error, Result};
use crate::mixture::{Balanced, independent};
use crate::philox::{Philox, Purpose};
use crate::shuffle::{Shuffle, fisher_yates};
use crate::weights::{TOTAL, Weights};

/// How domains are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Draw {
    /// Within one sample of the mixture at all times.
    Balanced,
    /// Independently, as the paper's code does.
    Random,
}

/// What a sampler has to remember: with it and the arguments of [`Sampler::new`] the stream goes on where it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// Batches drawn.
    pub step: u64,
    /// Rows drawn from each domain.
    pub drawn: Vec<u64>,
    /// Weights now, in units of 1 / [`TOTAL`].
    pub weights: Vec<u64>,
    /// Credits of the balanced draw, in units of 1 / [`TOTAL`] samples.
    pub credit: Vec<i64>,
}

/// An endless stream of batches, a pure function of domain sizes, seed, batch size and the history of weights.
///
/// # Examples
///
/// ```
/// use drpruning_core::{sampler::{Draw, Sampler}, weights::Weights};
/// let names = ["cc".to_string(), "github".to_string()];
/// let weights = Weights::new(&names, &[0.75, 0.25])?;
/// let mut sampler = Sampler::new(names.to_vec(), &[1_000, 10], &weights, 8, 17, Draw::Balanced)?;
/// let mut batch = Vec::new();
/// sampler.next_batch(&mut batch);
/// assert_eq!(batch.iter().filter(|pick| pick.domain == 0).count(), 6);
/// # Ok::<(), drpruning_core::error::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Sampler {
    names: Vec<String>,
    shuffles: Vec<Shuffle>,
    philox: Philox,
    mixture: Balanced,
    batch_size: usize,
    draw: Draw,
    step: u64,
    drawn: Vec<u64>,
}

impl Sampler {
    /// A sampler at the start of its stream. `rows` holds the number of rows of each domain.
    ///
    /// # Errors
    ///
    /// [`Error::Weight`] if a domain without rows has a weight.
    ///
    /// # Panics
    ///
    /// If `names`, `rows` and `weights` are not of one length, or `batch_size` is 0.
    pub fn new(
        names: Vec<String>,
        rows: &[u64],
        weights: &Weights,
        batch_size: usize,
        seed: u64,
        draw: Draw,
    ) -> Result<Self> {
        assert!(
            names.len() == rows.len() && rows.len() == weights.units().len(),
            "one of each for each domain"
        );
        assert!(batch_size > 0, "a batch has rows");
        let sampler = Self {
            drawn: vec![0; names.len()],
            names,
            shuffles: rows
                .iter()
                .enumerate()
                .map(|(domain, &rows)| Shuffle::new(seed, domain as u32, rows))
                .collect(),
            philox: Philox::new(seed),
            mixture: Balanced::new(weights.clone()),
            batch_size,
            draw,
            step: 0,
        };
        sampler.check(weights)?;
        Ok(sampler)
    }

    /// Names of the domains.
    #[must_use]
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Batches drawn so far.
    #[must_use]
    pub fn step(&self) -> u64 {
        self.step
    }

    /// Rows in a batch.
    #[must_use]
    pub fn batch_size(&self) -> usize {
        self.batch_size
    }

    /// Rows drawn from each domain so far.
    #[must_use]
    pub fn drawn(&self) -> &[u64] {
        &self.drawn
    }

    /// The mixture of the next batch.
    #[must_use]
    pub fn weights(&self) -> &Weights {
        self.mixture.weights()
    }

    /// Replaces the contents of `batch` by the next batch.
    pub fn next_batch(&mut self, batch: &mut Vec<Pick>) {
        batch.clear();
        for k in 0..self.batch_size as u64 {
            let domain = match self.draw {
                Draw::Balanced => self.mixture.draw(),
                Draw::Random => {
                    let sample = self.step * self.batch_size as u64 + k;
                    independent(self.philox, self.mixture.weights(), sample)
                }
            };
            let position = self.drawn[domain];
            self.drawn[domain] += 1;
            batch.push(Pick {
                domain: domain as u32,
                row: self.shuffles[domain].row(position),
            });
        }
        if self.draw == Draw::Balanced {
            // Balanced draws follow a rhythm. Shuffled, every slice of the batch shows the mixture.
            fisher_yates(batch, self.philox.words(Purpose::Batch, 0, self.step));
        }
        self.step += 1;
    }

    /// Draws by `weights` from the next batch on.
    ///
    /// # Errors
    ///
    /// [`Error::Weight`] if a domain without rows has a weight; the weights then stay as they are.
    ///
    /// # Panics
    ///
    /// If there is not one weight for each domain.
    pub fn set_weights(&mut self, weights: Weights) -> Result<()> {
        assert_eq!(
            weights.units().len(),
            self.names.len(),
            "one weight for each domain"
        );
        self.check(&weights)?;
        self.mixture.set_weights(weights);
        Ok(())
    }

    /// What has to be saved.
    #[must_use]
    pub fn state(&self) -> State {
        State {
            step: self.step,
            drawn: self.drawn.clone(),
            weights: self.mixture.weights().units().to_vec(),
            credit: self.mixture.credits().to_vec(),
        }
    }

    /// Goes on from `state`.
    ///
    /// # Errors
    ///
    /// [`Error::State`] if no sampler like this one can have that state; this one then stays as it is.
    pub fn restore(&mut self, state: State) -> Result<()> {
        let count = self.names.len();
        for (what, found) in [
            ("drawn", state.drawn.len()),
            ("weights", state.weights.len()),
            ("credit", state.credit.len()),
        ] {
            if found != count {
                return Err(Error::State(format!(
                    "the saved sampler has {found} {what} for {count} domains"
                )));
            }
        }
        let drawn: u128 = state.drawn.iter().map(|&rows| u128::from(rows)).sum();
        let expected = u128::from(state.step) * self.batch_size as u128;
        if drawn != expected || i64::try_from(drawn).is_err() {
            return Err(Error::State(format!(
                "the saved sampler drew {drawn} rows in {} batches of {}, expected {expected}",
                state.step, self.batch_size
            )));
        }
        // Credits stay below a few samples; the limits keep a forged state from overflowing anything.
        let limit = TOTAL as i64 * 16;
        let owed: i128 = state.credit.iter().map(|&credit| i128::from(credit)).sum();
        if owed != 0
            || state
                .credit
                .iter()
                .any(|credit| !(-limit..=limit).contains(credit))
        {
            return Err(Error::State(
                "the saved sampler's credits do not sum to 0".into(),
            ));
        }
        let weights = Weights::from_units(state.weights)?;
        self.check(&weights)
            .map_err(|error| Error::State(error.to_string()))?;
        self.mixture = Balanced::with_credits(weights, state.credit);
        self.step = state.step;
        self.drawn = state.drawn;
        Ok(())
    }

    fn check(&self, weights: &Weights) -> Result<()> {
        for ((name, shuffle), &unit) in self.names.iter().zip(&self.shuffles).zip(weights.units()) {
            if unit > 0 && shuffle.rows() == 0 {
                return Err(Error::Weight(format!(
                    "domain {name:?} has a weight of {} but not one row: it has fewer tokens than seq_len",
                    unit as f64 / TOTAL as f64
                )));
            }
        }
        Ok(())
    }
}
