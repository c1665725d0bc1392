//! The support of the worst case for losses whose squares leave the range of float64, and the scaling that it needs.
//!
//! Each round scales the losses that may be inside to a range of about 1, finds the mean and the spread of all of them,
//! and drops those below the threshold. A single scaling is not enough: of the losses 0, 1 and -1e200 the last one is
//! dropped, and squares of the others would vanish on its scale.

use crate::select::{Found, Set, Threshold, moved};
use crate::top_set::{Radius, Top};

/// Powers of two that scale the range of some numbers to about 1, so that squares neither overflow nor vanish.
#[derive(Clone, Copy)]
pub(crate) struct Scale {
    size: f64,
    range: f64,
}

impl Scale {
    pub(crate) fn of(values: &[f64]) -> Self {
        let size = inverse_power_of_two(values.iter().fold(0.0, |size: f64, v| size.max(v.abs())));
        let low = values
            .iter()
            .fold(f64::INFINITY, |low, v| low.min(v * size));
        let high = values
            .iter()
            .fold(f64::NEG_INFINITY, |high, v| high.max(v * size));
        Self {
            size,
            range: inverse_power_of_two(high - low),
        }
    }

    pub(crate) fn apply(&self, value: f64) -> f64 {
        value * self.size * self.range
    }

    pub(crate) fn undo(&self, value: f64) -> f64 {
        value / self.range / self.size
    }
}

/// Returns the power of two that scales `x > 0` into `[1, 2)`, or as near as float64 allows.
fn inverse_power_of_two(x: f64) -> f64 {
    let exponent = (x.to_bits() >> 52) & 0x7ff;
    f64::from_bits(2046_u64.saturating_sub(exponent).max(1) << 52)
}

/// The scaled losses, with `-inf` for those that are outside, and the threshold on their scale.
pub(crate) struct Scaled {
    pub(crate) losses: Vec<f64>,
    pub(crate) scale: Scale,
    pub(crate) found: Found,
}

/// Finds the support for finite losses of any size; `p` is checked and sums to `total`.
pub(crate) fn find(p: &[f64], losses: &[f64], rho: f64, total: f64) -> Scaled {
    let mut inside: Vec<usize> = (0..losses.len()).collect();
    let mut dropped = 0.0;
    loop {
        let values: Vec<f64> = inside.iter().map(|&i| losses[i]).collect();
        let masses: Vec<f64> = inside.iter().map(|&i| p[i]).collect();
        let scale = Scale::of(&values);
        let scaled: Vec<f64> = values.iter().map(|&v| scale.apply(v)).collect();
        let radius = Radius {
            rho,
            total,
            dropped,
        };
        let set = about_mean(&masses, &scaled, radius);
        let below = set.top.mean() - set.top.spread(radius);
        let (above, outside): (Vec<usize>, Vec<usize>) =
            (0..inside.len()).partition(|&k| scaled[k] - set.centre > below);
        if outside.is_empty() || above.is_empty() {
            let mut all = vec![f64::NEG_INFINITY; losses.len()];
            for (&i, &v) in inside.iter().zip(&scaled) {
                all[i] = v;
            }
            return Scaled {
                losses: all,
                scale,
                found: threshold(&set, radius),
            };
        }
        dropped += outside.iter().map(|&k| masses[k]).sum::<f64>();
        inside = above.into_iter().map(|k| inside[k]).collect();
    }
}

/// All entries as one set, with a centre near their mean.
fn about_mean(p: &[f64], v: &[f64], radius: Radius) -> Set {
    let everything = f64::NEG_INFINITY;
    let first = Top::above(p, v, v[0], everything);
    let (centre, _) = moved(v[0], first.mean(), everything);
    Set::above(p, v, centre, everything).centred(p, v, radius)
}

fn threshold(set: &Set, radius: Radius) -> Found {
    // Equal losses inside, and room for more: only the face is left.
    if set.top.variance() <= 0.0 && set.top.room(radius) >= 0.0 {
        return Found::Face;
    }
    let mut top = set.top;
    top.outside += radius.dropped;
    Found::Threshold(Threshold {
        centre: set.centre,
        cut: f64::MIN,
        top,
        total: radius.total,
    })
}
