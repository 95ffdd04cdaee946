//! Experts through the C ABI: every slot gets the rows of its expert for its column, whatever the threads.

mod common;

use std::ffi::{CStr, CString, c_char};

use common::{Coded, Host, Shared, coded, noise, on_threads};
use statecells_hook::*;

const D_IN: usize = 45;
const D_OUT: usize = 64;
const N_EXPERTS: usize = 6;
const SECTIONS: usize = 6;

/// The matrices of all experts; outliers are counted through the rows of all.
fn stacked(outliers: &[(usize, f32)]) -> Coded {
    coded(D_IN, N_EXPERTS * D_OUT, SECTIONS, outliers)
}

fn open_as(host: &Host, d_out: usize, n_experts: i64) -> Result<*mut Experts, String> {
    let (scheme, raw) = (CString::new(host.scheme).unwrap(), host.raw());
    let mut error = [0 as c_char; 256];
    // SAFETY: C strings and live buffers; `host` outlives the matrices in every test.
    let experts = unsafe {
        let (error, size) = (error.as_mut_ptr(), error.len());
        let (raw, n) = (raw.as_ptr(), raw.len());
        statecells_experts_new(
            scheme.as_ptr(),
            D_IN as i64,
            d_out as i64,
            n_experts,
            raw,
            n,
            error,
            size,
        )
    };
    if experts.is_null() {
        // SAFETY: the library ends the text with a zero.
        return Err(unsafe { CStr::from_ptr(error.as_ptr()) }.to_str().unwrap().to_owned());
    }
    Ok(experts)
}

/// What a call is about.
struct Call {
    x: Vec<f32>,
    ids: Vec<i32>,
    n_used: usize,
    n_tokens: usize,
    stride: usize,
}

impl Call {
    /// `n_tokens` tokens; of every one `expert(token, j)` is the j-th expert.
    fn new(
        own_columns: bool,
        (n_used, n_tokens): (usize, usize),
        expert: impl Fn(usize, usize) -> usize,
    ) -> Self {
        let (mut next, stride) = (noise(5), n_used + 1);
        let n_columns = n_tokens * if own_columns { n_used } else { 1 };
        let ids = (0..n_tokens * stride).map(|i| match (i / stride, i % stride) {
            (_, j) if j == n_used => i32::MAX, // between the tokens: nobody looks
            (token, j) => expert(token, j) as i32,
        });
        let x = (0..n_columns * D_IN).map(|_| next()).collect();
        Self { x, ids: ids.collect(), n_used, n_tokens, stride }
    }

    fn raw(&self) -> StatecellsRouted {
        StatecellsRouted {
            x: self.x.as_ptr(),
            ids: self.ids.as_ptr(),
            n_columns: (self.x.len() / D_IN) as i64,
            n_used: self.n_used as i64,
            n_tokens: self.n_tokens as i64,
            ids_stride: self.stride as i64,
        }
    }

    fn expert(&self, slot: usize) -> usize {
        self.ids[slot / self.n_used * self.stride + slot % self.n_used] as usize
    }

    fn column(&self, slot: usize) -> &[f32] {
        let own = self.x.len() / D_IN > self.n_tokens;
        let column = if own { slot } else { slot / self.n_used };
        &self.x[column * D_IN..][..D_IN]
    }
}

/// The statuses of all threads, and the result.
fn run(experts: *mut Experts, host: &Host, call: &Call, nth: i32) -> (Vec<[i32; 3]>, Vec<f32>) {
    let (routed, n_bytes) = (call.raw(), plan(host).prepared_ne0 as usize * call.x.len() / D_IN);
    let mut prepared = vec![0u8; n_bytes];
    let mut y = vec![-1.0; call.n_used * call.n_tokens * D_OUT];
    let (experts, prepared, y_out) =
        (Shared(experts), Shared(prepared.as_mut_ptr()), Shared(y.as_mut_ptr()));
    let statuses = std::sync::Mutex::new(vec![[0; 3]; nth as usize]);
    let routed = std::sync::Mutex::new(routed); // raw pointers do not go to other threads by themselves
    let get = || Shared(std::ptr::from_ref(&*routed.lock().unwrap()).cast_mut());
    let routed = get();
    on_threads(nth, |ith| {
        // SAFETY: live matrices and buffers of the promised sizes.
        let status = unsafe {
            let out = prepared.get().cast();
            statecells_prepare_experts(experts.get(), routed.get(), out, n_bytes, ith, nth)
        };
        statuses.lock().unwrap()[ith as usize][0] = status;
    });
    on_threads(nth, |ith| {
        let mut finding = StatecellsFinding::default();
        // SAFETY: as above.
        let (applied, found) = unsafe {
            let (e, r, p, y) =
                (experts.get(), routed.get(), prepared.get().cast_const().cast(), y_out.get());
            let applied = statecells_apply_experts(e, r, p, n_bytes, y, ith, nth);
            (applied, statecells_check_experts(e, r, y, ith, nth, &mut finding))
        };
        let mut statuses = statuses.lock().unwrap();
        (statuses[ith as usize][1], statuses[ith as usize][2]) = (applied, found);
    });
    (statuses.into_inner().unwrap(), y)
}

