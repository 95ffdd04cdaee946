//! Matrices of a structured base and a sparse delta: what all rows need of the base first, then the rows.

use format::coo::Layout as CooLayout;
use format::seeddelta::{BASE, BASE_CIRC, BASE_V, Base};
use format::{ElementType, MatrixShape, Sidecar, SidecarSpec};
use statecells_kernels::base::BaseOperator;
use statecells_kernels::{ColumnIndex, Columns, Isa, Output, Part, SparseMatrix};

use crate::buffer::{SharedOutput, bytes_of};
use crate::error::HookError;
use crate::product::{Call, Plan, Product, with_scratch};
use crate::schemes::Coded;
use crate::sidecars::{SidecarView, Sidecars};

const DELTA_IDX: &str = CooLayout::PerRow.idx_suffix();
const DELTA_VAL: &str = CooLayout::PerRow.val_suffix();
const FLOATS: [ElementType; 2] = [ElementType::F16, ElementType::F32];

/// A matrix of the scheme `seeddelta`.
pub struct SeedDeltaMatrix {
    shape: MatrixShape,
    isa: Isa,
    /// Small against the delta, so it is copied and widened.
    base: BaseOperator,
    delta: Option<SparseMatrix<'static>>,
}

impl std::fmt::Debug for SeedDeltaMatrix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SeedDeltaMatrix").field("shape", &self.shape).finish_non_exhaustive()
    }
}

impl Coded for SeedDeltaMatrix {
    /// Checks as far as the graph depends on it; [`Self::new`] checks the rest.
    fn plan(_: &str, shape: MatrixShape, sidecars: &Sidecars) -> Result<Plan, HookError> {
        let foreign = sidecars
            .iter()
            .find(|s| ![DELTA_IDX, DELTA_VAL].contains(&s.suffix()) && !BASE.contains(&s.suffix()));
        if let Some(foreign) = foreign {
            return Err(foreign.error("not a part of scheme seeddelta"));
        }
        let rank = match sidecars.get(BASE_V) {
            None => 0,
            Some(v) => {
                let rank = v.dims()[1];
                v.expect(&FLOATS, &[shape.d_in, rank])?;
                if rank == 0 || rank > shape.d_in.min(shape.d_out) {
                    return Err(v.error(format!("rank {rank} of a matrix of {shape}")));
                }
                rank
            }
        };
        let circulant = match sidecars.get(BASE_CIRC) {
            None => 0,
            Some(c) => {
                c.expect(&FLOATS, &[shape.d_in.max(shape.d_out)])?;
                shape.d_out
            }
        };
        delta_size(shape, sidecars)?;
        Ok(Plan {
            prepared_ne0: rank + circulant,
            prepared_columns: 1,
            prepared_type: ElementType::F32,
            project: false,
        })
    }

    fn new(scheme: &str, shape: MatrixShape, sidecars: &Sidecars) -> Result<Self, HookError> {
        let plan = Self::plan(scheme, shape, sidecars)?;
        let base: Result<Vec<Sidecar>, HookError> =
            sidecars.iter().filter(|s| BASE.contains(&s.suffix())).map(owned).collect();
        let base = BaseOperator::new(Base::read(&base?, shape).map_err(HookError::from_codec)?);
        let delta = delta(shape, sidecars)?;
        if !base.has_base() && delta.is_none() {
            return Err(HookError::sidecar(DELTA_IDX, "missing, and there is no base either"));
        }
        if base.rank() + base.n_circulant() != plan.prepared_ne0 {
            return Err(HookError::Call("the base does not fit its own plan"));
        }
        let isa = Isa::from_env().map_err(|e| HookError::Environment(e.to_string()))?;
        Ok(Self { shape, isa, base, delta })
    }
}

impl SeedDeltaMatrix {
    /// Numbers per token between prepare and apply.
    fn n_prepared(&self) -> usize {
        self.base.rank() + self.base.n_circulant()
    }
}

impl Product for SeedDeltaMatrix {
    /// Computes this thread's share of what all rows need: of the low-rank part every `nth` number of each token,
    /// of a circulant every `nth` token.
    fn prepare(&self, x: &[f32], call: Call, out: &SharedOutput<u8>) -> Result<(), HookError> {
        let (n, d_in, rank) = (self.n_prepared(), self.shape.d_in, self.base.rank());
        let n_floats = n.checked_mul(call.n_tokens);
        if n_floats.and_then(|n| n.checked_mul(size_of::<f32>())) != Some(out.len()) {
            return Err(HookError::Call("prepare: buffer does not fit"));
        }
        // SAFETY: `out` is as many writable bytes (checked above); the alignment is checked; every element belongs to
        // one thread, see below.
        let out = unsafe { SharedOutput::new(out.as_mut_ptr().cast::<f32>(), n * call.n_tokens)? };
        for (t, x) in x.chunks_exact(d_in).enumerate() {
            for j in (call.ith..rank).step_by(call.nth) {
                // SAFETY: number j of a token is that of the one thread with ith = j mod nth.
                let number = unsafe { out.part(t * n + j..t * n + j + 1)? };
                number[0] = self.base.prepare_low_rank(x, j);
            }
            if n > rank && t % call.nth == call.ith {
                // SAFETY: the circulant part of a token is that of the one thread with ith = t mod nth.
                let circulant = unsafe { out.part(t * n + rank..(t + 1) * n)? };
                self.base.prepare_circulant(x, circulant);
            }
        }
        Ok(())
    }

