//! Products with some of many matrices: which expert computes which column, and how threads share that.

use std::ops::Range;

use format::ExpertStack;
use statecells_kernels::ROW_TILE;

use crate::check::{Finding, Place};
use crate::error::HookError;

/// The numbers of one call, as the host gives them.
#[derive(Clone, Copy, Debug)]
pub struct Counts {
    /// Columns of x: one per token, or one per slot.
    pub n_columns: usize,
    /// Experts per token.
    pub n_used: usize,
    /// Tokens.
    pub n_tokens: usize,
    /// From the ids of one token to those of the next.
    pub ids_stride: usize,
}

impl Counts {
    /// Slots, one for each token and expert that it uses.
    pub fn n_slots(&self) -> usize {
        self.n_used * self.n_tokens
    }

    /// Checks that nothing overflows, and that every slot has a column.
    pub fn check(&self, stack: ExpertStack) -> Result<(), HookError> {
        let Self { n_columns, n_used, n_tokens, ids_stride } = *self;
        let n_slots = n_used.checked_mul(n_tokens);
        let fits = |n: Option<usize>, each: usize| {
            n.and_then(|n| n.checked_mul(each)).is_some_and(|n| n <= isize::MAX as usize / 4)
        };
        let has_columns = n_columns == n_tokens || Some(n_columns) == n_slots;
        let has_ids = n_used > 0 && ids_stride >= n_used && fits(Some(n_tokens), ids_stride);
        let fits = fits(n_slots, stack.each.d_in) && fits(n_slots, stack.each.d_out);
        if has_columns && has_ids && fits && n_slots <= Some(u32::MAX as usize) {
            return Ok(());
        }
        Err(HookError::Call("columns, experts or tokens out of range"))
    }

    /// Elements behind the first id.
    pub fn n_ids(&self) -> usize {
        self.n_tokens.checked_sub(1).map_or(0, |last| last * self.ids_stride + self.n_used)
    }
}

/// One product with experts: inputs, and the slots of every expert.
///
/// Slot `t * n_used + j` is what the j-th expert of token t computes.
#[derive(Debug)]
pub struct Routed<'a> {
    stack: ExpertStack,
    counts: Counts,
    x: &'a [f32],
    /// Slots by expert, ascending within each.
    slots: Vec<u32>,
    /// Where in `slots` those of each expert begin; one more for the end.
    starts: Vec<usize>,
}

impl<'a> Routed<'a> {
    /// Sorts the slots by their experts.
    ///
    /// # Shapes
    /// `x`: [d_in, n_columns], `ids`: [n_used, n_tokens], `ids_stride` apart.
    pub fn new(
        stack: ExpertStack,
        counts: Counts,
        x: &'a [f32],
        ids: &[i32],
    ) -> Result<Self, HookError> {
        let expert = |slot: usize| {
            let id = ids.get(slot / counts.n_used * counts.ids_stride + slot % counts.n_used);
            let id = id.and_then(|id| usize::try_from(*id).ok());
            id.filter(|id| *id < stack.n_experts)
                .ok_or(HookError::Call("the model has no expert of that number"))
        };
        let mut starts = vec![0; stack.n_experts + 1];
        for slot in 0..counts.n_slots() {
            starts[expert(slot)? + 1] += 1;
        }
        (0..stack.n_experts).for_each(|e| starts[e + 1] += starts[e]);
        let (mut next, mut slots) = (starts.clone(), vec![0; counts.n_slots()]);
        for slot in 0..counts.n_slots() {
            let next = &mut next[expert(slot)?];
            slots[*next] = slot as u32;
            *next += 1;
        }
        Ok(Self { stack, counts, x, slots, starts })
    }

    /// Number of columns of x.
    pub fn n_columns(&self) -> usize {
        self.counts.n_columns
    }

    /// Elements of the result, [d_out, n_used, n_tokens].
    pub fn n_outputs(&self) -> usize {
        self.stack.each.d_out * self.slots.len()
    }

