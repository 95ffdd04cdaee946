//! What the fast forms of the `sections` kernels need from an instruction set.
//!
//! The loops are written once over these traits; each set fills them in a file of its own. The methods
//! must end up inlined in a function that has the instructions enabled (`#[target_feature]`), else
//! each of them would be a call: they are `inline(always)`, and the loops take no closures and call no
//! generic library functions on the way, which would not inherit the instructions.

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
#[cfg(target_arch = "aarch64")]
pub(crate) mod neon;

/// Vectors of floats.
///
/// # Safety
/// Every method needs a machine with the instructions. Pointers are valid for all the method reads or
/// writes, at any alignment.
pub(crate) trait Floats: Copy {
    /// Floats of a vector: 4, 8 or 16.
    const LANES: usize;
    /// A vector.
    type F: Copy;

    unsafe fn splat(value: f32) -> Self::F;
    unsafe fn load(from: *const f32) -> Self::F;
    unsafe fn store(to: *mut f32, value: Self::F);
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, rounded once.
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// Lane by lane the larger magnitude, compared as bits: NaN above infinity above all numbers.
    unsafe fn larger(top: Self::F, value: Self::F) -> Self::F;
    /// With q = `values[i] * factor` to the nearest integer, ties to even, of magnitude at most 127:
    /// q + 128 as bytes. 32 values, 32 bytes.
    unsafe fn quantize8(values: *const f32, factor: f32, out: *mut u8);
    /// The same for a magnitude of at most 32639, q = 256 * h + l with l in -128..=127: all h + 128 as
    /// bytes, then all l + 128. 32 values, 64 bytes.
    unsafe fn quantize16(values: *const f32, factor: f32, out: *mut u8);
}

/// Lookups for tiles of 32 rows.
///
/// # Safety
/// As for [`Floats`].
pub(crate) trait Lookup: Copy {
    /// Tiles that a vector of bytes spans: 1 or 2.
    const TILES: usize;
    /// One byte per row.
    type Bytes: Copy;
    /// One 16-bit sum per row.
    type Sums: Copy;

    /// 32 bytes of codes of each tile. The second pointer is read only if `TILES` is 2.
    unsafe fn codes(first: *const u8, second: *const u8) -> Self::Bytes;
    /// The low nibbles.
    unsafe fn low(codes: Self::Bytes) -> Self::Bytes;
    /// The high nibbles.
    unsafe fn high(codes: Self::Bytes) -> Self::Bytes;
    /// A table of 16 bytes, ready for [`Lookup::look_up`].
    unsafe fn table(from: *const u8) -> Self::Bytes;
    /// `table[index]` for every row; all indexes are below 16.
    unsafe fn look_up(table: Self::Bytes, index: Self::Bytes) -> Self::Bytes;
    /// Sums to which `planes` biased entries will be added: minus the bias of all of them.
    unsafe fn sums(planes: usize) -> Self::Sums;
    /// Adds an entry, an unsigned byte, modulo 2^16.
    unsafe fn add(sums: Self::Sums, entries: Self::Bytes) -> Self::Sums;
    /// `total[row] += scale * sums[row]`, rounded once, the sums read as signed: 32 rows per tile.
    unsafe fn flush(sums: Self::Sums, scale: f32, total: *mut f32);
    /// Asks for the cache line at `at`, which need not be a valid address.
    unsafe fn prefetch(at: *const u8);
}
