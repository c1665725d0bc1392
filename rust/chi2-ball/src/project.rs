//! The projection onto the ball: a root in one multiplier, by Newton's method inside a bracket.

// Terms that are not inlined into a pass are not compiled for AVX2.
#![allow(clippy::inline_always)]
// Counts are compared, and only a total of exactly one needs no division.
#![allow(clippy::float_cmp)]

use std::borrow::Cow;

use crate::certificate::Objective;
use crate::error::{Argument, Error, Result};
use crate::select::{largest, mean};
use crate::simd::{Pack, Terms, plain_sums, sums};
use crate::{Ball, Buffers, Outcome, Solution, Status, WIDEST};

/// Entries of `p` below this are raised to it, so that their reciprocals are finite; it moves no digit of the answer.
const SMALLEST: f64 = 4.0 * f64::MIN_POSITIVE;
/// A Newton step below this fraction of the multiplier is the last: the next would be below rounding.
const LAST_STEP: f64 = 1e-7;

/// Largest error of the divergence while the multiplier is sought, as a fraction of its distance to the radius.
const ENOUGH: f64 = 1e-4;
/// A point whose divergence is below the radius by this fraction is not on the boundary.
const LOOSE: f64 = 1e-9;
/// Largest factor between two multipliers without a lower bound; the first is 16, and each is the square of the last. The
/// multipliers of entries of `p` down to 1e-300 are then reached in a few steps.
const LARGEST_FALL: f64 = 1e64;
/// Largest error of the sum before the last step, which corrects it, as a fraction of `sum |u - p|`.
const CLOSE: f64 = 1e-10;

/// Returns the point of the ball nearest to `y` in Euclidean distance: minimises `1/2 |q - y|^2`.
///
/// Adding a constant to `y` changes nothing. The scale of `y` matters: `y` should be a probability vector, or nearly one.
///
/// # Errors
///
/// As [`worst_case`](crate::worst_case()), with `y` in place of the losses; [`Error::Spread`] if entries of `y` differ
/// by more than 1e6.
///
/// # Examples
///
/// ```
/// use chi2_ball::{Status, project};
///
/// let inside = project(&[0.6, 0.4], &[0.5, 0.5], 0.1, 0.0)?;
/// assert_eq!((inside.weights, inside.status), (vec![0.6, 0.4], Status::Interior));
/// let outside = project(&[0.9, 0.1], &[0.5, 0.5], 0.02, 0.0)?;
/// assert!((outside.weights[0] - 0.6).abs() < 1e-15);
/// # Ok::<(), chi2_ball::Error>(())
/// ```
pub fn project(y: &[f64], p: &[f64], rho: f64, floor: f64) -> Result<Solution> {
    Solution::filled(y.len(), |buffers| project_into(y, p, rho, floor, buffers))
}

/// Solves [`project`] into buffers of the caller, which must be zero (false) and as long as `y`.
///
/// # Errors
///
/// As [`project`]; the buffers are then zero (false).
///
/// # Panics
///
/// If a buffer has another length.
pub fn project_into(
    y: &[f64],
    p: &[f64],
    rho: f64,
    floor: f64,
    buffers: &mut Buffers<'_>,
) -> Result<Outcome> {
    buffers.assert_length(y.len());
    let ball = Ball::new(Argument::Y, y, p, rho, floor)?;
    let total = ball.check_entries(y)?;
    let most = largest(y);
    let least = smallest(y);
    if most - least > WIDEST {
        return Err(Error::Spread { least, most });
    }
    if rho == 0.0 {
        let moved: Vec<f64> = p.iter().zip(y).map(|(p, y)| y - p / total).collect();
        return Ok(ball.fill_center(total, mean(p, &moved), buffers));
    }
    let p = if total == 1.0 && p.iter().all(|&p| p > SMALLEST) {
        Cow::Borrowed(p)
    } else {
        Cow::Owned(p.iter().map(|p| (p / total).max(SMALLEST)).collect())
    };
    let shifted = |(y, p): (&f64, &f64)| ((y - most) - floor * p) / (1.0 - floor) - p;
    let x: Vec<f64> = y.iter().zip(p.iter()).map(shifted).collect();
    let secular = Secular {
        x: &x,
        p: &p,
        range: (smallest(&x), largest(&x)),
    };
    let radius = ball.free_radius();
    let simplex = secular.solve(0.0, None, Some(radius));
    let point = secular.nearest(radius, simplex);
    let outcome = secular.fill(&point, floor, most, buffers);
    ball.certified(total, Objective::Nearest { y }, outcome, buffers)
}

/// The projection with floor 0 for a fixed multiplier of the ball; `x = y - p`.
struct Secular<'a> {
    x: &'a [f64],
    p: &'a [f64],
    /// Smallest and largest `x`. Some `u_i <= p_i` and some `u_i >= p_i`, so `nu` is between them.
    range: (f64, f64),
}