    /// Number of experts.
    pub fn n_experts(&self) -> usize {
        self.stack.n_experts
    }

    /// Rows of every expert.
    pub fn d_out(&self) -> usize {
        self.stack.each.d_out
    }

    /// The slots of an expert.
    pub fn slots(&self, expert: usize) -> &[u32] {
        &self.slots[self.starts[expert]..self.starts[expert + 1]]
    }

    /// The column of x that a slot reads.
    pub fn column_of(&self, slot: u32) -> usize {
        let shared = self.counts.n_columns == self.counts.n_tokens;
        slot as usize / if shared { self.counts.n_used } else { 1 }
    }

    /// A column of x, `[d_in]`.
    pub fn column(&self, column: usize) -> &'a [f32] {
        &self.x[column * self.stack.each.d_in..][..self.stack.each.d_in]
    }

    /// The tiles of its own rows that thread `ith` of `nth` computes of each expert: those of all threads together are all
    /// tiles of all experts in use, and a tile counts as often as tokens use it.
    pub fn share(&self, ith: usize, nth: usize) -> Share<'_> {
        Share { routed: self, ith, nth }
    }
}

/// What one thread computes of a product with experts.
#[derive(Clone, Copy, Debug)]
pub struct Share<'a> {
    routed: &'a Routed<'a>,
    ith: usize,
    nth: usize,
}

impl Share<'_> {
    /// Every expert with work for this thread, and which tiles of its rows.
    pub fn pieces(&self) -> impl Iterator<Item = (usize, Range<usize>)> + '_ {
        let stack = self.routed.stack;
        let n_tiles = (stack.each.d_out / ROW_TILE) as u128;
        let total = n_tiles * self.routed.slots.len() as u128;
        let bound = |ith: usize| total * ith as u128 / self.nth as u128;
        let (begin, end) = (bound(self.ith), bound(self.ith + 1));
        (0..stack.n_experts).filter_map(move |expert| {
            let n = self.routed.slots(expert).len() as u128;
            if n == 0 {
                return None;
            }
            // A tile is that thread's in whose share its work begins.
            let before = n_tiles * self.routed.starts[expert] as u128;
            let tile = |at: u128| at.saturating_sub(before).div_ceil(n).min(n_tiles) as usize;
            let tiles = tile(begin)..tile(end);
            (!tiles.is_empty()).then_some((expert, tiles))
        })
    }

    /// What this thread writes of the result, as positions in y ([d_out, n_used, n_tokens]).
    pub fn outputs(&self) -> impl Iterator<Item = (u32, Range<usize>)> + '_ {
        let d_out = self.routed.stack.each.d_out;
        self.pieces().flat_map(move |(expert, tiles)| {
            let rows = tiles.start * ROW_TILE..tiles.end * ROW_TILE;
            let of = move |slot: &u32| {
                let first = *slot as usize * d_out;
                (*slot, first + rows.start..first + rows.end)
            };
            self.routed.slots(expert).iter().map(of)
        })
    }

    /// The first of this thread's columns of x that holds a value which is not finite; its token is that of the column.
    pub fn input(&self) -> Option<Finding> {
        let counts = &self.routed.counts;
        let per_token = counts.n_columns / counts.n_tokens.max(1);
        (self.ith..counts.n_columns).step_by(self.nth).find_map(|column| {
            let x = self.routed.column(column);
            let index = x.iter().position(|v| !v.is_finite())?;
            let token = column / per_token.max(1);
            Some(Finding { place: Place::Input, token, index, value: x[index] })
        })
    }

    /// The first value that is not finite among the outputs `y` that this thread wrote at `place` for `slot`.
    pub fn output(&self, slot: u32, place: Range<usize>, y: &[f32]) -> Option<Finding> {
        let at = y.iter().position(|v| !v.is_finite())?;
        let index = place.start - slot as usize * self.routed.stack.each.d_out + at;
        let token = slot as usize / self.routed.counts.n_used;
        Some(Finding { place: Place::Output, token, index, value: y[at] })
    }
}

