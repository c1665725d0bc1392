//! The law against golden values, its own profile, and what should not matter.

#![allow(missing_docs)]

use drpruning_core::scaling::{LARGEST_EXPONENT, fit, profile};
use proptest::prelude::*;

const DELTA: f64 = 1e-3;

#[derive(serde::Deserialize)]
struct Case {
    x: Vec<f64>,
    t: Vec<f64>,
    y: Vec<f64>,
    learn_alpha: bool,
    law: [f64; 5],
}

#[test]
fn golden_values() {
    let text = include_str!("../../../tests/golden/scaling.json");
    let cases: Vec<Case> = serde_json::from_str(text).unwrap();
    assert!(cases.len() >= 6);
    for case in cases {
        let found = fit(&case.x, &case.t, &case.y, DELTA, case.learn_alpha).unwrap();
        let law = [found.level, found.share, found.alpha, found.beta];
        for (found, expected) in law.iter().zip(&case.law) {
            assert!((found - expected).abs() < 1e-6, "{law:?}");
        }
        assert!((found.objective - case.law[4]).abs() <= 1e-11 * case.law[4]);
    }
}

#[test]
fn unusable_points_are_refused() {
    let (two, three) = ([0.0, 1.0], [0.0, 1.0, 2.0]);
    assert!(fit(&[], &[], &[], DELTA, false).is_err());
    assert!(fit(&two, &three, &three, DELTA, false).is_err());
    assert!(fit(&two, &two, &[0.0, f64::NAN], DELTA, false).is_err());
    assert!(fit(&two, &two, &two, 0.0, false).is_err());
    assert!(profile(&two, &two, &two, DELTA, 0.0, LARGEST_EXPONENT + 1.0).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn no_exponent_does_better(
        y in prop::collection::vec(-1.0f64..1.0, 5..24),
        falling in 0.0f64..2.0,
        noise in prop::sample::select(vec![1e-4, 1e-2, 1.0]),
    ) {
        let t: Vec<f64> = (1..=y.len()).map(|k| (k as f64).ln()).collect();
        let x = vec![0.0; t.len()];
        let y: Vec<f64> = y.iter().zip(&t).map(|(y, t)| y * noise + (1.0 + (-falling * t).exp()).ln()).collect();
        let found = fit(&x, &t, &y, DELTA, false).unwrap();
        prop_assert!((0.0..=1.0).contains(&found.share) && (0.0..=LARGEST_EXPONENT).contains(&found.beta));
        for k in 0..=300 {
            let beta = LARGEST_EXPONENT * (f64::from(k) / 300.0).powi(2);
            let there = profile(&x, &t, &y, DELTA, 0.0, beta).unwrap().objective;
            prop_assert!(found.objective <= there * (1.0 + 1e-9) + 1e-16, "{} > {there} at {beta}", found.objective);
        }
    }

    #[test]
    fn units_do_not_matter(level in -14.0f64..14.0, count in -30.0f64..30.0) {
        let t: Vec<f64> = (1..=16).map(|k| f64::from(k).ln()).collect();
        let y: Vec<f64> = t.iter().map(|t| (2.0 + (-0.4 * t).exp()).ln() + 2e-3 * (9.0 * t).sin()).collect();
        let x = vec![0.0; 16];
        let here = fit(&x, &t, &y, DELTA, false).unwrap();
        let moved: Vec<f64> = t.iter().map(|t| t + count).collect();
        let scaled: Vec<f64> = y.iter().map(|y| y + level).collect();
        let there = fit(&x, &moved, &scaled, DELTA, false).unwrap();
        prop_assert!((there.level - level - here.level).abs() < 1e-9);
        prop_assert!((there.beta - here.beta).abs() < 1e-7 && (there.share - here.share).abs() < 1e-7);
    }
}