/// The multiplier of the sum in two parts (double-double), so that deviations from it keep their digits.
#[derive(Clone, Copy)]
struct Sum {
    value: f64,
    rest: f64,
}

impl Sum {
    fn deviation(self, x: f64) -> f64 {
        (x - self.value) - self.rest
    }

    fn moved(self, by: f64) -> Self {
        let by = by + self.rest;
        let value = self.value + by;
        Self {
            value,
            rest: by - (value - self.value),
        }
    }
}

/// The sums for [`Secular::solve`] over the entries with `x - nu + p > limit`.
struct Entries {
    nu: Sum,
    lambda: f64,
    limit: f64,
}

impl Terms<7> for Entries {
    #[inline(always)]
    fn terms<V: Pack>(&self, p: V, x: V) -> [V; 7] {
        let deviation = x - V::all(self.nu.value) - V::all(self.nu.rest);
        let inside = (deviation + p).above(V::all(self.limit));
        let inverse = V::all(1.0) / (p + V::all(self.lambda));
        // u_i = p_i (1 + t), of which `share` is the slope in y_i
        let t = (deviation * inverse).only(inside);
        let share = (p * inverse).only(inside);
        [
            V::all(1.0).only(inside),
            share,
            (share * deviation).only(inside),
            V::all(0.0).or(inside, p),
            p * t * t,
            share * t,
            share * t * t,
        ]
    }
}

/// The minimiser for one multiplier of the ball.
#[derive(Clone, Copy)]
struct Point {
    lambda: f64,
    nu: Sum,
    divergence: f64,
    /// `-dD / dlambda`.
    decrease: f64,
    /// `-dnu / dlambda`.
    slide: f64,
}

impl Point {
    /// Predicts `nu` at another multiplier, to first order.
    fn nu_at(&self, lambda: f64) -> Sum {
        self.nu.moved(self.slide * (self.lambda - lambda))
    }
}