    /// Computes this thread's rows: the base, then the delta.
    fn apply(
        &self,
        x: &[f32],
        prepared: &[u8],
        call: Call,
        out: &SharedOutput<f32>,
    ) -> Result<(), HookError> {
        let (n, d_in, rank) = (self.n_prepared(), self.shape.d_in, self.base.rank());
        let n_floats = n.checked_mul(call.n_tokens).filter(|_| n > 0).unwrap_or(0);
        if n > 0 && n_floats.checked_mul(size_of::<f32>()) != Some(prepared.len()) {
            return Err(HookError::Call("apply: what was prepared has another size"));
        }
        // SAFETY: `prepared` is so many floats long (checked above); bytes_of checks the alignment; every bit pattern
        // is an f32.
        let prepared = unsafe { bytes_of(prepared.as_ptr().cast::<f32>(), n_floats)? };
        let part = Part::new(call.ith, call.nth)?;
        let d_out = self.shape.d_out;
        // SAFETY: `out` is [d_out, n_tokens], shared only by the threads of this call, each with its own `ith`.
        let mut y =
            unsafe { Output::from_raw(out.as_mut_ptr(), d_out, call.n_tokens, d_out, part)? };
        let rows = y.rows();
        let columns = Columns::new(x, d_in, call.n_tokens, d_in)?;
        if !self.base.has_base() {
            let delta = self.delta.as_ref().ok_or(HookError::Call("neither base nor delta"))?;
            return with_scratch(|scratch| Ok(delta.product(self.isa, columns, &mut y, scratch)?));
        }
        for (t, x) in x.chunks_exact(d_in).enumerate() {
            let (low_rank, circulant) =
                prepared.get(t * n..(t + 1) * n).unwrap_or(&[]).split_at(rank);
            let y = y.token_rows(t, rows.clone());
            self.base.rows(rows.clone(), x, low_rank, circulant, y);
        }
        let Some(delta) = &self.delta else { return Ok(()) };
        with_scratch(|scratch| Ok(delta.add_product(self.isa, columns, &mut y, scratch)?))
    }
}

/// A tensor of the base as the codec reads it.
fn owned(view: &SidecarView) -> Result<Sidecar, HookError> {
    let spec = SidecarSpec::new(view.suffix(), view.element(), &view.dims());
    Ok(Sidecar { spec, data: view.raw()?.to_vec() })
}

/// Entries per row, 0 without a delta, once types and shapes are what the format says.
fn delta_size(shape: MatrixShape, sidecars: &Sidecars) -> Result<usize, HookError> {
    match (sidecars.get(DELTA_IDX), sidecars.get(DELTA_VAL)) {
        (None, None) => Ok(0),
        (Some(_), None) => Err(HookError::sidecar(DELTA_VAL, "missing")),
        (None, Some(_)) => Err(HookError::sidecar(DELTA_IDX, "missing")),
        (Some(idx), Some(val)) => {
            let k = idx.dims()[0];
            let specs = CooLayout::PerRow.specs(shape, k).map_err(HookError::from_codec)?;
            let [idx_spec, val_spec] = specs.as_slice() else {
                return Err(idx.error("no entries"));
            };
            idx.expect(&[idx_spec.element_type], &idx_spec.dims)?;
            val.expect(&[val_spec.element_type], &val_spec.dims)?;
            Ok(k)
        }
    }
}

/// The delta where it lies; its columns must ascend in every row.
fn delta(
    shape: MatrixShape,
    sidecars: &Sidecars,
) -> Result<Option<SparseMatrix<'static>>, HookError> {
    let k = delta_size(shape, sidecars)?;
    if k == 0 {
        return Ok(None);
    }
    fn ascend<I: PartialOrd>(columns: &[I], k: usize) -> bool {
        columns.chunks(k).all(|row| row.is_sorted_by(|a, b| a < b))
    }
    let idx = sidecars.need(DELTA_IDX)?;
    let (columns, in_order) = match idx.element() {
        ElementType::I16 => (ColumnIndex::I16(idx.i16()?), ascend(idx.i16()?, k)),
        _ => (ColumnIndex::I32(idx.i32()?), ascend(idx.i32()?, k)),
    };
    if !in_order {
        return Err(idx.error("the columns of a row do not ascend"));
    }
    let vals = sidecars.need(DELTA_VAL)?.f16()?;
    Ok(Some(SparseMatrix::from_rows(shape.d_in, shape.d_out, k, columns, vals)?))
}
