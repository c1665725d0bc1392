//! The plan of each batch: a mixture draws the domains, a shuffle of each domain gives the rows.
//!
//! The sampler reads nothing; [`Corpus::gather`](crate::Corpus::gather) reads the planned rows. Every rank plans the
//! whole batch, which needs no communication.

use crate::corpus::Pick;
use crate::draw::{Balanced, Random, fast_forward};
use crate::error::{ArgumentError, Result, StateError, WeightError};
use crate::shuffle::philox::{Philox, Purpose};
use crate::shuffle::{Shuffle, fisher_yates};
use crate::weights::{TOTAL, Weights};

/// The rule that draws the domain of each row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Draw {
    /// Earliest deadline first (EDF): every domain stays within one sample of its share.
    Balanced,
    /// Independent draws, as in the paper's code.
    Random,
}

/// The state of a sampler: with the arguments of [`Sampler::new`] it resumes the stream exactly.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SamplerState {
    /// Batches drawn.
    pub step: u64,
    /// Rows drawn from each domain.
    pub drawn: Vec<u64>,
    /// Weights of the next batch, in units of 1 / [`Weights::TOTAL`].
    pub weights: Vec<u64>,
    /// Credits of the balanced draw, in units of 1 / [`Weights::TOTAL`] samples.
    pub credit: Vec<i64>,
}

/// An endless stream of batches: a pure function of domain sizes, seed, batch size and the history of weights.
///
/// # Performance
///
/// For n domains and batches of b rows:
///
/// - Memory and the time of [`new`](Self::new) are O(n): no permutation of a large domain is stored.
/// - [`next_batch`](Self::next_batch) is O(n + b (1 + n / 8)), independent of the number of rows in the corpus: 17 to
///   27 ns a row for 7 domains, 33 to 44 ns for 64.
/// - [`skip`](Self::skip) and [`peek`](Self::peek) take a time that does not grow with the number of batches for
///   balanced draws, and are O(rows skipped) for random draws. [`restore`](Self::restore) is O(n).
///
/// `benches/README.md` has the machine and the command.
///
/// # Examples
///
/// ```
/// use drpruning_core::{Draw, Sampler, Weights};
/// let names = ["cc".to_string(), "github".to_string()];
/// let weights = Weights::new(&names, &[0.75, 0.25])?;
/// let mut sampler = Sampler::new(names.to_vec(), &[1_000, 10], &weights, 8, 17, Draw::Balanced)?;
/// let mut batch = Vec::new();
/// sampler.next_batch(&mut batch);
/// assert_eq!(batch.iter().filter(|pick| pick.domain == 0).count(), 6);
/// # Ok::<(), drpruning_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Sampler {
    names: Vec<String>,
    shuffles: Vec<Shuffle>,
    philox: Philox,
    seed: u64,
    mixture: Mixture,
    batch_size: usize,
    step: u64,
    drawn: Vec<u64>,
    /// State at the last change of weights: earlier batches cannot be recomputed.
    origin: SamplerState,
    scratch: Scratch,
}

#[derive(Clone, Debug)]
enum Mixture {
    Balanced(Balanced),
    Random(Random),
}

/// Buffers for the plan of a batch, reused by the next.
#[derive(Clone, Debug, Default)]
struct Scratch {
    /// Domain of each draw.
    domains: Vec<u32>,
    /// One number for each domain, used three times: [`Sampler::next_batch`] counts the draws of each domain in it,
    /// replaces each count by the domain's start in `rows`, and then advances the starts as cursors.
    places: Vec<usize>,
    /// Rows in the order of their domains: all of the first domain, then all of the second.
    rows: Vec<u64>,
}

impl Sampler {
    /// Creates a sampler at the start of its stream. `rows` holds the number of rows of each domain.
    ///
    /// # Errors
    ///
    /// - [`ArgumentError::Domains`]: `names`, `rows` and `weights` differ in length.
    /// - [`ArgumentError::Zero`]: `batch_size` is 0.
    /// - [`WeightError::NoRows`]: a domain without rows has a weight.
    pub fn new(
        names: Vec<String>,
        rows: &[u64],
        weights: &Weights,
        batch_size: usize,
        seed: u64,
        draw: Draw,
    ) -> Result<Self> {
        if names.len() != rows.len() || rows.len() != weights.units().len() {
            return Err(ArgumentError::Domains {
                names: names.len(),
                rows: rows.len(),
                weights: weights.units().len(),
            }
            .into());
        }
        if batch_size == 0 {
            return Err(ArgumentError::Zero { name: "batch_size" }.into());
        }
        let domains = names.len();
        let mixture = match draw {
            Draw::Balanced => Mixture::Balanced(Balanced::new(weights.clone())),
            Draw::Random => Mixture::Random(Random::new(seed, weights.clone())),
        };
        let sampler = Self {
            names,
            shuffles: rows
                .iter()
                .enumerate()
                .map(|(domain, &rows)| Shuffle::new(seed, domain as u32, rows))
                .collect(),
            philox: Philox::new(seed),
            seed,
            mixture,
            batch_size,
            step: 0,
            drawn: vec![0; domains],
            origin: SamplerState {
                step: 0,
                drawn: vec![0; domains],
                weights: weights.units().to_vec(),
                credit: vec![0; domains],
            },
            scratch: Scratch::default(),
        };
        sampler.check(weights)?;
        Ok(sampler)
    }