fn plan(host: &Host) -> StatecellsPlan {
    let (scheme, raw) = (CString::new(host.scheme).unwrap(), host.raw());
    let mut plan = StatecellsPlan::default();
    // SAFETY: C string, live descriptions, writable plan; no error text is wanted.
    let status = unsafe {
        let (raw, n, error) = (raw.as_ptr(), raw.len(), std::ptr::null_mut());
        let (d_in, d_out, n_experts) = (D_IN as i64, D_OUT as i64, N_EXPERTS as i64);
        statecells_plan_experts(
            scheme.as_ptr(),
            d_in,
            d_out,
            n_experts,
            raw,
            n,
            &mut plan,
            error,
            0,
        )
    };
    assert_eq!(status, 0);
    plan
}

/// Every slot is bit for bit what the matrix of all rows gives for the columns of its expert.
fn check(coded: &Coded, call: &Call) {
    let experts = open_as(&coded.host, D_OUT, N_EXPERTS as i64).unwrap();
    for nth in [1, 2, 5] {
        let (statuses, y) = run(experts, &coded.host, call, nth);
        assert!(statuses.iter().all(|s| *s == [0; 3]), "{statuses:?}");
        for expert in 0..N_EXPERTS {
            let slots: Vec<usize> =
                (0..call.n_used * call.n_tokens).filter(|s| call.expert(*s) == expert).collect();
            let x: Vec<f32> = slots.iter().flat_map(|s| call.column(*s)).copied().collect();
            if slots.is_empty() {
                continue;
            }
            let whole = coded.host.product(&x, 1, |_| unreachable!("sections need no projection"));
            for (slot, rows) in slots.iter().zip(whole.chunks(N_EXPERTS * D_OUT)) {
                let (rows, y) = (&rows[expert * D_OUT..][..D_OUT], &y[slot * D_OUT..][..D_OUT]);
                assert!(rows.iter().zip(y).all(|(a, b)| a.to_bits() == b.to_bits()), "slot {slot}");
            }
        }
    }
    // SAFETY: made above, freed once.
    unsafe { statecells_experts_free(experts) };
}

#[test]
fn every_slot_gets_the_rows_of_its_expert() {
    let plain = stacked(&[]);
    for own_columns in [false, true] {
        check(&plain, &Call::new(own_columns, (2, 1), |_, j| 5 * j));
        check(&plain, &Call::new(own_columns, (3, 7), |t, j| (t * t + 2 * j) % N_EXPERTS));
        // One expert that all use, others that nobody does.
        check(&plain, &Call::new(own_columns, (1, 9), |_, _| 3));
        check(&plain, &Call::new(own_columns, (N_EXPERTS, 2), |_, j| j));
    }
    let rows = N_EXPERTS * D_OUT;
    let outliers =
        [(3, 4.0), (D_OUT * D_IN - 1, -9.0), (D_OUT * D_IN, 2.0), (rows * D_IN - 1, 5.0)];
    check(&stacked(&outliers), &Call::new(true, (2, 5), |t, j| (t + 3 * j) % N_EXPERTS));
}

/// Many tokens of one expert are decoded where the machine is fast at that, few of another in the same batch looked up.
#[test]
fn large_batches_and_small_ones_go_side_by_side() {
    let outliers = [(3, 4.0), (D_OUT * D_IN, 2.0)];
    for own_columns in [false, true] {
        let expert = |t: usize, j: usize| if j == 0 { usize::from(t % 10 > 8) } else { 2 + t % 4 };
        check(&stacked(&outliers), &Call::new(own_columns, (2, 120), expert));
    }
}

