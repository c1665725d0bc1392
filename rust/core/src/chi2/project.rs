//! The nearest point of the ball: a root in one multiplier, by Newton's method inside a bracket.

// Only exactly equal losses tie, and only a radius of exactly zero leaves a point.
#![allow(clippy::float_cmp)]

use super::support::{Mean, Support};
use super::{Ball, Solution, Status};
use crate::error::{Error, Result};

/// Coordinates beyond this are refused: their squares would leave the range of float64.
const LARGEST: f64 = 1e100;

/// The point of the ball nearest to `y` in Euclidean distance: minimises `1/2 |q - y|^2`.
///
/// Adding a constant to `y` changes nothing; its scale matters, and `y` is meant to be on the scale of a mixture.
///
/// # Errors
///
/// As [`worst_case`](super::worst_case()), with `y` in place of the losses; a coordinate must be within 1e100.
///
/// # Examples
///
/// ```
/// use drpruning_core::chi2::{project, Status};
///
/// let inside = project(&[0.6, 0.4], &[0.5, 0.5], 0.1, 0.0)?;
/// assert_eq!((inside.weights, inside.status), (vec![0.6, 0.4], Status::Interior));
/// let outside = project(&[0.9, 0.1], &[0.5, 0.5], 0.02, 0.0)?;
/// assert!((outside.weights[0] - 0.6).abs() < 1e-15);
/// # Ok::<(), drpruning_core::error::Error>(())
/// ```
pub fn project(y: &[f64], p: &[f64], rho: f64, floor: f64) -> Result<Solution> {
    let ball = Ball::checked("coordinate", y, p, rho, floor)?;
    let n = y.len();
    let largest = y.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if rho == 0.0 {
        // The limit of rho -> 0: lambda grows without bound unless y - p is constant.
        let mean = ball.p.iter().zip(y).map(|(p, y)| p * (y - p)).sum();
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
    if let Some(i) = y.iter().position(|y| y.abs() > LARGEST) {
        return Err(Error::Weight(format!(
            "coordinate {i} is {}; a point to project is meant to be a mixture, and must be within {LARGEST:e}",
            y[i]
        )));
    }
    let shifted = |(y, p): (&f64, &f64)| ((y - largest) - floor * p) / (1.0 - floor) - p;
    let secular = Secular {
        x: y.iter().zip(&ball.p).map(shifted).collect(),
        p: &ball.p,
    };
    let radius = ball.free_radius();
    let simplex = secular.solve(0.0);
    let point = if simplex.divergence <= radius {
        simplex
    } else {
        secular.root(radius)
    };

    let mut u = vec![0.0; n];
    let mut at_floor = vec![true; n];
    for (&i, (&p, &x)) in point
        .support
        .index
        .iter()
        .zip(point.support.p.iter().zip(&point.support.x))
    {
        u[i] = p + point.nu.deviation(x) * share(p, point.lambda);
        at_floor[i] = false;
    }
    let lambda = point.lambda;
    let sum_multiplier = (1.0 - floor) * (point.nu.value()) + largest;
    let status = match (lambda > 0.0, at_floor.contains(&true)) {
        (true, _) => Status::Boundary,
        (false, true) => Status::Face,
        (false, false) => Status::Interior,
    };
    let floor_multipliers = (0..n)
        .map(|i| {
            if at_floor[i] {
                let gap = point.nu.deviation(secular.x[i]) + ball.p[i] + lambda;
                (-(1.0 - floor) * gap).max(0.0)
            } else {
                0.0
            }
        })
        .collect();
    let weights = ball.with_floor(u.into_iter());
    Ok(ball.solution(
        weights,
        status,
        lambda,
        sum_multiplier,
        floor_multipliers,
        at_floor,
    ))
}

/// The projection with floor 0 for a fixed multiplier of the ball; `x = y - p`.
struct Secular<'a> {
    x: Vec<f64>,
    p: &'a [f64],
}

/// What [`Secular::solve`] finds.
struct Point {
    support: Support,
    lambda: f64,
    nu: Mean,
    divergence: f64,
    /// `-dD / dlambda`.
    decrease: f64,
}

/// `p_i / (p_i + lambda)`, the slope of `u_i` in `y_i`; written so that a tiny `p_i` does not vanish.
fn share(p: f64, lambda: f64) -> f64 {
    1.0 / (1.0 + lambda / p)
}

impl Secular<'_> {
    /// Minimises `1/2 |u - y|^2 + lambda D(u, p)` over the simplex.
    fn solve(&self, lambda: f64) -> Point {
        let mut support = Support::all(self.p, self.x.iter().copied());
        let share = |p: f64| share(p, lambda);
        let nu = loop {
            // sum_S (u - p) = (mass outside S), because sum u = sum p = 1
            let mut nu = support.mean(share);
            nu.shift(-support.outside / support.sum(|p, _| share(p)));
            if !support.drop_unless(|p, x| p + nu.deviation(x) * share(p) > 0.0) {
                break nu;
            }
        };
        let moved = |p: f64, x: f64| nu.deviation(x) * share(p);
        let t = |p: f64, x: f64| moved(p, x) / p;
        let divergence = 0.5 * (support.sum(|p, x| moved(p, x) * t(p, x)) + support.outside);
        let total = support.sum(|p, _| share(p));
        let middle = support.sum(|p, x| share(p) * t(p, x)) / total;
        let decrease = support.sum(|p, x| share(p) * (t(p, x) - middle).powi(2));
        Point {
            support,
            lambda,
            nu,
            divergence,
            decrease,
        }
    }

    /// The multiplier for which the divergence is `radius`, knowing that it is larger at `lambda = 0`.
    fn root(&self, radius: f64) -> Point {
        // The variational inequality between u and p gives lambda <= sd_p(x) / sqrt(2 D(u)).
        let all = Support::all(self.p, self.x.iter().copied());
        let mean = all.mean(|p| p);
        let deviation = all.sum(|p, x| p * mean.deviation(x).powi(2)).sqrt();
        let (mut low, mut high) = (0.0, deviation / (2.0 * radius).sqrt());
        high = high.clamp(f64::MIN_POSITIVE, f64::MAX);
        let mut point = self.solve(high);
        for _ in 0..200 {
            let lambda = point.lambda;
            if point.divergence > radius {
                low = lambda;
            } else {
                high = lambda;
            }
            let step = 2.0 * point.divergence / point.decrease
                * ((point.divergence / radius).sqrt() - 1.0);
            let usable = point.decrease.is_finite();
            if usable && step.abs() <= f64::EPSILON * lambda {
                break;
            }
            let newton = lambda + step;
            let next = if usable && newton > low && newton < high {
                newton
            } else if low == 0.0 {
                high / 16.0
            } else {
                low.sqrt() * high.sqrt()
            };
            if next <= low || next >= high {
                break;
            }
            point = self.solve(next);
        }
        point
    }
}
