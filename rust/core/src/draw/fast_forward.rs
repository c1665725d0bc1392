//! Fast-forward: many balanced draws at once, in a time that does not grow with their number.
//!
//! A schedule that misses no deadline is never more than one draw away from w * draws, so at any time only few states
//! are possible: a domain whose credit, modulo one sample, is between the limits either has had its next draw or still
//! waits for it; the state of every other domain is certain. Order the possible states by the deadlines of their waiting
//! draws: one is earliest and one is latest. Drawing by deadline (EDF) keeps every other state between these two, since
//! both receive the same new waiting draws and both lose their earliest. The algorithm runs both. Once they coincide,
//! every schedule is in the same state, whatever its start. This is monotone coupling from the past (Propp and Wilson,
//! *Exact sampling with coupled Markov chains*, Random Structures and Algorithms 9, 1996), here for a deterministic
//! process.
//!
//! So the state after 10^12 draws is found by starting a few draws before it. The lead is doubled until the two states
//! coincide, which mostly takes some 1 / w draws for the smallest weight w, because a draw that waits at the start has
//! its deadline after about that many draws.
//!
//! The current schedule must not be one that misses a deadline. That holds if its state is the common state of all such
//! schedules. After a change of weights it may not hold yet; the draws are then made one by one until it does.

use super::balanced::Balanced;
use crate::weights::TOTAL;

/// First lead: draws between the start of the two schedules and the requested position.
const FIRST_LEAD: u64 = 64;

/// Largest lead, as a divisor of the number of draws: beyond it, single draws are as fast.
const LEAD_PART: u64 = 8;

/// Advances `mixture` by `draws` draws, with the result of that many single draws.
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

/// Returns the common state, `ahead` draws from now, of all schedules that miss no deadline; `None` if they do not
/// coincide within a lead of `longest` draws.
fn meeting(mixture: &Balanced, ahead: u64, longest: u64) -> Option<Balanced> {
    let mut lead = FIRST_LEAD;
    while lead <= longest {
        let [mut earliest, mut latest] = extremes(mixture, i128::from(ahead) - i128::from(lead));
        for _ in 0..lead {
            earliest.draw_by_deadline();
            latest.draw_by_deadline();
        }
        if earliest.credits() == latest.credits() {
            return Some(earliest);
        }
        lead *= 2;
    }
    None
}

/// Returns the possible states, `ahead` draws from now, whose waiting draws have the earliest and the latest deadlines.
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
    // Credits sum to 0, so this many domains have had the draw that their credit, modulo one sample, leaves open.
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
        /// Fast-forward gives the state of single draws, whatever the earlier weights.
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

    /// One long fast-forward equals many short ones: 10^15 draws, 64 domains.
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
