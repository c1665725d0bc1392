//! The chi-square ball around a mixture: its worst case for given losses, and the nearest point in it.
//!
//! For a reference mixture `p` (every entry positive, sum one), a radius `rho` and a floor `f` the ball is
//!
//! ```text
//! Q = { q : q_i >= f p_i,  sum q = 1,  D(q, p) <= rho },    D(q, p) = 1/2 sum_i p_i (q_i / p_i - 1)^2
//! ```
//!
//! Mind the half in `D`. Two problems, two functions:
//!
//! ```text
//! worst_case   maximise  <q, v>              over Q
//! project      minimise  1/2 |q - y|^2       over Q
//! ```
//!
//! # Optimality
//!
//! With multipliers `lambda >= 0` of the ball, `nu` of the sum and `mu_i >= 0` of the floors, `q` is optimal if and
//! only if it lies in `Q`, `lambda (rho - D) = 0`, `mu_i (q_i - f p_i) = 0`, and for every `i`
//!
//! ```text
//! worst_case   v_i - nu - lambda (q_i / p_i - 1) + mu_i = 0
//! project      y_i - q_i - nu - lambda (q_i / p_i - 1) + mu_i = 0
//! ```
//!
//! A [`Solution`] carries these multipliers, so that anyone can check it.
//!
//! # Method
//!
//! The floor is free: with `q = f p + (1 - f) u` both problems become the same problem in `u` with floor 0 and radius
//! `rho / (1 - f)^2`. Write `u_i = p_i (1 + t_i)`; let `S` be the support of `u`, so `t_i = -1` outside `S`.
//!
//! *Worst case.* On `S`, with mass `P`, weighted mean `m` and variance `V` of `v`, the optimality system has the closed
//! form `u_i = (p_i / P) (1 + (v_i - m) / d)`, `d^2 = V / room`, `room = 2 rho P - (1 - P)`. Start with everything
//! in `S`, drop what comes out negative, repeat: too large an `S` only lowers the threshold `m - d`, so no
//! member of the true support is ever dropped. If the ball reaches the face where `v` is largest, `p` restricted to
//! that face and renormalised is the maximiser of least divergence (others exist when several entries tie).
//!
//! *Projection.* The plain projection onto the simplex, if it lies in the ball. Otherwise
//! `t_i = (y_i - p_i - nu) / (p_i + lambda)` on `S`, for which `nu` and `S` follow from `lambda` by the same
//! dropping, and `D(lambda) = rho` is solved by Newton's method on `D^(-1/2)`, which is nearly linear
//! (the secular equation of trust-region methods), inside a bracket.
//!
//! No step forms `(1 + 2 rho) P - 1` or `u_i - p_i`: these cancel when `rho` is small.

// Only exactly equal losses tie, and only a radius of exactly zero leaves a point.
#![allow(clippy::float_cmp)]

use crate::error::{Error, Result};

/// How far from one the sum of `p` may be; it is divided by its sum afterwards.
const SUM_TOLERANCE: f64 = 1e-6;

/// Which constraints decide the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// The answer is `p`: the radius is zero, or all losses are equal.
    Center,
    /// No inequality binds (projection only).
    Interior,
    /// The ball binds: the divergence is `rho`.
    Boundary,
    /// The ball does not bind, the floors do: the answer lies on a face of the simplex above the floor.
    Face,
}

impl Status {
    /// The word for this status in Python, records and reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Center => "center",
            Self::Interior => "interior",
            Self::Boundary => "boundary",
            Self::Face => "face",
        }
    }
}

/// A point of the ball with its certificate: the multipliers of the module documentation.
#[derive(Clone, Debug, PartialEq)]
pub struct Solution {
    /// The mixture `q`; sums to one up to rounding.
    pub weights: Vec<f64>,
    /// `D(q, p)`, with the half, computed from `weights`.
    pub divergence: f64,
    /// Which constraints decide.
    pub status: Status,
    /// `lambda`; infinite when the radius is zero and the losses differ.
    pub ball_multiplier: f64,
    /// `nu`.
    pub sum_multiplier: f64,
    /// `mu_i`; zero where the floor does not bind.
    pub floor_multipliers: Vec<f64>,
    /// Whether `q_i` sits on its floor.
    pub at_floor: Vec<bool>,
}

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
            break (mass, mean, slope, scale.undo(deviation / room));
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

