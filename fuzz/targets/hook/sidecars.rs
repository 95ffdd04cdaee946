//! Sidecars of every scheme from arbitrary bytes: first as the format wants them, then damaged.

use std::ffi::CString;

use half::f16;
use libfuzzer_sys::arbitrary::{Result, Unstructured};
use statecells_hook::StatecellsTensor;

/// Types as ggml numbers them.
pub const F32: i32 = 0;
/// F16.
pub const F16: i32 = 1;
const I8: i32 = 24;
const I16: i32 = 25;
const I32: i32 = 26;

/// One sidecar with data of its own, aligned as ggml aligns them.
pub struct Sidecar {
    pub suffix: CString,
    pub ty: i32,
    pub ne: [i64; 4],
    /// The bytes, padded to whole words.
    words: Vec<u64>,
    n_bytes: usize,
}

/// Sidecars of one [d_in, d_out] matrix.
pub struct Host {
    pub scheme: CString,
    pub d_in: usize,
    pub d_out: usize,
    pub sidecars: Vec<Sidecar>,
}

impl Sidecar {
    fn new(suffix: &str, ty: i32, dims: &[usize], bytes: &[u8]) -> Self {
        let mut ne = [1; 4];
        ne.iter_mut().zip(dims).for_each(|(n, d)| *n = *d as i64);
        let word = |c: &[u8]| {
            let mut word = [0; 8];
            word[..c.len()].copy_from_slice(c);
            u64::from_ne_bytes(word)
        };
        let words = bytes.chunks(8).map(word).collect();
        Self { suffix: name(suffix), ty, ne, words, n_bytes: bytes.len() }
    }

    /// The data.
    pub fn bytes(&self) -> impl Iterator<Item = u8> + '_ {
        self.words.iter().flat_map(|w| w.to_ne_bytes()).take(self.n_bytes)
    }

    /// The values of an F16 or F32 tensor.
    pub fn values(&self) -> Vec<f32> {
        let bytes: Vec<u8> = self.bytes().collect();
        match self.ty {
            F16 => bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
            _ => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        }
    }
}

fn name(text: &str) -> CString {
    CString::new(text).expect("no NUL")
}

/// Bits of a number in F16: mostly small, rarely anything.
fn half_bits(u: &mut Unstructured<'_>) -> Result<u16> {
    let byte: u8 = u.arbitrary()?;
    if byte == 0x80 { u.arbitrary() } else { Ok(f16::from_f32(f32::from(byte as i8) / 16.0).to_bits()) }
}

fn halves(u: &mut Unstructured<'_>, n: usize) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(2 * n);
    for _ in 0..n {
        bytes.extend(half_bits(u)?.to_le_bytes());
    }
    Ok(bytes)
}

/// F16 or F32 values of one kind.
fn floats(u: &mut Unstructured<'_>, suffix: &str, dims: &[usize], wide: bool) -> Result<Sidecar> {
    let n = dims.iter().product();
    let bytes = halves(u, n)?;
    if !wide {
        return Ok(Sidecar::new(suffix, F16, dims, &bytes));
    }
    let widen = |b: &[u8]| f16::from_le_bytes([b[0], b[1]]).to_f32().to_le_bytes();
    let bytes: Vec<u8> = bytes.chunks_exact(2).flat_map(widen).collect();
    Ok(Sidecar::new(suffix, F32, dims, &bytes))
}

/// A number of `lo..=hi`, rarely any.
fn mostly(u: &mut Unstructured<'_>, lo: i64, hi: i64) -> Result<i64> {
    if u.arbitrary::<u8>()? == 0xff { Ok(i64::from(u.arbitrary::<i32>()?)) } else { u.int_in_range(lo..=hi) }
}

impl Host {
    /// A matrix of any scheme, with nothing to three things wrong.
    pub fn arbitrary(u: &mut Unstructured<'_>) -> Result<Self> {
        let (d_in, d_out) = (u.int_in_range(1..=40)?, u.int_in_range(1..=70)?);
        Self::of_shape(u, d_in, d_out)
    }

    /// The same for a matrix of `d_in` inputs and `d_out` outputs.
    pub fn of_shape(u: &mut Unstructured<'_>, d_in: usize, d_out: usize) -> Result<Self> {
        let schemes = ["sections", "sign", "sign+row_scale", "sign+vals", "seeddelta", "magic"];
        let scheme = *u.choose(&schemes)?;
        let sidecars = match scheme {
            "sections" => sections(u, d_in, d_out)?,
            "seeddelta" => seeddelta(u, d_in, d_out)?,
            _ => global(u, scheme, d_in, d_out)?,
        };
        let mut host = Self { scheme: name(scheme), d_in, d_out, sidecars };
        for _ in 0..u.int_in_range(0..=3)? {
            host.damage(u)?;
        }
        Ok(host)
    }

