//! The robust fit of the scaling law to one loss curve, at the global optimum.
//!
//! For points `(x, t, y)` (logarithms of parameters, tokens and loss) the law `loss = A P^-alpha T^-beta + E` is written
//! with everything bounded:
//!
//! ```text
//! y ~ m(theta) = u + log(1 + w (b - 1)),   b = exp(-alpha (x - min x) - beta (t - min t)) in (0, 1]
//! ```
//!
//! so that `exp(u)` is the loss where `b = 1` and `w` in `[0, 1]` the part of it that falls: `E = exp(u) (1 - w)`. The fit
//! minimises
//!
//! ```text
//! F(u, w, alpha, beta) = sum_i H(m_i - y_i),   H(r) = r^2 / 2 within delta, delta (|r| - delta / 2) beyond
//! ```
//!
//! over `w` in `[0, 1]` and exponents in `[0, 3]` (Huber's loss of the logarithm: Hoffmann et al. 2022, appendix D.2).
//!
//! # Method
//!
//! Variable projection. For fixed exponents the problem in `(u, w)` is small and well behaved, so the *profile*, its
//! minimum as a function of the exponents, is computed on a grid that spans their whole range. The local minima of the
//! gridded profile, and its lowest points, then start Newton's method in all variables at once, and the best end is
//! the answer. Nothing is random, and nothing depends on the units of loss, parameters or tokens.

mod newton;
mod objective;

use crate::error::{FitError, Result};
use newton::{EXACT, Minimum, minimise};
use objective::{ALPHA, BETA, Objective, SHARE, Theta};

/// Bound on both exponents; published ones are below 1.
pub const LARGEST_EXPONENT: f64 = 3.0;
/// Exponents of tokens on the profile's grid: geometric, each 1.1 times the one before.
const BETAS: usize = 85;
/// The smallest of them; refinement may go down to zero.
const SMALLEST_BETA: f64 = 0.001;
/// Exponents of parameters on the grid, where they are learned; zero, then geometric from 0.03.
const ALPHAS: usize = 11;
/// The smallest after zero.
const SMALLEST_ALPHA: f64 = 0.03;
/// Relative precision of the profile on the grid.
const ROUGH: f64 = 1e-4;
/// Local minima of the gridded profile that are refined, and as many of its lowest points.
const REFINED: usize = 8;
/// Best ends that are refined to rounding.
const POLISHED: usize = 4;

/// A fitted law.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fit {
    /// `u`: logarithm of the loss at the smallest `x` and `t`.
    pub level: f64,
    /// `w`: the part of that loss that falls with `x` and `t`, in `[0, 1]`.
    pub share: f64,
    /// Exponent of parameters, in `[0, 3]`; zero where it is not learned.
    pub alpha: f64,
    /// Exponent of tokens, in `[0, 3]`.
    pub beta: f64,
    /// The minimum `F`.
    pub objective: f64,
}

