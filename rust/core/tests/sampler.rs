//! Properties of the stream that users rely on: epochs, exact resume, weights that take effect at once.

use drpruning_core::draw::Balanced;
use drpruning_core::{
    ArgumentError, Draw, Error, Pick, Sampler, SamplerState, WeightError, Weights,
};
use proptest::prelude::*;

fn sampler(rows: &[u64], weights: &[f64], batch_size: usize, draw: Draw) -> Sampler {
    let names = names(rows.len());
    let weights = Weights::new(&names, weights).unwrap();
    Sampler::new(names, rows, &weights, batch_size, 17, draw).unwrap()
}

fn names(count: usize) -> Vec<String> {
    (0..count).map(|i| format!("domain-{i}")).collect()
}

fn next(sampler: &mut Sampler) -> Vec<Pick> {
    let mut batch = Vec::new();
    sampler.next_batch(&mut batch);
    batch
}

fn draw() -> impl Strategy<Value = Draw> {
    prop_oneof![Just(Draw::Balanced), Just(Draw::Random)]
}

proptest! {
    /// A state saved after any batch, loaded into a new sampler, gives the batches that would have come.
    #[test]
    fn a_state_resumes_exactly(
        rows in prop::collection::vec(1u64..40, 2..6),
        batch_size in 1usize..20,
        before in 0usize..30,
        draw in draw(),
    ) {
        let even = vec![1.0; rows.len()];
        let skewed: Vec<f64> = (0..rows.len()).map(|i| i as f64).collect();
        let mut original = sampler(&rows, &even, batch_size, draw);
        for step in 0..before {
            if step == before / 2 {
                original.set_weights(Weights::new(&names(rows.len()), &skewed).unwrap()).unwrap();
            }
            next(&mut original);
        }
        let mut resumed = sampler(&rows, &even, batch_size, draw);
        resumed.restore(original.state()).unwrap();
        for _ in 0..10 {
            prop_assert_eq!(next(&mut original), next(&mut resumed));
        }
        prop_assert_eq!(original.state(), resumed.state());
    }

    /// Passing over batches, or looking at one ahead, gives what drawing them one by one gives.
    #[test]
    fn skipping_is_drawing(
        rows in prop::collection::vec(1u64..40, 1..6),
        batch_size in 1usize..20,
        changed in 0u64..5,
        before in 0u64..5,
        steps in 0u64..3_000,
        draw in draw(),
    ) {
        let skewed: Vec<f64> = (1..=rows.len()).map(|i| i as f64).collect();
        let mut one_by_one = sampler(&rows, &vec![1.0; rows.len()], batch_size, draw);
        one_by_one.skip(changed).unwrap();
        if changed > 2 {
            one_by_one.set_weights(Weights::new(&names(rows.len()), &skewed).unwrap()).unwrap();
        }
        (0..before).for_each(|_| { next(&mut one_by_one); });
        let mut skipping = one_by_one.clone();
        skipping.skip(steps).unwrap();
        let mut peeked = Vec::new();
        one_by_one.peek(changed + before + steps, &mut peeked).unwrap();
        (0..steps).for_each(|_| { next(&mut one_by_one); });
        prop_assert_eq!(one_by_one.state(), skipping.state());
        prop_assert_eq!(next(&mut skipping), peeked.clone());
        // From the far side too, back to the last change of weights.
        let mut back = Vec::new();
        skipping.peek(changed + before + steps, &mut back).unwrap();
        prop_assert_eq!(back, peeked);
        if changed > 2 {
            prop_assert!(skipping.peek(changed - 1, &mut Vec::new()).is_err());
        }
    }

    /// Within an epoch of a domain each of its rows comes once.
    #[test]
    fn an_epoch_has_each_row_once(rows in 1u64..200, batch_size in 1usize..17, draw in draw()) {
        let mut sampler = sampler(&[rows, 5], &[0.6, 0.4], batch_size, draw);
        let mut seen = Vec::new();
        while (seen.len() as u64) < 3 * rows {
            // The rows of a batch are shuffled, so an epoch may end in the middle of one: sizes are checked, not places.
            let drawn = sampler.drawn()[0];
            let mine: Vec<u64> = next(&mut sampler).iter().filter(|pick| pick.domain == 0).map(|pick| pick.row).collect();
            prop_assert_eq!(drawn + mine.len() as u64, sampler.drawn()[0]);
            seen.extend(mine);
        }
        let mut counts = vec![0u64; rows as usize];
        for row in &seen {
            counts[*row as usize] += 1;
        }
        let epochs = seen.len() as u64 / rows;
        prop_assert!(counts.iter().all(|&count| count == epochs || count == epochs + 1), "{counts:?}");
    }

    /// Every slice of a batch shows the mixture: a domain with half the weight is in each half of a large batch.
    #[test]
    fn slices_show_the_mixture(seed_row in 0u64..50) {
        let mut sampler = sampler(&[1000, 1000 + seed_row], &[0.5, 0.5], 256, Draw::Balanced);
        let batch = next(&mut sampler);
        for part in batch.chunks(64) {
            let first = part.iter().filter(|pick| pick.domain == 0).count();
            prop_assert!((8..=56).contains(&first), "{first} of 64");
        }
    }
}

