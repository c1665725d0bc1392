//! SIMD passes over two slices, four entries at a time: with AVX2 where the processor has it.
//!
//! Every operation is exactly rounded, and [`LANES`] and [`BLOCK`] fix the order of every addition, so every processor
//! returns the same bits. The error of a sum hardly grows with its length.

use std::ops::{Add, Div, Mul, Sub};

pub(crate) const LANES: usize = 4;
const BLOCK: usize = 512 * LANES;

/// One number, or a vector of [`LANES`] numbers.
pub(crate) trait Pack:
    Copy + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> + Div<Output = Self>
{
    /// The numbers that satisfy a condition.
    type Mask: Copy;

    fn all(value: f64) -> Self;
    fn above(self, other: Self) -> Self::Mask;
    fn at_most(self, other: Self) -> Self::Mask;
    fn both(a: Self::Mask, b: Self::Mask) -> Self::Mask;
    /// Returns whether any number satisfies the condition.
    fn any(mask: Self::Mask) -> bool;
    /// Selects `self` where the condition holds, `other` otherwise.
    fn or(self, mask: Self::Mask, other: Self) -> Self;

    /// Selects `self` where the condition holds, zero otherwise.
    fn only(self, mask: Self::Mask) -> Self {
        self.or(mask, Self::all(0.0))
    }
}

/// The terms that a pass sums for each pair. Implementations are `inline(always)`: a function that is not inlined into the
/// pass is not compiled for AVX2.
pub(crate) trait Terms<const K: usize> {
    fn terms<V: Pack>(&self, p: V, x: V) -> [V; K];

    /// Selects pairs to pass to `pick`; meant for few pairs.
    fn picked<V: Pack>(&self, _x: V) -> Option<V::Mask> {
        None
    }
}

/// The sums of the terms.
pub(crate) fn sums<const K: usize>(p: &[f64], x: &[f64], terms: &impl Terms<K>) -> [f64; K] {
    sums_and_picked(p, x, terms, |_, _| ())
}

/// The sums of the terms, with a call of `pick` for each selected pair in the same pass.
pub(crate) fn sums_and_picked<const K: usize>(
    p: &[f64],
    x: &[f64],
    terms: &impl Terms<K>,
    pick: impl FnMut(f64, f64),
) -> [f64; K] {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        // SAFETY: this machine has AVX2.
        return unsafe { avx2::sums(p, x, terms, pick) };
    }
    pass::<Four, K>(p, x, terms, pick)
}

/// Sums of simple terms, where time does not matter.
pub(crate) fn plain_sums<const K: usize>(
    p: &[f64],
    x: &[f64],
    terms: impl Fn(f64, f64) -> [f64; K],
) -> [f64; K] {
    let mut totals = [0.0; K];
    for (p, x) in p.chunks(BLOCK).zip(x.chunks(BLOCK)) {
        let mut lanes = [[0.0; K]; LANES];
        for (i, (&p, &x)) in p.iter().zip(x).enumerate() {
            let terms = terms(p, x);
            (0..K).for_each(|k| lanes[i % LANES][k] += terms[k]);
        }
        (0..K).for_each(|k| totals[k] += lanes.iter().map(|lane| lane[k]).sum::<f64>());
    }
    totals
}

/// Reads and writes of a pack.
pub(crate) trait Lanes: Pack {
    fn read(from: &[f64; LANES]) -> Self;
    fn write(self, to: &mut [f64; LANES]);
    fn flags(mask: Self::Mask) -> [bool; LANES];
}

// Compiled once for each type of pack, with the instructions that its caller may use.
#[allow(clippy::inline_always)]
#[inline(always)]
fn pass<V: Lanes, const K: usize>(
    p: &[f64],
    x: &[f64],
    terms: &impl Terms<K>,
    mut pick: impl FnMut(f64, f64),
) -> [f64; K] {
    let mut totals = [0.0; K];
    for (p, x) in p.chunks(BLOCK).zip(x.chunks(BLOCK)) {
        let mut packs = [V::all(0.0); K];
        let (whole_p, rest_p) = p.as_chunks::<LANES>();
        let (whole_x, rest_x) = x.as_chunks::<LANES>();
        for (p, x) in whole_p.iter().zip(whole_x) {
            let (pack_p, pack_x) = (V::read(p), V::read(x));
            let these = terms.terms(pack_p, pack_x);
            for k in 0..K {
                packs[k] = packs[k] + these[k];
            }
            if terms.picked(pack_x).is_some_and(V::any) {
                for (&p, &x) in p.iter().zip(x) {
                    if terms.picked(x) == Some(true) {
                        pick(p, x);
                    }
                }
            }
        }
        let mut rest = [0.0; K];
        for (&p, &x) in rest_p.iter().zip(rest_x) {
            let these = terms.terms(p, x);
            for k in 0..K {
                rest[k] += these[k];
            }
            if terms.picked(x) == Some(true) {
                pick(p, x);
            }
        }
        for k in 0..K {
            let mut lanes = [0.0; LANES];
            packs[k].write(&mut lanes);
            totals[k] += (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]) + rest[k];
        }
    }
    totals
}

