//! The order of a domain's rows: each epoch a permutation of its own, found row by row.
//!
//! Up to 2^16 rows an epoch is an exact Fisher-Yates shuffle kept as a table of at most 128 KiB. Above, a table would
//! cost memory and start time, so the row at a position is computed by a cipher on the numbers below n. A cipher alone
//! would not do: with few elements its orders are not equally likely (the one below on 5 elements, 12,000 keys:
//! chi-square 353 over the 120 orders, 119 expected).
//!
//! The cipher is an unbalanced Feistel network over mixed radix: a number below a*b is a pair (left, right) with
//! left < a and right < b, and each round adds a keyed function of one half to the other, modulo a or b. With
//! a = ceil(sqrt n) and b = ceil(n / a) fewer than a numbers lie in n..a*b; an output there is enciphered again
//! ("cycle walking"; Black and Rogaway, *Ciphers with Arbitrary Finite Domains*, CT-RSA 2002, sections 4 and 5), which
//! happens less than once in 256 rows, for every n. Bit-wise Feistel networks on 4^k numbers would walk up to four
//! times on average.

use crate::philox::{Philox, Purpose, below};

/// Up to this many rows an epoch's order is an exact shuffle held in memory.
const TABLE_ROWS: u64 = 1 << 16;

/// Rounds of the cipher, half of them for each side. With two, neighbours are correlated (lag 1: 6 standard deviations
/// at 2^16 + 1 rows, 16,384 draws); from four on that is within noise. Eight leave a margin.
const ROUNDS: usize = 8;

/// The rows of one domain in the order in which they are drawn, epoch after epoch, for ever.
#[derive(Clone, Debug)]
pub struct Shuffle {
    philox: Philox,
    domain: u32,
    rows: u64,
    epoch: Option<u64>,
    order: Order,
}

#[derive(Clone, Debug)]
enum Order {
    Table(Vec<u16>),
    Cipher(Cipher),
}

impl Shuffle {
    /// The orders for domain number `domain` with `rows` rows under `seed`.
    #[must_use]
    pub fn new(seed: u64, domain: u32, rows: u64) -> Self {
        Self {
            philox: Philox::new(seed),
            domain,
            rows,
            epoch: None,
            order: Order::Table(Vec::new()),
        }
    }

    /// Rows in one epoch.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// The row drawn at `position`, counted from the first draw of the first epoch.
    ///
    /// # Panics
    ///
    /// If the domain has no rows.
    pub fn row(&mut self, position: u64) -> u64 {
        let epoch = position / self.rows;
        let within = position % self.rows;
        if self.epoch != Some(epoch) {
            self.order = self.order_of(epoch);
            self.epoch = Some(epoch);
        }
        match &self.order {
            Order::Table(table) => u64::from(table[within as usize]),
            Order::Cipher(cipher) => cipher.encipher(within),
        }
    }

    fn order_of(&self, epoch: u64) -> Order {
        let mut words = self.philox.words(Purpose::Epoch, self.domain, epoch);
        if self.rows <= TABLE_ROWS {
            let mut table: Vec<u16> = (0..self.rows).map(|row| row as u16).collect();
            fisher_yates(&mut table, words);
            Order::Table(table)
        } else {
            Order::Cipher(Cipher::new(self.rows, &mut words))
        }
    }
}

/// Shuffles `items`, each order equally likely (Durstenfeld's form of the Fisher-Yates shuffle).
pub(crate) fn fisher_yates<T>(items: &mut [T], mut words: impl Iterator<Item = u64>) {
    for last in (1..items.len()).rev() {
        if let Some(word) = words.next() {
            items.swap(last, below(word, last as u64 + 1) as usize);
        }
    }
}

/// A keyed permutation of the numbers below `n`.
#[derive(Clone, Debug)]
struct Cipher {
    n: u64,
    a: u64,
    b: u64,
    keys: [u64; ROUNDS],
}

impl Cipher {
    fn new(n: u64, words: &mut impl Iterator<Item = u64>) -> Self {
        let root = n.isqrt();
        let a = if root * root < n { root + 1 } else { root };
        let mut keys = [0; ROUNDS];
        for (key, word) in keys.iter_mut().zip(words) {
            *key = word;
        }
        Self {
            n,
            a,
            b: n.div_ceil(a),
            keys,
        }
    }

    fn encipher(&self, x: u64) -> u64 {
        let mut y = self.pass(x);
        while y >= self.n {
            y = self.pass(y);
        }
        y
    }

    fn pass(&self, x: u64) -> u64 {
        let (mut left, mut right) = (x / self.b, x % self.b);
        for pair in self.keys.chunks_exact(2) {
            left = add_modulo(left, keyed(right, pair[0], self.a), self.a);
            right = add_modulo(right, keyed(left, pair[1], self.b), self.b);
        }
        left * self.b + right
    }
}

fn add_modulo(x: u64, y: u64, n: u64) -> u64 {
    let sum = x + y;
    if sum >= n { sum - n } else { sum }
}

