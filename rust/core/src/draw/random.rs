//! Random draws: the domain of each row is drawn independently, as in the paper's code.

use crate::shuffle::philox::{Philox, Purpose};
use crate::weights::{TOTAL, Weights};

/// Independent draws in proportion to weights: a pure function of seed and batch.
#[derive(Clone, Debug)]
pub(crate) struct Random {
    philox: Philox,
    weights: Weights,
    /// Cumulative units: those of each domain and all before it.
    ends: Vec<u64>,
}

impl Random {
    pub(crate) fn new(seed: u64, weights: Weights) -> Self {
        let mut sum = 0;
        let ends = weights.units().iter().map(|unit| {
            sum += unit;
            sum
        });
        Self {
            philox: Philox::new(seed),
            ends: ends.collect(),
            weights,
        }
    }

    pub(crate) fn weights(&self) -> &Weights {
        &self.weights
    }

    /// Calls `chosen` with the domain of each of the `count` rows of batch `step`.
    pub(crate) fn draw(&self, step: u64, count: usize, mut chosen: impl FnMut(usize)) {
        let mut words = self.philox.words(Purpose::Draw, 0, step);
        for _ in 0..count {
            let place = words.next_word() >> (u64::BITS - TOTAL.trailing_zeros());
            chosen(self.ends.partition_point(|&end| end <= place));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// alpha = 0.001, seed fixed: independent draws follow the weights.
    #[test]
    fn independent_draws_follow_the_weights() {
        let names: Vec<String> = (0..4).map(|i| i.to_string()).collect();
        let weights = Weights::new(&names, &[0.6, 0.0, 0.3, 0.1]).unwrap();
        let independent = Random::new(5, weights);
        let mut counts = [0f64; 4];
        for step in 0..100 {
            independent.draw(step, 1_000, |domain| counts[domain] += 1.0);
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