#[test]
fn a_weight_of_zero_is_never_drawn() {
    for draw in [Draw::Balanced, Draw::Random] {
        let mut sampler = sampler(&[9, 9, 9], &[1.0, 1.0, 1.0], 10, draw);
        next(&mut sampler);
        sampler
            .set_weights(Weights::new(&names(3), &[1.0, 0.0, 1e-9]).unwrap())
            .unwrap();
        for _ in 0..1_000 {
            assert!(next(&mut sampler).iter().all(|pick| pick.domain != 1));
        }
    }
}

#[test]
fn a_domain_without_rows_cannot_have_a_weight() {
    let weights = |values: &[f64]| Weights::new(&names(2), values).unwrap();
    let error = Sampler::new(
        names(2),
        &[5, 0],
        &weights(&[0.5, 0.5]),
        4,
        0,
        Draw::Balanced,
    )
    .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("\"domain-1\" has a weight of 0.5 but not one row"),
        "{error}"
    );
    let mut sampler = Sampler::new(
        names(2),
        &[5, 0],
        &weights(&[1.0, 0.0]),
        4,
        0,
        Draw::Balanced,
    )
    .unwrap();
    assert!(sampler.set_weights(weights(&[0.5, 0.5])).is_err());
    assert!(next(&mut sampler).iter().all(|pick| pick.domain == 0));
}

#[test]
fn a_damaged_state_is_refused_and_changes_nothing() {
    let mut sampler = sampler(&[9, 9, 9], &[1.0, 2.0, 3.0], 10, Draw::Balanced);
    next(&mut sampler);
    let good = sampler.state();
    let damages: [fn(&mut SamplerState); 8] = [
        |state| state.step += 1,
        |state| state.drawn[0] += 1,
        |state| state.drawn = vec![u64::MAX; 3],
        |state| state.weights[1] -= 1,
        |state| state.credit[2] += 1,
        |state| state.credit = vec![i64::MAX, -i64::MAX, 0],
        |state| state.credit.truncate(2),
        |state| state.weights = vec![0, 1 << 41, 1 << 41],
    ];
    for damage in damages {
        let mut bad = good.clone();
        damage(&mut bad);
        assert!(sampler.restore(bad).is_err());
        assert_eq!(sampler.state(), good);
    }
    sampler.restore(good).unwrap();
}

/// Ten to the twelve samples in, resuming and drawing cost what they cost at the start.
#[test]
fn far_positions_are_reached_by_jump() {
    let mut far = sampler(&[3 << 40, 1 << 33], &[0.5, 0.5], 10, Draw::Balanced);
    let mut state = far.state();
    state.step = 100_000_000_000;
    state.drawn = vec![500_000_000_000, 500_000_000_000];
    far.restore(state).unwrap();
    let batch = next(&mut far);
    assert!(batch.iter().any(|pick| pick.row > u64::from(u32::MAX)));
    assert_eq!(far.drawn(), [500_000_000_005, 500_000_000_005]);
}

/// The bound over 10^6 prefixes of each of 1,000 mixtures, of 2 to 40 domains, from even to as skewed as 1 in 10^4.
/// Minutes of work: `cargo test --release -p drpruning-core --test sampler -- --ignored`.
#[test]
#[ignore = "takes minutes"]
fn no_prefix_is_off_by_a_sample() {
    let mut worst = 0.0f64;
    for case in 0..1_000u64 {
        let domains = 2 + case % 39;
        let skew = (case / 39) as f64 / 25.0 * 10_000f64.ln();
        let values: Vec<f64> = (0..domains)
            .map(|i| {
                let place = (case * 64 + i).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 11;
                (-skew * place as f64 / (1u64 << 53) as f64).exp()
            })
            .collect();
        let mut mixture = Balanced::new(Weights::new(&names(values.len()), &values).unwrap());
        let bound = Weights::TOTAL * (2 * domains - 3) / (2 * domains - 2);
        for prefix in 0..1_000_000 {
            mixture.draw();
            for credit in mixture.credits() {
                assert!(credit.unsigned_abs() <= bound, "{values:?} after {prefix}");
                worst = worst.max(credit.unsigned_abs() as f64 / bound as f64);
            }
        }
    }
    println!("largest error: {worst} of the bound");
}

#[test]
fn unusable_arguments_are_errors_with_values() {
    let names = vec!["web".to_string(), "code".to_string()];
    let weights = Weights::new(&names, &[0.5, 0.5]).unwrap();
    let sampler = |rows: &[u64], batch_size| {
        Sampler::new(names.clone(), rows, &weights, batch_size, 0, Draw::Balanced)
    };
    let refused = sampler(&[10], 4).unwrap_err();
    let expected = ArgumentError::Domains {
        names: 2,
        rows: 1,
        weights: 2,
    };
    assert!(matches!(refused, Error::Argument(found) if found == expected));
    let refused = sampler(&[10, 10], 0).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "batch_size is 0; it must be at least 1"
    );
    let refused = sampler(&[10, 0], 4).unwrap_err();
    let expected = WeightError::NoRows {
        name: "code".into(),
        weight: 0.5,
    };
    assert!(matches!(refused, Error::Weight(found) if found == expected));
    let one = Weights::new(&names[..1], &[1.0]).unwrap();
    let refused = sampler(&[10, 10], 4).unwrap().set_weights(one).unwrap_err();
    let expected = WeightError::Count {
        weights: 1,
        domains: 2,
    };
    assert!(matches!(refused, Error::Weight(found) if found == expected));
}
