//! Matrices coded in sections: tables of projections first, then look-ups; or for large batches inputs rounded to
//! bytes first, then products with decoded rows.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::Arc;

use format::coo::Layout as CooLayout;
use format::sections::{ATOMS, BLOCK, CODES, DICT, ROW_SCALE, SectionsLayout};
use format::{ElementType, MatrixShape};
use statecells_kernels::sections::{
    Atoms, Decoder, InputLayout, InputOutput, Inputs, SectionMatrix, SectionShape, TableBuilder,
    TableEntry, TableLayout, TableOutput, Tables,
};
use statecells_kernels::{
    Columns, Dispatch, Output, Part, ROW_TILE, Route, SparseMatrix, TileCache,
};

use crate::buffer::SharedOutput;
use crate::error::HookError;
use crate::product::{Call, ExpertProduct, Plan, Product, with_scratch};
use crate::routed::{Routed, Share};
use crate::schemes::Coded;
use crate::sidecars::Sidecars;

const OUTLIER_IDX: &str = CooLayout::Flat.idx_suffix();
const OUTLIER_VAL: &str = CooLayout::Flat.val_suffix();

/// Blocks of inputs that share one scale of the tables. Massive activations cost their neighbours precision only
/// within such a group.
const GROUP_BLOCKS: usize = 8;

/// A matrix of the scheme `sections`.
#[derive(Debug)]
pub struct SectionsMatrix {
    dispatch: Dispatch,
    /// The dictionary as it lies in the file.
    dictionary: &'static [u8],
    tables: TableBuilder,
    inputs: InputLayout,
    decoder: Decoder,
    rows: SectionMatrix<'static>,
}

impl Coded for SectionsMatrix {
    fn plan(_: &str, shape: MatrixShape, sidecars: &Sidecars) -> Result<Plan, HookError> {
        Ok(Plan {
            prepared_ne0: check(shape, sidecars)?.bytes_per_token(),
            prepared_columns: 1,
            prepared_type: ElementType::I8,
            project: false,
        })
    }

    /// Every byte of the codes is valid, so they are not read here: the file stays mapped and
    /// loading costs nothing.
    fn new(_: &str, shape: MatrixShape, sidecars: &Sidecars) -> Result<Self, HookError> {
        let layout = check(shape, sidecars)?;
        let dict = sidecars.need(DICT)?;
        let atoms = Atoms::F16(dict.f16()?);
        let tables = TableBuilder::new(layout, atoms)?;
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
        let (inputs, decoder) = (InputLayout::new(size)?, Decoder::new(size.n_sections, atoms)?);
        let dispatch = Dispatch::from_env().map_err(|e| HookError::Environment(e.to_string()))?;
        Ok(Self { dispatch, dictionary: dict.raw()?, tables, inputs, decoder, rows })
    }
}

impl SectionsMatrix {
    fn route(&self, call: Call) -> Route {
        self.dispatch.route(self.rows.shape().n_sections, call.n_tokens)
    }

    /// Whether a buffer has the bytes that the plan asks for, those of the tables. Rounded inputs need no more and leave
    /// the rest alone.
    fn fits(&self, n_bytes: usize, n_tokens: usize) -> bool {
        let tables = self.tables.layout().bytes_per_token();
        tables.checked_mul(n_tokens) == Some(n_bytes) && self.inputs.bytes_per_token() <= tables
    }
}

impl Product for SectionsMatrix {
    /// Writes this thread's share of the tables, or of the rounded inputs.
    fn prepare(&self, x: &[f32], call: Call, out: &SharedOutput<u8>) -> Result<(), HookError> {
        if !self.fits(out.len(), call.n_tokens) {
            return Err(HookError::Call("prepare: buffer does not fit"));
        }
        let d_in = self.rows.shape().d_in;
        let x = Columns::new(x, d_in, call.n_tokens, d_in)?;
        let (part, isa, data) =
            (Part::new(call.ith, call.nth)?, self.dispatch.isa(), out.as_mut_ptr());
        // SAFETY: `out` has room for either layout (checked above) and is shared only by the threads of this call, each
        // with its own `ith`, all with the same layout and number of tokens.
        unsafe {
            match self.route(call) {
                Route::Lookup => {
                    let layout = self.tables.layout();
                    let mut out = TableOutput::from_raw(data, layout, call.n_tokens, part)?;
                    Ok(self.tables.build(isa, x, &mut out)?)
                }
                Route::Decode => {
                    let mut out = InputOutput::from_raw(data, &self.inputs, call.n_tokens, part)?;
                    Ok(self.decoder.round_inputs(isa, x, &mut out)?)
                }
            }
        }
    }

