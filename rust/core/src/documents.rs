//! Where documents begin and end within rows, for attention that does not cross them.

use crate::tokens::Token;

/// Documents in rows of tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Documents {
    /// Where each document ends in the rows laid one after the other, with a 0 before the first: what flash-attention
    /// calls `cu_seqlens`. A document ends with its end token, and at the end of a row.
    pub ends: Vec<i32>,
    /// Tokens of the longest document.
    pub longest: usize,
}

/// Finds the documents in `tokens`, rows of `seq_len` tokens, each of which ends with `end_token`, and writes into
/// `positions` the place of each token within its document.
///
/// # Examples
///
/// ```
/// use drpruning_core::documents::find;
/// let mut positions = [0; 8];
/// let documents = find(&[5, 6, 0, 7, 8, 9, 5, 0], 4, 0, &mut positions);
/// assert_eq!(documents.ends, [0, 3, 4, 8]);
/// assert_eq!(positions, [0, 1, 2, 0, 0, 1, 2, 3]);
/// ```
///
/// # Panics
///
/// If `tokens` are not whole rows, are 2^31 or more, or `positions` has not a place for each.
pub fn find<T: Token>(
    tokens: &[T],
    seq_len: usize,
    end_token: T,
    positions: &mut [i64],
) -> Documents {
    assert!(i32::try_from(tokens.len()).is_ok(), "ends fit 32 bits");
    assert!(tokens.len() == positions.len() && tokens.len() % seq_len == 0);
    let mut documents = Documents {
        ends: vec![0],
        longest: 0,
    };
    let (mut start, mut place) = (0, 0);
    for row in tokens.chunks_exact(seq_len) {
        let row_end = place + seq_len;
        let mut close = |end: usize| {
            for (position, value) in positions[start..end].iter_mut().zip(0..) {
                *position = value;
            }
            documents.ends.push(end as i32);
            documents.longest = documents.longest.max(end - start);
            start = end;
        };
        for block in row.chunks(BLOCK) {
            // Most blocks hold no end: counting them takes no branches.
            if block.iter().filter(|&&id| id == end_token).count() > 0 {
                for (offset, _) in block.iter().enumerate().filter(|(_, id)| **id == end_token) {
                    close(place + offset + 1);
                }
            }
            place += block.len();
        }
        if row.last() != Some(&end_token) {
            close(row_end);
        }
    }
    documents
}

/// Tokens looked at together.
const BLOCK: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn each_token_counts_from_its_documents_start(
            seq_len in 1usize..200,
            rows in 0usize..5,
            common in 2i32..100,
            words in prop::collection::vec(any::<u32>(), 1000),
        ) {
            let tokens: Vec<i32> = words[..seq_len * rows].iter().map(|word| (word % common as u32) as i32).collect();
            let mut positions = vec![-1; tokens.len()];
            let documents = find(&tokens, seq_len, 0, &mut positions);
            let mut ends = vec![0];
            for (place, (&id, &position)) in tokens.iter().zip(&positions).enumerate() {
                let first = place % seq_len == 0 || tokens[place - 1] == 0;
                prop_assert_eq!(position, if first { 0 } else { positions[place - 1] + 1 });
                if id == 0 || (place + 1) % seq_len == 0 {
                    ends.push(place as i32 + 1);
                }
            }
            prop_assert_eq!(documents.ends, ends);
            let longest = positions.iter().max().map_or(0, |last| *last as usize + 1);
            prop_assert_eq!(documents.longest, longest);
        }
    }
}