    /// Returns the names of the domains.
    #[must_use]
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Returns the number of rows of each domain.
    #[must_use]
    pub fn rows(&self) -> Vec<u64> {
        self.shuffles.iter().map(Shuffle::rows).collect()
    }

    /// Returns the number of batches drawn so far.
    #[must_use]
    pub fn step(&self) -> u64 {
        self.step
    }

    /// Returns the number of rows in a batch.
    #[must_use]
    pub fn batch_size(&self) -> usize {
        self.batch_size
    }

    /// Returns the number of rows drawn from each domain so far.
    #[must_use]
    pub fn drawn(&self) -> &[u64] {
        &self.drawn
    }

    /// Returns the mixture of the next batch.
    #[must_use]
    pub fn weights(&self) -> &Weights {
        match &self.mixture {
            Mixture::Balanced(mixture) => mixture.weights(),
            Mixture::Random(mixture) => mixture.weights(),
        }
    }

    /// Replaces the contents of `batch` by the next batch.
    ///
    /// First draws the domains of all rows, then fills in the rows domain by domain, so that the shuffle of a domain
    /// computes several rows at once. One buffer with a number for each domain serves both passes, as in a counting sort:
    ///
    /// 1. counts: the number of draws of each domain;
    /// 2. starts: prefix sums of the counts, the domain's first place in the list of rows;
    /// 3. cursors: each draw takes the row at its domain's cursor and advances it.
    pub fn next_batch(&mut self, batch: &mut Vec<Pick>) {
        let Scratch {
            domains,
            places,
            rows,
        } = &mut self.scratch;
        // Counts
        domains.clear();
        places.clear();
        places.resize(self.names.len(), 0);
        let mut chosen = |domain: usize| {
            domains.push(domain as u32);
            places[domain] += 1;
        };
        match &mut self.mixture {
            Mixture::Balanced(mixture) => {
                (0..self.batch_size).for_each(|_| chosen(mixture.draw()));
            }
            Mixture::Random(mixture) => mixture.draw(self.step, self.batch_size, chosen),
        }
        // Starts
        rows.resize(self.batch_size, 0);
        let mut start = 0;
        for (domain, place) in places
            .iter_mut()
            .enumerate()
            .filter(|(_, place)| **place > 0)
        {
            let count = std::mem::replace(place, start);
            self.shuffles[domain].fill(self.drawn[domain], &mut rows[start..start + count]);
            self.drawn[domain] += count as u64;
            start += count;
        }
        // Cursors
        batch.clear();
        batch.extend(domains.iter().map(|&domain| {
            let place = &mut places[domain as usize];
            *place += 1;
            Pick {
                domain,
                row: rows[*place - 1],
            }
        }));
        if let Mixture::Balanced(_) = self.mixture {
            // Balanced draws are periodic. After a shuffle every rank's slice of the batch follows the mixture.
            fisher_yates(batch, &mut self.philox.words(Purpose::Batch, 0, self.step));
        }
        self.step += 1;
    }

    /// Skips `steps` batches. Balanced draws take a time that does not depend on `steps`, see `fast_forward.rs`; random
    /// draws are made one by one, some nanoseconds each.
    ///
    /// # Errors
    ///
    /// [`StateError::PastEnd`] if the stream ends before that, at row 2^63; the sampler is then unchanged.
    pub fn skip(&mut self, steps: u64) -> Result<()> {
        let end = self.step.checked_add(steps);
        let draws = end
            .and_then(|end| end.checked_mul(self.batch_size as u64))
            .filter(|&rows| i64::try_from(rows).is_ok())
            .map(|rows| rows - self.step * self.batch_size as u64)
            .ok_or(StateError::PastEnd {
                steps,
                batch_size: self.batch_size,
                step: self.step,
            })?;
        match &mut self.mixture {
            Mixture::Balanced(mixture) => {
                let before = mixture.credits();
                fast_forward(mixture, draws);
                let units = mixture.weights().units();
                for (domain, after) in mixture.credits().into_iter().enumerate() {
                    let earned = i128::from(draws) * i128::from(units[domain]);
                    let paid = earned + i128::from(before[domain]) - i128::from(after);
                    self.drawn[domain] += (paid / i128::from(TOTAL)) as u64;
                }
            }
            Mixture::Random(mixture) => {
                for step in self.step..self.step + steps {
                    mixture.draw(step, self.batch_size, |domain| self.drawn[domain] += 1);
                }
            }
        }
        self.step += steps;
        Ok(())
    }