#[cfg(test)]
mod tests {
    use format::MatrixShape;

    use super::*;

    const STACK: ExpertStack =
        ExpertStack { each: MatrixShape { d_in: 4, d_out: 96 }, n_experts: 5 };

    fn counts(n_columns: usize, n_used: usize, n_tokens: usize) -> Counts {
        Counts { n_columns, n_used, n_tokens, ids_stride: n_used }
    }

    #[test]
    fn slots_are_sorted_by_expert_and_know_their_columns() {
        let ids = [3, 0, 9, 3, 1, 9, 0, 3];
        let x = [0.0; 12];
        let counts = Counts { n_columns: 3, n_used: 2, n_tokens: 3, ids_stride: 3 };
        counts.check(STACK).unwrap();
        assert_eq!(counts.n_ids(), 8);
        let routed = Routed::new(STACK, counts, &x, &ids).unwrap();
        let all: Vec<_> = (0..5).map(|e| routed.slots(e).to_vec()).collect();
        assert_eq!(all, [vec![1, 4], vec![3], vec![], vec![0, 2, 5], vec![]]);
        assert_eq!([0, 1, 2, 5].map(|slot| routed.column_of(slot)), [0, 0, 1, 2]);
        let own = Counts { n_columns: 6, ..counts };
        let x = [0.0; 24];
        let routed = Routed::new(STACK, own, &x, &ids).unwrap();
        assert_eq!([0, 1, 5].map(|slot| routed.column_of(slot)), [0, 1, 5]);
    }

    #[test]
    fn experts_that_the_model_has_not_are_refused() {
        for id in [-1, 5, i32::MAX, i32::MIN] {
            assert!(Routed::new(STACK, counts(1, 2, 1), &[0.0; 4], &[0, id]).is_err(), "{id}");
        }
        assert!(Routed::new(STACK, counts(1, 2, 1), &[0.0; 4], &[0]).is_err());
        for (n_columns, n_used, n_tokens) in [(2, 1, 1), (1, 0, 1), (3, 2, 2), (1, usize::MAX, 2)] {
            assert!(counts(n_columns, n_used, n_tokens).check(STACK).is_err());
        }
        let overlapping = Counts { ids_stride: 1, ..counts(2, 2, 2) };
        assert!(overlapping.check(STACK).is_err());
    }

    #[test]
    fn the_threads_together_compute_every_tile_in_use_once() {
        let x = [0.0; 28];
        let ids = [0, 2, 0, 2, 0, 4, 0, 2, 0, 4, 0, 2, 0, 2];
        let routed = Routed::new(STACK, counts(7, 2, 7), &x, &ids).unwrap();
        for nth in [1, 2, 3, 4, 16, 100] {
            let mut written = vec![0; 96 * 14];
            for ith in 0..nth {
                let share = routed.share(ith, nth);
                share.outputs().for_each(|(_, at)| at.for_each(|i| written[i] += 1));
            }
            assert!(written.iter().all(|n| *n == 1), "{nth} threads");
        }
    }

    #[test]
    fn what_is_not_finite_is_found_by_one_thread() {
        let mut x = [0.0; 8];
        x[6] = f32::NAN;
        let routed = Routed::new(STACK, counts(2, 1, 2), &x, &[1, 1]).unwrap();
        let found: Vec<Finding> = (0..3).filter_map(|i| routed.share(i, 3).input()).collect();
        assert_eq!((found.len(), found[0].token, found[0].index), (1, 1, 2));
        let share = routed.share(0, 1);
        let (slot, place) = share.outputs().nth(1).unwrap();
        let mut y = [1.0; 96];
        assert_eq!(share.output(slot, place.clone(), &y), None);
        y[40] = f32::INFINITY;
        let found = share.output(slot, place, &y).unwrap();
        assert_eq!((found.token, found.index, found.place), (1, 40, Place::Output));
    }
}