/// The point of the ball nearest to `y` in Euclidean distance: minimises `1/2 |q - y|^2`.
///
/// Adding a constant to `y` changes nothing; its scale matters, and `y` is meant to be on the scale of a mixture.
///
/// # Errors
///
/// As [`worst_case`], with `y` in place of the losses.
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
    // Half of each, so that no difference of finite numbers overflows; `unit` keeps squares finite.
    let range = y
        .iter()
        .fold(0.0, |range: f64, y| range.max(0.5 * largest - 0.5 * y));
    let unit = if range > 1.0 {
        inverse_power_of_two(range).max(f64::powi(0.5, 600))
    } else {
        1.0
    };
    let secular = Secular {
        x: (0..n)
            .map(|i| {
                let below = 2.0 * ((0.5 * y[i] - 0.5 * largest) * unit);
                (below - floor * ball.p[i] * unit) / (1.0 - floor) - ball.p[i] * unit
            })
            .collect(),
        p: &ball.p,
        unit,
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
        u[i] = p * (1.0 + point.t(p, x, unit));
        at_floor[i] = false;
    }
    let lambda = point.lambda / unit;
    let sum_multiplier = (1.0 - floor) * (point.nu.value() / unit) + largest;
    let status = match (lambda > 0.0, at_floor.contains(&true)) {
        (true, _) => Status::Boundary,
        (false, true) => Status::Face,
        (false, false) => Status::Interior,
    };
    let floor_multipliers = (0..n)
        .map(|i| {
            if at_floor[i] {
                let gap = point.nu.deviation(secular.x[i]) + ball.p[i] * unit + point.lambda;
                (-(1.0 - floor) * gap / unit).max(0.0)
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

/// A checked problem; `p` sums to one up to rounding.
struct Ball {
    p: Vec<f64>,
    rho: f64,
    floor: f64,
}

impl Ball {
    fn checked(what: &str, values: &[f64], p: &[f64], rho: f64, floor: f64) -> Result<Self> {
        if values.len() != p.len() || p.is_empty() {
            return Err(Error::Weight(format!(
                "got {} values and {} reference weights; both must have the same length, at least 1",
                values.len(),
                p.len()
            )));
        }
        if let Some(i) = values.iter().position(|v| !v.is_finite()) {
            return Err(Error::Weight(format!(
                "{what} {i} is {}; it must be finite",
                values[i]
            )));
        }
        if let Some(i) = p.iter().position(|p| !(p.is_finite() && *p > 0.0)) {
            return Err(Error::Weight(format!(
                "reference weight {i} is {}; it must be positive and finite",
                p[i]
            )));
        }
        let sum = sum_over(p, p, |p, _| p);
        if (sum - 1.0).abs() > SUM_TOLERANCE {
            return Err(Error::Weight(format!(
                "reference weights sum to {sum}; they must sum to 1"
            )));
        }
        if rho.is_nan() || rho < 0.0 {
            return Err(Error::Weight(format!(
                "rho is {rho}; it must be at least 0"
            )));
        }
        if !(0.0..1.0).contains(&floor) {
            return Err(Error::Weight(format!(
                "floor is {floor}; it must be at least 0 and below 1"
            )));
        }
        Ok(Self {
            p: p.iter().map(|p| p / sum).collect(),
            rho,
            floor,
        })
    }

    /// The radius of the ball of `u`, whose floor is zero.
    fn free_radius(&self) -> f64 {
        self.rho / (1.0 - self.floor) / (1.0 - self.floor)
    }

    fn with_floor(&self, u: impl Iterator<Item = f64>) -> Vec<f64> {
        self.p
            .iter()
            .zip(u)
            .map(|(p, u)| self.floor * p + (1.0 - self.floor) * u)
            .collect()
    }

    fn solution(
        &self,
        weights: Vec<f64>,
        status: Status,
        ball_multiplier: f64,
        sum_multiplier: f64,
        floor_multipliers: Vec<f64>,
        at_floor: Vec<bool>,
    ) -> Solution {
        let divergence = 0.5 * sum_over(&self.p, &weights, |p, q| (q - p) * ((q - p) / p));
        Solution {
            weights,
            divergence,
            status,
            ball_multiplier,
            sum_multiplier,
            floor_multipliers,
            at_floor,
        }
    }
}

/// The projection with floor 0 for a fixed multiplier of the ball; `x = y - p`, in units of `1 / unit`.
struct Secular<'a> {
    x: Vec<f64>,
    p: &'a [f64],
    unit: f64,
}

/// What [`Secular::solve`] finds; `lambda` and `nu` in units of `1 / unit`.
struct Point {
    support: Support,
    lambda: f64,
    nu: Mean,
    divergence: f64,
    /// `-dD / dlambda`.
    decrease: f64,
}

impl Point {
    /// `u_i / p_i - 1` for an entry of the support.
    fn t(&self, p: f64, x: f64, unit: f64) -> f64 {
        self.nu.deviation(x) / (p * unit + self.lambda)
    }
}

impl Secular<'_> {
    /// Minimises `1/2 |u - y|^2 + lambda D(u, p)` over the simplex.
    fn solve(&self, lambda: f64) -> Point {
        let mut support = Support::all(self.p, self.x.iter().copied());
        let share = |p: f64| p / (p * self.unit + lambda);
        let nu = loop {
            // sum_S p t = (mass outside S), because sum u = sum p = 1
            let mut nu = support.mean(share);
            nu.shift(-support.outside / support.sum(|p, _| share(p)));
            if !support.drop_unless(|p, x| 1.0 + nu.deviation(x) / (p * self.unit + lambda) > 0.0) {
                break nu;
            }
        };
        let t = |p: f64, x: f64| nu.deviation(x) / (p * self.unit + lambda);
        let divergence = 0.5 * (support.sum(|p, x| p * t(p, x).powi(2)) + support.outside);
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
            if step.abs() <= f64::EPSILON * lambda {
                break;
            }
            let newton = lambda + step;
            let next = if newton > low && newton < high {
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

/// The entries that are still positive, and the mass of those that were dropped.
struct Support {
    index: Vec<usize>,
    p: Vec<f64>,
    x: Vec<f64>,
    outside: f64,
}

impl Support {
    fn all(p: &[f64], x: impl Iterator<Item = f64>) -> Self {
        Self {
            index: (0..p.len()).collect(),
            p: p.to_vec(),
            x: x.collect(),
            outside: 0.0,
        }
    }

    fn sum(&self, term: impl Fn(f64, f64) -> f64) -> f64 {
        sum_over(&self.p, &self.x, term)
    }

    /// The mean of `x` with weights `share(p)`, corrected twice: a light entry far away from a heavy bulk
    /// would otherwise cost half the digits of the bulk.
    fn mean(&self, share: impl Fn(f64) -> f64) -> Mean {
        let total = self.sum(|p, _| share(p));
        let mut mean = Mean {
            rough: self.sum(|p, x| share(p) * x) / total,
            rest: 0.0,
        };
        for _ in 0..2 {
            mean.rest += self.sum(|p, x| share(p) * mean.deviation(x)) / total;
        }
        mean
    }

    /// Keeps the entries for which `positive` holds; returns whether any was dropped.
    fn drop_unless(&mut self, positive: impl Fn(f64, f64) -> bool) -> bool {
        let mut kept = 0;
        let mut dropped = 0.0;
        for i in 0..self.p.len() {
            if positive(self.p[i], self.x[i]) {
                self.index[kept] = self.index[i];
                self.p[kept] = self.p[i];
                self.x[kept] = self.x[i];
                kept += 1;
            } else {
                dropped += self.p[i];
            }
        }
        let any = kept < self.p.len() && kept > 0;
        if any {
            self.index.truncate(kept);
            self.p.truncate(kept);
            self.x.truncate(kept);
            self.outside += dropped;
        }
        any
    }
}

/// A mean in two parts, so that deviations from it keep their digits.
#[derive(Clone, Copy)]
struct Mean {
    rough: f64,
    rest: f64,
}

impl Mean {
    fn deviation(self, x: f64) -> f64 {
        (x - self.rough) - self.rest
    }

    fn value(self) -> f64 {
        self.rough + self.rest
    }

    fn shift(&mut self, by: f64) {
        self.rest += by;
    }
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

/// The mass of `p` where `values` equal `best`, and elsewhere.
fn mass_at(p: &[f64], values: &[f64], best: f64) -> (f64, f64) {
    let at = sum_over(p, values, |p, v| if v == best { p } else { 0.0 });
    let elsewhere = sum_over(p, values, |p, v| if v == best { 0.0 } else { p });
    (at, elsewhere)
}

/// `sum term(p_i, x_i)` in blocks of eight lanes: the compiler vectorises it, and its error does not grow with n.
fn sum_over(p: &[f64], x: &[f64], term: impl Fn(f64, f64) -> f64) -> f64 {
    const LANES: usize = 8;
    const BLOCK: usize = 256 * LANES;
    let mut total = 0.0;
    for (p, x) in p.chunks(BLOCK).zip(x.chunks(BLOCK)) {
        let mut lanes = [0.0; LANES];
        let (whole_p, whole_x) = (p.chunks_exact(LANES), x.chunks_exact(LANES));
        let (rest_p, rest_x) = (whole_p.remainder(), whole_x.remainder());
        for (p, x) in whole_p.zip(whole_x) {
            for lane in 0..LANES {
                lanes[lane] += term(p[lane], x[lane]);
            }
        }
        for (&p, &x) in rest_p.iter().zip(rest_x) {
            lanes[0] += term(p, x);
        }
        total += lanes.iter().sum::<f64>();
    }
    total
}