    /// Replaces the contents of `batch` by batch number `step` of the stream, without moving the sampler. Batches since
    /// the last change of weights, or since the restored state, can be computed.
    ///
    /// # Errors
    ///
    /// [`StateError::Unavailable`] if `step` is before that, [`StateError::PastEnd`] if it is past row 2^63 of the stream.
    pub fn peek(&self, step: u64, batch: &mut Vec<Pick>) -> Result<()> {
        let mut there = self.clone();
        if step < self.step {
            if step < self.origin.step {
                return Err(StateError::Unavailable {
                    step,
                    origin: self.origin.step,
                }
                .into());
            }
            there.rewind(self.origin.clone());
        }
        there.skip(step - there.step)?;
        there.next_batch(batch);
        Ok(())
    }

    /// Sets the weights of the next batch.
    ///
    /// # Errors
    ///
    /// [`WeightError::Count`] if `weights` has not one weight for each domain, [`WeightError::NoRows`] if a domain
    /// without rows has a weight. The sampler then keeps its weights.
    pub fn set_weights(&mut self, weights: Weights) -> Result<()> {
        if weights.units().len() != self.names.len() {
            return Err(WeightError::Count {
                weights: weights.units().len(),
                domains: self.names.len(),
            }
            .into());
        }
        self.check(&weights)?;
        match &mut self.mixture {
            Mixture::Balanced(mixture) => mixture.set_weights(weights),
            Mixture::Random(mixture) => *mixture = Random::new(self.seed, weights),
        }
        self.origin = self.state();
        Ok(())
    }

    /// Returns the state to save.
    #[must_use]
    pub fn state(&self) -> SamplerState {
        SamplerState {
            step: self.step,
            drawn: self.drawn.clone(),
            weights: self.weights().units().to_vec(),
            credit: match &self.mixture {
                Mixture::Balanced(mixture) => mixture.credits(),
                Mixture::Random(_) => vec![0; self.names.len()],
            },
        }
    }

    /// Resumes from `state`.
    ///
    /// # Errors
    ///
    /// [`StateError`] if a sampler with these arguments cannot have that state; the sampler is then unchanged.
    pub fn restore(&mut self, state: SamplerState) -> Result<()> {
        let count = self.names.len();
        for (field, found) in [
            ("drawn", state.drawn.len()),
            ("weights", state.weights.len()),
            ("credit", state.credit.len()),
        ] {
            if found != count {
                return Err(StateError::Length {
                    field,
                    found,
                    domains: count,
                }
                .into());
            }
        }
        let drawn: u128 = state.drawn.iter().map(|&rows| u128::from(rows)).sum();
        let expected = u128::from(state.step) * self.batch_size as u128;
        if drawn != expected || i64::try_from(drawn).is_err() {
            return Err(StateError::Drawn {
                drawn,
                step: state.step,
                batch_size: self.batch_size,
                expected,
            }
            .into());
        }
        // Valid credits stay below a few samples; the limit keeps a forged state from overflowing.
        let limit = TOTAL as i64 * 16;
        let sum: i128 = state.credit.iter().map(|&credit| i128::from(credit)).sum();
        if sum != 0
            || state
                .credit
                .iter()
                .any(|credit| !(-limit..=limit).contains(credit))
        {
            return Err(StateError::Credits { sum, limit }.into());
        }
        let weights = Weights::from_units(state.weights.clone())?;
        self.check(&weights).map_err(StateError::Weights)?;
        let random = matches!(self.mixture, Mixture::Random(_));
        let mut credits = state.credit.iter().zip(weights.units());
        if let Some(domain) =
            credits.position(|(&credit, &unit)| credit != 0 && (unit == 0 || random))
        {
            return Err(StateError::Credit {
                name: self.names[domain].clone(),
                credit: state.credit[domain],
            }
            .into());
        }
        self.origin = state.clone();
        self.rewind(state);
        Ok(())
    }

    /// Returns to an earlier state of this sampler.
    pub(crate) fn rewind(&mut self, state: SamplerState) {
        let weights = Weights::from_units(state.weights).expect("it had the weights");
        self.mixture = match self.mixture {
            Mixture::Balanced(_) => {
                Mixture::Balanced(Balanced::with_credits(weights, &state.credit))
            }
            Mixture::Random(_) => Mixture::Random(Random::new(self.seed, weights)),
        };
        self.step = state.step;
        self.drawn = state.drawn;
    }

    fn check(&self, weights: &Weights) -> std::result::Result<(), WeightError> {
        for ((name, shuffle), &unit) in self.names.iter().zip(&self.shuffles).zip(weights.units()) {
            if unit > 0 && shuffle.rows() == 0 {
                return Err(WeightError::NoRows {
                    name: name.clone(),
                    weight: unit as f64 / TOTAL as f64,
                });
            }
        }
        Ok(())
    }
}