/// Returns the law that minimises `F`.
///
/// `alpha` is zero unless `learn_alpha`.
///
/// # Errors
///
/// [`FitError`] if the slices differ in length or are empty, hold a number that is not finite, or `delta` is not
/// positive and finite.
///
/// # Examples
///
/// ```
/// use drpruning_core::scaling::fit;
///
/// let t: Vec<f64> = (1..20).map(|k| f64::from(k).ln()).collect();
/// let y: Vec<f64> = t.iter().map(|t| (2.0 + 3.0 * (-0.4 * t).exp()).ln()).collect();
/// let law = fit(&vec![0.0; t.len()], &t, &y, 1e-3, false)?;
/// assert!((law.beta - 0.4).abs() < 1e-6 && (law.level.exp() * (1.0 - law.share) - 2.0).abs() < 1e-6);
/// # Ok::<(), drpruning_core::Error>(())
/// ```
pub fn fit(x: &[f64], t: &[f64], y: &[f64], delta: f64, learn_alpha: bool) -> Result<Fit> {
    let objective = checked(x, t, y, delta)?;
    let alphas = if learn_alpha {
        let mut grid = vec![0.0];
        grid.extend(geometric(SMALLEST_ALPHA, ALPHAS - 1));
        grid
    } else {
        vec![0.0]
    };
    let betas = geometric(SMALLEST_BETA, BETAS);
    let mut grid = Vec::with_capacity(alphas.len() * betas.len());
    for &alpha in &alphas {
        let mut start = objective.start();
        for &beta in &betas {
            (start[ALPHA], start[BETA]) = (alpha, beta);
            let point = minimise(&objective, start, [true, true, false, false], ROUGH);
            start = point.theta;
            grid.push(point);
        }
    }
    let mut order: Vec<usize> = (0..grid.len()).collect();
    order.sort_by(|&i, &j| grid[i].value.total_cmp(&grid[j].value));
    let (minima, others): (Vec<usize>, Vec<usize>) = order
        .into_iter()
        .partition(|&i| is_lowest_around(i, betas.len(), |i| grid[i].value, grid.len()));
    let starts = minima
        .into_iter()
        .take(REFINED)
        .chain(others.into_iter().take(REFINED));
    let free = [true, true, learn_alpha, true];
    let mut ends: Vec<Minimum> = starts
        .map(|i| minimise(&objective, grid[i].theta, free, ROUGH))
        .collect();
    ends.sort_by(|one, other| one.value.total_cmp(&other.value));
    let best = ends
        .iter()
        .take(POLISHED)
        .map(|end| minimise(&objective, end.theta, free, EXACT))
        .reduce(|best, other| {
            if other.value < best.value {
                other
            } else {
                best
            }
        })
        .unwrap_or(grid[0]); // there is always an end
    let [level, share, alpha, beta] = best.theta;
    Ok(Fit {
        level,
        share,
        alpha,
        beta,
        objective: best.value,
    })
}

/// Returns the profile: the minimum of `F` over level and share, with its arguments, for given exponents.
///
/// # Errors
///
/// As for [`fit`]; also if the exponents are not in `[0, 3]`.
pub fn profile(x: &[f64], t: &[f64], y: &[f64], delta: f64, alpha: f64, beta: f64) -> Result<Fit> {
    let objective = checked(x, t, y, delta)?;
    for (name, exponent) in [("alpha", alpha), ("beta", beta)] {
        if !(0.0..=LARGEST_EXPONENT).contains(&exponent) {
            return Err(FitError::Exponent {
                name,
                value: exponent,
                max: LARGEST_EXPONENT,
            }
            .into());
        }
    }
    let mut start: Theta = objective.start();
    (start[ALPHA], start[BETA]) = (alpha, beta);
    let found = minimise(&objective, start, [true, true, false, false], EXACT);
    Ok(Fit {
        level: found.theta[0],
        share: found.theta[SHARE],
        alpha,
        beta,
        objective: found.value,
    })
}

fn checked(x: &[f64], t: &[f64], y: &[f64], delta: f64) -> Result<Objective> {
    if x.is_empty() || x.len() != t.len() || x.len() != y.len() {
        return Err(FitError::Length {
            parameters: x.len(),
            tokens: t.len(),
            losses: y.len(),
        }
        .into());
    }
    if let Some(index) = (0..x.len()).find(|&i| !(x[i] + t[i] + y[i]).is_finite()) {
        let point = (x[index], t[index], y[index]);
        return Err(FitError::Point { index, point }.into());
    }
    if !(delta.is_finite() && delta > 0.0) {
        return Err(FitError::Delta { delta }.into());
    }
    Ok(Objective::new(x, t, y, delta))
}

/// Returns a geometric sequence of `count` numbers from `first` to the largest exponent.
fn geometric(first: f64, count: usize) -> Vec<f64> {
    let ratio = (LARGEST_EXPONENT / first).powf(1.0 / (count - 1) as f64);
    (0..count)
        .map(|k| (first * ratio.powi(k as i32)).min(LARGEST_EXPONENT))
        .collect()
}

/// Returns whether no neighbour of entry `i` of a grid with `columns` columns is lower.
fn is_lowest_around(i: usize, columns: usize, value: impl Fn(usize) -> f64, len: usize) -> bool {
    let (row, column) = ((i / columns) as isize, (i % columns) as isize);
    let rows = (len / columns) as isize;
    (-1..=1).all(|down| {
        (-1..=1).all(|right| {
            let (r, c) = (row + down, column + right);
            let inside = r >= 0 && r < rows && c >= 0 && c < columns as isize;
            !inside || value(i) <= value(r as usize * columns + c as usize)
        })
    })
}
