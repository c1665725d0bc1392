//! Many balanced draws at once, in a time that does not grow with their number.
//!
//! A schedule in which no due time is missed is never more than a draw away from w * draws, so at any moment only
//! few states are possible: a domain whose credit, modulo one sample, lies between the limits has had its next draw or
//! still waits for it, and all others are certain. Ordered by the due times of the draws that wait, one possible state
//! is the earliest and one the latest of all; drawing by due time keeps every other between the two, since both get
//! the same draws to wait and both lose their earliest. Let both run. Once they meet, every schedule is in the same
//! state, whatever it was in before. This is monotone coupling from the past (Propp and Wilson, *Exact sampling with
//! coupled Markov chains*, Random Structures and Algorithms 9, 1996), here without chance.
//!
//! So the state after 10^12 draws is found by starting a little before them. How much before is tried: twice as far
//! until the two meet, which mostly takes some 1 / w draws for the smallest weight w, since a draw that waits at the
//! start is due after about that many.
//!
//! The schedule now must be one without missed due times. It is if it is in the state where all such schedules are.
//! After a change of weights it may not be yet; it is then run until it is.

use super::balanced::Balanced;
use crate::weights::TOTAL;

/// Draws to start before the moment asked for, at first.
const FIRST_LEAD: u64 = 64;

/// Leads are at most this part of the draws to make: otherwise making them is as quick.
const LEAD_PART: u64 = 8;

/// Makes `draws` draws; `mixture` is then as if each had been made.
pub(crate) fn fast_forward(mixture: &mut Balanced, mut draws: u64) {
    let mut run = FIRST_LEAD;
    while let Some(usual) = meeting(mixture, 0, draws / LEAD_PART) {
        if usual.credits() == mixture.credits() {
            if let Some(there) = meeting(mixture, draws, draws / LEAD_PART) {
                *mixture = there;
                return;
            }
            break;
        }
        let now = run.min(draws);
        (0..now).for_each(|_| _ = mixture.draw());
        draws -= now;
        run *= 2;
    }
    (0..draws).for_each(|_| _ = mixture.draw());
}

/// The one state in which all schedules without a missed due time are `ahead` draws from now, if starting at most
/// `longest` draws before shows that there is one.
fn meeting(mixture: &Balanced, ahead: u64, longest: u64) -> Option<Balanced> {
    let mut lead = FIRST_LEAD;
    while lead <= longest {
        let [mut earliest, mut latest] = extremes(mixture, i128::from(ahead) - i128::from(lead));
        for _ in 0..lead {
            earliest.draw_by_due_time();
            latest.draw_by_due_time();
        }
        if earliest.credits() == latest.credits() {
            return Some(earliest);
        }
        lead *= 2;
    }
    None
}

/// Of the states possible `ahead` draws from now those in which the draws that wait are due earliest and latest.
fn extremes(mixture: &Balanced, ahead: i128) -> [Balanced; 2] {
    let limits = mixture.limits();
    let units = mixture.weights().units();
    let total = TOTAL as i64;
    let mut credits: Vec<i64> = mixture
        .credits()
        .iter()
        .zip(units)
        .map(|(&credit, &unit)| {
            let earned = i128::from(credit) + ahead * i128::from(unit);
            earned.rem_euclid(i128::from(TOTAL)) as i64
        })
        .collect();
    // The sum of credits is 0, so this many domains have had the draw that their credit, modulo a sample, leaves open.
    let mut had = credits.iter().sum::<i64>() / total;
    let mut open = Vec::new();
    for (domain, credit) in credits.iter_mut().enumerate() {
        if *credit > limits.due {
            *credit -= total;
            had -= 1;
        } else if *credit >= limits.release {
            open.push(((limits.due - *credit) / units[domain] as i64, domain));
        }
    }
    open.sort_unstable();
    let had = usize::try_from(had).unwrap_or(0).min(open.len());
    let waiting = open.len() - had;
    [&open[waiting..], &open[..had]].map(|drawn| {
        let mut credits = credits.clone();
        for &(_, domain) in drawn {
            credits[domain] -= total;
        }
        Balanced::with_credits(mixture.weights().clone(), &credits)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::draw::balanced::tests::{mixture, weights};
    use proptest::prelude::*;

    proptest! {
        /// Draws made at once leave what draws made one by one leave, whatever weights came before.
        #[test]
        fn a_leap_is_as_many_steps(
            (first, second) in (1usize..12).prop_flat_map(|n| (mixture(n), mixture(n))),
            before in 0u64..3_000,
            draws in 0u64..30_000,
        ) {
            let mut one_by_one = Balanced::new(weights(&first));
            (0..before).for_each(|_| _ = one_by_one.draw());
            if before % 3 > 0 {
                one_by_one.set_weights(weights(&second));
            }
            let mut at_once = one_by_one.clone();
            (0..draws).for_each(|_| _ = one_by_one.draw());
            fast_forward(&mut at_once, draws);
            prop_assert_eq!(one_by_one.credits(), at_once.credits());
        }
    }

    /// A long leap is many short ones: 10^15 draws, of 64 domains.
    #[test]
    fn leaps_add_up() {
        let values: Vec<f64> = (1..=64).map(|i| 1.0 / f64::from(i)).collect();
        let mut once = Balanced::new(weights(&values));
        let mut often = once.clone();
        fast_forward(&mut once, 1_000_000_000_000_000);
        (0..100).for_each(|_| fast_forward(&mut often, 10_000_000_000_000));
        assert_eq!(once.credits(), often.credits());
        assert!(once.credits().iter().any(|&credit| credit != 0));
    }
}
