//! A graph of products with one input, run again and again.

use std::marker::PhantomData;

use format::{ElementType, MatrixShape};
use ggml_sys as sys;

use super::memory::{Buffer, MemoryKind, Resident};
use super::{Factor, ProductError, Routing, ThreadPool};
use crate::Type;
use crate::arena::Arena;

/// Nodes and leaves that a factor adds to a graph, at most.
const NODES_PER_FACTOR: usize = 6;

/// The products of several matrices of one shape with the same input, one after the other.
///
/// They share the memory for intermediate and final results, as the nodes of a model's graph do.
#[derive(Debug)]
pub struct Products<'a> {
    graph: *mut sys::ggml_cgraph,
    plan: sys::ggml_cplan,
    factors: &'a [Factor],
    y: *const f32,
    n_outputs: usize,
    /// What the raw pointers above lead to.
    _memory: Memory,
    _work: Vec<Line>,
    _pool: PhantomData<&'a ThreadPool>,
}

#[derive(Debug)]
struct Memory {
    _arena: Arena,
    _x: Resident,
    _ids: Vec<Resident>,
    _results: Buffer,
    _scratch: Vec<Buffer>,
}

/// A cache line of work memory.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
#[allow(dead_code, reason = "only ggml reads and writes it")]
struct Line([u8; 64]);

/// What the nodes of a graph under construction share.
pub(super) struct Nodes<'a> {
    pub arena: &'a mut Arena,
    pub x: *mut sys::ggml_tensor,
    /// Memory for each intermediate step, large enough for every factor.
    #[cfg_attr(not(feature = "hook"), allow(dead_code, reason = "dense products have one step"))]
    pub scratch: &'a [Buffer],
}

impl<'a> Products<'a> {
    /// The products of `factors` with `x` on the threads of `pool`.
    ///
    /// # Shapes
    /// Each factor: [d_in, d_out], `x`: [d_in, n_tokens].
    ///
    /// # Errors
    /// [`ProductError`] if there is no factor, shapes do not agree or memory is short.
    pub fn new(
        pool: &'a ThreadPool,
        factors: &'a [Factor],
        x: &[f32],
    ) -> Result<Self, ProductError> {
        Self::with(pool, factors, x, &[])
    }

    /// The products of `factors`, which have experts, with `x`, by each of `routings` in turn.
    ///
    /// # Shapes
    /// Each factor: [d_in, d_out, n_experts], `x`: [d_in, n_tokens], y: [d_out, n_used, n_tokens].
    ///
    /// # Errors
    /// As [`Self::new`], or if a routing names experts that a factor has not.
    pub fn routed(
        pool: &'a ThreadPool,
        factors: &'a [Factor],
        x: &[f32],
        routings: &[Routing],
    ) -> Result<Self, ProductError> {
        if routings.is_empty() {
            return Err(ProductError::Range("number of routings"));
        }
        Self::with(pool, factors, x, routings)
    }

