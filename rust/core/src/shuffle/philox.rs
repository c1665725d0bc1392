//! Philox4x32-10: random words addressed by number instead of by state.
//!
//! Source: Salmon, Moraes, Dror, Shaw, *Parallel Random Numbers: As Easy as 1, 2, 3* (SC 2011), section 4.3; round
//! multipliers and key increments are the paper's. A word depends on the seed and on its address alone (a counter-based
//! generator), so any row of the stream can be computed without the rows before it, and no random state is stored.

const MULTIPLIERS: [u64; 2] = [0xD251_1F53, 0xCD9E_8D57];
const KEY_INCREMENTS: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: u32 = 10;

/// The use of a word; each use has a separate range of addresses.
#[derive(Clone, Copy, Debug)]
#[repr(u32)]
pub(crate) enum Purpose {
    /// The domain of a sample (random draws); index: sample.
    Draw = 0,
    /// The order within a batch; index: step.
    Batch = 1,
    /// The order of a domain's rows; index: epoch.
    Epoch = 2,
}

/// The generator for one seed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Philox {
    key: [u32; 2],
}

impl Philox {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            key: [seed as u32, (seed >> 32) as u32],
        }
    }

    /// Returns the four words at `counter`.
    pub(crate) fn block(self, counter: [u32; 4]) -> [u32; 4] {
        let mut x = counter;
        let mut key = self.key;
        for _ in 0..ROUNDS {
            let left = MULTIPLIERS[0] * u64::from(x[0]);
            let right = MULTIPLIERS[1] * u64::from(x[2]);
            x = [
                (right >> 32) as u32 ^ x[1] ^ key[0],
                right as u32,
                (left >> 32) as u32 ^ x[3] ^ key[1],
                left as u32,
            ];
            key[0] = key[0].wrapping_add(KEY_INCREMENTS[0]);
            key[1] = key[1].wrapping_add(KEY_INCREMENTS[1]);
        }
        x
    }

    /// Returns the 64-bit words for `purpose` (in `domain`, or 0) at `index`, two from each block.
    pub(crate) fn words(self, purpose: Purpose, domain: u32, index: u64) -> Words {
        Words {
            philox: self,
            counter: [
                index as u32,
                (index >> 32) as u32,
                0,
                (domain << 2) | purpose as u32,
            ],
            ready: [0; AHEAD],
            used: AHEAD,
        }
    }
}

/// Words computed at once, from independent blocks.
const AHEAD: usize = 8;

/// An endless iterator over the words at one address.
#[derive(Clone, Debug)]
pub(crate) struct Words {
    philox: Philox,
    counter: [u32; 4],
    ready: [u64; AHEAD],
    used: usize,
}

impl Words {
    pub(crate) fn next_word(&mut self) -> u64 {
        if self.used == AHEAD {
            for pair in self.ready.chunks_exact_mut(2) {
                let x = self.philox.block(self.counter);
                pair[0] = u64::from(x[0]) | (u64::from(x[1]) << 32);
                pair[1] = u64::from(x[2]) | (u64::from(x[3]) << 32);
                self.counter[2] += 1;
            }
            self.used = 0;
        }
        self.used += 1;
        self.ready[self.used - 1]
    }
}

/// Returns a number below `n` from a random word, and the low half of the product as a random word for the next
/// (Brackett-Rozinsky and Lemire, *Batched ranged random integer generation*, Software: Practice and Experience 54,
/// 2024). The probabilities of numbers drawn one after the other from one word differ from uniform by at most the product
/// of the `n` / 2^64.
pub(crate) fn below(word: u64, n: u64) -> (u64, u64) {
    let product = u128::from(word) * u128::from(n);
    ((product >> 64) as u64, product as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers that the authors publish with their implementation (Random123, `kat_vectors`).
    #[test]
    fn known_answers() {
        let zeros = Philox::new(0).block([0; 4]);
        assert_eq!(zeros, [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        let ones = Philox::new(u64::MAX).block([u32::MAX; 4]);
        assert_eq!(ones, [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        let pi = Philox::new(0x299f_31d0_a409_3822).block([
            0x243f_6a88,
            0x85a3_08d3,
            0x1319_8a2e,
            0x0370_7344,
        ]);
        assert_eq!(pi, [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]);
    }

    #[test]
    fn below_reaches_both_ends() {
        assert_eq!(below(0, 7), (0, 0));
        assert_eq!(below(u64::MAX, 7).0, 6);
        assert_eq!(below(u64::MAX, u64::MAX).0, u64::MAX - 1);
    }

    #[test]
    fn words_are_the_blocks_in_order() {
        let philox = Philox::new(3);
        let mut words = philox.words(Purpose::Epoch, 5, 1 << 40);
        for block in 0..9 {
            let x = philox.block([0, 1 << 8, block, 5 << 2 | 2]).map(u64::from);
            assert_eq!(words.next_word(), x[0] | x[1] << 32);
            assert_eq!(words.next_word(), x[2] | x[3] << 32);
        }
    }
}
