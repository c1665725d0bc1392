//! Which domain comes next: balanced draws that never stray by a whole sample, or independent ones.
//!
//! Balanced draws solve the chairman assignment problem: a union of n states, with shares w of the people that sum to
//! 1, picks a chairman each year so that at any time each state has had its share to within one. Tijdeman (*The
//! chairman assignment problem*, Discrete Mathematics 32, 1980) gives a rule whose error never exceeds
//! 1 - 1/(2n - 2), and shows that no rule has a smaller bound. With the credit of a domain = w * draws - its draws,
//!
//! - those may be drawn whose credit, with this draw's w earned, is at least 1/(2n - 2);
//! - of them the one is drawn whose credit would be the first to pass the bound: the smallest
//!   (1 - 1/(2n - 2) - credit) / w. It pays 1.
//!
//! When the weights change, credits stay: each is a fraction of a sample, so nothing of the past is repaid, and a
//! domain that gets 1% of a mixture that changes with every batch still gets its 1%. Two cases need a rule. A domain
//! whose weight becomes 0 is never drawn again, so its credit is dropped and the others' are shrunk, never grown, until
//! they sum to 0. And the new weights can make several credits overrun the bound together; then the largest is
//! drawn first, which keeps the error within one more sample.

use crate::philox::{Philox, Purpose};
use crate::weights::{TOTAL, Weights};

/// Picks domains in proportion to weights, exactly.
///
/// # Examples
///
/// ```
/// use drpruning_core::{mixture::Balanced, weights::Weights};
/// let names = ["cc".to_string(), "github".to_string()];
/// let mut mixture = Balanced::new(Weights::new(&names, &[0.75, 0.25])?);
/// let drawn: Vec<usize> = (0..8).map(|_| mixture.draw()).collect();
/// assert_eq!(drawn, [0, 0, 1, 0, 0, 0, 1, 0]);
/// # Ok::<(), drpruning_core::error::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Balanced {
    weights: Weights,
    /// Earned less drawn, in units of 1 / `TOTAL` samples; the sum is always 0.
    credits: Vec<i64>,
    /// 2n - 2 for the n domains with a weight.
    scale: i64,
}

impl Balanced {
    /// Starts with all credits at 0.
    #[must_use]
    pub fn new(weights: Weights) -> Self {
        let credits = vec![0; weights.units().len()];
        Self::with_credits(weights, credits)
    }

    /// Continues with credits saved earlier. Their sum must be 0.
    #[must_use]
    pub fn with_credits(weights: Weights, credits: Vec<i64>) -> Self {
        let drawn = weights.units().iter().filter(|&&unit| unit > 0).count() as i64;
        Self {
            weights,
            credits,
            scale: 2 * drawn - 2,
        }
    }

    /// The credits, in units of 1 / [`TOTAL`] samples.
    #[must_use]
    pub fn credits(&self) -> &[i64] {
        &self.credits
    }

    /// The mixture drawn now.
    #[must_use]
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// Draws by `weights` from now on.
    pub fn set_weights(&mut self, weights: Weights) {
        let mut credits = std::mem::take(&mut self.credits);
        for (credit, &unit) in credits.iter_mut().zip(weights.units()) {
            if unit == 0 {
                *credit = 0;
            }
        }
        settle(&mut credits);
        *self = Self::with_credits(weights, credits);
    }

    /// The next domain.
    pub fn draw(&mut self) -> usize {
        let mut best: Option<Candidate> = None;
        for (domain, (credit, &unit)) in self
            .credits
            .iter_mut()
            .zip(self.weights.units())
            .enumerate()
        {
            let unit = unit as i64;
            *credit += unit;
            if unit > 0 && self.scale * *credit >= TOTAL as i64 * i64::from(self.scale > 0) {
                let slack = (self.scale - 1) * TOTAL as i64 - self.scale * *credit;
                let candidate = Candidate {
                    domain,
                    slack,
                    unit,
                };
                if best.is_none_or(|best| candidate.comes_before(best)) {
                    best = Some(candidate);
                }
            }
        }
        // Credits sum to one sample here, so the largest of n is at least 1/n >= 1/(2n - 2), or n is 1.
        let domain = best.map_or(0, |best| best.domain);
        self.credits[domain] -= TOTAL as i64;
        domain
    }
}

/// A domain that may be drawn; `slack` is how far its credit is from the bound, in units of 1 / (scale * `TOTAL`).
#[derive(Clone, Copy)]
struct Candidate {
    domain: usize,
    slack: i64,
    unit: i64,
}

impl Candidate {
    fn comes_before(self, other: Self) -> bool {
        if self.slack < 0 || other.slack < 0 {
            return self.slack < other.slack;
        }
        i128::from(self.slack) * i128::from(other.unit)
            < i128::from(other.slack) * i128::from(self.unit)
    }
}

/// Shrinks the credits of the sign that prevails until all sum to 0.
fn settle(credits: &mut [i64]) {
    let sum: i64 = credits.iter().sum();
    let prevails = |credit: i64| credit.signum() == sum.signum();
    let size: i64 = credits
        .iter()
        .copied()
        .filter(|&credit| prevails(credit))
        .sum();
    let mut excess = sum;
    for credit in credits.iter_mut().filter(|credit| prevails(**credit)) {
        if sum == 0 {
            return;
        }
        let share = (i128::from(*credit) * i128::from(sum) / i128::from(size)) as i64;
        *credit -= share;
        excess -= share;
    }
    // Shares are rounded towards 0; the few units left come off whatever can give them.
    for credit in credits.iter_mut() {
        if excess.signum() == credit.signum() {
            let share = if excess > 0 {
                excess.min(*credit)
            } else {
                excess.max(*credit)
            };
            *credit -= share;
            excess -= share;
        }
    }
}

