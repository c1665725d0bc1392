//! The order of a domain's rows: one permutation for each epoch, with random access.
//!
//! For domains of up to [`TABLE_ROWS`] rows an epoch is an exact Fisher-Yates shuffle: each order is equally likely. It
//! is stored in a table of as many epochs as fit, so that tiny domains do not compute a new one at every row. For larger
//! domains a table would cost memory and start-up time; a [`Feistel`] network computes their rows one by one. Random
//! words come from the counter-based generator [`Philox`].

pub(crate) mod feistel;
pub(crate) mod philox;

use feistel::Feistel;
use philox::{Philox, Purpose, Words, below};

/// Largest domain whose epochs are tables. Filling a table takes microseconds, so a jump to any row stays cheap.
const TABLE_ROWS: u64 = 1 << 11;

/// The endless sequence of one domain's rows in the order in which they are drawn, epoch after epoch.
///
/// # Performance
///
/// A row takes 1.8 to 5.8 ns from a table and 10.5 ns from the Feistel network (`benches/README.md`). Memory is 4 KiB
/// for a table and about 100 bytes for a network, for any number of rows. A jump to another epoch fills the table in
/// microseconds; the network needs eight Philox words.
///
/// # Examples
///
/// ```
/// use drpruning_core::Shuffle;
/// let mut epoch = [0; 5];
/// Shuffle::new(17, 0, 5).fill(0, &mut epoch);
/// epoch.sort();
/// assert_eq!(epoch, [0, 1, 2, 3, 4]);
/// ```
#[derive(Clone, Debug)]
pub struct Shuffle {
    philox: Philox,
    domain: u32,
    rows: u64,
    /// Rows whose order is stored at a time: one epoch, or the epochs of a table.
    period: u64,
    /// The stored period.
    kept: Option<u64>,
    order: Order,
}

#[derive(Clone, Debug)]
enum Order {
    Table(Vec<u16>),
    Feistel(Feistel),
}

impl Shuffle {
    /// Creates the sequence for domain number `domain` with `rows` rows under `seed`.
    #[must_use]
    pub fn new(seed: u64, domain: u32, rows: u64) -> Self {
        let epochs = TABLE_ROWS.checked_div(rows).unwrap_or(0).max(1);
        Self {
            philox: Philox::new(seed),
            domain,
            rows,
            period: rows * epochs,
            kept: None,
            order: Order::Table(Vec::new()),
        }
    }

    /// Returns the rows in one epoch.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Fills `out` with the rows drawn from `position`, counted from the first draw of the first epoch.
    ///
    /// # Panics
    ///
    /// If the domain has no rows.
    pub fn fill(&mut self, position: u64, mut out: &mut [u64]) {
        let (mut period, mut within) = (position / self.period, position % self.period);
        while !out.is_empty() {
            if self.kept != Some(period) {
                self.keep(period);
            }
            let count = (self.period - within).min(out.len() as u64) as usize;
            let (now, rest) = out.split_at_mut(count);
            match &self.order {
                Order::Table(table) => {
                    for (place, &row) in now.iter_mut().zip(&table[within as usize..]) {
                        *place = u64::from(row);
                    }
                }
                Order::Feistel(network) => network.permute(within, now),
            }
            out = rest;
            (period, within) = (period + 1, 0);
        }
    }

    fn keep(&mut self, period: u64) {
        let mut words = self.philox.words(Purpose::Epoch, self.domain, period);
        if self.rows > TABLE_ROWS {
            self.order = Order::Feistel(Feistel::new(self.rows, &mut words));
        } else if let Order::Table(table) = &mut self.order {
            table.clear();
            table.extend((0..self.period).map(|place| (place % self.rows) as u16));
            for epoch in table.chunks_exact_mut(self.rows as usize) {
                fisher_yates(epoch, &mut words);
            }
        }
        self.kept = Some(period);
    }
}

/// Shuffles `items` uniformly (Durstenfeld's form of the Fisher-Yates shuffle). Uses one word for every two items.
pub(crate) fn fisher_yates<T>(items: &mut [T], words: &mut Words) {
    let mut left = items.len();
    while left > 1 {
        let (other, word) = below(words.next_word(), left as u64);
        items.swap(left - 1, other as usize);
        let (other, _) = below(word, left as u64 - 1);
        items.swap(left - 2, other as usize);
        left -= 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn order(seed: u64, epoch: u64, rows: u64) -> Vec<u64> {
        let mut shuffle = Shuffle::new(seed, 0, rows);
        let mut order = vec![0; rows as usize];
        shuffle.fill(epoch * rows, &mut order);
        order
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

    #[test]
    fn epochs_and_domains_differ() {
        assert_ne!(order(1, 0, 100), order(1, 1, 100));
        assert_ne!(order(1, 0, 100), order(2, 0, 100));
        let mut other = vec![0; 100];
        Shuffle::new(1, 1, 100).fill(0, &mut other);
        assert_ne!(order(1, 0, 100), other);
    }

    /// alpha = 0.001, seed fixed: all orders of 2 to 6 rows are equally likely, whatever the epoch before was.
    #[test]
    fn small_orders_are_uniform() {
        // 0.999 quantiles of chi-square: n! - 1 and n * n - 1 degrees of freedom.
        for (rows, of_orders, of_pairs) in [
            (2, 10.8, 16.3),
            (3, 20.5, 26.1),
            (4, 49.7, 37.7),
            (5, 172.4, 51.2),
            (6, 841.9, 66.6),
        ] {
            let orders: usize = (1..=rows).product();
            let mut shuffle = Shuffle::new(20_251_124, 0, rows as u64);
            let mut order = vec![0; rows];
            let mut first = 0;
            let (mut counts, mut pairs) = (vec![0; orders], vec![0; rows * rows]);
            for epoch in 0..500 * orders as u64 {
                shuffle.fill(epoch * rows as u64, &mut order);
                // The order's number, digit by digit: how many of the rows after each are smaller.
                let number = (0..rows).fold(0, |number, i| {
                    let smaller = order[i..].iter().filter(|&&row| row < order[i]).count();
                    number * (rows - i) + smaller
                });
                counts[number] += 1;
                // The first row of one epoch does not predict that of the next.
                pairs[first * rows + order[0] as usize] += 1;
                first = order[0] as usize;
            }
            assert!(chi_square(&counts) < of_orders, "{rows}: {counts:?}");
            assert!(chi_square(&pairs) < of_pairs, "{rows}: {pairs:?}");
        }
    }

    /// alpha = 0.001, seed fixed: the network puts neighbours far apart, and rows evenly, for sizes of every kind.
    #[test]
    fn the_network_scatters() {
        for n in [
            TABLE_ROWS + 1,
            5_000,
            (1u64 << 16) + 1,
            1 << 20,
            (1 << 30) + 1,
            490_000_000,
            1 << 47,
        ] {
            let mut shuffle = Shuffle::new(7, 3, n);
            let count = n.min(65_536);
            let mut rows = vec![0; count as usize];
            shuffle.fill(0, &mut rows);
            let x: Vec<f64> = rows
                .iter()
                .map(|&row| row as f64 / n as f64 - 0.5)
                .collect();
            let lag: f64 =
                x.windows(2).map(|w| w[0] * w[1]).sum::<f64>() * 12.0 / (count - 1) as f64;
            assert!(
                lag.abs() < 3.29 / (count as f64).sqrt(),
                "n = {n}: lag-1 correlation {lag}"
            );
            let mut cells = vec![0u64; 64];
            for value in &x[..x.len() / 4] {
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
