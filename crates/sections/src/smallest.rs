//! The smallest of many numbers, in every lane of vectors at once: sorting networks, so that nothing depends on a branch.

use pulp::Simd;

/// Numbers that are sorted before they meet the smallest so far.
pub(crate) const GROUP: usize = 16;

/// Half of them, which the networks below are for.
const HALF: usize = GROUP / 2;

/// Makes `top`, ascending, the `N` smallest of `top` and `group`; `N` is a power of two from 8 on.
#[inline(always)]
pub(crate) fn merge<S: Simd, const N: usize>(
    simd: S,
    top: &mut [S::u32s; N],
    group: &mut [S::u32s; GROUP],
) {
    let (halves, _) = group.as_chunks_mut::<HALF>();
    for half in &mut *halves {
        sort(simd, half);
    }
    if N < GROUP {
        for half in &*halves {
            take_smaller(simd, top, half);
        }
    } else {
        for i in 0..HALF {
            exchange(simd, group, i, GROUP - 1 - i);
        }
        clean(simd, group);
        take_smaller(simd, top, group);
    }
}

/// Makes `top` the smallest of `top` and `others`, both ascending.
#[inline(always)]
fn take_smaller<S: Simd, const N: usize, const M: usize>(
    simd: S,
    top: &mut [S::u32s; N],
    others: &[S::u32s; M],
) {
    for i in 0..M {
        top[N - 1 - i] = simd.min_u32s(top[N - 1 - i], others[i]);
    }
    let mut half = N / 2;
    while half >= HALF {
        for first in (0..N).step_by(2 * half) {
            for i in first..first + half {
                exchange(simd, top, i, i + half);
            }
        }
        half /= 2;
    }
    clean(simd, top);
}

/// Compares and exchanges pairs of places. A loop over a table of them would not be unrolled, and the numbers would not stay in
/// registers.
macro_rules! exchange {
    ($simd:ident, $v:ident: $($i:literal $j:literal),+) => {
        $(exchange($simd, $v, $i, $j);)+
    };
}

/// Sorts eights of numbers that rise and then fall, or fall and then rise (Batcher's bitonic merge, 1968).
#[inline(always)]
fn clean<S: Simd>(simd: S, v: &mut [S::u32s]) {
    for v in v.as_chunks_mut::<HALF>().0 {
        exchange!(simd, v: 0 4, 1 5, 2 6, 3 7, 0 2, 1 3, 4 6, 5 7, 0 1, 2 3, 4 5, 6 7);
    }
}

/// Sorts eight numbers with 19 exchanges; fewer do not (Knuth, The Art of Computer Programming 3, 5.3.4).
#[inline(always)]
fn sort<S: Simd>(simd: S, v: &mut [S::u32s; HALF]) {
    exchange!(simd, v: 0 2, 1 3, 4 6, 5 7, 0 4, 1 5, 2 6, 3 7, 0 1, 2 3, 4 5, 6 7);
    exchange!(simd, v: 2 4, 3 5, 1 4, 3 6, 1 2, 3 4, 5 6);
}

#[inline(always)]
fn exchange<S: Simd, const N: usize>(simd: S, v: &mut [S::u32s; N], i: usize, j: usize) {
    let (a, b) = (v[i], v[j]);
    v[i] = simd.min_u32s(a, b);
    v[j] = simd.max_u32s(a, b);
}

#[cfg(test)]
mod tests {
    use pulp::WithSimd;

    use super::*;

    struct Run<'a, const N: usize>(&'a [u32]);

    impl<const N: usize> WithSimd for Run<'_, N> {
        type Output = Vec<Vec<u32>>;

        /// The smallest of every lane, of numbers that differ from lane to lane.
        fn with_simd<S: Simd>(self, simd: S) -> Self::Output {
            let mut top = [simd.splat_u32s(u32::MAX); N];
            for group in self.0.as_chunks::<GROUP>().0 {
                let vector = |v: &u32| {
                    let lanes: Vec<u32> = (0..S::U32_LANES).map(|l| lane(*v, l)).collect();
                    S::as_simd_u32s(&lanes).0[0]
                };
                let mut group: [S::u32s; GROUP] = std::array::from_fn(|i| vector(&group[i]));
                merge(simd, &mut top, &mut group);
            }
            let mut out = vec![vec![]; S::U32_LANES];
            for v in top {
                let mut lanes = vec![0; S::U32_LANES];
                S::as_mut_simd_u32s(&mut lanes).0[0] = v;
                lanes.iter().zip(&mut out).for_each(|(v, out)| out.push(*v));
            }
            out
        }
    }

    fn lane(v: u32, lane: usize) -> u32 {
        v.wrapping_mul(2 * lane as u32 + 1)
    }

    fn smallest<const N: usize>(values: &[u32]) {
        let scalar = Run::<N>(values).with_simd(pulp::Scalar::new());
        let vectors = pulp::Arch::new().dispatch(Run::<N>(values));
        assert_eq!(scalar[0], vectors[0]);
        for (l, found) in vectors.iter().enumerate() {
            let mut expected: Vec<u32> = values.iter().map(|v| lane(*v, l)).collect();
            expected.sort_unstable();
            expected.truncate(N);
            expected.resize(N, u32::MAX);
            assert_eq!(*found, expected, "lane {l} of {N}");
        }
    }

    #[test]
    fn the_smallest_are_found_in_order_in_every_lane() {
        let mut state = 1u32;
        for n_groups in [1, 2, 5, 64] {
            let next = || {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                state >> 3
            };
            let values: Vec<u32> = std::iter::repeat_with(next).take(GROUP * n_groups).collect();
            smallest::<8>(&values);
            smallest::<16>(&values);
            smallest::<32>(&values);
            smallest::<64>(&values);
        }
    }

    #[test]
    fn eight_are_sorted_whatever_their_order() {
        // A network that sorts all zeros and ones sorts everything (Knuth, 5.3.4, theorem Z).
        for bits in 0..256u32 {
            let mut values = vec![u32::MAX; GROUP];
            (0..8).for_each(|i| values[i] = bits >> i & 1);
            smallest::<8>(&values);
        }
    }
}
