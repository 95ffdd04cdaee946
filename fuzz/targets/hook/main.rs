//! Arbitrary sidecars through the C ABI of the hook. They are made sound and then damaged, since bytes alone would
//! hardly ever get past the first check. What is accepted must compute: the same numbers on one thread and on
//! three, finite ones from finite inputs.
#![no_main]

mod sidecars;

use std::ffi::c_char;

use libfuzzer_sys::arbitrary::{Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use sidecars::{F16, Host};
use statecells_hook::{
    Matrix, StatecellsFinding, StatecellsPlan, statecells_apply, statecells_check, statecells_matrix_free,
    statecells_matrix_new, statecells_plan_matrix, statecells_prepare,
};

/// No sound case needs more between prepare and apply.
const MAX_PREPARED: i64 = 1 << 22;

fuzz_target!(|data: &[u8]| {
    // Running out of bytes only ends a case early.
    let _ = case(&mut Unstructured::new(data));
});

fn case(u: &mut Unstructured<'_>) -> Result<()> {
    let host = Host::arbitrary(u)?;
    let plan = plan(&host);
    let Some(matrix) = open(&host) else { return Ok(()) };
    let plan = plan.expect("a matrix that is accepted has a plan");
    let n_tokens = u.int_in_range(0..=5)?;
    let wild = u.ratio(1, 8)?;
    let x: Vec<f32> = (0..host.d_in * n_tokens)
        .map(|_| Ok(if wild { f32::from_bits(u.arbitrary()?) } else { f32::from(u.arbitrary::<i8>()?) }))
        .collect::<Result<_>>()?;
    let one = product(&host, &plan, matrix, &x, 1);
    let three = product(&host, &plan, matrix, &x, 3);
    // SAFETY: it came from statecells_matrix_new and nothing uses it any more.
    unsafe { statecells_matrix_free(matrix) };
    let bits = |y: &[f32]| y.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    if !wild && host.is_moderate() {
        assert!(one.iter().all(|v| v.is_finite()), "{:?}: finite inputs, other outputs", host.scheme);
        assert_eq!(bits(&one), bits(&three), "{:?}: one thread and three differ", host.scheme);
    }
    Ok(())
}

/// The plan, from descriptions without data.
fn plan(host: &Host) -> Option<StatecellsPlan> {
    let mut raw = host.raw();
    raw.iter_mut().for_each(|t| (t.data, t.n_bytes) = (std::ptr::null(), 0));
    let mut plan = StatecellsPlan::default();
    let mut error = [0 as c_char; 64];
    // SAFETY: C strings, live descriptions, a writable plan and 64 bytes for the error.
    let status = unsafe {
        let (d_in, d_out) = (host.d_in as i64, host.d_out as i64);
        let (text, n) = (error.as_mut_ptr(), error.len());
        statecells_plan_matrix(host.scheme.as_ptr(), d_in, d_out, raw.as_ptr(), raw.len(), &mut plan, text, n)
    };
    assert_eq!(status == 0, error[0] == 0, "an error without a reason, or a reason without an error");
    (status == 0).then_some(plan)
}

fn open(host: &Host) -> Option<*mut Matrix> {
    let raw = host.raw();
    let mut error = [0 as c_char; 64];
    // SAFETY: C strings and live buffers; `host` outlives the matrix.
    let matrix = unsafe {
        let (d_in, d_out) = (host.d_in as i64, host.d_out as i64);
        let (text, n) = (error.as_mut_ptr(), error.len());
        statecells_matrix_new(host.scheme.as_ptr(), d_in, d_out, raw.as_ptr(), raw.len(), text, n)
    };
    assert_eq!(matrix.is_null(), error[0] != 0);
    (!matrix.is_null()).then_some(matrix)
}

/// The product the way the graph computes it with `nth` threads.
fn product(host: &Host, plan: &StatecellsPlan, matrix: *mut Matrix, x: &[f32], nth: i32) -> Vec<f32> {
    let n_tokens = (x.len() / host.d_in) as i64;
    let element = if plan.prepared_type == sidecars::F32 { 4 } else { 1 };
    let n_columns = plan.prepared_columns * n_tokens;
    let n_bytes = plan.prepared_ne0 * element * n_columns;
    assert!((0..=MAX_PREPARED).contains(&n_bytes), "{n_bytes} bytes between prepare and apply");
    // F32 elements, so that the buffer is aligned like a ggml tensor.
    let mut prepared = vec![0.0f32; (n_bytes as usize).div_ceil(4)];
    let mut statuses = 0;
    for ith in (0..nth).filter(|_| plan.prepared_ne0 > 0) {
        // SAFETY: a live matrix and buffers of the promised sizes.
        statuses |= unsafe {
            let out = prepared.as_mut_ptr().cast();
            statecells_prepare(matrix, x.as_ptr(), n_tokens, out, n_bytes as usize, ith, nth)
        };
    }
    let input = match (plan.project, plan.prepared_ne0) {
        (0, _) => prepared,
        (_, 0) => project(host, x),
        (_, _) => project(host, &prepared),
    };
    let n_bytes = if plan.project == 0 { n_bytes as usize } else { size_of_val(&input[..]) };
    let mut y = vec![f32::NAN; host.d_out * n_tokens as usize];
    let mut found = 0;
    for ith in 0..nth {
        let mut finding = StatecellsFinding::default();
        // SAFETY: as above; the finding is writable.
        unsafe {
            let p = input.as_ptr().cast();
            statuses |= statecells_apply(matrix, x.as_ptr(), p, n_bytes, n_tokens, y.as_mut_ptr(), ith, nth);
            found += statecells_check(matrix, x.as_ptr(), y.as_ptr(), n_tokens, ith, nth, &mut finding);
        }
    }
    assert_eq!(statuses, 0, "an accepted matrix does not compute");
    let finite = x.iter().chain(&y).all(|v| v.is_finite());
    assert_eq!(found == 0, finite, "the check and the values do not agree");
    y
}

/// `ggml_mul_mat(dict, x)`, with ggml's rounding of inputs to F16 for a dictionary in F16.
fn project(host: &Host, x: &[f32]) -> Vec<f32> {
    let dict = host.find("dict").expect("a plan with a projection has a dictionary");
    let atoms = dict.values();
    let round = |v: f32| if dict.ty == F16 { half::f16::from_f32(v).to_f32() } else { v };
    let dot = |x: &[f32], atom: &[f32]| x.iter().zip(atom).map(|(x, a)| round(*x) * a).sum::<f32>();
    let columns = x.chunks_exact(host.d_in);
    columns.flat_map(|x| atoms.chunks_exact(host.d_in).map(move |a| dot(x, a)).collect::<Vec<_>>()).collect()
}
