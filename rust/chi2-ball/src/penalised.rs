//! The worst case with a penalty for each entry that moves: small losses get a response in proportion to their size.
//!
//! ```text
//! maximise  <q, v> - 1/2 sum_i tau_i p_i (q_i / p_i - 1)^2    over Q
//! ```
//!
//! In the KKT system `lambda + tau_i` replaces `lambda`. With `q = f p + (1 - f) u` and
//! `d_i = (1 - f) (lambda + tau_i)`,
//!
//! ```text
//! u_i = p_i max(0, 1 + (v_i - nu) / d_i),    nu = (sum_S p_i v_i / d_i - mass outside S) / sum_S p_i / d_i
//! ```
//!
//! on the support S, the entries with `v_i + d_i > nu`. Starting from all entries and dropping the others finds S in a few
//! passes, at most `n`, because `nu` only rises (Michelot 1986). If the divergence at `lambda = 0` is above `rho`,
//! `D(lambda)^(-1/2) = rho^(-1/2)` is solved inside a bracket by the Illinois method: the left side is nearly linear.

use crate::certificate::Objective;
use crate::error::{Argument, Error, Expected, Result};
use crate::rescale::Scale;
use crate::select::largest;
use crate::{Ball, Buffers, Outcome, Solution, Status, check_each, worst_case_into};

/// Smallest penalty, in units of the range of the losses; smaller ones are raised to it. The solution is then the one
/// without a penalty, up to rounding.
const LEAST: f64 = 1e-12;
/// Largest relative difference between divergence and radius at the end of the search.
const CLOSE: f64 = 4.0 * f64::EPSILON;

/// Returns the weights in the ball that maximise `<q, losses> - 1/2 sum_i tau_i p_i (q_i / p_i - 1)^2`, `tau` being the
/// `penalties`.
///
/// Exact up to rounding; penalties of zero give [`worst_case`](crate::worst_case()). Where the status is
/// [`Status::Interior`], the penalties decide and the divergence is below `rho`.
///
/// # Errors
///
/// As [`worst_case`](crate::worst_case()); [`Error::Length`] or [`Error::Entry`] if the penalties are not as many as the
/// losses, finite and at least 0.
///
/// # Examples
///
/// ```
/// use chi2_ball::{Status, penalised_worst_case};
///
/// let small = penalised_worst_case(&[0.0, 0.1], &[0.5, 0.5], 0.02, 0.0, &[1.0, 1.0])?;
/// assert_eq!(small.status, Status::Interior);
/// assert!((small.weights[1] - 0.525).abs() < 1e-15); // p (1 + (0.1 - 0.05) / 1)
/// # Ok::<(), chi2_ball::Error>(())
/// ```
pub fn penalised_worst_case(
    losses: &[f64],
    p: &[f64],
    rho: f64,
    floor: f64,
    penalties: &[f64],
) -> Result<Solution> {
    Solution::filled(losses.len(), |buffers| {
        penalised_worst_case_into(losses, p, rho, floor, penalties, buffers)
    })
}

/// Solves [`penalised_worst_case`] into buffers of the caller, which must be zero (false) and as long as `losses`.
///
/// # Errors
///
/// As [`penalised_worst_case`].
///
/// # Panics
///
/// If a buffer has another length.
pub fn penalised_worst_case_into(
    losses: &[f64],
    p: &[f64],
    rho: f64,
    floor: f64,
    penalties: &[f64],
    buffers: &mut Buffers<'_>,
) -> Result<Outcome> {
    if penalties.len() != losses.len() {
        return Err(Error::Length {
            argument: Argument::Penalties,
            found: penalties.len(),
            expected: losses.len(),
        });
    }
    let expected = Expected::NonNegativeFinite;
    check_each(Argument::Penalties, penalties, expected, |tau| {
        tau.is_finite() && tau >= 0.0
    })?;
    let free = worst_case_into(losses, p, rho, floor, buffers)?;
    if free.status == Status::Center || penalties.iter().all(|&tau| tau == 0.0) {
        return Ok(free);
    }
    let ball = Ball::new(Argument::Losses, losses, p, rho, floor)?;
    let total: f64 = p.iter().sum();
    let scale = Scale::of(losses);
    let most = largest(losses);
    let problem = Problem {
        p: p.iter().map(|p| p / total).collect(),
        // Relative to the largest: entries of a small support are close to it, and their deviations keep their digits
        v: losses
            .iter()
            .map(|&loss| scale.apply(loss) - scale.apply(most))
            .collect(),
        tau: penalties
            .iter()
            .map(|&tau| scale.apply(tau).max(LEAST))
            .collect(),
        keep: 1.0 - floor,
    };
    let still = problem.solve(0.0);
    let point = if still.divergence <= rho {
        still
    } else {
        problem.root(rho, &still)
    };
    let outcome = Outcome {
        sum_multiplier: scale.undo(point.nu) + most,
        ..problem.fill(&ball, &point, &scale, buffers)
    };
    // The penalties that were solved for: at least `LEAST`.
    let penalties: Vec<f64> = problem.tau.iter().map(|&tau| scale.undo(tau)).collect();
    let objective = Objective::Linear {
        losses,
        penalties: Some(&penalties),
    };
    ball.certified(total, objective, outcome, buffers)
}