#[test]
fn an_expert_that_there_is_not_fails_and_nothing_is_written() {
    let coded = stacked(&[]);
    for id in [-1, N_EXPERTS as i32, i32::MAX] {
        let experts = open_as(&coded.host, D_OUT, N_EXPERTS as i64).unwrap();
        let mut call = Call::new(false, (2, 2), |_, j| j);
        call.ids[call.stride + 1] = id;
        let (statuses, y) = run(experts, &coded.host, &call, 2);
        assert!(statuses.iter().all(|s| *s == [1, 1, 0]), "{statuses:?}");
        assert!(y.iter().all(|y| *y == -1.0));
        // SAFETY: made above, freed once.
        unsafe { statecells_experts_free(experts) };
    }
}

/// A thread whose buffer is too short leaves NaN in its share, the other its products; behind a failed preparation there are
/// none any more.
#[test]
fn a_failed_call_leaves_no_number_that_could_be_taken_for_a_product() {
    let coded = stacked(&[]);
    let experts = open_as(&coded.host, D_OUT, N_EXPERTS as i64).unwrap();
    let call = Call::new(false, (2, 3), |token, j| token + j);
    let (statuses, expected) = run(experts, &coded.host, &call, 1);
    assert_eq!(statuses, [[0; 3]]);
    let routed = call.raw();
    let n_bytes = plan(&coded.host).prepared_ne0 as usize * call.n_tokens;
    let mut buffer = vec![0u8; n_bytes];
    let prepared = buffer.as_mut_ptr();
    let prepare = |n_bytes: usize| {
        // SAFETY: live matrices; the buffer is at least as long as is said.
        unsafe { statecells_prepare_experts(experts, &routed, prepared.cast(), n_bytes, 0, 1) }
    };
    let apply = |y: &mut [f32], n_bytes: usize, ith: i32| {
        let (p, y) = (prepared.cast_const().cast(), y.as_mut_ptr());
        // SAFETY: as above; y holds all slots.
        unsafe { statecells_apply_experts(experts, &routed, p, n_bytes, y, ith, 2) }
    };
    assert_eq!(prepare(n_bytes), 0);
    let mut y = vec![-1.0; expected.len()];
    assert_eq!((apply(&mut y, n_bytes - 1, 0), apply(&mut y, n_bytes, 1)), (1, 0));
    let n_void = y.iter().filter(|y| y.is_nan()).count();
    assert!(n_void > 0 && n_void < y.len(), "{n_void} of {}", y.len());
    assert!(y.iter().zip(&expected).all(|(y, expected)| y.is_nan() || y == expected));
    assert_eq!(apply(&mut y, n_bytes, 2), 1);
    assert_eq!(prepare(n_bytes - 1), 1);
    let mut y = vec![-1.0; expected.len()];
    assert_eq!((apply(&mut y, n_bytes, 0), apply(&mut y, n_bytes, 1)), (1, 1));
    assert!(y.iter().all(|y| y.is_nan()));
    // SAFETY: made above, freed once.
    unsafe { statecells_experts_free(experts) };
}

#[test]
fn experts_that_cannot_be_are_refused() {
    let host = stacked(&[]).host;
    let refused = |d_out, n_experts, expected: &str| {
        let error = open_as(&host, d_out, n_experts).unwrap_err();
        assert!(error.contains(expected), "{error}\ndoes not say: {expected}");
    };
    refused(D_OUT, N_EXPERTS as i64 + 1, "codes");
    refused(D_OUT, 0, "experts without rows");
    refused(D_OUT, -1, "experts without rows");
    refused(16, 24, "only multiples of 32");
    refused(D_OUT, i64::MAX, "too large");
    let mut global = Host::new("sign", D_IN, D_OUT);
    global.add("dict", common::F16, &[D_IN, 4], vec![0; D_IN * 8]);
    let error = open_as(&global, D_OUT, 2).unwrap_err();
    assert!(error.contains("scheme 'sign' cannot code experts"), "{error}");
}

#[test]
fn what_is_prepared_is_shared_by_those_with_the_same_dictionary() {
    let open = |host: &Host| open_as(host, D_OUT, N_EXPERTS as i64).unwrap();
    let (a, mut other) = (stacked(&[]).host, stacked(&[(1, 2.0)]).host);
    let (first, second) = (open(&a), open(&other));
    // SAFETY: live matrices.
    let alike = |a, b| unsafe { statecells_experts_prepares_like(a, b) };
    assert_eq!(
        (alike(first, first), alike(first, second), alike(first, std::ptr::null())),
        (1, 1, 0)
    );
    other.tensor("dict").2[0] ^= 1;
    let changed = open(&other);
    assert_eq!(alike(first, changed), 0);
    for experts in [first, second, changed] {
        // SAFETY: made above, freed once.
        unsafe { statecells_experts_free(experts) };
    }
}
