//! Matrices coded in sections: tables of projections first, then look-ups.

use codec::coo::Layout as CooLayout;
use codec::{ElementType, MatrixShape};
use statecells::sections::{ATOMS, BLOCK, CODES, DICT, ROW_SCALE, SectionsLayout};
use statecells_kernels::sections::{
    Atoms, SectionMatrix, SectionShape, TableBuilder, TableEntry, TableLayout, TableOutput, Tables,
};
use statecells_kernels::{Columns, Isa, Output, Part, SparseMatrix};

use crate::buffer::SharedOutput;
use crate::matrix::{Call, HookError, Plan, with_scratch};
use crate::sidecars::Sidecars;

const OUTLIER_IDX: &str = CooLayout::Flat.idx_suffix();
const OUTLIER_VAL: &str = CooLayout::Flat.val_suffix();

/// Blocks of inputs that share one scale of the tables. Massive activations cost their neighbours precision only
/// within such a group; docs/results/ has the measurement.
const GROUP_BLOCKS: usize = 8;

/// A matrix of the scheme `sections`.
#[derive(Debug)]
pub struct SectionsMatrix {
    isa: Isa,
    tables: TableBuilder,
    rows: SectionMatrix<'static>,
}

impl SectionsMatrix {
    /// Checks types and shapes alone.
    pub fn plan(shape: MatrixShape, sidecars: &Sidecars) -> Result<Plan, HookError> {
        Ok(Plan {
            prepared_ne0: check(shape, sidecars)?.bytes_per_token(),
            prepared_columns: 1,
            prepared_type: ElementType::I8,
            project: false,
        })
    }

    /// Checks the data too. Every byte of the codes is valid, so they are not read here: the file stays mapped and
    /// loading costs nothing.
    pub fn new(shape: MatrixShape, sidecars: &Sidecars) -> Result<Self, HookError> {
        let layout = check(shape, sidecars)?;
        let dict = sidecars.need(DICT)?;
        let tables = TableBuilder::new(layout, Atoms::F16(dict.f16()?))?;
        let outliers = match (sidecars.get(OUTLIER_IDX), sidecars.get(OUTLIER_VAL)) {
            (Some(idx), Some(val)) => {
                Some(SparseMatrix::from_flat(shape.d_in, shape.d_out, idx.i32()?, val.f16()?)?)
            }
            _ => None,
        };
        let size =
            SectionShape { d_in: shape.d_in, d_out: shape.d_out, n_sections: dict.dims()[2] };
        let codes = sidecars.need(CODES)?.bytes()?;
        let rows = SectionMatrix::new(size, codes, sidecars.need(ROW_SCALE)?.f16()?, outliers)?;
        let isa = Isa::from_env().map_err(|e| HookError::Environment(e.to_string()))?;
        Ok(Self { isa, tables, rows })
    }

    /// Writes this thread's share of the tables.
    pub fn prepare(&self, x: &[f32], call: Call, out: &SharedOutput<u8>) -> Result<(), HookError> {
        let layout = self.tables.layout();
        if layout.bytes_per_token().checked_mul(call.n_tokens) != Some(out.len()) {
            return Err(HookError::Call("prepare: buffer does not fit"));
        }
        let d_in = self.rows.shape().d_in;
        let x = Columns::new(x, d_in, call.n_tokens, d_in)?;
        let part = Part::new(call.ith, call.nth)?;
        // SAFETY: `out` has the layout's size (checked above) and is shared only by the threads of this call, each with
        // its own `ith`, all with the same layout and number of tokens.
        let mut tables =
            unsafe { TableOutput::from_raw(out.as_mut_ptr(), layout, call.n_tokens, part)? };
        Ok(self.tables.build(self.isa, x, &mut tables)?)
    }

    /// Computes this thread's rows from the tables.
    pub fn apply(
        &self,
        x: &[f32],
        prepared: &[u8],
        call: Call,
        out: &SharedOutput<f32>,
    ) -> Result<(), HookError> {
        let shape = self.rows.shape();
        let tables = Tables::new(prepared, self.tables.layout(), call.n_tokens)?;
        let x = Columns::new(x, shape.d_in, call.n_tokens, shape.d_in)?;
        let part = Part::new(call.ith, call.nth)?;
        // SAFETY: `out` is [d_out, n_tokens], shared only by the threads of this call, each with its own `ith`.
        let mut y = unsafe {
            Output::from_raw(out.as_mut_ptr(), shape.d_out, call.n_tokens, shape.d_out, part)?
        };
        with_scratch(|scratch| Ok(self.rows.product(self.isa, tables, x, &mut y, scratch)?))
    }
}

/// The layout of the tables, once all types and shapes are what the format says.
fn check(shape: MatrixShape, sidecars: &Sidecars) -> Result<TableLayout, HookError> {
    let dict = sidecars.need(DICT)?;
    let sections = dict.dims()[2];
    dict.expect(&[ElementType::F16], &[BLOCK, ATOMS, sections])?;
    let layout = TableLayout::new(shape.d_in, sections, GROUP_BLOCKS, TableEntry::I8)?;
    let codes = SectionsLayout { shape, sections }.codes();
    sidecars.need(CODES)?.expect(&[codes.element_type], &codes.dims)?;
    sidecars.need(ROW_SCALE)?.expect(&[ElementType::F16], &[shape.d_out])?;
    match (sidecars.get(OUTLIER_IDX), sidecars.get(OUTLIER_VAL)) {
        (None, None) => {}
        (Some(idx), Some(val)) => {
            let n = idx.dims()[0];
            idx.expect(&[ElementType::I32], &[n])?;
            val.expect(&[ElementType::F16], &[n])?;
        }
        (Some(_), None) => return Err(HookError::sidecar(OUTLIER_VAL, "missing")),
        (None, Some(_)) => return Err(HookError::sidecar(OUTLIER_IDX, "missing")),
    }
    Ok(layout)
}
