//! The ball against golden values, its optimality conditions, and the traps of floating point.

#![allow(missing_docs)]

use chi2_ball::{
    Batch, Buffers, Error, PerRow, Result, Solution, Status, penalised_worst_case, project,
    worst_case, worst_case_batch_into,
};
use proptest::prelude::*;

type Solver = fn(&[f64], &[f64], f64, f64) -> Result<Solution>;

#[derive(serde::Deserialize)]
struct Case {
    problem: String,
    values: Vec<f64>,
    p: Vec<f64>,
    rho: f64,
    floor: f64,
    weights: Vec<f64>,
    divergence: f64,
}

#[test]
fn a_penalty_moves_the_mixture_in_proportion() {
    let p = [0.7, 0.2, 0.1];
    let moved = |scale: f64| {
        let losses = [0.0, 0.01 * scale, 0.03 * scale];
        let found = penalised_worst_case(&losses, &p, 0.1, 0.0, &[1.0; 3]).unwrap();
        assert_eq!(found.status, Status::Interior);
        found.weights[2] - p[2]
    };
    // q - p = p (v - m) / penalty, m = 0.005 for scale 1
    assert!((moved(1.0) - 0.1 * 0.025).abs() < 1e-15);
    assert!((moved(2.0) - 2.0 * moved(1.0)).abs() < 1e-15);
}

#[test]
fn a_penalty_may_be_of_any_size() {
    let (losses, p) = ([0.1, 0.7, 0.7], [0.5, 0.3, 0.2]);
    let none = penalised_worst_case(&losses, &p, 0.1, 0.2, &[0.0; 3]).unwrap();
    assert_eq!(none, worst_case(&losses, &p, 0.1, 0.2).unwrap());
    for rho in [1e-9, 0.1, f64::INFINITY] {
        let huge = penalised_worst_case(&losses, &p, rho, 0.2, &[1e300; 3]).unwrap();
        assert!(distance(&huge.weights, &p) < 1e-15 && huge.sum_multiplier.is_finite());
        let tiny = penalised_worst_case(&losses, &p, rho, 0.2, &[f64::MIN_POSITIVE; 3]).unwrap();
        let free = worst_case(&losses, &p, rho, 0.2).unwrap();
        assert!(distance(&tiny.weights, &free.weights) < 1e-11);
        let mixed = penalised_worst_case(&losses, &p, rho, 0.2, &[0.0, 1e9, 1.0]).unwrap();
        assert!((mixed.weights[1] - p[1]).abs() < 1e-8);
    }
    for wrong in [&[f64::NAN; 3][..], &[-1.0; 3], &[1.0; 2]] {
        assert!(penalised_worst_case(&losses, &p, 0.1, 0.2, wrong).is_err());
    }
}

#[test]
fn golden_values() {
    let text = include_str!("../../../tests/golden/chi2.json");
    let cases: Vec<Case> = serde_json::from_str(text).unwrap();
    assert!(cases.len() > 30);
    for case in cases {
        let solver: Solver = if case.problem == "project" {
            project
        } else {
            worst_case
        };
        let found = solver(&case.values, &case.p, case.rho, case.floor).unwrap();
        let error = distance(&found.weights, &case.weights);
        assert!(
            error < 1e-14,
            "{} at {:?}: {error}",
            case.problem,
            case.values
        );
        assert!((found.divergence - case.divergence).abs() <= 1e-14 * case.divergence.max(1.0));
    }
}

fn distance(a: &[f64], b: &[f64]) -> f64 {
    a.iter()
        .zip(b)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f64::max)
}

/// Feasibility, signs, complementarity and stationarity; `gradient` is that of the objective at `q`.
fn assert_optimal(found: &Solution, gradient: &[f64], p: &[f64], rho: f64, floor: f64) {
    let total: f64 = found.weights.iter().sum();
    assert!((total - 1.0).abs() < 1e-12, "sum {total}");
    assert!(
        found.divergence <= rho + 1e-12 * rho.max(1.0),
        "divergence {}",
        found.divergence
    );
    assert!(found.ball_multiplier >= 0.0);
    if found.status == Status::Boundary {
        assert!((found.divergence - rho).abs() < 1e-12 * rho.max(1.0));
    } else {
        assert!(found.ball_multiplier == 0.0);
    }
    // Values are of order one, so that is the scale of their rounding.
    let size = gradient
        .iter()
        .fold(found.ball_multiplier.max(1.0), |size, g| size.max(g.abs()));
    for (i, &q) in found.weights.iter().enumerate() {
        let mu = found.floor_multipliers[i];
        assert!(q >= floor * p[i] - 1e-15 && mu >= 0.0);
        assert!(found.at_floor[i] || mu == 0.0);
        assert!(!found.at_floor[i] || (q - floor * p[i]).abs() < 1e-15);
        let ratio = (q - p[i]) / p[i];
        let slack = gradient[i] - found.sum_multiplier - found.ball_multiplier * ratio + mu;
        assert!(
            slack.abs() < 1e-9 * size * (1.0 + ratio.abs()),
            "stationarity of {i}: {slack}"
        );
    }
}

