//! A host of the C ABI: owns sidecars, describes them, runs products the way the graph does.
#![allow(dead_code)] // every test uses some of it

use std::ffi::{CStr, CString, c_char};

use half::f16;
use statecells_hook::*;

pub const F32: i32 = 0;
pub const F16: i32 = 1;
pub const I8: i32 = 24;
pub const I32: i32 = 26;
pub const BLOCK: usize = 8;
pub const ATOMS: usize = 16;

/// Owned sidecars of one [d_in, d_out] matrix.
pub struct Host {
    pub scheme: &'static str,
    pub d_in: usize,
    pub d_out: usize,
    pub suffixes: Vec<CString>,
    pub tensors: Vec<(i32, [i64; 4], Vec<u8>)>,
}

/// What the threads of a product share, as ggml's threads do.
pub struct Shared<T>(pub *mut T);

// SAFETY: the hook promises that its threads write to no common element; scripts/sanitize.sh looks.
unsafe impl<T> Sync for Shared<T> {}

impl<T> Shared<T> {
    pub fn get(&self) -> *mut T {
        self.0
    }
}

/// Runs `work` on `nth` threads at the same time, each with its number, and waits for all.
pub fn on_threads(nth: i32, work: impl Fn(i32) + Sync) {
    std::thread::scope(|scope| {
        let work = &work;
        let others: Vec<_> = (1..nth).map(|ith| scope.spawn(move || work(ith))).collect();
        work(0);
        // Tools that look for races see this wait, and not the one at the end of the scope, which is inside std.
        others.into_iter().for_each(|thread| thread.join().unwrap());
    });
}

pub fn halves(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect()
}

impl Host {
    pub fn new(scheme: &'static str, d_in: usize, d_out: usize) -> Self {
        Self { scheme, d_in, d_out, suffixes: vec![], tensors: vec![] }
    }

    pub fn add(&mut self, suffix: &str, ty: i32, dims: &[usize], data: Vec<u8>) {
        let mut ne = [1; 4];
        ne.iter_mut().zip(dims).for_each(|(n, d)| *n = *d as i64);
        self.suffixes.push(CString::new(suffix).unwrap());
        self.tensors.push((ty, ne, data));
    }

    /// The tensor `suffix`.
    pub fn tensor(&mut self, suffix: &str) -> &mut (i32, [i64; 4], Vec<u8>) {
        let i = self.suffixes.iter().position(|s| s.to_str() == Ok(suffix)).unwrap();
        &mut self.tensors[i]
    }

    pub fn raw(&self) -> Vec<StatecellsTensor> {
        let describe =
            |(suffix, (ty, ne, data)): (&CString, &(i32, [i64; 4], Vec<u8>))| StatecellsTensor {
                suffix: suffix.as_ptr(),
                ggml_type: *ty,
                ne: *ne,
                data: data.as_ptr().cast(),
                n_bytes: data.len(),
            };
        self.suffixes.iter().zip(&self.tensors).map(describe).collect()
    }

    /// The plan, from descriptions without data.
    pub fn plan(&self) -> StatecellsPlan {
        let mut raw = self.raw();
        raw.iter_mut().for_each(|t| (t.data, t.n_bytes) = (std::ptr::null(), 0));
        let (scheme, mut plan) = (CString::new(self.scheme).unwrap(), StatecellsPlan::default());
        // SAFETY: C string, live descriptions, writable plan; no error text is wanted.
        let status = unsafe {
            statecells_plan_matrix(
                scheme.as_ptr(),
                self.d_in as i64,
                self.d_out as i64,
                raw.as_ptr(),
                raw.len(),
                &mut plan,
                std::ptr::null_mut(),
                0,
            )
        };
        assert_eq!(status, 0);
        plan
    }

    /// The matrix, or the reason why it is refused.
    pub fn open(&self) -> Result<*mut Matrix, String> {
        let (scheme, raw) = (CString::new(self.scheme).unwrap(), self.raw());
        let mut error = [0 as c_char; 256];
        // SAFETY: C strings and live buffers; `self` outlives the matrix in every test.
        let matrix = unsafe {
            statecells_matrix_new(
                scheme.as_ptr(),
                self.d_in as i64,
                self.d_out as i64,
                raw.as_ptr(),
                raw.len(),
                error.as_mut_ptr(),
                error.len(),
            )
        };
        if matrix.is_null() {
            // SAFETY: the library ends the text with a zero.
            Err(unsafe { CStr::from_ptr(error.as_ptr()) }.to_str().unwrap().to_owned())
        } else {
            Ok(matrix)
        }
    }

    /// `W^ x` the way the graph computes it with `nth` threads: prepare, `project`, apply and check.
    ///
    /// `project` stands for `ggml_mul_mat(dict, .)`: it gets what prepare wrote and gives [M, n_tokens].
    pub fn product(&self, x: &[f32], nth: i32, project: impl Fn(&[f32]) -> Vec<f32>) -> Vec<f32> {
        let matrix = Shared(self.open().unwrap());
        let y = self.product_by(&matrix, x, nth, project);
        // SAFETY: made above, freed once.
        unsafe { statecells_matrix_free(matrix.get()) };
        y
    }

