//! The worst case over the ball: closed form once the threshold is known.

// Only exactly equal losses tie, and only a radius of exactly zero leaves a point.
#![allow(clippy::float_cmp)]

use crate::certificate::{self, Objective};
use crate::error::{Argument, Result};
use crate::rescale::{self, Scale, Scaled};
use crate::select::{self, Found, Threshold, largest, mass_at_largest};
use crate::simd::{Four, LANES, Lanes, Pack};
use crate::top_set::Radius;
use crate::{Ball, Buffers, Outcome, Solution, Status};

/// Returns the weights in the ball under which `losses` are worst: maximises `<q, losses>`.
///
/// Exact up to rounding, in expected linear time. Adding a constant to all losses changes nothing; multiplying them by
/// a positive number changes only the multipliers. Entries with equal losses share their mass in proportion to `p`.
/// An infinite `rho` gives the whole simplex above the floor.
///
/// # Errors
///
/// - [`Error::Empty`](crate::Error::Empty): `losses` is empty.
/// - [`Error::Length`](crate::Error::Length): `p` is not as long as `losses`.
/// - [`Error::Entry`](crate::Error::Entry): a loss is not finite, or an entry of `p` is not positive and finite.
/// - [`Error::Sum`](crate::Error::Sum): `p` does not sum to 1 within 1e-6.
/// - [`Error::Number`](crate::Error::Number): `rho` is negative or NaN, or `floor` is not in `[0, 1)`.
///
/// # Examples
///
/// ```
/// use chi2_ball::{Status, worst_case};
///
/// let worst = worst_case(&[0.1, 0.5], &[0.5, 0.5], 0.02, 0.0)?;
/// assert_eq!(worst.status, Status::Boundary);
/// assert!((worst.weights[1] - 0.6).abs() < 1e-15); // D = 1/2 (2 * 0.5 * 0.2^2) = 0.02
/// # Ok::<(), chi2_ball::Error>(())
/// ```
pub fn worst_case(losses: &[f64], p: &[f64], rho: f64, floor: f64) -> Result<Solution> {
    Solution::filled(losses.len(), |buffers| {
        worst_case_into(losses, p, rho, floor, buffers)
    })
}

/// Solves [`worst_case`] into buffers of the caller, which must be zero (false) and as long as `losses`.
///
/// # Errors
///
/// As [`worst_case`]; the buffers are then zero (false).
///
/// # Panics
///
/// If a buffer has another length.
pub fn worst_case_into(
    losses: &[f64],
    p: &[f64],
    rho: f64,
    floor: f64,
    buffers: &mut Buffers<'_>,
) -> Result<Outcome> {
    buffers.assert_length(losses.len());
    let ball = Ball::new(Argument::Losses, losses, p, rho, floor)?;
    let objective = Objective::Linear {
        losses,
        penalties: None,
    };
    if rho > 0.0 {
        // Unusable entries show in the sums: NaN and infinity make them so, and other entries are counted.
        let free = ball.free_radius();
        if let Found::Threshold(found) = select::find(p, losses, free)
            && crate::is_near_one(found.total)
        {
            let outcome = fill(&ball, losses, free, &found, buffers);
            if certificate::holds(&ball, found.total, objective, &outcome, buffers) {
                return Ok(outcome);
            }
            buffers.clear();
        }
    }
    let total = ball.check_entries(losses)?;
    let outcome = fill_any(&ball, losses, total, buffers);
    ball.certified(total, objective, outcome, buffers)
}