/// A problem in units of the range of the losses, with `p` of sum one and the largest loss zero.
struct Problem {
    p: Vec<f64>,
    v: Vec<f64>,
    tau: Vec<f64>,
    keep: f64,
}

/// The solution for a multiplier of the ball. `nu + rest` is the multiplier of the sum in two parts: an entry with a small
/// penalty depends on digits that one number does not have.
struct Point {
    lambda: f64,
    nu: f64,
    rest: f64,
    divergence: f64,
}

impl Problem {
    fn width(&self, i: usize, lambda: f64) -> f64 {
        self.keep * (lambda + self.tau[i])
    }

    fn solve(&self, lambda: f64) -> Point {
        let n = self.v.len();
        let (mut nu, mut before) = (f64::NEG_INFINITY, usize::MAX);
        loop {
            let (mut count, mut slope, mut first, mut outside) = (0, 0.0, 0.0, 0.0);
            for i in 0..n {
                let width = self.width(i, lambda);
                if self.v[i] + width > nu {
                    count += 1;
                    slope += self.p[i] / width;
                    first += self.p[i] / width * self.v[i];
                } else {
                    outside += self.p[i];
                }
            }
            if count == before || count == 0 {
                break;
            }
            before = count;
            nu = ((first - outside) / slope).max(nu);
        }
        let mut point = Point {
            lambda,
            nu,
            rest: 0.0,
            divergence: 0.0,
        };
        for _ in 0..2 {
            let (mut excess, mut slope) = (0.0, 0.0);
            for i in 0..n {
                let moved = self.moved(i, &point);
                excess += self.p[i] * moved;
                slope += if moved > -1.0 {
                    self.p[i] / self.width(i, lambda)
                } else {
                    0.0
                };
            }
            point.rest += excess / slope;
        }
        let twice: f64 = (0..n)
            .map(|i| self.p[i] * self.moved(i, &point).powi(2))
            .sum();
        point.divergence = 0.5 * self.keep * self.keep * twice;
        point
    }

    /// `u_i / p_i - 1`.
    fn moved(&self, i: usize, point: &Point) -> f64 {
        (((self.v[i] - point.nu) - point.rest) / self.width(i, point.lambda)).max(-1.0)
    }

    /// Returns the point whose divergence is `rho`, given that the divergence is larger at `lambda = 0`.
    fn root(&self, rho: f64, still: &Point) -> Point {
        let surplus = |point: &Point| point.divergence.powf(-0.5) - rho.powf(-0.5);
        let (mut low, mut below) = (0.0, surplus(still));
        let mut high = self.tau.iter().fold(1.0, |most: f64, &tau| most.max(tau));
        let mut point = self.solve(high);
        while point.divergence > rho {
            (low, below) = (high, surplus(&point));
            high *= 4.0;
            point = self.solve(high);
        }
        let mut above = surplus(&point);
        let mut side = 0;
        for _ in 0..200 {
            let next = low - below * (high - low) / (above - below);
            let next = if next > low && next < high {
                next
            } else {
                0.5 * (low + high)
            };
            if next <= low || next >= high {
                break;
            }
            point = self.solve(next);
            let found = surplus(&point);
            if (point.divergence / rho - 1.0).abs() <= CLOSE {
                return point;
            }
            if found < 0.0 {
                (low, below) = (next, found);
                above *= if side == -1 { 0.5 } else { 1.0 };
                side = -1;
            } else {
                (high, above) = (next, found);
                below *= if side == 1 { 0.5 } else { 1.0 };
                side = 1;
            }
        }
        point
    }

    fn fill(
        &self,
        ball: &Ball<'_>,
        point: &Point,
        scale: &Scale,
        buffers: &mut Buffers<'_>,
    ) -> Outcome {
        for i in 0..self.v.len() {
            let slack = point.nu - self.v[i] - self.width(i, point.lambda);
            let moved = self.moved(i, point);
            buffers.at_floor[i] = slack >= 0.0;
            buffers.floor_multipliers[i] = scale.undo(slack.max(0.0));
            buffers.weights[i] = self.p[i] * (ball.floor + self.keep * (1.0 + moved));
        }
        Outcome {
            divergence: point.divergence,
            status: if point.lambda > 0.0 {
                Status::Boundary
            } else {
                Status::Interior
            },
            ball_multiplier: scale.undo(point.lambda),
            sum_multiplier: 0.0,
        }
    }
}