/// Losses with ties, a mixture, a radius over many orders of magnitude, a floor.
fn problems() -> impl Strategy<Value = (Vec<f64>, Vec<f64>, f64, f64)> {
    (1_usize..12).prop_flat_map(|n| {
        let values = prop::collection::vec(prop_oneof![-2.0..2.0, Just(2.0), Just(0.5)], n);
        let mixture = prop::collection::vec(0.01_f64..1.0, n).prop_map(|p| {
            let total: f64 = p.iter().sum();
            p.into_iter().map(|p| p / total).collect::<Vec<_>>()
        });
        let radius = (-6.0..2.0).prop_map(|log: f64| 10.0_f64.powf(log));
        (values, mixture, radius, prop_oneof![Just(0.0), 0.0..0.95])
    })
}

proptest! {
    #[test]
    fn worst_case_is_optimal((values, p, rho, floor) in problems()) {
        let found = worst_case(&values, &p, rho, floor).unwrap();
        assert_optimal(&found, &values, &p, rho, floor);
    }

    #[test]
    fn penalised_worst_case_is_optimal(
        (values, p, rho, floor) in problems(),
        log_penalties in prop::collection::vec(-5.0_f64..3.0, 12),
    ) {
        let taus: Vec<f64> = log_penalties.iter().take(p.len()).map(|log| 10.0_f64.powf(*log)).collect();
        let found = penalised_worst_case(&values, &p, rho, floor, &taus).unwrap();
        let terms = || values.iter().zip(&p).zip(&taus);
        let objective = |q: &[f64]| {
            let each = terms().zip(q);
            each.map(|(((v, p), tau), q)| q * v - tau * 0.5 * (q - p) * (q - p) / p).sum::<f64>()
        };
        let gradient: Vec<f64> = (terms().zip(&found.weights))
            .map(|(((v, p), tau), q)| v - tau * (q - p) / p)
            .collect();
        if found.status != Status::Center {
            assert_optimal(&found, &gradient, &p, rho, floor);
        }
        let free = worst_case(&values, &p, rho, floor).unwrap();
        for other in [&free.weights, &p] {
            // Each objective is a sum of terms of at most 2 and of tau D, tau at most 1000 and D at most rho
            prop_assert!(objective(&found.weights) >= objective(other) - 1e-12 * (4.0 + 1e3 * free.divergence));
        }
    }

    #[test]
    fn projection_is_optimal((y, p, rho, floor) in problems()) {
        let found = project(&y, &p, rho, floor).unwrap();
        let gradient: Vec<f64> = y.iter().zip(&found.weights).map(|(y, q)| y - q).collect();
        assert_optimal(&found, &gradient, &p, rho, floor);
    }

    #[test]
    fn projecting_twice_changes_nothing((y, p, rho, floor) in problems()) {
        let once = project(&y, &p, rho, floor).unwrap().weights;
        let twice = project(&once, &p, rho, floor).unwrap().weights;
        prop_assert!(distance(&once, &twice) < 1e-12);
    }

    #[test]
    fn any_finite_input_gives_a_mixture(
        wild in prop::collection::vec(
            prop_oneof![
                prop::num::f64::NORMAL | prop::num::f64::SUBNORMAL | prop::num::f64::ZERO,
                -1e99..1e99,
                -9.0..9.0,
                Just(3.0),
            ],
            5,
        ),
        tame in prop::collection::vec(prop_oneof![-4e5..4e5, -9.0..9.0, Just(3.0), Just(1e-300)], 5),
        exponents in prop::collection::vec(-300.0_f64..0.0, 4),
        log_radius in -320.0..300.0,
        floor in 0.0..1.0,
    ) {
        let mut p: Vec<f64> = exponents.iter().map(|e| 0.2 * 10.0_f64.powf(*e)).collect();
        p.push(1.0 - p.iter().sum::<f64>());
        for (solver, values) in [(worst_case as Solver, wild), (project, tame)] {
            let found = solver(&values, &p, 10.0_f64.powf(log_radius), floor).unwrap();
            prop_assert!(found.weights.iter().all(|q| q.is_finite() && *q >= 0.0), "{:?}", found);
            prop_assert!((found.weights.iter().sum::<f64>() - 1.0).abs() < 1e-9, "{:?}", found);
            let (rho, terms) = (10.0_f64.powf(log_radius), found.weights.iter().zip(&p));
            let divergence = 0.5 * terms.map(|(q, p)| (q - p) * (q / p - 1.0)).sum::<f64>();
            // The root of the divergence is known to the rounding of q
            prop_assert!(divergence.sqrt() <= rho.sqrt() * (1.0 + 1e-9) + 4.0 * f64::EPSILON, "{:?} {:?}", found, divergence);
        }
    }
}