/// Solves for a radius of zero, a face, and losses whose squares leave the range of float64.
fn fill_any(ball: &Ball<'_>, losses: &[f64], total: f64, buffers: &mut Buffers<'_>) -> Outcome {
    let rho = ball.free_radius();
    let (best, rest) = mass_at_largest(ball.p, losses);
    if rest <= 2.0 * rho * best {
        return fill_face(ball, losses, best, total, buffers);
    }
    if ball.rho == 0.0 {
        let scale = Scale::of(losses);
        let scaled: Vec<f64> = losses.iter().map(|&v| scale.apply(v)).collect();
        let nu = scale.undo(select::mean(ball.p, &scaled));
        return ball.fill_center(total, nu, buffers);
    }
    let Scaled {
        losses: scaled,
        scale,
        found,
    } = rescale::find(ball.p, losses, rho, total);
    let Found::Threshold(found) = found else {
        // Scaling cannot make the largest losses tie with others, but it can round away what set them apart.
        return fill_face(ball, losses, best, total, buffers);
    };
    let mut outcome = fill(ball, &scaled, rho, &found, buffers);
    outcome.ball_multiplier = scale.undo(outcome.ball_multiplier);
    outcome.sum_multiplier = scale.undo(outcome.sum_multiplier);
    let radius = Radius {
        rho,
        total,
        dropped: 0.0,
    };
    let (centre, threshold) = (
        scale.undo(found.centre),
        scale.undo(found.top.mean() - found.top.spread(radius)),
    );
    let outside = buffers
        .floor_multipliers
        .iter_mut()
        .zip(losses)
        .zip(&scaled);
    for ((mu, v), _) in outside.filter(|(_, scaled)| scaled.is_infinite()) {
        *mu = ((centre - v) + threshold).max(0.0);
    }
    outcome
}

/// Writes `p / best` for the entries with the largest loss, whose mass is `best`, and the floor for the others.
fn fill_face(
    ball: &Ball<'_>,
    losses: &[f64],
    best: f64,
    total: f64,
    buffers: &mut Buffers<'_>,
) -> Outcome {
    let largest = largest(losses);
    let (floor, keep) = (ball.floor, 1.0 - ball.floor);
    let mut divergence = 0.0;
    let mut all = true;
    for (i, (&p, &v)) in ball.p.iter().zip(losses).enumerate() {
        let low = v != largest;
        all &= !low;
        buffers.at_floor[i] = low;
        buffers.floor_multipliers[i] = largest - v;
        buffers.weights[i] = floor * (p / total) + if low { 0.0 } else { keep * (p / best) };
        let moved = if low {
            -keep
        } else {
            keep * ((total - best) / best)
        };
        divergence += p / total * moved * moved;
    }
    Outcome {
        divergence: 0.5 * divergence,
        status: if all { Status::Center } else { Status::Face },
        ball_multiplier: 0.0,
        sum_multiplier: largest,
    }
}

/// Packs between two additions to the total.
const FLUSH: usize = 512;

/// The numbers that the entries of the solution are computed from: `q_i = p_i / total (1 + e_i)`.
struct Form {
    floor: f64,
    centre: f64,
    /// Entries with `v - centre` above this are inside.
    cut: f64,
    mean: f64,
    slope: f64,
    /// `e` of an entry whose loss is the mean of the entries inside.
    lift: f64,
    /// `1 / total`.
    per_total: f64,
    /// `v - centre` of the threshold.
    threshold: f64,
}

fn fill(
    ball: &Ball<'_>,
    v: &[f64],
    rho: f64,
    found: &Threshold,
    buffers: &mut Buffers<'_>,
) -> Outcome {
    let top = &found.top;
    let radius = Radius {
        rho,
        total: found.total,
        dropped: 0.0,
    };
    let (share, rest) = (top.share(found.total), top.rest(found.total));
    let (deviation, spread) = (top.variance().sqrt(), top.spread(radius));
    // The quotient of the roots, for the root of a quotient may leave the range of float64.
    let slope = if deviation > 0.0 {
        top.room(radius).max(0.0).sqrt() / deviation
    } else {
        0.0
    };
    let keep = 1.0 - ball.floor;
    let form = Form {
        floor: ball.floor,
        centre: found.centre,
        cut: found.cut,
        mean: top.mean(),
        slope: (keep * slope / share).min(f64::MAX),
        lift: keep * (rest / share),
        per_total: 1.0 / found.total,
        threshold: top.mean() - spread,
    };
    let divergence = form.fill(ball.p, v, buffers);
    let mean = found.centre + top.mean();
    Outcome {
        divergence,
        status: Status::Boundary,
        ball_multiplier: share * spread / keep,
        sum_multiplier: if rest > 0.0 {
            mean - rest * spread
        } else {
            mean
        },
    }
}