impl Secular<'_> {
    /// Minimises `1/2 |u - y|^2 + lambda D(u, p)` over the simplex.
    ///
    /// The sum of `u` is convex and piecewise linear in `nu`, so Newton's method overshoots at most once, from any start,
    /// then only increases `nu`, and ends exactly when no entry changes sides.
    ///
    /// Starts at `guess`, or with every entry inside. With a `radius`, the search ends once the divergence is accurate
    /// compared with its distance to the radius.
    fn solve(&self, lambda: f64, guess: Option<Sum>, radius: Option<f64>) -> Point {
        let possible = |nu: &Sum| nu.value >= self.range.0 && nu.value <= self.range.1;
        let guess = guess.filter(possible);
        let mut nu = guess.unwrap_or(Sum {
            value: self.x[0],
            rest: 0.0,
        });
        let mut everything = guess.is_none();
        let mut before = f64::NAN;
        let mut steps = 0;
        loop {
            let limit = if everything {
                f64::NEG_INFINITY
            } else {
                -lambda
            };
            let entries = Entries { nu, lambda, limit };
            let [count, share, first, outside, second, slope, bend] =
                sums(self.p, self.x, &entries);
            steps += 1;
            if count == 0.0 {
                // Above every entry, by a bad guess or by rounding: restart with the best entry inside.
                nu = Sum {
                    value: self.best(),
                    rest: 0.0,
                };
                continue;
            }
            // sum_S (u - p) = (mass outside S), because sum u = sum p = 1
            let step = (first - outside) / share;
            // The error of the sum; `moved` bounds sum |u - p|.
            let lack = (first - outside).abs();
            let moved = (second + outside).sqrt().min(1.0);
            let converged = count == before && lack <= (CLOSE * moved).max(4.0 * f64::EPSILON);
            before = if everything { f64::NAN } else { count };
            everything = false;
            let middle = slope / share;
            let found = Point {
                lambda,
                nu: nu.moved(step),
                // To first order in the last step, which is of the size of rounding.
                divergence: 0.5 * (second + outside) - step * slope,
                decrease: bend - slope * middle,
                slide: middle,
            };
            // Each step but the first removes an entry, unless rounding adds one again.
            let far = |radius: f64| (found.divergence / radius - 1.0).abs().min(1.0);
            let enough = |radius| lack <= ENOUGH * moved * far(radius) && found.divergence > 0.0;
            if converged || radius.is_some_and(enough) || steps > self.p.len() + 64 {
                return found;
            }
            nu = found.nu;
        }
    }

    /// Returns `y - p` of the largest `y`.
    fn best(&self) -> f64 {
        let above = |a: usize, b: usize| self.x[a] + self.p[a] > self.x[b] + self.p[b];
        let best = (0..self.x.len()).fold(0, |best, i| if above(i, best) { i } else { best });
        self.x[best]
    }

    /// Returns the nearest point, given the projection onto the simplex with a divergence good enough to compare.
    fn nearest(&self, radius: f64, simplex: Point) -> Point {
        if simplex.divergence > radius {
            let point = self.root(radius, &simplex);
            if self.divergence(&point) > radius * (1.0 - LOOSE) {
                return point;
            }
            // The estimate to first order was above the radius, and the point is not.
        }
        let exact = self.solve(0.0, Some(simplex.nu), None);
        let divergence = self.divergence(&exact);
        if divergence <= radius * (1.0 + 4.0 * f64::EPSILON) {
            return exact;
        }
        // The estimate to first order was below the radius, and the point is not.
        let outside = Point {
            divergence,
            ..exact
        };
        self.root(radius, &outside)
    }

    /// Returns the point whose divergence is `radius`, given that the divergence is larger at `lambda = 0`.
    fn root(&self, radius: f64, simplex: &Point) -> Point {
        // The variational inequality between u and p gives lambda <= sd_p(x) / sqrt(2 D(u)).
        let centre = mean(self.p, self.x);
        let [variance] = plain_sums(self.p, self.x, |p, x| [p * (x - centre) * (x - centre)]);
        let (mut low, mut high) = (0.0, variance.sqrt() / (2.0 * radius).sqrt());
        high = high.clamp(f64::MIN_POSITIVE, f64::MAX);
        let first = newton(simplex, radius).filter(|&lambda| lambda > 0.0 && lambda < high);
        let mut point = first.map_or_else(
            || self.solve(high, None, Some(radius)),
            |lambda| self.solve(lambda, Some(simplex.nu_at(lambda)), Some(radius)),
        );
        let mut fall: f64 = 4.0;
        for _ in 0..200 {
            let lambda = point.lambda;
            if point.divergence > radius {
                low = lambda;
            } else {
                high = lambda;
            }
            let next = newton(&point, radius);
            let step = next.map_or(f64::INFINITY, |next| (next - lambda).abs());
            if step <= f64::EPSILON * lambda {
                break;
            }
            if let Some(last) = next.filter(|_| step <= LAST_STEP * lambda) {
                return self.solve(last, Some(point.nu_at(last)), None);
            }
            let next = match next {
                Some(next) if next > low && next < high => next,
                _ if low == 0.0 => {
                    fall = (fall * fall).min(LARGEST_FALL);
                    (high / fall).max(high.sqrt() * f64::MIN_POSITIVE.sqrt())
                }
                _ => low.sqrt() * high.sqrt(),
            };
            if next <= low || next >= high {
                break;
            }
            point = self.solve(next, Some(point.nu_at(next)), Some(radius));
        }
        self.solve(point.lambda, Some(point.nu), None)
    }

    /// Returns the exact divergence of a point; the one stored in [`Point`] is to first order in the last step.
    fn divergence(&self, point: &Point) -> f64 {
        let [twice] = plain_sums(self.p, self.x, |p, x| {
            let deviation = point.nu.deviation(x);
            let t = if deviation + p + point.lambda > 0.0 {
                deviation / (p + point.lambda)
            } else {
                -1.0
            };
            [p * t * t]
        });
        0.5 * twice
    }

    fn fill(&self, point: &Point, floor: f64, most: f64, buffers: &mut Buffers<'_>) -> Outcome {
        let (keep, lambda) = (1.0 - floor, point.lambda);
        let entries = self.p.iter().zip(self.x);
        let places = buffers
            .weights
            .iter_mut()
            .zip(buffers.floor_multipliers.iter_mut());
        let mut low = false;
        for (((&p, &x), (q, mu)), at_floor) in entries.zip(places).zip(buffers.at_floor.iter_mut())
        {
            let deviation = point.nu.deviation(x);
            let above = deviation + p + lambda;
            let u = p + deviation * (p / (p + lambda));
            if above > 0.0 {
                *q = floor * p + keep * u.max(0.0);
            } else {
                (*q, *mu, *at_floor) = (floor * p, -keep * above, true);
                low = true;
            }
        }
        Outcome {
            divergence: keep * keep * self.divergence(point),
            status: match (lambda > 0.0, low) {
                (true, _) => Status::Boundary,
                (false, true) => Status::Face,
                (false, false) => Status::Interior,
            },
            ball_multiplier: lambda,
            sum_multiplier: keep * (point.nu.value + point.nu.rest) + most,
        }
    }
}

fn smallest(x: &[f64]) -> f64 {
    x.iter()
        .fold(f64::INFINITY, |a, &b| if b < a { b } else { a })
}

/// Returns the multiplier after a Newton step for `D(lambda)^(-1/2) = radius^(-1/2)`; `None` if it is not finite.
fn newton(point: &Point, radius: f64) -> Option<f64> {
    let step = 2.0 * point.divergence / point.decrease * ((point.divergence / radius).sqrt() - 1.0);
    let usable = point.decrease > 0.0 && point.decrease.is_finite() && step.is_finite();
    usable.then_some(point.lambda + step)
}