    fn with(
        pool: &'a ThreadPool,
        factors: &'a [Factor],
        x: &[f32],
        routings: &[Routing],
    ) -> Result<Self, ProductError> {
        let (shape, n_tokens) = check(factors, x)?;
        check_routings(factors, n_tokens, routings)?;
        let n_used = routings.iter().map(|routing| routing.n_used).max();
        let n_outputs = shape.d_out.checked_mul(n_tokens);
        let n_outputs = n_outputs.and_then(|n| n.checked_mul(n_used.unwrap_or(1)));
        let n_outputs = n_outputs.ok_or(ProductError::Range("the result"))?;
        let y_bytes = Type::F32.row_bytes(n_outputs).ok_or(ProductError::Range("the result"))?;
        let dims = match n_used {
            Some(_) => vec![shape.d_in, 1, n_tokens],
            None => vec![shape.d_in, n_tokens],
        };
        let x = Resident::new(MemoryKind::plain(), Type::F32, &dims, as_bytes(x))?;
        let ids = routings.iter().map(|r| place_ids(r, n_tokens)).collect::<Result<Vec<_>, _>>()?;
        let mut results = Buffer::new(MemoryKind::plain(), y_bytes)?;
        results.clear();
        let scratch = scratch(factors, n_tokens)?;

        let capacity = factors.len() * NODES_PER_FACTOR * routings.len().max(1) + 2;
        // SAFETY: no preconditions.
        let graph_bytes = unsafe { sys::ggml_graph_overhead_custom(capacity, false) };
        let mut arena = Arena::new(capacity, graph_bytes);
        // SAFETY: the arena has room for the graph and all tensors; all pointers lead to memory that this
        // value owns or borrows for 'a. Every tensor of the graph gets data that is large enough: `results`
        // holds [d_out, n_tokens] floats, `scratch` what the factors asked for.
        let (graph, y) = unsafe {
            let graph = sys::ggml_new_graph_custom(arena.as_mut_ptr(), capacity, false);
            let mut nodes = Nodes { arena: &mut arena, x: x.as_ptr(), scratch: &scratch };
            let mut y = std::ptr::null();
            // One after the other: without experts no ids, once.
            let of_plain = routings.is_empty().then(std::ptr::null_mut);
            for ids in ids.iter().map(Resident::as_ptr).chain(of_plain) {
                for factor in factors {
                    let product = append(&mut nodes, factor, ids);
                    results.place(product);
                    y = (*product).data.cast::<f32>().cast_const();
                    sys::ggml_build_forward_expand(graph, product);
                }
            }
            (graph, y)
        };
        // SAFETY: the graph is complete.
        let mut plan = unsafe { pool.plan(graph) };
        let mut work = vec![Line([0; 64]); plan.work_size.div_ceil(size_of::<Line>())];
        plan.work_data = work.as_mut_ptr().cast();
        let memory =
            Memory { _arena: arena, _x: x, _ids: ids, _results: results, _scratch: scratch };
        Ok(Self {
            graph,
            plan,
            factors,
            y,
            n_outputs,
            _memory: memory,
            _work: work,
            _pool: PhantomData,
        })
    }

    /// Computes all products, in order.
    ///
    /// # Errors
    /// [`ProductError::Hook`] if the hook refused a call.
    pub fn run(&mut self) -> Result<(), ProductError> {
        // SAFETY: the graph and the plan are valid as long as `self`, and `&mut self` keeps others away;
        // the pool is borrowed, and neither it nor `self` can be in another thread (raw pointers).
        let status = unsafe { sys::ggml_graph_compute(self.graph, &raw mut self.plan) };
        assert_eq!(status, sys::GGML_STATUS_SUCCESS, "a graph without callbacks cannot be aborted");
        let failed = self.factors.iter().any(|factor| match factor {
            Factor::Dense(_) => false,
            #[cfg(feature = "hook")]
            Factor::Coded(w) => w.has_failed(),
            #[cfg(feature = "hook")]
            Factor::CodedExperts(w) => w.has_failed(),
        });
        if failed {
            return Err(ProductError::Hook("the hook refused a call".to_owned()));
        }
        Ok(())
    }

    /// The product with the last factor, [d_out, n_tokens]; anything before the first run.
    #[must_use]
    pub fn output(&self) -> &[f32] {
        // SAFETY: the results buffer holds that many floats (zeroed or computed), and only `run`, which
        // needs `&mut self`, writes to it.
        unsafe { std::slice::from_raw_parts(self.y, self.n_outputs) }
    }
}

/// Shape of the factors and number of tokens, all checked.
fn check(factors: &[Factor], x: &[f32]) -> Result<(MatrixShape, usize), ProductError> {
    let shape =
        factors.first().map(Factor::shape).ok_or(ProductError::Range("number of factors"))?;
    for factor in factors {
        let (expected, got) = (shape, factor.shape());
        if got.d_in != expected.d_in {
            let (expected, got) = (expected.d_in, got.d_in);
            return Err(ProductError::Size { what: "inputs of a factor", expected, got });
        }
        if got.d_out != expected.d_out {
            let (expected, got) = (expected.d_out, got.d_out);
            return Err(ProductError::Size { what: "outputs of a factor", expected, got });
        }
    }
    let n_tokens = x.len() / shape.d_in;
    if n_tokens == 0 {
        return Err(ProductError::Range("number of tokens"));
    }
    if n_tokens * shape.d_in != x.len() {
        let expected = n_tokens * shape.d_in;
        return Err(ProductError::Size { what: "input values", expected, got: x.len() });
    }
    Ok((shape, n_tokens))
}