/// A number below `n` (at most 2^32) that depends on `x` and `key`: two multiply-and-shift steps. The multipliers are
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
    use proptest::prelude::*;

    fn order(seed: u64, epoch: u64, rows: u64) -> Vec<u64> {
        let mut shuffle = Shuffle::new(seed, 0, rows);
        (0..rows).map(|i| shuffle.row(epoch * rows + i)).collect()
    }

    /// Pearson's statistic for `counts` that should all be equal.
    fn chi_square(counts: &[u64]) -> f64 {
        let mean = counts.iter().sum::<u64>() as f64 / counts.len() as f64;
        counts
            .iter()
            .map(|&c| (c as f64 - mean).powi(2) / mean)
            .sum()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn an_epoch_is_a_permutation(
            seed: u64,
            epoch in 0u64..1 << 40,
            rows in prop_oneof![9 => 1u64..300, 1 => TABLE_ROWS - 2..TABLE_ROWS + 9_000],
        ) {
            let mut seen = order(seed, epoch, rows);
            seen.sort_unstable();
            prop_assert!(seen.into_iter().eq(0..rows));
        }
    }

    proptest! {
        /// Distinct positions give distinct rows below n for every size, and the inverse network finds the way back.
        #[test]
        fn the_cipher_is_a_bijection(seed: u64, bits in 0u32..63, low: u64, x: u64) {
            let n = (1u64 << bits) | (low & ((1u64 << bits) - 1));
            let cipher = Cipher::new(n, &mut Philox::new(seed).words(Purpose::Epoch, 0, 0));
            let x = x % n;
            let y = cipher.encipher(x);
            prop_assert!(y < n);
            prop_assert_eq!(decipher(&cipher, y), x);
        }

        #[test]
        fn the_cipher_walks_rarely(bits in 17u32..63, low: u64) {
            let n = (1u64 << bits) | (low & ((1u64 << bits) - 1));
            let cipher = Cipher::new(n, &mut Philox::new(0).words(Purpose::Epoch, 0, 0));
            prop_assert!(cipher.a * cipher.b >= n);
            prop_assert!(cipher.a * cipher.b - n < n / 256);
        }
    }

    fn decipher(cipher: &Cipher, y: u64) -> u64 {
        let mut x = y;
        loop {
            let (mut left, mut right) = (x / cipher.b, x % cipher.b);
            for pair in cipher.keys.chunks_exact(2).rev() {
                right = add_modulo(right, cipher.b - keyed(left, pair[1], cipher.b), cipher.b);
                left = add_modulo(left, cipher.a - keyed(right, pair[0], cipher.a), cipher.a);
            }
            x = left * cipher.b + right;
            if x < cipher.n {
                return x;
            }
        }
    }

    #[test]
    fn epochs_and_domains_differ() {
        assert_ne!(order(1, 0, 100), order(1, 1, 100));
        assert_ne!(order(1, 0, 100), order(2, 0, 100));
        let mut other = Shuffle::new(1, 1, 100);
        assert_ne!(
            order(1, 0, 100),
            (0..100).map(|i| other.row(i)).collect::<Vec<_>>()
        );
    }

    /// alpha = 0.001, seed fixed: all 120 orders of 5 rows are equally likely.
    #[test]
    fn small_orders_are_uniform() {
        let mut counts = std::collections::HashMap::new();
        let mut shuffle = Shuffle::new(20_251_124, 0, 5);
        for epoch in 0..60_000u64 {
            let order: Vec<u64> = (0..5).map(|i| shuffle.row(epoch * 5 + i)).collect();
            *counts.entry(order).or_insert(0u64) += 1;
        }
        let counts: Vec<u64> = counts.into_values().collect();
        assert_eq!(counts.len(), 120);
        assert!(chi_square(&counts) < 172.4, "{}", chi_square(&counts)); // 0.999 quantile, 119 degrees of freedom
    }

    /// alpha = 0.001, seed fixed: the cipher puts neighbours far apart, and rows evenly, for sizes of every kind.
    #[test]
    fn the_cipher_scatters() {
        for n in [
            (1u64 << 16) + 1,
            1 << 20,
            (1 << 30) + 1,
            490_000_000,
            1 << 47,
        ] {
            let mut shuffle = Shuffle::new(7, 3, n);
            let count = 65_536;
            let x: Vec<f64> = (0..count)
                .map(|i| shuffle.row(i) as f64 / n as f64 - 0.5)
                .collect();
            let lag: f64 =
                x.windows(2).map(|w| w[0] * w[1]).sum::<f64>() * 12.0 / (count - 1) as f64;
            assert!(
                lag.abs() < 3.29 / (count as f64).sqrt(),
                "n = {n}: lag-1 correlation {lag}"
            );
            let mut cells = vec![0u64; 64];
            for value in &x[..16_384] {
                cells[((value + 0.5) * 64.0) as usize] += 1;
            }
            assert!(
                chi_square(&cells) < 103.4,
                "n = {n}: chi-square {}",
                chi_square(&cells)
            ); // 63 degrees
        }
    }
}
