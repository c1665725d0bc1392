//! Document boundaries within rows, for attention that does not cross documents.

use crate::tokens::Token;

/// Tokens compared at once.
const BLOCK: usize = 64;

/// The documents in rows of tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Documents {
    /// `cu_seqlens` of flash-attention: a 0, then the end of each document in the concatenated rows. A document ends with
    /// its end token, and at the end of a row.
    pub ends: Vec<i32>,
    /// Position of each token in its document.
    pub positions: Vec<i64>,
    /// Number of tokens of the longest document.
    pub longest: usize,
}

/// Finds the documents in `tokens`: rows of `seq_len` tokens, in which each document ends with `end_token`.
///
/// # Performance
///
/// One pass; blocks of 64 tokens without an end take no branches.
///
/// # Examples
///
/// ```
/// use drpruning_core::find_documents;
/// let documents = find_documents(&[5, 6, 0, 7, 8, 9, 5, 0], 4, 0);
/// assert_eq!(documents.ends, [0, 3, 4, 8]);
/// assert_eq!(documents.positions, [0, 1, 2, 0, 0, 1, 2, 3]);
/// ```
///
/// # Panics
///
/// If `tokens` are not whole rows, or are 2^31 or more.
pub fn find_documents<T: Token>(tokens: &[T], seq_len: usize, end_token: T) -> Documents {
    assert!(i32::try_from(tokens.len()).is_ok(), "ends fit 32 bits");
    assert!(tokens.len().is_multiple_of(seq_len), "whole rows");
    let mut documents = Documents {
        ends: vec![0],
        positions: Vec::with_capacity(tokens.len()),
        longest: 0,
    };
    for (row, first) in tokens.chunks_exact(seq_len).zip((0..).step_by(seq_len)) {
        for (block, first) in row.chunks(BLOCK).zip((first..).step_by(BLOCK)) {
            // Most blocks hold no end: counting them takes no branches.
            if block.iter().filter(|&&id| id == end_token).count() > 0 {
                let ends = block.iter().zip(first + 1..);
                for (_, end) in ends.filter(|(id, _)| **id == end_token) {
                    documents.close(end);
                }
            }
        }
        if row.last() != Some(&end_token) {
            documents.close(first + seq_len);
        }
    }
    documents
}

impl Documents {
    /// Adds the document between the last end and `end`.
    fn close(&mut self, end: usize) {
        let length = end - self.positions.len();
        self.positions.extend(0..length as i64);
        self.ends.push(end as i32);
        self.longest = self.longest.max(length);
    }
}

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
            let Documents { ends: found, positions, longest } = find_documents(&tokens, seq_len, 0);
            let mut ends = vec![0];
            for (place, (&id, &position)) in tokens.iter().zip(&positions).enumerate() {
                let first = place % seq_len == 0 || tokens[place - 1] == 0;
                prop_assert_eq!(position, if first { 0 } else { positions[place - 1] + 1 });
                if id == 0 || (place + 1) % seq_len == 0 {
                    ends.push(place as i32 + 1);
                }
            }
            prop_assert_eq!(found, ends);
            prop_assert_eq!(longest, positions.iter().max().map_or(0, |last| *last as usize + 1));
        }
    }
}