/// One buffer for each intermediate step of the factors.
#[cfg_attr(not(feature = "hook"), allow(unused_variables))]
fn scratch(factors: &[Factor], n_tokens: usize) -> Result<Vec<Buffer>, ProductError> {
    let mut sizes: Vec<usize> = Vec::new();
    for factor in factors {
        let steps = match factor {
            Factor::Dense(_) => Vec::new(),
            #[cfg(feature = "hook")]
            Factor::Coded(w) => w.intermediate_bytes(n_tokens)?,
            #[cfg(feature = "hook")]
            Factor::CodedExperts(w) => w.intermediate_bytes(n_tokens)?,
        };
        sizes.resize(sizes.len().max(steps.len()), 1);
        sizes.iter_mut().zip(steps).for_each(|(size, step)| *size = (*size).max(step));
    }
    sizes.into_iter().map(|n_bytes| Buffer::new(MemoryKind::plain(), n_bytes)).collect()
}

/// The nodes of one product; the last one, still without data, is returned.
///
/// # Safety
/// The arena has room for [`NODES_PER_FACTOR`] tensors, the factor has the inputs of `x` and outlives the
/// graph, and `scratch` was made for it; `ids` are live where the factor has experts.
unsafe fn append(
    nodes: &mut Nodes<'_>,
    factor: &Factor,
    ids: *mut sys::ggml_tensor,
) -> *mut sys::ggml_tensor {
    match factor {
        // SAFETY: matrices, input and ids agree (checked), and the type has a product.
        Factor::Dense(w) if w.n_experts().is_some() => unsafe {
            sys::ggml_mul_mat_id(nodes.arena.as_mut_ptr(), w.as_ptr(), nodes.x, ids)
        },
        // SAFETY: matrix and input agree in their first dimension, and the type has a product.
        Factor::Dense(w) => unsafe {
            sys::ggml_mul_mat(nodes.arena.as_mut_ptr(), w.as_ptr(), nodes.x)
        },
        // SAFETY: promised by the caller.
        #[cfg(feature = "hook")]
        Factor::Coded(w) => unsafe { w.append(nodes) },
        // SAFETY: promised by the caller.
        #[cfg(feature = "hook")]
        Factor::CodedExperts(w) => unsafe { w.append(nodes, ids) },
    }
}

/// Checks that every routing has the experts of every token, and none that a factor has not.
fn check_routings(
    factors: &[Factor],
    n_tokens: usize,
    routings: &[Routing],
) -> Result<(), ProductError> {
    for factor in factors {
        if factor.n_experts().is_some() == routings.is_empty() {
            return Err(ProductError::Range("number of routings"));
        }
    }
    let n_experts = factors.iter().filter_map(Factor::n_experts).min().unwrap_or(0);
    let exists = |id: &i32| usize::try_from(*id).is_ok_and(|id| id < n_experts);
    for Routing { n_used, ids } in routings {
        let expected = n_used.saturating_mul(n_tokens);
        if ids.len() != expected || *n_used == 0 || *n_used > n_experts {
            return Err(ProductError::Size { what: "ids of experts", expected, got: ids.len() });
        }
        if !ids.iter().all(exists) {
            return Err(ProductError::Range("an expert's number"));
        }
    }
    Ok(())
}

fn place_ids(routing: &Routing, n_tokens: usize) -> Result<Resident, ProductError> {
    let bytes: Vec<u8> = routing.ids.iter().flat_map(|id| id.to_ne_bytes()).collect();
    let dims = [routing.n_used, n_tokens];
    Resident::new(MemoryKind::plain(), Type::from(ElementType::I32), &dims, &bytes)
}

fn as_bytes(x: &[f32]) -> &[u8] {
    // SAFETY: the same memory; any bytes are valid `u8`s.
    unsafe { std::slice::from_raw_parts(x.as_ptr().cast(), size_of_val(x)) }
}
