//! Newton's method inside a box, damped towards reweighted least squares.

use super::LARGEST_EXPONENT;
use super::objective::{ALPHA, BETA, Derivatives, Objective, Theta};

/// Bounds of `[u, w, alpha, beta]`.
const LOW: Theta = [f64::NEG_INFINITY, 0.0, 0.0, 0.0];
const HIGH: Theta = [f64::INFINITY, 1.0, LARGEST_EXPONENT, LARGEST_EXPONENT];
/// Largest number of steps; far more than any fit has needed.
const MOST_STEPS: usize = 200;
/// Gain of a step, as part of the objective, below which the minimum is found to rounding.
pub(super) const EXACT: f64 = 1e-15;
const MOST_DAMPING: f64 = 1e12;
/// Added to the diagonal of the damping, as part of it: `above` alone is singular where directions look alike.
const DIAGONAL: f64 = 0.01;

/// A point and the objective there.
#[derive(Clone, Copy)]
pub(super) struct Minimum {
    pub(super) theta: Theta,
    pub(super) value: f64,
}

/// Finds a local minimum of the objective in the coordinates that are `free`, by descent from `start`.
///
/// Steps solve `(hessian + damping * above) step = -gradient`: Newton's method with little damping, and with much of it
/// short steps of reweighted least squares, which always descend. Coordinates at a bound stay there while the
/// gradient pushes outwards. The last step is one that promises or brings less than `precision` of the objective.
pub(super) fn minimise(
    objective: &Objective,
    start: Theta,
    free: [bool; 4],
    precision: f64,
) -> Minimum {
    let mut theta = start;
    let mut damping = 1e-3;
    let exponents = free[ALPHA] || free[BETA];
    let mut falls = Vec::new();
    objective.falls(&theta, &mut falls);
    let mut now = objective.derivatives(&theta, &falls, exponents);
    for _ in 0..MOST_STEPS {
        let Some(step) = boxed_step(&now, damping, &theta, free) else {
            damping *= 10.0;
            if damping > MOST_DAMPING {
                break;
            }
            continue;
        };
        let mut next = theta;
        let mut promised = 0.0;
        for i in 0..4 {
            next[i] = (theta[i] + step[i]).clamp(LOW[i], HIGH[i]);
            promised -= now.gradient[i] * step[i];
        }
        if exponents {
            objective.falls(&next, &mut falls);
        }
        let there = objective.derivatives(&next, &falls, exponents);
        if there.value < now.value {
            let gain = now.value - there.value;
            theta = next;
            now = there;
            damping *= 0.1;
            if gain.max(promised) <= precision * now.value {
                break;
            }
        } else {
            if promised <= precision * now.value || damping > MOST_DAMPING {
                break;
            }
            damping = (damping * 10.0).max(1e-9);
        }
    }
    Minimum {
        theta,
        value: now.value,
    }
}

/// The damped step inside the box: a coordinate that would leave it goes to its bound, and the others are solved again.
///
/// None if the damped Hessian is not positive definite.
fn boxed_step(now: &Derivatives, damping: f64, theta: &Theta, free: [bool; 4]) -> Option<Theta> {
    let mut step = [0.0; 4];
    let mut moves: Vec<usize> = (0..4)
        .filter(|&i| {
            let outwards = if now.gradient[i] > 0.0 {
                theta[i] <= LOW[i]
            } else {
                theta[i] >= HIGH[i]
            };
            free[i] && !outwards
        })
        .collect();
    loop {
        solve(now, damping, &moves, &mut step)?;
        let before = moves.len();
        moves.retain(|&i| {
            let inside = (LOW[i]..=HIGH[i]).contains(&(theta[i] + step[i]));
            if !inside {
                step[i] = step[i].clamp(LOW[i] - theta[i], HIGH[i] - theta[i]);
            }
            inside
        });
        if moves.len() == before {
            return Some(step);
        }
    }
}

/// Solves for `step` in the coordinates `moves`, the others being given; None if the matrix is not positive definite.
fn solve(now: &Derivatives, damping: f64, moves: &[usize], step: &mut Theta) -> Option<()> {
    let n = moves.len();
    let matrix = |i: usize, j: usize| {
        let (i, j) = (i.max(j), i.min(j));
        let extra = if i == j { 1.0 + DIAGONAL } else { 1.0 };
        now.hessian[i][j] + damping * extra * now.above[i][j]
    };
    let mut right = [0.0; 4];
    for (i, &row) in moves.iter().enumerate() {
        right[i] = -now.gradient[row];
        for column in (0..4).filter(|column| !moves.contains(column)) {
            right[i] -= matrix(row, column) * step[column];
        }
    }
    // Cholesky, then forwards and backwards
    let mut lower = [[0.0; 4]; 4];
    for i in 0..n {
        for j in 0..=i {
            let entry = matrix(moves[i], moves[j]);
            let rest = entry - (0..j).map(|k| lower[i][k] * lower[j][k]).sum::<f64>();
            if i == j {
                if rest <= 1e-14 * entry.abs() || rest.is_nan() {
                    return None;
                }
                lower[i][i] = rest.sqrt();
            } else {
                lower[i][j] = rest / lower[j][j];
            }
        }
        right[i] = (right[i] - (0..i).map(|k| lower[i][k] * right[k]).sum::<f64>()) / lower[i][i];
    }
    for i in (0..n).rev() {
        right[i] =
            (right[i] - (i + 1..n).map(|k| lower[k][i] * right[k]).sum::<f64>()) / lower[i][i];
        step[moves[i]] = right[i];
    }
    Some(())
}
