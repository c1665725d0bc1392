//! The worst case over the ball: closed form on the right support, found by dropping.

// Only exactly equal losses tie, and only a radius of exactly zero leaves a point.
#![allow(clippy::float_cmp)]

use super::support::{Support, sum_over};
use super::{Ball, Solution, Status};
use crate::error::Result;

/// The mixture in the ball under which `losses` are worst: maximises `<q, losses>`.
///
/// Exact up to rounding, in a few passes over the data and without a sort. Adding a constant to all losses changes
/// nothing; multiplying them by a positive number changes only the multipliers. Entries with equal losses
/// share their mass in proportion to `p`. An infinite `rho` gives the whole simplex above the floor.
///
/// # Errors
///
/// [`Error::Weight`] if `losses` and `p` differ in length or are empty, a loss is not finite, an entry of `p` is not
/// positive and finite, `p` does not sum to one within 1e-6, `rho` is negative or NaN, or `floor` is not in `[0, 1)`.
///
/// # Examples
///
/// ```
/// use drpruning_core::chi2::{worst_case, Status};
///
/// let worst = worst_case(&[0.1, 0.5], &[0.5, 0.5], 0.02, 0.0)?;
/// assert_eq!(worst.status, Status::Boundary);
/// assert!((worst.weights[1] - 0.6).abs() < 1e-15); // D = 1/2 (2 * 0.5 * 0.2^2) = 0.02
/// # Ok::<(), drpruning_core::error::Error>(())
/// ```
pub fn worst_case(losses: &[f64], p: &[f64], rho: f64, floor: f64) -> Result<Solution> {
    let ball = Ball::checked("loss", losses, p, rho, floor)?;
    let n = losses.len();
    let largest = losses.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let (best, rest) = mass_at(&ball.p, losses, largest);
    let radius = ball.free_radius();
    if rest <= 2.0 * radius * best {
        let u = (0..n).map(|i| {
            if losses[i] == largest {
                ball.p[i] / best
            } else {
                0.0
            }
        });
        let status = if rest == 0.0 {
            Status::Center
        } else {
            Status::Face
        };
        let weights = ball.with_floor(u);
        let floor_multipliers = losses.iter().map(|v| largest - v).collect();
        let at_floor = losses.iter().map(|&v| v != largest).collect();
        return Ok(ball.solution(weights, status, 0.0, largest, floor_multipliers, at_floor));
    }

    let scale = Scale::of(losses);
    let mut support = Support::all(&ball.p, losses.iter().map(|&v| scale.apply(v)));
    if rho == 0.0 {
        let mean = scale.undo(support.mean(f64::from).value());
        let (none, inside) = (vec![0.0; n], vec![false; n]);
        return Ok(ball.solution(
            ball.p.clone(),
            Status::Center,
            f64::INFINITY,
            mean,
            none,
            inside,
        ));
    }
    let (mass, mean, slope, spread) = loop {
        let mass = support.sum(|p, _| p);
        let mean = support.mean(|p| p);
        let variance = support.sum(|p, v| p * mean.deviation(v).powi(2)) / mass;
        let room = (2.0 * radius * mass - support.outside).max(0.0);
        // Roots apart: the quotient itself may leave the range of float64.
        let (room, deviation) = (room.sqrt(), variance.sqrt());
        let slope = if deviation > 0.0 {
            (room / deviation).min(f64::MAX)
        } else {
            0.0
        };
        if !support.drop_unless(|_, v| 1.0 + mean.deviation(v) * slope > 0.0) {
            let spread = if deviation > 0.0 {
                deviation / room
            } else {
                0.0
            };
            break (mass, mean, slope, scale.undo(spread));
        }
    };
    let mut u = vec![0.0; n];
    let mut at_floor = vec![true; n];
    for (&i, (&p, &v)) in support.index.iter().zip(support.p.iter().zip(&support.x)) {
        u[i] = p / mass * (1.0 + mean.deviation(v) * slope);
        at_floor[i] = false;
    }
    let mean = scale.undo(mean.value());
    let threshold = mean - spread;
    let floor_multipliers = losses
        .iter()
        .zip(&at_floor)
        .map(|(v, &low)| if low { (threshold - v).max(0.0) } else { 0.0 })
        .collect();
    let sum_multiplier = if support.outside > 0.0 {
        mean - support.outside * spread
    } else {
        mean
    };
    let ball_multiplier = mass * spread / (1.0 - floor);
    let weights = ball.with_floor(u.into_iter());
    Ok(ball.solution(
        weights,
        Status::Boundary,
        ball_multiplier,
        sum_multiplier,
        floor_multipliers,
        at_floor,
    ))
}

/// The mass of `p` where `values` equal `best`, and elsewhere.
fn mass_at(p: &[f64], values: &[f64], best: f64) -> (f64, f64) {
    let at = sum_over(p, values, |p, v| if v == best { p } else { 0.0 });
    let elsewhere = sum_over(p, values, |p, v| if v == best { 0.0 } else { p });
    (at, elsewhere)
}

/// Powers of two that bring the range of some numbers to about one, so that squares neither overflow nor vanish.
struct Scale {
    size: f64,
    range: f64,
}

impl Scale {
    fn of(values: &[f64]) -> Self {
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

    fn apply(&self, value: f64) -> f64 {
        value * self.size * self.range
    }

    fn undo(&self, value: f64) -> f64 {
        value / self.range / self.size
    }
}

/// The power of two that brings `x > 0` into `[1, 2)`, or as near as float64 allows.
fn inverse_power_of_two(x: f64) -> f64 {
    let exponent = (x.to_bits() >> 52) & 0x7ff;
    f64::from_bits(2046_u64.saturating_sub(exponent).max(1) << 52)
}