    /// The same by a matrix that is made already.
    pub fn product_by(
        &self,
        matrix: &Shared<Matrix>,
        x: &[f32],
        nth: i32,
        project: impl Fn(&[f32]) -> Vec<f32>,
    ) -> Vec<f32> {
        let (plan, n_tokens) = (self.plan(), (x.len() / self.d_in) as i64);
        // F32 elements, so that the buffer is aligned like a ggml tensor.
        let element = if plan.prepared_type == F32 { 4 } else { 1 };
        let n_columns = (plan.prepared_columns * n_tokens) as usize;
        let n_bytes = plan.prepared_ne0 as usize * element * n_columns;
        let mut prepared = vec![0.0f32; n_bytes.div_ceil(4)];
        let out = Shared(prepared.as_mut_ptr());
        if n_bytes > 0 {
            on_threads(nth, |ith| {
                // SAFETY: live matrix and buffers of the promised sizes.
                let status = unsafe {
                    let out = out.get().cast();
                    statecells_prepare(matrix.get(), x.as_ptr(), n_tokens, out, n_bytes, ith, nth)
                };
                assert_eq!(status, 0);
            });
        }
        let (input, n_bytes) = match (plan.project, n_bytes) {
            (0, _) => (prepared, n_bytes),
            (_, 0) => (project(x), 0),
            (_, _) => (project(&prepared), 0),
        };
        let n_bytes = if plan.project == 0 { n_bytes } else { size_of_val(&input[..]) };
        let mut y = vec![f32::NAN; self.d_out * n_tokens as usize];
        let out = Shared(y.as_mut_ptr());
        on_threads(nth, |ith| {
            let (matrix, y, mut finding) = (matrix.get(), out.get(), StatecellsFinding::default());
            // SAFETY: as above.
            let (status, found) = unsafe {
                let (x, p) = (x.as_ptr(), input.as_ptr().cast());
                let status = statecells_apply(matrix, x, p, n_bytes, n_tokens, y, ith, nth);
                (status, statecells_check(matrix, x, y, n_tokens, ith, nth, &mut finding))
            };
            assert_eq!((status, found), (0, 0));
        });
        y
    }

    /// Checks that the matrix is refused for a reason that contains `expected`.
    pub fn is_refused(&self, expected: &str) {
        let error = self.open().unwrap_err();
        assert!(error.contains(expected), "{error}\ndoes not say: {expected}");
    }
}

/// A matrix with its sidecars and its weights by the definition in docs/format.md.
pub struct Coded {
    pub host: Host,
    pub weights: Vec<f32>,
}

/// Numbers in [-1, 1) without any pattern that a wrong layout would keep.
pub fn noise(seed: u32) -> impl FnMut() -> f32 {
    let mut state = seed;
    move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    }
}

/// A random matrix of the scheme `sections`.
pub fn coded(d_in: usize, d_out: usize, sections: usize, outliers: &[(usize, f32)]) -> Coded {
    let half = |v: f32| f16::from_f32(v).to_f32();
    let mut next = noise((d_in * d_out * sections) as u32);
    let atoms: Vec<f32> = (0..BLOCK * ATOMS * sections).map(|_| half(next())).collect();
    let scales: Vec<f32> = (0..d_out).map(|_| half(next())).collect();
    let (blocks, tiles) = (d_in.div_ceil(BLOCK), d_out.div_ceil(32));
    let pairs = (blocks * sections).div_ceil(2);
    let mut codes = vec![0u8; 32 * pairs * tiles];
    let mut weights = vec![0.0; d_in * d_out];
    for r in 0..32 * tiles {
        for plane in 0..blocks * sections {
            let winner = ((next() + 1.0) * 8.0) as usize;
            let byte = (r / 32 * pairs + plane / 2) * 32 + r % 32;
            codes[byte] |= (winner << (4 * (plane % 2))) as u8;
            let (block, section) = (plane / sections, plane % sections);
            for j in (0..BLOCK).filter(|j| r < d_out && block * BLOCK + j < d_in) {
                let atom = atoms[(section * ATOMS + winner) * BLOCK + j];
                weights[r * d_in + block * BLOCK + j] += scales[r] * atom;
            }
        }
    }
    let mut host = Host::new("sections", d_in, d_out);
    host.add("dict", F16, &[BLOCK, ATOMS, sections], halves(&atoms));
    host.add("codes", I8, &[32, pairs, tiles], codes);
    host.add("row_scale", F16, &[d_out], halves(&scales));
    if !outliers.is_empty() {
        let idx = outliers.iter().flat_map(|(i, _)| (*i as i32).to_le_bytes()).collect();
        let vals: Vec<f32> = outliers.iter().map(|(_, v)| *v).collect();
        host.add("outlier_idx", I32, &[outliers.len()], idx);
        host.add("outlier_val", F16, &[outliers.len()], halves(&vals));
        outliers.iter().for_each(|(i, v)| weights[*i] += half(*v));
    }
    Coded { host, weights }
}