    /// Computes this thread's rows from the tables, or from the rounded inputs.
    fn apply(
        &self,
        x: &[f32],
        prepared: &[u8],
        call: Call,
        out: &SharedOutput<f32>,
    ) -> Result<(), HookError> {
        let shape = self.rows.shape();
        if !self.fits(prepared.len(), call.n_tokens) {
            return Err(HookError::Call("apply: buffer does not fit"));
        }
        let x = Columns::new(x, shape.d_in, call.n_tokens, shape.d_in)?;
        let part = Part::new(call.ith, call.nth)?;
        // SAFETY: `out` is [d_out, n_tokens], shared only by the threads of this call, each with its own `ith`.
        let mut y = unsafe {
            Output::from_raw(out.as_mut_ptr(), shape.d_out, call.n_tokens, shape.d_out, part)?
        };
        let isa = self.dispatch.isa();
        with_scratch(|scratch| match self.route(call) {
            Route::Lookup => {
                let tables = Tables::new(prepared, self.tables.layout(), call.n_tokens)?;
                Ok(self.rows.product(isa, tables, x, &mut y, scratch)?)
            }
            Route::Decode => {
                let inputs = &prepared[..self.inputs.bytes_per_token() * call.n_tokens];
                let inputs = Inputs::new(inputs, &self.inputs, call.n_tokens)?;
                Ok(self.rows.decoded_product(isa, &self.decoder, inputs, x, &mut y, scratch)?)
            }
        })
    }

    fn dictionary(&self) -> Option<&[u8]> {
        Some(self.dictionary)
    }

    fn keep_tiles(&mut self, cache: &Arc<TileCache>) {
        self.rows.keep_tiles(cache);
    }
}

/// Tokens of one expert that are decoded together: what they read and write stays in the caches.
const BATCH: usize = 256;

impl SectionsMatrix {
    /// How an expert with so many slots is computed. Slots are looked up one by one, tokens of one matrix in fours, so
    /// decoding pays sooner: Zen 4, 128 experts of 2048 x 768, S = 6 (`statecells-bench --experts 128 --used 8`), lookups' time
    /// over decoding's for 8, 16 and 32 slots per expert is 0.86, 1.19 and 1.53.
    fn expert_route(&self, n_slots: usize) -> Route {
        self.dispatch.route(self.rows.shape().n_sections, 2 * n_slots)
    }

    /// The columns of x that an expert looks up in tables.
    fn looked_up(&self, routed: &Routed<'_>) -> Vec<bool> {
        let mut needed = vec![false; routed.n_columns()];
        for expert in 0..routed.n_experts() {
            let slots = routed.slots(expert);
            if self.expert_route(slots.len()) == Route::Lookup {
                slots.iter().for_each(|slot| needed[routed.column_of(*slot)] = true);
            }
        }
        needed
    }

    /// Rows `tiles` of one expert, whose tiles of all rows are `own`, for one slot, from the tables of its column.
    fn look_up(
        &self,
        (column, table): (&[f32], &[u8]),
        (own, tiles): (&Range<usize>, &Range<usize>),
        y: *mut f32,
    ) -> Result<(), HookError> {
        let shape = self.rows.shape();
        let x = Columns::new(column, shape.d_in, 1, shape.d_in)?;
        let tables = Tables::new(table, self.tables.layout(), 1)?;
        let rows = own.start * ROW_TILE..own.end * ROW_TILE;
        let part = Part::of_tiles(own.start + tiles.start..own.start + tiles.end);
        // SAFETY: y leads to the rows of the expert for this slot, of which no other thread has those of `part`.
        let mut y =
            unsafe { Output::window_from_raw(y, rows.clone(), shape.d_out, 1, rows.len(), part)? };
        with_scratch(|scratch| {
            Ok(self.rows.product(self.dispatch.isa(), tables, x, &mut y, scratch)?)
        })
    }

