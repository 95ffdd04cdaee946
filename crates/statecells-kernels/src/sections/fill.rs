//! The arithmetic of the table builder: the plain form, and one by vectors of atoms.
#![allow(clippy::needless_range_loop)] // one index runs over several arrays

use std::mem::MaybeUninit;

use super::bundles::Stretch;
use super::shape::{ATOMS, BIAS, BLOCK, MAX_GROUP_PLANES, PAIR_BYTES, TableEntry, TableLayout};
use super::tables::TableOutput;
use crate::Columns;
use crate::simd::Floats;

/// The dictionary, `[section][j][atom]`.
type Dict = [[[f32; ATOMS]; BLOCK]];
/// The inputs of a group's blocks, filled up with zeros.
type Inputs = [[f32; BLOCK]];
/// Projections of a group on all atoms, `[plane][atom]`.
type Projections = [[f32; ATOMS]];
/// Room for the projections of any group.
type Buffer = [MaybeUninit<[f32; ATOMS]>; MAX_GROUP_PLANES];

/// Projections below 2^-100 count as zero: their inverse scale could overflow.
const TINY: f32 = f32::from_bits((127 - 100) << 23);

/// The two steps for one token and group.
///
/// # Safety
/// The machine has the instructions that the form uses.
trait Form {
    /// All projections of the blocks and their largest magnitude, NaN if not all are finite.
    unsafe fn project(dict: &Dict, inputs: &Inputs, out: &mut Projections) -> f32;
    /// The projections times `factor`, rounded, as entries of a column of a bundle `width` columns
    /// wide. `out` begins with the column's first byte.
    unsafe fn quantize(
        entry: TableEntry,
        projections: &Projections,
        factor: f32,
        width: usize,
        out: &mut [u8],
    );
}

/// The reference.
pub(super) fn scalar(dict: &Dict, x: Columns<'_>, out: &mut TableOutput<'_>) {
    // SAFETY: the plain form needs nothing.
    unsafe { fill::<Plain>(dict, x, out) }
}

macro_rules! compiled {
    ($name:ident, $set:path, $arch:literal, $features:literal) => {
        /// # Safety
        /// The machine has the instructions.
        #[cfg(target_arch = $arch)]
        #[target_feature(enable = $features)]
        pub(super) unsafe fn $name(dict: &Dict, x: Columns<'_>, out: &mut TableOutput<'_>) {
            // SAFETY: the caller's promise.
            unsafe { fill::<Fast<$set>>(dict, x, out) }
        }
    };
}

compiled!(avx2, crate::simd::avx2::Avx2, "x86_64", "avx2,fma");
compiled!(avx512, crate::simd::avx512::Avx512, "x86_64", "avx512f,avx512bw,avx512vl,avx2,fma");
compiled!(neon, crate::simd::neon::Neon, "aarch64", "neon");

/// Projections of one group and token that wait to be quantized.
struct Waiting {
    /// Their largest magnitude.
    top: f32,
    planes: usize,
    /// Where their entries and their scales begin in the stretch.
    entries_at: usize,
    scales_at: usize,
}

/// Writes all tables of one thread.
///
/// # Safety
/// The machine has the instructions of `A`.
#[inline(always)]
unsafe fn fill<A: Form>(dict: &Dict, x: Columns<'_>, out: &mut TableOutput<'_>) {
    let layout = out.layout();
    let parts = layout.entry.parts();
    let group_inputs = layout.grid.group_units * 2 / dict.len() * BLOCK;
    let mut buffers: [Buffer; 2] = [[const { MaybeUninit::uninit() }; MAX_GROUP_PLANES]; 2];
    let [first, second] = &mut buffers;
    let mut projections = zeroed(first, layout.grid.group_units * 2);
    let mut former = zeroed(second, layout.grid.group_units * 2);
    for index in out.bundles() {
        let mut stretch = out.stretch(index);
        let width = stretch.bundle.width;
        let mut waiting: Option<Waiting> = None;
        for group in stretch.groups.clone() {
            let pairs = layout.grid.units(group);
            let pairs_before = pairs.start - layout.grid.units(stretch.groups.start).start;
            for column in (0..width).step_by(parts) {
                let token = x.token((stretch.bundle.first + column) / parts);
                let begin = group * group_inputs;
                let inputs = &token[begin..token.len().min(begin + group_inputs)];
                let planes = 2 * pairs.len();
                // SAFETY: the caller's promise.
                let top = unsafe { project_group::<A>(dict, inputs, &mut projections[..planes]) };
                // One step behind: the way from the largest projection to the scale is long, and the
                // next projections fill the time.
                if let Some(waiting) = &waiting {
                    // SAFETY: the caller's promise.
                    unsafe { finish::<A>(&layout, &mut stretch, waiting, former) };
                }
                waiting = Some(Waiting {
                    top,
                    planes,
                    entries_at: (pairs_before * width + column) * PAIR_BYTES,
                    scales_at: ((group - stretch.groups.start) * width + column) * 4,
                });
                std::mem::swap(&mut projections, &mut former);
            }
        }
        if let Some(waiting) = &waiting {
            // SAFETY: the caller's promise.
            unsafe { finish::<A>(&layout, &mut stretch, waiting, former) };
        }
    }
}
/// The first `planes` of a buffer, which is too large to be cleared for every call.
fn zeroed(buffer: &mut Buffer, planes: usize) -> &mut Projections {
    let planes = &mut buffer[..planes];
    planes.fill(MaybeUninit::new([0.0; ATOMS]));
    // SAFETY: all of these planes have just been written.
    unsafe { std::slice::from_raw_parts_mut(planes.as_mut_ptr().cast(), planes.len()) }
}