impl Pack for f64 {
    type Mask = bool;

    fn all(value: f64) -> Self {
        value
    }

    fn above(self, other: Self) -> bool {
        self > other
    }

    fn at_most(self, other: Self) -> bool {
        self <= other
    }

    fn both(a: bool, b: bool) -> bool {
        a && b
    }

    fn any(mask: bool) -> bool {
        mask
    }

    fn or(self, mask: bool, other: Self) -> Self {
        if mask { self } else { other }
    }
}

/// Four numbers, for processors without AVX2.
#[derive(Clone, Copy)]
pub(crate) struct Four([f64; LANES]);

impl Four {
    fn zip(self, other: Self, f: impl Fn(f64, f64) -> f64) -> Self {
        Self(std::array::from_fn(|i| f(self.0[i], other.0[i])))
    }
}

impl Add for Four {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }
}

impl Sub for Four {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        self.zip(other, |a, b| a - b)
    }
}

impl Mul for Four {
    type Output = Self;

    fn mul(self, other: Self) -> Self {
        self.zip(other, |a, b| a * b)
    }
}

impl Div for Four {
    type Output = Self;

    fn div(self, other: Self) -> Self {
        self.zip(other, |a, b| a / b)
    }
}

impl Pack for Four {
    type Mask = [bool; LANES];

    fn all(value: f64) -> Self {
        Self([value; LANES])
    }

    fn above(self, other: Self) -> Self::Mask {
        std::array::from_fn(|i| self.0[i] > other.0[i])
    }

    fn at_most(self, other: Self) -> Self::Mask {
        std::array::from_fn(|i| self.0[i] <= other.0[i])
    }

    fn both(a: Self::Mask, b: Self::Mask) -> Self::Mask {
        std::array::from_fn(|i| a[i] && b[i])
    }

    fn any(mask: Self::Mask) -> bool {
        mask != [false; LANES]
    }

    fn or(self, mask: Self::Mask, other: Self) -> Self {
        Self(std::array::from_fn(|i| {
            if mask[i] { self.0[i] } else { other.0[i] }
        }))
    }
}

impl Lanes for Four {
    fn read(from: &[f64; LANES]) -> Self {
        Self(*from)
    }

    fn write(self, to: &mut [f64; LANES]) {
        *to = self.0;
    }

    fn flags(mask: Self::Mask) -> [bool; LANES] {
        mask
    }
}