    /// Rows `rows` of all rows of all experts for the columns `batch.x`, decoded, as `batch.y`: [rows, n].
    fn decode(&self, batch: &mut Batch, rows: Range<usize>) -> Result<(), HookError> {
        let (shape, isa) = (self.rows.shape(), self.dispatch.isa());
        let Batch { x, rounded, y } = batch;
        let n = x.len() / shape.d_in;
        let x = Columns::new(x, shape.d_in, n, shape.d_in)?;
        rounded.resize(self.inputs.bytes_per_token() * n, 0);
        let out = InputOutput::split(rounded, &self.inputs, n, 1)?;
        for mut out in out {
            self.decoder.round_inputs(isa, x, &mut out)?;
        }
        let inputs = Inputs::new(rounded, &self.inputs, n)?;
        y.resize(rows.len() * n, 0.0);
        let mut out = Output::window(y, rows, shape.d_out, n)?;
        with_scratch(|scratch| {
            Ok(self.rows.decoded_product(isa, &self.decoder, inputs, x, &mut out, scratch)?)
        })
    }
}

/// What a thread gathers of one expert's tokens, and what comes of it; kept from call to call.
#[derive(Debug, Default)]
struct Batch {
    x: Vec<f32>,
    rounded: Vec<u8>,
    y: Vec<f32>,
}

thread_local! {
    static GATHERED: RefCell<Batch> = const {
        RefCell::new(Batch { x: Vec::new(), rounded: Vec::new(), y: Vec::new() })
    };
}

impl ExpertProduct for SectionsMatrix {
    /// Every column has tables of its own, of which this thread writes its share; columns that no expert looks up have
    /// none.
    fn prepare(
        &self,
        routed: &Routed<'_>,
        part: Part,
        out: &SharedOutput<u8>,
    ) -> Result<(), HookError> {
        if !self.fits(out.len(), routed.n_columns()) {
            return Err(HookError::Call("prepare: buffer does not fit"));
        }
        let (layout, d_in) = (self.tables.layout(), self.rows.shape().d_in);
        let needed = self.looked_up(routed);
        for column in (0..routed.n_columns()).filter(|column| needed[*column]) {
            let x = Columns::new(routed.column(column), d_in, 1, d_in)?;
            // SAFETY: `out` has room for the tables of every column (checked above) and is shared only by the threads of
            // this call, each with its own part.
            let mut out = unsafe {
                let data = out.as_mut_ptr().add(column * layout.bytes_per_token());
                TableOutput::from_raw(data, layout, 1, part)?
            };
            self.tables.build(self.dispatch.isa(), x, &mut out)?;
        }
        Ok(())
    }

    /// Experts with few slots are looked up, slot by slot; the rows of those with many are decoded once for all.
    fn apply(
        &self,
        routed: &Routed<'_>,
        prepared: &[u8],
        share: Share<'_>,
        out: &SharedOutput<f32>,
    ) -> Result<(), HookError> {
        if !self.fits(prepared.len(), routed.n_columns()) {
            return Err(HookError::Call("apply: buffer does not fit"));
        }
        let n_bytes = self.tables.layout().bytes_per_token();
        let (d_out, n_tiles) = (routed.d_out(), routed.d_out() / ROW_TILE);
        for (expert, tiles) in share.pieces() {
            let own = expert * n_tiles..(expert + 1) * n_tiles;
            let slots = routed.slots(expert);
            if self.expert_route(slots.len()) == Route::Lookup {
                for &slot in slots {
                    let column = routed.column_of(slot);
                    let table = &prepared[column * n_bytes..][..n_bytes];
                    let rows = slot as usize * d_out..(slot as usize + 1) * d_out;
                    let y = out.start_of(rows)?;
                    self.look_up((routed.column(column), table), (&own, &tiles), y)?;
                }
                continue;
            }
            let mine = tiles.start * ROW_TILE..tiles.end * ROW_TILE;
            let first = expert * d_out;
            GATHERED.with_borrow_mut(|batch| {
                for slots in slots.chunks(BATCH) {
                    batch.x.clear();
                    for slot in slots {
                        batch.x.extend_from_slice(routed.column(routed.column_of(*slot)));
                    }
                    self.decode(batch, first + mine.start..first + mine.end)?;
                    for (slot, y) in slots.iter().zip(batch.y.chunks_exact(mine.len())) {
                        let at = *slot as usize * d_out;
                        // SAFETY: these rows of the slot are in this thread's share alone.
                        unsafe { out.part(at + mine.start..at + mine.end)? }.copy_from_slice(y);
                    }
                }
                Ok::<(), HookError>(())
            })?;
        }
        Ok(())
    }

    fn dictionary(&self) -> &[u8] {
        self.dictionary
    }

    fn keep_tiles(&mut self, cache: &Arc<TileCache>) {
        self.rows.keep_tiles(cache);
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
