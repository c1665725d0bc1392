//! The sums over a top set of the losses, which decide on which side of its cut the threshold is: see `select.rs`.

// Terms that are not inlined into a pass are not compiled for AVX2.
#![allow(clippy::inline_always)]

use crate::simd::{Pack, Terms, sums};

/// The largest number below [`f64::MIN_POSITIVE`].
const LARGEST_SUBNORMAL: f64 = f64::from_bits(f64::MIN_POSITIVE.to_bits() - 1);

/// Sums over the entries above a cut, deviations from a centre; and the mass of the others.
#[derive(Clone, Copy)]
pub(crate) struct Top {
    pub(crate) count: f64,
    pub(crate) mass: f64,
    pub(crate) first: f64,
    pub(crate) second: f64,
    pub(crate) outside: f64,
    /// Number of entries of `p` that are not positive, or subnormal.
    pub(crate) unusable: f64,
}

/// The numbers of a problem that do not depend on the cut: the radius for floor 0, and the sum of `p`.
#[derive(Clone, Copy)]
pub(crate) struct Radius {
    pub(crate) rho: f64,
    pub(crate) total: f64,
    /// Mass of entries that are outside and not in the slices.
    pub(crate) dropped: f64,
}

impl Top {
    /// Sums over `{ v - centre > cut }`.
    pub(crate) fn above(p: &[f64], v: &[f64], centre: f64, cut: f64) -> Self {
        Self::from(sums(p, v, &Above { centre, cut }))
    }

    pub(crate) fn from([count, mass, first, second, outside, unusable]: [f64; 6]) -> Self {
        Self {
            count,
            mass,
            first,
            second,
            outside,
            unusable,
        }
    }

    /// Joins two disjoint sets. An entry outside one may be inside the other, so the caller passes the mass outside both.
    pub(crate) fn joined(self, other: Self, outside: f64) -> Self {
        Self {
            count: self.count + other.count,
            mass: self.mass + other.mass,
            first: self.first + other.first,
            second: self.second + other.second,
            outside,
            unusable: self.unusable + other.unusable,
        }
    }

    /// Mean of the deviations.
    pub(crate) fn mean(&self) -> f64 {
        self.first / self.mass
    }

    /// Variance of the deviations.
    pub(crate) fn variance(&self) -> f64 {
        (self.second / self.mass - self.mean() * self.mean()).max(0.0)
    }

    /// Fraction of the mass inside.
    pub(crate) fn share(&self, total: f64) -> f64 {
        self.mass / total
    }

    /// Fraction of the mass outside, computed as a sum and not as a difference.
    pub(crate) fn rest(&self, total: f64) -> f64 {
        self.outside / total
    }

    /// `2 rho P - (1 - P)`.
    pub(crate) fn room(&self, radius: Radius) -> f64 {
        let rest = (self.outside + radius.dropped) / radius.total;
        2.0 * radius.rho * self.share(radius.total) - rest
    }

    /// `d`, the distance of the threshold below the mean: a quotient of roots, because the quotient of the squares may
    /// leave the range of float64.
    pub(crate) fn spread(&self, radius: Radius) -> f64 {
        let deviation = self.variance().sqrt();
        if deviation > 0.0 {
            deviation / self.room(radius).max(0.0).sqrt()
        } else {
            0.0
        }
    }

    /// Returns whether the mean is so far from the centre that deviations from the mean lose digits, compared with the
    /// distance of the threshold and with the standard deviation.
    pub(crate) fn is_off_centre(&self, limit: f64, radius: Radius) -> bool {
        let scale = self.spread(radius).min(self.variance().sqrt());
        self.mean().abs() > limit * scale
    }

    /// Returns whether `cut` is at or below the threshold of the solution, for the set of all entries above `cut`.
    pub(crate) fn reaches(&self, cut: f64, radius: Radius) -> bool {
        self.room(radius) >= 0.0 && self.mean() - self.spread(radius) >= cut
    }
}

/// The sums of a [`Top`].
pub(crate) struct Above {
    pub(crate) centre: f64,
    pub(crate) cut: f64,
}

impl Terms<6> for Above {
    #[inline(always)]
    fn terms<V: Pack>(&self, p: V, v: V) -> [V; 6] {
        let deviation = v - V::all(self.centre);
        let (zero, one) = (V::all(0.0), V::all(1.0));
        let inside = deviation.above(V::all(self.cut));
        let mass = p.only(inside);
        let first = mass * deviation;
        [
            one.only(inside),
            mass,
            first,
            first * deviation,
            zero.or(inside, p),
            zero.or(p.above(V::all(LARGEST_SUBNORMAL)), one),
        ]
    }
}

/// The sums over the entries above `high`; entries at or below `low` are outside, and the ones between are picked.
pub(crate) struct Between {
    pub(crate) centre: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
}

impl Terms<6> for Between {
    #[inline(always)]
    fn terms<V: Pack>(&self, p: V, v: V) -> [V; 6] {
        let above = Above {
            centre: self.centre,
            cut: self.high,
        };
        let [count, mass, first, second, _, unusable] = above.terms(p, v);
        let not_below = (v - V::all(self.centre)).above(V::all(self.low));
        let below = V::all(0.0).or(not_below, p);
        [count, mass, first, second, below, unusable]
    }

    #[inline(always)]
    fn picked<V: Pack>(&self, v: V) -> Option<V::Mask> {
        let deviation = v - V::all(self.centre);
        let above_low = deviation.above(V::all(self.low));
        let below_high = deviation.at_most(V::all(self.high));
        Some(V::both(above_low, below_high))
    }
}