/// Projects the inputs of one group, at most 16 blocks, and returns the largest magnitude.
///
/// # Safety
/// The machine has the instructions of `A`.
#[inline(always)]
unsafe fn project_group<A: Form>(dict: &Dict, inputs: &[f32], out: &mut Projections) -> f32 {
    let (whole, rest) = inputs.as_chunks::<BLOCK>();
    let mut filled_up = [[0.0; BLOCK]; 16];
    let blocks = if rest.is_empty() {
        whole
    } else {
        filled_up.as_flattened_mut()[..inputs.len()].copy_from_slice(inputs);
        &filled_up[..whole.len() + 1]
    };
    // The odd plane after the last one, if it is there, has zero entries.
    out[blocks.len() * dict.len()..].fill([0.0; ATOMS]);
    // SAFETY: the caller's promise.
    unsafe { A::project(dict, blocks, out) }
}

/// Writes the scale and the entries of what waits.
///
/// # Safety
/// The machine has the instructions of `A`.
#[inline(always)]
unsafe fn finish<A: Form>(
    layout: &TableLayout,
    stretch: &mut Stretch<'_>,
    waiting: &Waiting,
    projections: &Projections,
) {
    let (parts, limit, width) = (layout.entry.parts(), layout.entry.limit(), stretch.bundle.width);
    let scale = if waiting.top < TINY { 0.0 } else { waiting.top / limit };
    for part in 0..parts {
        let scale = if part + 1 < parts { 256.0 * scale } else { scale };
        stretch.scales[waiting.scales_at + 4 * part..][..4].copy_from_slice(&scale.to_ne_bytes());
    }
    let bytes = (waiting.planes / 2 - 1) * width * PAIR_BYTES + parts * PAIR_BYTES;
    let entries = &mut stretch.units[waiting.entries_at..][..bytes];
    if scale > 0.0 {
        let (values, factor) = (&projections[..waiting.planes], limit / waiting.top);
        // SAFETY: the caller's promise.
        unsafe { A::quantize(layout.entry, values, factor, width, entries) };
    } else {
        for pair in entries.chunks_mut(width * PAIR_BYTES) {
            pair[..parts * PAIR_BYTES].fill(BIAS as u8);
        }
    }
}

/// The larger magnitude, as bits: NaN is above infinity, which is above all numbers.
#[inline(always)]
fn larger(top: u32, value: f32) -> u32 {
    top.max(value.to_bits() & 0x7fff_ffff)
}

/// Largest magnitude; NaN if not all projections are finite.
#[inline(always)]
fn finite_or_nan(top: u32) -> f32 {
    let top = f32::from_bits(top);
    if top.is_finite() { top } else { f32::NAN }
}

/// The definition, entry by entry.
struct Plain;

impl Form for Plain {
    unsafe fn project(dict: &Dict, inputs: &Inputs, out: &mut Projections) -> f32 {
        let mut top = 0;
        for (block, x) in inputs.iter().enumerate() {
            for (section, atoms) in dict.iter().enumerate() {
                for atom in 0..ATOMS {
                    let mut sum = atoms[0][atom] * x[0];
                    for j in 1..BLOCK {
                        sum = atoms[j][atom].mul_add(x[j], sum);
                    }
                    out[block * dict.len() + section][atom] = sum;
                    top = larger(top, sum);
                }
            }
        }
        finite_or_nan(top)
    }