/// Four numbers in an AVX2 register.
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2 {
    // Each method is one instruction of the function that it is inlined into.
    #![allow(clippy::inline_always)]

    use super::{Add, Div, LANES, Lanes, Mul, Pack, Sub, Terms, pass};
    use std::arch::x86_64::{
        __m256d, _CMP_GT_OQ, _CMP_LE_OQ, _mm256_add_pd, _mm256_and_pd, _mm256_blendv_pd,
        _mm256_cmp_pd, _mm256_div_pd, _mm256_loadu_pd, _mm256_movemask_pd, _mm256_mul_pd,
        _mm256_set1_pd, _mm256_storeu_pd, _mm256_sub_pd,
    };

    /// Created and used only inside functions that require AVX2.
    #[derive(Clone, Copy)]
    pub(crate) struct Wide(__m256d);

    /// # Safety
    ///
    /// The machine has AVX2.
    #[target_feature(enable = "avx2")]
    pub(crate) unsafe fn sums<const K: usize>(
        p: &[f64],
        x: &[f64],
        terms: &impl Terms<K>,
        pick: impl FnMut(f64, f64),
    ) -> [f64; K] {
        pass::<Wide, K>(p, x, terms, pick)
    }

    impl Add for Wide {
        type Output = Self;

        #[inline(always)]
        fn add(self, other: Self) -> Self {
            // SAFETY: see `Wide`.
            Self(unsafe { _mm256_add_pd(self.0, other.0) })
        }
    }

    impl Sub for Wide {
        type Output = Self;

        #[inline(always)]
        fn sub(self, other: Self) -> Self {
            // SAFETY: see `Wide`.
            Self(unsafe { _mm256_sub_pd(self.0, other.0) })
        }
    }

    impl Mul for Wide {
        type Output = Self;

        #[inline(always)]
        fn mul(self, other: Self) -> Self {
            // SAFETY: see `Wide`.
            Self(unsafe { _mm256_mul_pd(self.0, other.0) })
        }
    }

    impl Div for Wide {
        type Output = Self;

        #[inline(always)]
        fn div(self, other: Self) -> Self {
            // SAFETY: see `Wide`.
            Self(unsafe { _mm256_div_pd(self.0, other.0) })
        }
    }

    impl Pack for Wide {
        type Mask = __m256d;

        #[inline(always)]
        fn all(value: f64) -> Self {
            // SAFETY: see `Wide`.
            Self(unsafe { _mm256_set1_pd(value) })
        }

        #[inline(always)]
        fn above(self, other: Self) -> __m256d {
            // SAFETY: see `Wide`.
            unsafe { _mm256_cmp_pd::<_CMP_GT_OQ>(self.0, other.0) }
        }

        #[inline(always)]
        fn at_most(self, other: Self) -> __m256d {
            // SAFETY: see `Wide`.
            unsafe { _mm256_cmp_pd::<_CMP_LE_OQ>(self.0, other.0) }
        }

        #[inline(always)]
        fn both(a: __m256d, b: __m256d) -> __m256d {
            // SAFETY: see `Wide`.
            unsafe { _mm256_and_pd(a, b) }
        }

        #[inline(always)]
        fn any(mask: __m256d) -> bool {
            // SAFETY: see `Wide`.
            unsafe { _mm256_movemask_pd(mask) != 0 }
        }

        #[inline(always)]
        fn or(self, mask: __m256d, other: Self) -> Self {
            // SAFETY: see `Wide`.
            Self(unsafe { _mm256_blendv_pd(other.0, self.0, mask) })
        }

        #[inline(always)]
        fn only(self, mask: __m256d) -> Self {
            // SAFETY: see `Wide`.
            Self(unsafe { _mm256_and_pd(self.0, mask) })
        }
    }

    impl Lanes for Wide {
        #[inline(always)]
        fn read(from: &[f64; LANES]) -> Self {
            // SAFETY: see `Wide`; four numbers are there to be read, at any alignment.
            Self(unsafe { _mm256_loadu_pd(from.as_ptr()) })
        }

        #[inline(always)]
        fn write(self, to: &mut [f64; LANES]) {
            // SAFETY: see `Wide`; there is room for four numbers, at any alignment.
            unsafe { _mm256_storeu_pd(to.as_mut_ptr(), self.0) }
        }

        #[inline(always)]
        fn flags(mask: __m256d) -> [bool; LANES] {
            // SAFETY: see `Wide`.
            let bits = unsafe { _mm256_movemask_pd(mask) };
            std::array::from_fn(|lane| bits >> lane & 1 == 1)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Four, Pack, Terms, pass, sums_and_picked};

    /// Sums the numbers above one half, and picks those above nine tenths.
    struct Upper;

    impl Terms<2> for Upper {
        fn terms<V: Pack>(&self, p: V, x: V) -> [V; 2] {
            let upper = x.above(V::all(0.5));
            [p.only(upper), (p * x / V::all(3.0)).or(upper, p - x)]
        }

        fn picked<V: Pack>(&self, x: V) -> Option<V::Mask> {
            Some(V::both(x.above(V::all(0.9)), x.at_most(V::all(2.0))))
        }
    }

    #[test]
    fn machines_with_and_without_avx2_give_the_same_bits() {
        for n in [0, 1, 3, 4, 7, 2048, 5001] {
            let x: Vec<f64> = (0..n).map(|i| (f64::from(i) * 0.618_034).fract()).collect();
            let p: Vec<f64> = (0..n).map(|i| (f64::from(i) * 0.754_878).fract()).collect();
            let (mut here, mut there) = (Vec::new(), Vec::new());
            let fast = sums_and_picked(&p, &x, &Upper, |_, x| here.push(x));
            let plain = pass::<Four, 2>(&p, &x, &Upper, |_, x| there.push(x));
            assert_eq!(fast.map(f64::to_bits), plain.map(f64::to_bits));
            assert_eq!(here, there);
            assert_eq!(here, x.into_iter().filter(|&x| x > 0.9).collect::<Vec<_>>());
        }
    }
}