#[test]
fn tied_maximisers_share_in_proportion_to_p() {
    let found = worst_case(&[1.0, 3.0, 3.0], &[0.5, 0.1, 0.4], 10.0, 0.0).unwrap();
    assert_eq!(found.status, Status::Face);
    assert!(distance(&found.weights, &[0.0, 0.2, 0.8]) < 1e-15);
    assert_eq!(found.at_floor, [true, false, false]);
}

#[test]
fn infinite_radius_is_the_simplex_above_the_floor() {
    let p = [0.5, 0.25, 0.25];
    let worst = worst_case(&[0.0, 1.0, 2.0], &p, f64::INFINITY, 0.2).unwrap();
    assert!(distance(&worst.weights, &[0.1, 0.05, 0.85]) < 1e-15);
    let nearest = project(&[0.7, 0.3, -5.0], &p, f64::INFINITY, 0.0).unwrap();
    assert!(distance(&nearest.weights, &[0.7, 0.3, 0.0]) < 1e-15);
    assert_eq!(nearest.status, Status::Face);
}

#[test]
fn a_radius_of_zero_leaves_p() {
    let p = [0.5, 0.3, 0.2];
    for solver in [worst_case as Solver, project] {
        let found = solver(&[3.0, 2.0, 1.0], &p, 0.0, 0.1).unwrap();
        assert_eq!(
            (found.weights.as_slice(), found.status),
            (p.as_slice(), Status::Center)
        );
        assert!(found.ball_multiplier.is_infinite());
    }
}

#[test]
fn many_entries_meet_the_constraints() {
    let n = 100_000;
    let values: Vec<f64> = (0..n)
        .map(|i| f64::from(i * 7919 % n) / f64::from(n))
        .collect();
    let p = vec![1.0 / f64::from(n); n as usize];
    for (solver, scale) in [(worst_case as Solver, 1.0), (project, 1.0 / f64::from(n))] {
        let y: Vec<f64> = values.iter().map(|v| v * scale * 5.0).collect();
        let found = solver(&y, &p, 0.1, 0.2).unwrap();
        assert_eq!(found.status, Status::Boundary);
        assert!((found.divergence - 0.1).abs() < 1e-13);
        assert!((found.weights.iter().sum::<f64>() - 1.0).abs() < 1e-12);
    }
}

/// Beyond some thousand entries a sample brackets the threshold: nothing about the answer may show it.
#[test]
fn copies_of_a_small_problem_have_its_answer() {
    let losses = [0.3, -0.2, 0.9, 0.1, 0.5, 0.85, -1.5];
    let p = [0.3, 0.1, 0.05, 0.2, 0.15, 0.05, 0.15];
    for copies in [10_usize, 1_000, 3_001] {
        let many_losses = losses.repeat(copies);
        let many_p: Vec<f64> = p.repeat(copies).iter().map(|p| p / copies as f64).collect();
        for rho in [1e-9, 1e-3, 0.1, 1.0, 5.0, 50.0] {
            let few = worst_case(&losses, &p, rho, 0.1).unwrap();
            let many = worst_case(&many_losses, &many_p, rho, 0.1).unwrap();
            assert_eq!(many.status, few.status);
            assert!((many.divergence - few.divergence).abs() <= 1e-13 * rho.max(1.0));
            for (i, &q) in many.weights.iter().enumerate() {
                let (q, expected) = (q * copies as f64, few.weights[i % 7]);
                assert!(
                    (q - expected).abs() < 1e-13,
                    "{copies} copies, {rho}: {q} {expected}"
                );
                assert_eq!(many.at_floor[i], few.at_floor[i % 7]);
            }
        }
    }
}