    unsafe fn quantize(
        entry: TableEntry,
        projections: &Projections,
        factor: f32,
        width: usize,
        out: &mut [u8],
    ) {
        for (plane, projections) in projections.iter().enumerate() {
            for (atom, value) in projections.iter().enumerate() {
                let value = (value * factor).round_ties_even() as i32;
                let at = plane / 2 * width * PAIR_BYTES + plane % 2 * ATOMS + atom;
                match entry {
                    TableEntry::I8 => out[at] = (value + BIAS) as u8,
                    TableEntry::I16 => {
                        let low = i32::from(value as i8);
                        out[at] = ((value - low) / 256 + BIAS) as u8;
                        out[at + PAIR_BYTES] = (low + BIAS) as u8;
                    }
                }
            }
        }
    }
}

/// The same by vectors.
struct Fast<S>(std::marker::PhantomData<S>);

impl<S: Floats> Form for Fast<S> {
    /// A few blocks at a time: a row of the dictionary then serves them all.
    #[inline(always)]
    unsafe fn project(dict: &Dict, inputs: &Inputs, out: &mut Projections) -> f32 {
        assert!(out.len() >= inputs.len() * dict.len());
        let mut top = [0.0f32; ATOMS];
        // SAFETY: the instructions are our caller's promise; block + N <= inputs.len() and section <
        // dict.len(), so planes up to (block + N - 1) * dict.len() + section exist in `out` (asserted).
        unsafe {
            let mut tops = S::splat(0.0);
            for (section, atoms) in dict.iter().enumerate() {
                let (mut block, x) = (0, inputs.as_ptr());
                let out = out.as_mut_ptr().add(section);
                while block + 4 <= inputs.len() {
                    tops =
                        project_blocks::<S, 4>(atoms, x.add(block), out, block, dict.len(), tops);
                    block += 4;
                }
                while block < inputs.len() {
                    tops =
                        project_blocks::<S, 1>(atoms, x.add(block), out, block, dict.len(), tops);
                    block += 1;
                }
            }
            S::store(top.as_mut_ptr(), tops);
        }
        finite_or_nan(top.iter().fold(0, |top, &lane| larger(top, lane)))
    }

    #[inline(always)]
    unsafe fn quantize(
        entry: TableEntry,
        projections: &Projections,
        inverse: f32,
        width: usize,
        out: &mut [u8],
    ) {
        let pairs = projections.as_chunks::<2>().0.iter().zip(out.chunks_mut(width * PAIR_BYTES));
        match entry {
            TableEntry::I8 => {
                for (values, out) in pairs {
                    let out = &mut out[..PAIR_BYTES];
                    // SAFETY: two planes are 32 values; `out` holds 32 bytes.
                    unsafe { S::quantize8(values.as_ptr().cast(), inverse, out.as_mut_ptr()) };
                }
            }
            TableEntry::I16 => {
                for (values, out) in pairs {
                    let out = &mut out[..2 * PAIR_BYTES];
                    // SAFETY: two planes are 32 values; `out` holds 64 bytes.
                    unsafe { S::quantize16(values.as_ptr().cast(), inverse, out.as_mut_ptr()) };
                }
            }
        }
    }
}

/// One section of `N` blocks, the first of which is `block`; their planes are `n_sections` apart.
///
/// # Safety
/// The machine has the instructions of `S`; `N` blocks of inputs and their planes exist.
#[inline(always)]
unsafe fn project_blocks<S: Floats, const N: usize>(
    atoms: &[[f32; ATOMS]; BLOCK],
    x: *const [f32; BLOCK],
    out: *mut [f32; ATOMS],
    block: usize,
    n_sections: usize,
    mut tops: S::F,
) -> S::F {
    // SAFETY: our caller's promise; ATOMS is a multiple of LANES.
    unsafe {
        for half in (0..ATOMS).step_by(2 * S::LANES) {
            // Two vectors of atoms times N blocks of sums stay in registers.
            let mut sums = [[S::splat(0.0); 2]; N];
            for j in 0..BLOCK {
                let atoms = atoms[j].as_ptr().add(half);
                let a = S::load(atoms);
                let b = if S::LANES < ATOMS { S::load(atoms.add(S::LANES)) } else { a };
                for n in 0..N {
                    let x = S::splat((*x.add(n))[j]);
                    sums[n][0] = if j == 0 { S::mul(a, x) } else { S::fma(a, x, sums[n][0]) };
                    sums[n][1] = if j == 0 { S::mul(b, x) } else { S::fma(b, x, sums[n][1]) };
                }
            }
            for n in 0..N {
                let out = out.add((block + n) * n_sections).cast::<f32>().add(half);
                tops = S::larger(tops, sums[n][0]);
                S::store(out, sums[n][0]);
                if S::LANES < ATOMS {
                    tops = S::larger(tops, sums[n][1]);
                    S::store(out.add(S::LANES), sums[n][1]);
                }
            }
        }
    }
    tops
}
