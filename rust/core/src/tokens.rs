//! Token dtypes of files, and their conversion to `i32` or `i64`.

// Functions that are not inlined into `widen_avx2` are not compiled for AVX2.
#![allow(clippy::inline_always)]

use std::mem::MaybeUninit;

/// Integer types that token files use, all little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// `uint8`
    U8,
    /// `int8`
    I8,
    /// `uint16`
    U16,
    /// `int16`
    I16,
    /// `uint32`
    U32,
    /// `int32`
    I32,
    /// `int64`
    I64,
}

impl Dtype {
    const ALL: [Self; 7] = [
        Self::U8,
        Self::I8,
        Self::U16,
        Self::I16,
        Self::U32,
        Self::I32,
        Self::I64,
    ];

    /// Returns the bytes of one token.
    #[must_use]
    pub fn size(self) -> usize {
        match self {
            Self::U8 | Self::I8 => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 => 4,
            Self::I64 => 8,
        }
    }

    /// Returns the name in `NumPy`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::U8 => "uint8",
            Self::I8 => "int8",
            Self::U16 => "uint16",
            Self::I16 => "int16",
            Self::U32 => "uint32",
            Self::I32 => "int32",
            Self::I64 => "int64",
        }
    }

    /// Returns the type with the `NumPy` name `name`.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|dtype| dtype.name() == name)
    }

    /// Widens `bytes` into `out`, all of which it writes. Returns the largest id, or `u64::MAX` if an id is negative. Ids
    /// that do not fit `T` are truncated; the largest id shows it.
    ///
    /// # Panics
    ///
    /// If the two do not hold the same number of tokens.
    pub(crate) fn widen<T: Token>(self, bytes: &[u8], out: &mut [MaybeUninit<T>]) -> u64 {
        assert_eq!(bytes.len(), out.len() * self.size(), "an id for each place");
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has AVX2.
            return unsafe { self.widen_avx2(bytes, out) };
        }
        self.widen_each(bytes, out)
    }

    /// The same code, compiled for wider registers than every `x86_64` has.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2")]
    fn widen_avx2<T: Token>(self, bytes: &[u8], out: &mut [MaybeUninit<T>]) -> u64 {
        self.widen_each(bytes, out)
    }

    #[inline(always)]
    fn widen_each<T: Token>(self, bytes: &[u8], out: &mut [MaybeUninit<T>]) -> u64 {
        match self {
            Self::U8 => each(bytes, out, u8::from_le_bytes, |id| T::cut(i64::from(id))),
            Self::I8 => signed(
                each(bytes, out, u8::from_le_bytes, |id| {
                    T::cut(i64::from(id as i8))
                }),
                7,
            ),
            Self::U16 => each(bytes, out, u16::from_le_bytes, |id| T::cut(i64::from(id))),
            Self::I16 => signed(
                each(bytes, out, u16::from_le_bytes, |id| {
                    T::cut(i64::from(id as i16))
                }),
                15,
            ),
            Self::U32 => each(bytes, out, u32::from_le_bytes, |id| T::cut(i64::from(id))),
            Self::I32 => signed(
                each(bytes, out, u32::from_le_bytes, |id| {
                    T::cut(i64::from(id as i32))
                }),
                31,
            ),
            Self::I64 => signed(
                each(bytes, out, u64::from_le_bytes, |id| T::cut(id as i64)),
                63,
            ),
        }
    }

    /// Returns the index and value of the first id outside `0..limit`.
    pub(crate) fn find_outside(self, bytes: &[u8], limit: u64) -> Option<(usize, i64)> {
        let mut one = [MaybeUninit::<i64>::uninit()];
        bytes
            .chunks_exact(self.size())
            .map(|token| {
                self.widen(token, &mut one);
                // SAFETY: `widen` sets all places.
                unsafe { one[0].assume_init() }
            })
            .enumerate()
            .find(|&(_, id)| id as u64 >= limit)
    }
}

/// Integer types of the tokens in memory: `i32` and `i64`.
pub trait Token: Copy + Default + Eq + Send + Sync + private::Cut + 'static {
    /// Upper limit of the ids.
    const LIMIT: u64;
}

impl Token for i32 {
    const LIMIT: u64 = 1 << 31;
}