#[test]
fn rows_are_solved_one_by_one_and_named() {
    let values = [0.1, 0.5, 0.5, 0.1];
    let (mut weights, mut multipliers, mut at_floor) = ([0.0; 4], [0.0; 4], [false; 4]);
    let mut buffers = Buffers {
        weights: &mut weights,
        floor_multipliers: &mut multipliers,
        at_floor: &mut at_floor,
    };
    let mut batch = Batch {
        values: &values,
        p: &[0.5, 0.5],
        rho: PerRow::Each(&[0.02, 0.0]),
        floor: PerRow::All(0.0),
        columns: 2,
    };
    let rows = worst_case_batch_into(&batch, &mut buffers).unwrap();
    let statuses: Vec<Status> = rows.iter().map(|row| row.status).collect();
    assert_eq!(statuses, [Status::Boundary, Status::Center]);
    assert!(distance(buffers.weights, &[0.4, 0.6, 0.5, 0.5]) < 1e-15);
    batch.rho = PerRow::Each(&[0.02, f64::NAN]);
    let refused = worst_case_batch_into(&batch, &mut buffers).unwrap_err();
    assert!(refused.to_string().contains("row 1: rho is NaN"));
}

#[test]
fn unusable_input_is_refused_by_name() {
    let message = |values: &[f64], p: &[f64], rho, floor| {
        worst_case(values, p, rho, floor).unwrap_err().to_string()
    };
    assert!(message(&[1.0, f64::NAN], &[0.5, 0.5], 0.1, 0.0).contains("losses[1] is NaN"));
    assert!(message(&[1.0], &[0.5, 0.5], 0.1, 0.0).contains("p has length 2; expected 1"));
    assert!(message(&[], &[], 0.1, 0.0).contains("at least 1"));
    assert!(message(&[1.0, 2.0], &[1.0, 0.0], 0.1, 0.0).contains("p[1] is 0"));
    assert!(message(&[1.0, 2.0], &[0.5, 0.4], 0.1, 0.0).contains("p sums to 0.9"));
    assert!(message(&[1.0, 2.0], &[0.5, 0.5], -0.1, 0.0).contains("rho is -0.1"));
    assert!(message(&[1.0, 2.0], &[0.5, 0.5], f64::NAN, 0.0).contains("rho is NaN"));
    assert!(message(&[1.0, 2.0], &[0.5, 0.5], 0.1, 1.0).contains("floor is 1"));
}

/// Squares of the losses inside vanish on the scale of the loss that is dropped.
#[test]
fn losses_of_very_different_size_stay_in_the_ball() {
    let p = [0.89, 0.01, 0.1];
    for far in [1e10, 1e100, 1e155, 1e160, 1e200, 1e300, f64::MAX] {
        for near in [1.0, 1e-100, 1e-300] {
            let found = worst_case(&[0.0, near, -far], &p, 0.1, 0.0).unwrap();
            assert_eq!(found.status, Status::Boundary);
            assert!((found.divergence - 0.1).abs() < 1e-14, "{far} {near}");
            // Only the order of the losses matters here: two are inside, the third is not
            let simple = worst_case(&[0.0, 1.0, -9.0], &p, 0.1, 0.0).unwrap();
            assert!(distance(&found.weights, &simple.weights) < 1e-14);
            assert_eq!(found.at_floor, [false, false, true]);
            assert!((found.floor_multipliers[2] / far - 1.0).abs() < 1e-9);
        }
    }
}

#[test]
fn three_scales_of_losses_are_solved() {
    let p = [0.5, 0.2, 0.1, 0.1, 0.1];
    let losses = [0.0, 1e-200, -1e100, 1e-190, -1e290];
    let found = worst_case(&losses, &p, 0.3, 0.1).unwrap();
    assert!((found.divergence - 0.3).abs() < 1e-14);
    let simple = worst_case(&[0.0, 1e-10, -9.0, 1.0, -9.0], &p, 0.3, 0.1).unwrap();
    assert!(distance(&found.weights, &simple.weights) < 1e-9);
}

#[test]
fn subnormal_reference_weights_are_refused() {
    let p = [5e-324, 0.999_999_994_130_101_7, 1.954_978_855_262_949e-12];
    for solver in [worst_case as Solver, project] {
        let refused = solver(&[5.1e-4, -7.5e-4, -1.5e-3], &p, 4.7e149, 0.999_999).unwrap_err();
        let expected = "p[0] is 5e-324";
        assert!(refused.to_string().starts_with(expected), "{refused}");
    }
}

#[test]
fn a_point_beyond_the_range_is_refused_at_every_radius() {
    for rho in [0.0, 0.1] {
        let refused = project(&[-1e308, 1.7e308], &[0.5, 0.5], rho, 0.0).unwrap_err();
        assert!(matches!(refused, Error::Spread { .. }));
    }
}