    fn damage(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        if self.sidecars.is_empty() {
            return Ok(());
        }
        let at = u.int_in_range(0..=self.sidecars.len() - 1)?;
        let sidecar = &mut self.sidecars[at];
        match u.int_in_range(0..=6)? {
            0 => sidecar.ty = *u.choose(&[F32, F16, I8, I16, I32, 2, -1, i32::MAX])?,
            1 => {
                let wild = [0, 1, 2, -1, 31, 1 << 31, 1 << 62, i64::MAX, i64::MIN];
                sidecar.ne[u.int_in_range(0..=3)?] = *u.choose(&wild)?;
            }
            2 => sidecar.n_bytes = u.int_in_range(0..=sidecar.n_bytes)?,
            3 => drop(self.sidecars.remove(at)),
            4 => {
                let suffixes = ["dict", "codes", "vals", "row_scale", "outlier_idx", "base_v", "delta_val", "x", ""];
                sidecar.suffix = name(u.choose(&suffixes)?);
            }
            5 if sidecar.n_bytes > 0 => {
                let word = u.int_in_range(0..=sidecar.words.len() - 1)?;
                sidecar.words[word] = u.arbitrary()?;
            }
            _ => self.scheme = name(u.choose(&["sign", "sections", "sign+vals", "seeddelta", ""])?),
        }
        Ok(())
    }

    /// Whether no product of small inputs can leave the range of F32. What is stored in F16 cannot.
    pub fn is_moderate(&self) -> bool {
        let wide = self.sidecars.iter().filter(|s| s.ty == F32);
        wide.flat_map(Sidecar::values).all(|v| v.abs() <= 1e6)
    }

    /// The sidecar `suffix`, the first that the hook would find.
    pub fn find(&self, suffix: &str) -> Option<&Sidecar> {
        self.sidecars.iter().find(|s| s.suffix.to_bytes() == suffix.as_bytes())
    }

    /// As the host describes them.
    pub fn raw(&self) -> Vec<StatecellsTensor> {
        let describe = |s: &Sidecar| StatecellsTensor {
            suffix: s.suffix.as_ptr(),
            ggml_type: s.ty,
            ne: s.ne,
            data: s.words.as_ptr().cast(),
            n_bytes: s.n_bytes,
        };
        self.sidecars.iter().map(describe).collect()
    }
}

fn sections(u: &mut Unstructured<'_>, d_in: usize, d_out: usize) -> Result<Vec<Sidecar>> {
    let s = u.int_in_range(1..=5)?;
    let (pairs, tiles) = ((d_in.div_ceil(8) * s).div_ceil(2), d_out.div_ceil(32));
    let mut codes = vec![0; 32 * pairs * tiles];
    let n = codes.len().min(u.len() / 2);
    u.fill_buffer(&mut codes[..n])?;
    let mut all = vec![
        floats(u, "dict", &[8, 16, s], false)?,
        Sidecar::new("codes", I8, &[32, pairs, tiles], &codes),
        floats(u, "row_scale", &[d_out], false)?,
    ];
    let n_exact = u.int_in_range(0..=6)?;
    if n_exact > 0 {
        let mut position = -1;
        let mut places = Vec::new();
        for _ in 0..n_exact {
            position += mostly(u, 1, (d_in * d_out / n_exact).max(1) as i64)?;
            places.extend((position as i32).to_le_bytes());
        }
        all.push(Sidecar::new("outlier_idx", I32, &[n_exact], &places));
        all.push(floats(u, "outlier_val", &[n_exact], false)?);
    }
    Ok(all)
}

fn global(u: &mut Unstructured<'_>, scheme: &str, d_in: usize, d_out: usize) -> Result<Vec<Sidecar>> {
    let m = u.int_in_range(1..=9usize)?;
    let k = u.int_in_range(1..=m)?;
    let wide = u.arbitrary()?;
    let mut codes = Vec::new();
    for _ in 0..k * d_out {
        codes.extend((mostly(u, -(m as i64), m as i64)? as i16).to_le_bytes());
    }
    let mut all =
        vec![floats(u, "dict", &[d_in, m], wide)?, Sidecar::new("codes", I16, &[k, d_out], &codes)];
    match scheme {
        "sign+vals" => all.push(floats(u, "vals", &[k, d_out], false)?),
        "sign+row_scale" => all.push(floats(u, "row_scale", &[d_out], false)?),
        _ => {}
    }
    Ok(all)
}

fn seeddelta(u: &mut Unstructured<'_>, d_in: usize, d_out: usize) -> Result<Vec<Sidecar>> {
    let n = d_in.max(d_out);
    let wide = u.arbitrary()?;
    let mut all = Vec::new();
    match u.int_in_range(0..=5)? {
        0 => all.push(floats(u, "base_scale", &[1], wide)?),
        1 => all.push(floats(u, "base_diag", &[n], wide)?),
        2 => {
            let k = u.int_in_range(1..=d_in.min(d_out).min(4))?;
            all.push(floats(u, "base_v", &[d_in, k], wide)?);
            all.push(floats(u, "base_u", &[k, d_out], wide)?);
        }
        3 => all.push(floats(u, "base_circ", &[n], wide)?),
        4 => {
            let b = u.int_in_range(1..=5usize)?;
            let tiles = d_in.div_ceil(b).max(d_out.div_ceil(b));
            all.push(floats(u, "base_block", &[b, b, tiles], wide)?);
        }
        _ => {}
    }
    if !all.is_empty() && u.arbitrary()? {
        all.push(floats(u, "row_scale", &[d_out], false)?);
    }
    let k = u.int_in_range(0..=d_in.min(4))?;
    if k > 0 {
        let mut columns = Vec::new();
        for _ in 0..d_out {
            let mut column = -1;
            for _ in 0..k {
                column += mostly(u, 1, (d_in / k).max(1) as i64)?;
                columns.extend((column as i16).to_le_bytes());
            }
        }
        all.push(Sidecar::new("delta_idx", I16, &[k, d_out], &columns));
        all.push(floats(u, "delta_val", &[k, d_out], false)?);
    }
    Ok(all)
}