impl Token for i64 {
    const LIMIT: u64 = 1 << 63;
}

mod private {
    pub trait Cut {
        fn cut(id: i64) -> Self;
    }

    impl Cut for i32 {
        #[inline(always)]
        fn cut(id: i64) -> Self {
            id as Self
        }
    }

    impl Cut for i64 {
        #[inline(always)]
        fn cut(id: i64) -> Self {
            id
        }
    }
}

/// Tokens in a block: few enough to be read twice from the L1 cache, many enough to fill vector registers.
const BLOCK: usize = 512;

/// Decodes and widens each word; returns the largest. A separate loop over the narrow words finds the largest, because
/// more of them fit a register.
#[inline(always)]
fn each<const N: usize, S: Copy + Ord + Default + Into<u64>, T: Token>(
    bytes: &[u8],
    out: &mut [MaybeUninit<T>],
    decode: impl Fn([u8; N]) -> S + Copy,
    widen: impl Fn(S) -> T + Copy,
) -> u64 {
    let mut largest = S::default();
    for (bytes, out) in bytes.chunks(BLOCK * N).zip(out.chunks_mut(BLOCK)) {
        let words = || {
            bytes.chunks_exact(N).map(|chunk| {
                let mut word = [0; N];
                word.copy_from_slice(chunk);
                decode(word)
            })
        };
        largest = words().fold(largest, S::max);
        for (token, word) in out.iter_mut().zip(words()) {
            token.write(widen(word));
        }
    }
    largest.into()
}

/// Returns `largest`, or `u64::MAX` if bit `bits`, the sign, is set.
#[inline(always)]
fn signed(largest: u64, bits: u32) -> u64 {
    if largest >> bits == 0 {
        largest
    } else {
        u64::MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn widened<T: Token>(dtype: Dtype, bytes: &[u8]) -> (Vec<T>, u64) {
        let mut places = vec![MaybeUninit::new(T::default()); bytes.len() / dtype.size()];
        let largest = dtype.widen(bytes, &mut places);
        // SAFETY: each was set when it was made.
        let ids = places.iter().map(|place| unsafe { place.assume_init() });
        (ids.collect(), largest)
    }

    #[test]
    fn every_type_widens_its_extremes() {
        let cases: [(Dtype, &[u8], &[i64]); 7] = [
            (Dtype::U8, &[0, 255], &[0, 255]),
            (Dtype::I8, &[127, 255], &[127, -1]),
            (Dtype::U16, &[1, 0, 255, 255], &[1, 65_535]),
            (Dtype::I16, &[1, 0, 255, 255], &[1, -1]),
            (
                Dtype::U32,
                &[0, 0, 1, 0, 255, 255, 255, 255],
                &[65_536, 4_294_967_295],
            ),
            (Dtype::I32, &[0, 0, 1, 0, 255, 255, 255, 255], &[65_536, -1]),
            (Dtype::I64, &[0, 0, 0, 0, 1, 0, 0, 0], &[1 << 32]),
        ];
        for (dtype, bytes, expected) in cases {
            // Many times over, so that whole registers and blocks are filled as well as their rests.
            for times in [1, 37, 700] {
                let expected = expected.repeat(times);
                let (wide, largest) = widened::<i64>(dtype, &bytes.repeat(times));
                assert_eq!(wide, expected, "{dtype:?}");
                let (narrow, same) = widened::<i32>(dtype, &bytes.repeat(times));
                assert_eq!(same, largest);
                assert!(wide.iter().map(|&id| id as i32).eq(narrow), "{dtype:?}");
                let negative = expected.iter().any(|&id| id < 0);
                let max = *expected.iter().max().unwrap() as u64;
                assert_eq!(largest, if negative { u64::MAX } else { max });
            }
            assert_eq!(bytes.len(), dtype.size() * expected.len());
            assert_eq!(Dtype::from_name(dtype.name()), Some(dtype));
            let outside = expected.iter().position(|&id| !(0..1 << 31).contains(&id));
            assert_eq!(
                dtype.find_outside(bytes, 1 << 31),
                outside.map(|place| (place, expected[place]))
            );
        }
        assert_eq!(Dtype::from_name("float32"), None);
    }
}