#[test]
fn a_tiny_radius_about_tiny_weights_is_kept() {
    let p = [1e-82, 1e-41, 0.3, 0.7 - 1e-41];
    for y in [
        [0.1, 0.2, 0.3, 0.4],
        [0.9, -0.2, 0.3, 0.0],
        [1e-82, 0.0, 0.3, 0.7],
    ] {
        for rho in [3.6e-174, 1e-100, 1e-20, 1e-3] {
            let found = project(&y, &p, rho, 0.0).unwrap();
            let divergence = |q: &[f64]| {
                let each = q.iter().zip(&p).map(|(q, p)| p * (q / p - 1.0).powi(2));
                0.5 * each.sum::<f64>()
            };
            // The root of the divergence is known to the rounding of q
            assert!(divergence(&found.weights).sqrt() <= rho.sqrt() * (1.0 + 1e-6) + 1e-15);
        }
    }
}

/// The ball allows the light entry a weight of 4e-91, far from the 0.2 of the nearest mixture.
#[test]
fn a_point_far_above_a_light_entry_is_projected() {
    let light = 0.2 * 10.0_f64.powf(-278.449_410_966_272_9);
    let p = [0.2, 0.2, light, 0.2, 0.4];
    let rho = 1.436_996_143_043_172_3e97;
    let found = project(&[0.0; 5], &p, rho, 0.0).unwrap();
    assert_eq!(found.status, Status::Boundary);
    assert!((found.divergence / rho - 1.0).abs() < 1e-12);
    assert!(distance(&found.weights, &[0.25, 0.25, 0.0, 0.25, 0.25]) < 1e-12);
}

/// The ball allows the light entry with the huge loss a weight of 4e-91, and the others none.
#[test]
fn a_light_entry_with_a_huge_loss_takes_the_radius() {
    let light = 0.2 * 10.0_f64.powf(-278.449_410_966_272_9);
    let p = [0.2, 0.2, light, 0.2, 0.4];
    let losses = [
        0.0,
        0.0,
        3.806_349_336_157_453e271,
        0.0,
        9.885_930_726_131_68e98,
    ];
    let rho = 1.436_996_143_043_172_3e97;
    let found = worst_case(&losses, &p, rho, 0.0).unwrap();
    assert!((found.divergence / rho - 1.0).abs() < 1e-12);
    assert!(distance(&found.weights, &[0.0, 0.0, 0.0, 0.0, 1.0]) < 1e-12);
}

/// The estimate of the divergence to first order is above the radius here, and the point is not.
#[test]
fn a_projection_inside_the_ball_is_no_boundary() {
    let y = [
        0.5,
        -0.408_523_938_746_420_7,
        0.554_246_964_495_492_4,
        -0.659_073_157_876_441,
        1.485_051_724_430_230_4,
        2.0,
        1.508_220_822_718_017_4,
        -1.071_661_955_210_038,
    ];
    let p = [
        0.136_469_073_516_083_17,
        0.126_229_518_577_505_53,
        0.209_042_110_795_940_07,
        0.166_972_907_505_267_9,
        0.091_081_849_856_746_74,
        0.069_442_353_622_282_68,
        0.180_337_120_189_174,
        0.020_425_065_936_999_85,
    ];
    let found = project(&y, &p, 1.0, 0.839_054_668_635_691_8).unwrap();
    assert_eq!((found.status, found.ball_multiplier), (Status::Face, 0.0));
    assert!(found.divergence < 0.2);
}

/// The multiplier is 1e-263, where the derivative of the divergence leaves the range of float64.
#[test]
fn a_multiplier_near_the_end_of_the_range_is_found() {
    let exponents = [-114.6, -267.3, -238.0, -111.5];
    let mut p = exponents.map(|e: f64| 0.2 * 10.0_f64.powf(e)).to_vec();
    p.push(1.0 - p.iter().sum::<f64>());
    let found = project(&[0.0, 3.0, 0.0, 3.0, 3.0], &p, 1e256, 0.0).unwrap();
    assert_eq!(found.status, Status::Boundary);
    assert!((found.divergence / 1e256 - 1.0).abs() < 1e-9);
}

/// Penalties below 1e-12 of the range of the losses are raised to it; the certificate is that of the raised ones.
#[test]
fn penalties_far_below_the_losses_are_certified() {
    let losses = [0.2, -1e6, 0.5, -1e6];
    let found = penalised_worst_case(&losses, &[0.25; 4], 5e19, 0.79, &[1e-12; 4]).unwrap();
    let free = worst_case(&losses, &[0.25; 4], 5e19, 0.79).unwrap();
    // The raised penalty of 1e-6 pulls by 1e-6 of a difference of 0.3
    assert!(distance(&found.weights, &free.weights) < 1e-5);
}
