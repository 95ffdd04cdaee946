//! What is told at the end.

use std::path::Path;
use std::time::Duration;

use calibration::PassageKind;
use calibration::capture::{Contexts, Timing};
use program::progress::duration;
use program::table::{self, Align, Table};

/// Time of the same contexts with and without watching.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct PlainTime {
    /// Contexts that were run both ways.
    pub(super) n_contexts: usize,
    /// Without watching.
    pub(super) plain: Duration,
    /// With, summing included.
    pub(super) watched: Duration,
    /// The summing alone.
    pub(super) accumulation: Duration,
}

/// Prints the summary on stdout, with `times` if the model was run.
pub(super) fn print(
    output: &Path,
    contexts: &Contexts,
    n_bytes: u64,
    times: Option<(Timing, PlainTime)>,
) -> std::io::Result<()> {
    let mut table = Table::new(&[("what", Align::Left), ("", Align::Right), ("", Align::Left)]);
    let mut row =
        |what: &str, value: String, unit: String| table.row(vec![what.into(), value, unit]);
    let tokens = |kind| contexts.n_tokens(kind);
    let total = (tokens(PassageKind::Fitted) + tokens(PassageKind::HeldOut)) as f64;
    let shape = format!("{} contexts of {}", contexts.len(), contexts.n_ctx());
    row("fitted", tokens(PassageKind::Fitted).to_string(), "tokens".into());
    row("held out", tokens(PassageKind::HeldOut).to_string(), format!("tokens ({shape})"));
    if let Some((timing, _)) = times {
        let (forward, sums) = (timing.forward.as_secs_f64(), timing.accumulation.as_secs_f64());
        row("forward pass", duration(forward), format!("{:.0} tokens/s", total / forward));
        let gflop = timing.accumulation_flops / 1e9;
        let rate = format!("{gflop:.0} GFLOP, {:.1} GFLOP/s", gflop / sums);
        row("accumulation", duration(sums), rate);
    }
    if let Some((_, plain)) = times.filter(|(_, plain)| plain.n_contexts > 0) {
        let seconds = plain.plain.as_secs_f64();
        let watched = plain.watched.as_secs_f64();
        let without = (plain.watched - plain.accumulation).as_secs_f64();
        row(
            "plain pass",
            duration(seconds),
            format!(
                "for {} contexts; watched {:.2} times that, without accumulation {:.2} times",
                plain.n_contexts,
                watched / seconds,
                without / seconds
            ),
        );
    }
    row("file", table::bytes(n_bytes), format!("bytes, {}", output.display()));
    table::print_line(&table.render_for_stdout())
}
