//! A keyed permutation of the numbers below n, computed number by number.
//!
//! This is an unbalanced Feistel network over mixed radix: a number below a*b is a pair (left, right) with left < a and
//! right < b, and each round adds a keyed function of one half to the other, modulo a or b. With a = ceil(sqrt n) and
//! b = ceil(n / a) fewer than a numbers lie in n..a*b; such an output is permuted again ("cycle walking"; Black and
//! Rogaway, *Feistels with Arbitrary Finite Domains*, CT-RSA 2002, sections 4 and 5), which happens about once in sqrt n
//! numbers at most, for every n. Bit-wise Feistel networks on 4^k numbers would walk up to four times on average.
//!
//! For few elements the orders are not equally likely (5 elements, 12,000 keys: chi-square 353 over the 120 orders, 119
//! expected), so [`Shuffle`](crate::shuffle::Shuffle) uses the network for large n only.

use super::philox::Words;

/// Rounds, half of them for each side. With two, neighbours are correlated (lag 1: 6 standard deviations at 2^16 + 1
/// rows, 16,384 draws); with four or more the correlation is within noise. Eight leave a margin.
const ROUNDS: usize = 8;

/// Numbers permuted in parallel. One number is a chain of some 24 multiplications; parallel chains overlap.
const LANES: usize = 4;

/// The permutation for one key.
#[derive(Clone, Debug)]
pub(crate) struct Feistel {
    n: u64,
    a: u64,
    b: u64,
    keys: [u64; ROUNDS],
}

impl Feistel {
    /// Creates the permutation of the numbers below `n` (1 to 2^63) with the next words as its key.
    pub(crate) fn new(n: u64, words: &mut Words) -> Self {
        let root = n.isqrt();
        let a = if root * root < n { root + 1 } else { root };
        Self {
            n,
            a,
            b: n.div_ceil(a),
            keys: std::array::from_fn(|_| words.next_word()),
        }
    }

    /// Fills `out` with the images of `first` and the numbers after it.
    pub(crate) fn permute(&self, first: u64, out: &mut [u64]) {
        let (mut left, mut right) = (first / self.b, first % self.b);
        let mut next = || {
            let pair = (left, right);
            right += 1;
            if right == self.b {
                (left, right) = (left + 1, 0);
            }
            pair
        };
        let mut chunks = out.chunks_exact_mut(LANES);
        for chunk in &mut chunks {
            let (mut left, mut right) = ([0; LANES], [0; LANES]);
            for lane in 0..LANES {
                (left[lane], right[lane]) = next();
            }
            let passed = self.pass(left, right);
            for (place, number) in chunk.iter_mut().zip(passed) {
                *place = self.walk(number);
            }
        }
        for place in chunks.into_remainder() {
            let (left, right) = next();
            let [number] = self.pass([left], [right]);
            *place = self.walk(number);
        }
    }

    fn walk(&self, mut number: u64) -> u64 {
        while number >= self.n {
            [number] = self.pass([number / self.b], [number % self.b]);
        }
        number
    }

    fn pass<const N: usize>(&self, mut left: [u64; N], mut right: [u64; N]) -> [u64; N] {
        for pair in self.keys.chunks_exact(2) {
            for lane in 0..N {
                let round = keyed(right[lane], pair[0], self.a);
                left[lane] = add_modulo(left[lane], round, self.a);
            }
            for lane in 0..N {
                let round = keyed(left[lane], pair[1], self.b);
                right[lane] = add_modulo(right[lane], round, self.b);
            }
        }
        std::array::from_fn(|lane| left[lane] * self.b + right[lane])
    }
}

fn add_modulo(x: u64, y: u64, n: u64) -> u64 {
    let sum = x + y;
    sum.min(sum.wrapping_sub(n))
}

/// The round function: a number below `n` (at most 2^32) from `x` and `key`, in two multiply-and-shift steps. The multipliers are
/// 2^64 / golden ratio and the constant of Evensen's rrmxmx mixer; any odd numbers with well-spread bits would do.
fn keyed(x: u64, key: u64, n: u64) -> u64 {
    let mut h = (x ^ key).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    h ^= h >> 32;
    h = h.wrapping_mul(0x9FB2_1C65_1E98_DF25);
    ((h >> 32) * n) >> 32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shuffle::philox::{Philox, Purpose};
    use proptest::prelude::*;

    fn feistel(n: u64, seed: u64) -> Feistel {
        Feistel::new(n, &mut Philox::new(seed).words(Purpose::Epoch, 0, 0))
    }

    proptest! {
        /// Distinct positions give distinct rows below n for every size, and the inverse network finds the way back.
        #[test]
        fn the_network_is_a_bijection(seed: u64, bits in 0u32..63, low: u64, x: u64) {
            let n = (1u64 << bits) | (low & ((1u64 << bits) - 1));
            let feistel = feistel(n, seed);
            let x = (x % n).min(n - 7.min(n));
            let mut found = vec![0; 7.min(n) as usize];
            feistel.permute(x, &mut found);
            for (x, y) in (x..).zip(found) {
                prop_assert!(y < n);
                prop_assert_eq!(inverse(&feistel, y), x);
            }
        }

        #[test]
        fn the_network_walks_rarely(bits in 11u32..63, low: u64) {
            let n = (1u64 << bits) | (low & ((1u64 << bits) - 1));
            let feistel = feistel(n, 0);
            prop_assert!(feistel.a * feistel.b >= n);
            prop_assert!(feistel.a * feistel.b - n < n / 32);
        }
    }

    fn inverse(feistel: &Feistel, y: u64) -> u64 {
        let mut x = y;
        loop {
            let (mut left, mut right) = (x / feistel.b, x % feistel.b);
            for pair in feistel.keys.chunks_exact(2).rev() {
                right = add_modulo(
                    right,
                    feistel.b - keyed(left, pair[1], feistel.b),
                    feistel.b,
                );
                left = add_modulo(
                    left,
                    feistel.a - keyed(right, pair[0], feistel.a),
                    feistel.a,
                );
            }
            x = left * feistel.b + right;
            if x < feistel.n {
                return x;
            }
        }
    }
}
