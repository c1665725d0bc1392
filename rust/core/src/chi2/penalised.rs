//! The worst case less a penalty on the divergence: a response in proportion to the losses, where those are small.
//!
//! ```text
//! maximise  <q, v> - tau D(q, p)    over Q
//! ```
//!
//! In the optimality system `lambda + tau` stands where `lambda` stood. So the answer is that of the ball if the ball's
//! own multiplier is at least `tau`, which becomes `lambda + tau`. Otherwise the ball does not bind, and `tau` alone
//! decides: with `q = f p + (1 - f) u` and `d = (1 - f) tau`,
//!
//! ```text
//! u_i = p_i max(0, 1 + (v_i - nu) / d),    nu = m - d (1 - P) / P,
//! ```
//!
//! `P` and `m` the mass and the mean of the losses of the support, which holds the entries above `m - d / P`. Starting from
//! all entries and dropping those below finds it in a few passes, at most `n`: the cut only rises (Michelot 1986).

use super::threshold::largest;
use super::worst_case::Scale;
use super::{Ball, Buffers, Outcome, Solution, Status, worst_case_into};
use crate::error::{Error, Result};

/// The mixture in the ball that maximises `<q, losses> - penalty D(q, p)`.
///
/// Exact up to rounding. A penalty of zero is [`worst_case`](super::worst_case()). Where the status is
/// [`Status::Interior`], the penalty decides and the divergence is below `rho`; it grows with the square of the losses.
///
/// # Errors
///
/// As [`worst_case`](super::worst_case()); the penalty must be finite and at least zero.
///
/// # Examples
///
/// ```
/// use drpruning_core::chi2::{penalised_worst_case, Status};
///
/// let small = penalised_worst_case(&[0.0, 0.1], &[0.5, 0.5], 0.02, 0.0, 1.0)?;
/// assert_eq!(small.status, Status::Interior);
/// assert!((small.weights[1] - 0.525).abs() < 1e-15); // p (1 + (0.1 - 0.05) / 1)
/// # Ok::<(), drpruning_core::error::Error>(())
/// ```
pub fn penalised_worst_case(
    losses: &[f64],
    p: &[f64],
    rho: f64,
    floor: f64,
    penalty: f64,
) -> Result<Solution> {
    Solution::filled(losses.len(), |buffers| {
        penalised_worst_case_into(losses, p, rho, floor, penalty, buffers)
    })
}

/// [`penalised_worst_case`] into buffers of the caller, which are zero (false) and as long as `losses`.
///
/// # Errors
///
/// As [`penalised_worst_case`]; the buffers are then as they were.
///
/// # Panics
///
/// If a buffer has another length.
pub fn penalised_worst_case_into(
    losses: &[f64],
    p: &[f64],
    rho: f64,
    floor: f64,
    penalty: f64,
    buffers: &mut Buffers<'_>,
) -> Result<Outcome> {
    if !(penalty.is_finite() && penalty >= 0.0) {
        return Err(Error::Weight(format!(
            "penalty is {penalty}; it must be finite and at least 0"
        )));
    }
    let ball = Ball::new(losses, p, rho, floor)?;
    let mut outcome = worst_case_into(losses, p, rho, floor, buffers)?;
    if penalty == 0.0 || outcome.status == Status::Center {
        return Ok(outcome);
    }
    // In units of the range of the losses, so that sums neither overflow nor vanish.
    let scale = Scale::of(losses);
    let width = (1.0 - floor) * scale.apply(penalty);
    if outcome.ball_multiplier >= penalty || width <= f64::EPSILON {
        outcome.ball_multiplier = (outcome.ball_multiplier - penalty).max(0.0);
        return Ok(outcome);
    }
    Ok(fill(&ball, losses, &scale, width, buffers))
}

/// The answer where the ball does not bind; `width` is `d`, in the units of `scale`.
fn fill(
    ball: &Ball<'_>,
    losses: &[f64],
    scale: &Scale,
    width: f64,
    buffers: &mut Buffers<'_>,
) -> Outcome {
    let keep = 1.0 - ball.floor;
    let total: f64 = ball.p.iter().sum();
    let v: Vec<f64> = losses.iter().map(|&loss| scale.apply(loss)).collect();
    // The support lies within `width / mass` of the largest: about that, its deviations keep their digits.
    let centre = largest(&v);
    let (mass, mean) = support(ball.p, &v, total, centre, width);
    let lift = (1.0 - mass) / mass;
    let cut = mean - width / mass;
    let mut divergence = 0.0;
    let entries = ball.p.iter().zip(&v).zip(buffers.weights.iter_mut());
    let marks = buffers
        .floor_multipliers
        .iter_mut()
        .zip(buffers.at_floor.iter_mut());
    for (((&p, &v), q), (mu, at_floor)) in entries.zip(marks) {
        let deviation = v - centre;
        let outside = deviation <= cut;
        let moved = if outside {
            -1.0
        } else {
            ((deviation - mean) / width + lift).max(-1.0)
        };
        *q = p / total * (ball.floor + keep * (1.0 + moved));
        *mu = if outside {
            scale.undo(cut - deviation)
        } else {
            0.0
        };
        *at_floor = outside;
        divergence += p / total * moved * moved;
    }
    Outcome {
        divergence: 0.5 * keep * keep * divergence,
        status: Status::Interior,
        ball_multiplier: 0.0,
        // The lift is zero where all entries are inside, which they are where the width is infinite.
        sum_multiplier: scale.undo(centre + mean - if lift > 0.0 { width * lift } else { 0.0 }),
    }
}

/// Mass and mean, about `centre`, of the entries above `mean - width / mass`; `p` sums to `total`.
fn support(p: &[f64], v: &[f64], total: f64, centre: f64, width: f64) -> (f64, f64) {
    let mut cut = f64::NEG_INFINITY;
    let (mut before, mut found) = (usize::MAX, (1.0, 0.0));
    loop {
        let (mut count, mut mass, mut first) = (0, 0.0, 0.0);
        for (&p, &v) in p.iter().zip(v) {
            if v - centre > cut {
                count += 1;
                mass += p;
                first += p * (v - centre);
            }
        }
        if count == before || count == 0 {
            return found;
        }
        found = ((mass / total).min(1.0), first / mass);
        before = count;
        cut = (found.1 - width / found.0).max(cut);
    }
}