/// The domain of sample number `sample` when each is drawn independently, a pure function of seed and number.
pub(crate) fn independent(philox: Philox, weights: &Weights, sample: u64) -> usize {
    let word = philox.words(Purpose::Draw, 0, sample).next().unwrap_or(0);
    let mut left = word >> (u64::BITS - TOTAL.trailing_zeros());
    for (domain, &unit) in weights.units().iter().enumerate() {
        if left < unit {
            return domain;
        }
        left -= unit;
    }
    unreachable!("weights sum to TOTAL and `left` is below it")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn weights(values: &[f64]) -> Weights {
        let names: Vec<String> = (0..values.len()).map(|i| i.to_string()).collect();
        Weights::new(&names, values).unwrap()
    }

    /// Weights as skewed as real mixtures, some of them 0.
    fn mixture(n: usize) -> impl Strategy<Value = Vec<f64>> {
        prop::collection::vec(
            prop_oneof![1 => Just(0.0), 6 => (0.0..6.0f64).prop_map(|x| (-x).exp())],
            n,
        )
        .prop_filter("one weight is positive", |w| w.iter().any(|&x| x > 0.0))
    }

    fn bound(weights: &Weights) -> i64 {
        let n = weights.units().iter().filter(|&&unit| unit > 0).count() as i64;
        if n < 2 {
            0
        } else {
            TOTAL as i64 / (2 * n - 2) * (2 * n - 3) + 2 * n
        }
    }

    proptest! {
        /// At constant weights every prefix is within 1 - 1/(2n - 2) samples of the mixture.
        #[test]
        fn every_prefix_is_within_the_bound(values in (1usize..40).prop_flat_map(mixture)) {
            let weights = weights(&values);
            let bound = bound(&weights);
            let mut mixture = Balanced::new(weights);
            for _ in 0..2_000 {
                let domain = mixture.draw();
                prop_assert!(values[domain] > 0.0);
                prop_assert!(mixture.credits().iter().all(|credit| credit.abs() <= bound));
            }
        }

        /// Changes of weights cost at most one sample per domain each, and the sum of credits stays 0.
        #[test]
        fn a_change_costs_at_most_one_sample(
            changes in (2usize..20).prop_flat_map(|n| prop::collection::vec((mixture(n), 0usize..60), 1..20)),
        ) {
            let n = changes[0].0.len();
            let mut mixture = Balanced::new(weights(&changes[0].0));
            let mut owed = vec![0i128; n];
            for (change, (values, draws)) in changes.iter().enumerate() {
                mixture.set_weights(weights(values));
                for _ in 0..*draws {
                    let domain = mixture.draw();
                    prop_assert!(values[domain] > 0.0);
                    for (owed, &unit) in owed.iter_mut().zip(mixture.weights().units()) {
                        *owed += i128::from(unit);
                    }
                    owed[domain] -= i128::from(TOTAL);
                    prop_assert_eq!(mixture.credits().iter().sum::<i64>(), 0);
                    let most = owed.iter().map(|x| x.unsigned_abs()).max().unwrap();
                    prop_assert!(most <= u128::from(TOTAL) * (change as u128 + 1));
                }
            }
        }

        #[test]
        fn settling_only_shrinks(before in prop::collection::vec(-(TOTAL as i64)..TOTAL as i64, 1..30)) {
            let mut after = before.clone();
            settle(&mut after);
            prop_assert_eq!(after.iter().sum::<i64>(), 0);
            for (x, y) in before.iter().zip(&after) {
                prop_assert!(y.abs() <= x.abs() && (*y == 0 || x.signum() == y.signum()));
            }
        }
    }

    /// A domain with 1% of a mixture that changes at every batch of 8 is drawn once in a hundred all the same.
    #[test]
    fn a_small_share_survives_constant_change() {
        let mut mixture = Balanced::new(weights(&[0.5, 0.49, 0.01]));
        let mut count = 0;
        for batch in 0..1_000 {
            mixture.set_weights(weights(&[
                0.5 + f64::from(batch % 2) * 0.1,
                0.49 - f64::from(batch % 2) * 0.1,
                0.01,
            ]));
            count += (0..8).filter(|_| mixture.draw() == 2).count();
        }
        assert!((79..=81).contains(&count), "{count}");
    }

    /// alpha = 0.001, seed fixed: independent draws follow the weights.
    #[test]
    fn independent_draws_follow_the_weights() {
        let mixture = weights(&[0.6, 0.0, 0.3, 0.1]);
        let philox = Philox::new(5);
        let mut counts = [0f64; 4];
        for sample in 0..100_000 {
            counts[independent(philox, &mixture, sample)] += 1.0;
        }
        let expected = [60_000.0, 30_000.0, 10_000.0];
        let chi_square: f64 = [counts[0], counts[2], counts[3]]
            .iter()
            .zip(expected)
            .map(|(c, e)| (c - e) * (c - e) / e)
            .sum();
        assert!(chi_square < 13.8, "{counts:?}"); // 0.999 quantile, 2 degrees of freedom
        assert_eq!(counts[1].to_bits(), 0);
    }
}
