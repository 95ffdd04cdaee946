//! The matrices that are measured.

use anyhow::{Context, Result, bail};
use format::ExpertStack;
use ggml::Type;
use ggml::product::{CodedExperts, CodedWeight, Factor, Weight};

use crate::bench::data;
use crate::bench::order::{Experts, Order};

/// One kind of matrix, in as many copies as it takes to leave the cache.
#[derive(Debug)]
pub struct Contender {
    /// The scheme, or ggml's name of the type.
    pub name: &'static str,
    /// The type; `None` for ours.
    pub ty: Option<Type>,
    /// ggml's name for the memory, which tells the layout.
    pub memory: &'static str,
    /// The copies.
    pub copies: Vec<Factor>,
}

impl Contender {
    /// Bytes of one copy, all of which a product reads.
    pub fn n_bytes(&self) -> usize {
        self.copies.first().map_or(0, Factor::n_bytes)
    }
}

/// Ours first, then every type in every layout that llama.cpp has for it here.
pub(super) fn prepare(order: &Order) -> Result<Vec<Contender>> {
    check_memory(order)?;
    let mut contenders = vec![coded(order)?];
    for &ty in &order.against {
        contenders.extend(dense(order, ty).with_context(|| format!("--against {ty}"))?);
    }
    Ok(contenders)
}

fn coded(order: &Order) -> Result<Contender> {
    let scheme = order.coded.scheme();
    let shape = order.stacked();
    let sidecars = data::sidecars(&order.coded.sidecars(shape)?, shape);
    let n_bytes = sidecars.iter().map(|s| s.data.len()).sum();
    let copy = || match order.experts {
        None => Ok(Factor::Coded(CodedWeight::new(scheme, shape, &sidecars)?)),
        Some(Experts { n: n_experts, .. }) => {
            let stack = ExpertStack { each: order.shape, n_experts };
            Ok(Factor::CodedExperts(CodedExperts::new(scheme, stack, &sidecars)?))
        }
    };
    let copies = (0..order.n_copies(n_bytes)).map(|_| copy()).collect::<Result<_>>();
    let copies = copies.with_context(|| format!("--scheme {scheme}"))?;
    Ok(Contender { name: scheme, ty: None, memory: "CPU", copies })
}

fn dense(order: &Order, ty: Type) -> Result<Vec<Contender>> {
    let bytes = data::dense(ty, order.stacked())?;
    let n = order.n_copies(bytes.len());
    if let Some(Experts { n: n_experts, .. }) = order.experts {
        let stack = ExpertStack { each: order.shape, n_experts };
        let both = (0..n).map(|_| Weight::experts(ty, stack, &bytes));
        let (plain, packed): (Vec<_>, Vec<_>) =
            both.collect::<Result<Vec<_>, _>>()?.into_iter().unzip();
        let layouts = [plain.into_iter().map(Some).collect(), packed];
        return Ok(layouts.into_iter().filter_map(|copies| contender(ty, copies)).collect());
    }
    let plain = (0..n).map(|_| Weight::plain(ty, order.shape, &bytes).map(Some));
    let packed = (0..n).map(|_| Weight::packed(ty, order.shape, &bytes));
    let layouts = [plain.collect::<Result<Vec<_>, _>>()?, packed.collect::<Result<Vec<_>, _>>()?];
    Ok(layouts.into_iter().filter_map(|copies| contender(ty, copies)).collect())
}

/// The copies of one layout, if there are any.
fn contender(ty: Type, copies: Vec<Option<Weight>>) -> Option<Contender> {
    let copies: Vec<Weight> = copies.into_iter().flatten().collect();
    let memory = copies.first()?.memory();
    let copies = copies.into_iter().map(Factor::Dense).collect();
    Some(Contender { name: ty.name(), ty: Some(ty), memory, copies })
}

/// Refuses what would not fit, before the system kills the program for it.
fn check_memory(order: &Order) -> Result<()> {
    let filled = |n_bytes: Option<usize>| {
        let n_bytes = n_bytes?;
        order.n_copies(n_bytes).checked_mul(n_bytes)
    };
    let sidecars = order.coded.sidecars(order.stacked())?;
    let mut sizes = sidecars.iter().map(format::SidecarSpec::n_bytes);
    let mut needed = filled(sizes.try_fold(0usize, |sum, n| sum.checked_add(n?)));
    if order.batches.contains(&1) {
        // What the plain sum reads has the size of ours.
        needed = needed.and_then(|n| n.checked_mul(2));
    }
    for &ty in &order.against {
        let n_layouts = if Weight::is_packed(ty, order.shape) { 2 } else { 1 };
        let one = filled(ty.tensor_bytes(&[order.shape.d_in, order.stacked().d_out]));
        let all = one.and_then(|n| n.checked_mul(n_layouts));
        needed = needed.zip(all).and_then(|(a, b)| a.checked_add(b));
    }
    let n_tokens = order.batches.iter().copied().max().unwrap_or(1);
    let n_used = order.experts.map_or(1, |experts| experts.n_used);
    let values = n_tokens.checked_mul(order.shape.d_in.max(order.shape.d_out));
    let values = values.and_then(|n| n.checked_mul(n_used));
    let vectors = values.and_then(|n| n.checked_mul(4 * size_of::<f32>()));
    needed = needed.zip(vectors).and_then(|(a, b)| a.checked_add(b));
    let Some(available) = program::machine::available_bytes() else { return Ok(()) };
    let needed = needed.map(|needed| needed as u64);
    if needed.is_none_or(|needed| needed > available) {
        let gib = |n: u64| n as f64 / f64::from(1 << 30);
        let needed = needed.map_or("too much".to_owned(), |n| format!("{:.1} GiB", gib(n)));
        bail!(
            "the matrices need {needed} of memory and {:.1} GiB are available: use fewer types \
             (--against), fewer copies (--cold-mib), a smaller matrix (--rows, --cols) or fewer tokens (--batch)",
            gib(available)
        );
    }
    Ok(())
}
