//! Matrix products of the run-time kernels against ggml's own types, in one run.
//!
//! 1. [`Order`] says what is measured.
//! 2. `contenders` makes the matrices, from the random numbers of `data`, in so many copies that they leave the cache.
//! 3. `measure` lets all of them multiply in turns, and `read` a plain sum between them.
//! 4. [`report`] holds the figures, as a table and as JSON.

mod contenders;
mod data;
mod machine;
mod measure;
mod order;
mod read;
pub mod report;

use anyhow::Result;
use ggml::product::ThreadPool;

pub use measure::Spread;
pub use order::{Coded, Experts, Order};

use read::Reading;
use report::Report;

/// The program that measures, as the report names it.
#[derive(Clone, Copy, Debug)]
pub struct Program {
    /// Its name.
    pub name: &'static str,
    /// Its version.
    pub version: &'static str,
}

/// Measures all batches of `order`; `each` gets all reports so far after each batch, the newest last.
///
/// # Errors
/// Too little memory, those of ggml and of the hook, and whatever `each` returns.
pub fn run(
    program: Program,
    order: &Order,
    each: &mut dyn FnMut(&[Report]) -> Result<()>,
) -> Result<()> {
    let contenders = contenders::prepare(order)?;
    let pool = ThreadPool::new(order.n_threads)?;
    let mut reports = Vec::new();
    for &n_tokens in &order.batches {
        let x = data::gaussian(order.shape.d_in * n_tokens);
        // With more tokens a product is not limited by memory.
        let reading = (n_tokens == 1).then(|| {
            Reading::new(contenders[0].n_bytes() * contenders[0].copies.len(), order.n_threads)
        });
        let (rounds, routings) = (order.rounds, order.routings(n_tokens));
        let input = measure::Input { x: &x, routings: &routings };
        let seconds = measure::measure(&pool, &contenders, input, rounds, reading.as_ref())?;
        reports.push(Report::new(program, order, n_tokens, &contenders, &seconds));
        each(&reports)?;
    }
    Ok(())
}
