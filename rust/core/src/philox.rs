//! Philox4x32-10: random words addressed by number instead of by state.
//!
//! Source: Salmon, Moraes, Dror, Shaw, *Parallel Random Numbers: As Easy as 1, 2, 3* (SC 2011), section 4.3; round
//! multipliers and key increments are the paper's. A word depends on the seed and on its address alone, so any row
//! of the stream can be found without drawing those before it, and nothing random is kept in a state.

const MULTIPLIERS: [u64; 2] = [0xD251_1F53, 0xCD9E_8D57];
const KEY_INCREMENTS: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: u32 = 10;

/// What words are for; each purpose has its own addresses.
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

    /// The four words at `counter`.
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

    /// The 64-bit words for `purpose` (in `domain`, 0 where that means nothing) at `index`, two from each block.
    pub(crate) fn words(
        self,
        purpose: Purpose,
        domain: u32,
        index: u64,
    ) -> impl Iterator<Item = u64> {
        let tag = (domain << 2) | purpose as u32;
        (0u32..).flat_map(move |block| {
            let x = self.block([index as u32, (index >> 32) as u32, block, tag]);
            let word = |low: u32, high: u32| u64::from(low) | (u64::from(high) << 32);
            [word(x[0], x[1]), word(x[2], x[3])]
        })
    }
}

/// A number below `n` from a random word. Favours no number by more than n / 2^64.
pub(crate) fn below(word: u64, n: u64) -> u64 {
    ((u128::from(word) * u128::from(n)) >> 64) as u64
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
        assert_eq!(below(0, 7), 0);
        assert_eq!(below(u64::MAX, 7), 6);
        assert_eq!(below(u64::MAX, u64::MAX), u64::MAX - 1);
    }
}
