//! The check of every solution before it is returned: feasibility, and the stationarity of the KKT system.

// Terms that are not inlined into a pass are not compiled for AVX2.
#![allow(clippy::inline_always)]

use crate::simd::{Pack, Terms, sums};
use crate::{Ball, Buffers, Outcome, Status};

/// Relative error above which a solution is refused. Solvers are exact to about 1e-14 where nothing leaves the range of
/// float64; a wrong support, an overflow or an underflow is off by far more than this.
const TOLERANCE: f64 = 1e-6;

/// The gradient of the objective at `q`, apart from the ball.
#[derive(Clone, Copy)]
pub(crate) enum Objective<'a> {
    /// `<q, v>`, less the penalties.
    Linear {
        losses: &'a [f64],
        penalties: Option<&'a [f64]>,
    },
    /// `-1/2 |q - y|^2`.
    Nearest { y: &'a [f64] },
}

/// The sums over `p` and `q` that decide feasibility.
struct Feasible {
    per_total: f64,
    floor: f64,
}

impl Terms<3> for Feasible {
    #[inline(always)]
    fn terms<V: Pack>(&self, p: V, q: V) -> [V; 3] {
        let p = p * V::all(self.per_total);
        let moved = (q - p) / p;
        let above = (p * V::all(self.floor * (1.0 - TOLERANCE))).at_most(q);
        [
            q,
            p * moved * moved,
            V::all(0.0).or(above, V::all(1.0)), // NaN fails every comparison
        ]
    }
}

/// Returns whether the solution satisfies the constraints and the KKT system up to rounding.
///
/// Costs two passes over the entries.
pub(crate) fn holds(
    ball: &Ball<'_>,
    total: f64,
    objective: Objective<'_>,
    outcome: &Outcome,
    buffers: &Buffers<'_>,
) -> bool {
    let feasible = Feasible {
        per_total: 1.0 / total,
        floor: ball.floor,
    };
    let [sum, twice, below] = sums(ball.p, buffers.weights, &feasible);
    let divergence = 0.5 * twice;
    // `q - p` is rounded to half a digit of `p`, so the root of the divergence is to about one.
    let rounding = 8.0 * f64::EPSILON;
    let most = (ball.rho.sqrt() + rounding).powi(2) * (1.0 + TOLERANCE);
    let least = (ball.rho.sqrt() - rounding).max(0.0).powi(2) * (1.0 - TOLERANCE);
    let binds = outcome.status != Status::Boundary || divergence >= least;
    let feasible = (sum - 1.0).abs() <= TOLERANCE && below == 0.0 && divergence <= most && binds;
    feasible && stationary(ball, total, objective, outcome, buffers)
}

/// Whether `p_i` times the stationarity of entry `i` is zero up to rounding, for every `i`; no division is needed.
fn stationary(
    ball: &Ball<'_>,
    total: f64,
    objective: Objective<'_>,
    outcome: &Outcome,
    buffers: &Buffers<'_>,
) -> bool {
    let (lambda, nu) = (outcome.ball_multiplier, outcome.sum_multiplier);
    if lambda.is_infinite() {
        return true; // the radius is zero, or the multiplier is beyond float64
    }
    let values = match objective {
        Objective::Linear { losses, .. } => losses,
        Objective::Nearest { y } => y,
    };
    let size = values.iter().fold(nu.abs(), |size, v| size.max(v.abs()));
    let entry = |i: usize| {
        let (p, q, mu) = (
            ball.p[i] / total,
            buffers.weights[i],
            buffers.floor_multipliers[i],
        );
        let (gradient, strength) = match objective {
            Objective::Linear { losses, penalties } => {
                (losses[i], lambda + penalties.map_or(0.0, |tau| tau[i]))
            }
            Objective::Nearest { y } => (y[i] - q, lambda),
        };
        let pull = strength * (q - p);
        let slack = p * ((gradient - nu) + mu) - pull;
        // Rounding of the values, of their differences, and of q
        let allowed = p * (TOLERANCE * ((gradient - nu).abs() + mu) + 1e-12 * size)
            + TOLERANCE * pull.abs()
            + 1e-12 * strength * q.max(p)
            + f64::MIN_POSITIVE;
        // Values that are further apart than float64 reaches have no multipliers to check.
        mu >= 0.0 && (slack.abs() <= allowed || !slack.is_finite() && size > f64::MAX / 4.0)
    };
    (0..values.len()).all(entry)
}