impl Form {
    fn fill(&self, p: &[f64], v: &[f64], out: &mut Buffers<'_>) -> f64 {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") {
            // SAFETY: this machine has AVX2.
            return unsafe { self.with_avx2(p, v, out) };
        }
        self.pass::<Four>(p, v, out)
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2")]
    unsafe fn with_avx2(&self, p: &[f64], v: &[f64], out: &mut Buffers<'_>) -> f64 {
        self.pass::<crate::simd::avx2::Wide>(p, v, out)
    }

    /// Writes the entries and returns the divergence.
    // Compiled once for each kind of pack, with the instructions that its caller may use.
    #[allow(clippy::inline_always)]
    #[inline(always)]
    fn pass<V: Lanes>(&self, p: &[f64], v: &[f64], out: &mut Buffers<'_>) -> f64 {
        let (mut pack, mut total) = (V::all(0.0), 0.0);
        let mut flush = |pack: V| {
            let mut lanes = [0.0; LANES];
            pack.write(&mut lanes);
            total += lanes.iter().sum::<f64>();
        };
        let ((whole_p, rest_p), (whole_v, rest_v)) =
            (p.as_chunks::<LANES>(), v.as_chunks::<LANES>());
        let (whole_q, rest_q) = out.weights.as_chunks_mut::<LANES>();
        let (whole_mu, rest_mu) = out.floor_multipliers.as_chunks_mut::<LANES>();
        let (whole_low, rest_low) = out.at_floor.as_chunks_mut::<LANES>();
        let entries = whole_p.iter().zip(whole_v).zip(whole_q);
        for (k, (((p, v), q), (mu, low))) in
            entries.zip(whole_mu.iter_mut().zip(whole_low)).enumerate()
        {
            let entry = self.entry(V::read(p), V::read(v));
            entry.weight.write(q);
            pack = pack + entry.term;
            if k % FLUSH == FLUSH - 1 {
                flush(pack);
                pack = V::all(0.0);
            }
            // The other buffers are zero already, and most of their entries stay zero.
            if V::any(entry.outside) {
                entry.multiplier.write(mu);
                *low = V::flags(entry.outside);
            }
        }
        flush(pack);
        let entries = rest_p.iter().zip(rest_v).zip(rest_q);
        for (((&p, &v), q), (mu, low)) in entries.zip(rest_mu.iter_mut().zip(rest_low)) {
            let entry = self.entry(p, v);
            (*q, *mu, *low) = (entry.weight, entry.multiplier, entry.outside);
            total += entry.term;
        }
        0.5 * total * self.per_total
    }

    #[allow(clippy::inline_always)]
    #[inline(always)]
    fn entry<V: Pack>(&self, p: V, v: V) -> Entry<V> {
        let deviation = v - V::all(self.centre);
        let lowest = V::all(self.floor - 1.0);
        let moved = (deviation - V::all(self.mean)) * V::all(self.slope) + V::all(self.lift);
        let inside = deviation.above(V::all(self.cut));
        let raised = V::both(inside, moved.above(lowest));
        let moved = moved.or(raised, lowest);
        // 1 + (f - 1) may differ from f in the last digit.
        let ratio = (V::all(1.0) + moved).or(raised, V::all(self.floor));
        let outside = deviation.at_most(V::all(self.cut));
        let below = V::all(self.threshold) - deviation;
        Entry {
            outside,
            weight: p * V::all(self.per_total) * ratio,
            multiplier: below.only(V::both(outside, below.above(V::all(0.0)))),
            term: p * moved * moved,
        }
    }
}

/// An entry of the solution, or a pack of entries.
struct Entry<V: Pack> {
    outside: V::Mask,
    weight: V,
    multiplier: V,
    /// Its term in twice the divergence, times `total`.
    term: V,
}
