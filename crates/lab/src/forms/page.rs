//! The report as a page.

use maud::{Markup, html};
use report::Page;
use report::elements::{Outcome, Table, card, cards, figure, note};
use report::plot::{Axis, Chart, Series};

use super::bench::RunResult;
use super::report::Report;

/// The page.
#[must_use]
pub fn render(report: &Report) -> String {
    let model = report.model.display().to_string();
    let mut page = Page::new("SeedDelta sweep", html! { (model) });
    page.section("outcome", "Outcome", outcome(report));
    page.section("foretold", "What foretold the loss", foretold(report));
    page.section("k", "Loss against K", loss_by_k(report));
    page.section("pairs", "Pairs of layers", pairs(report));
    page.section("fragile", "Fragile layers", fragile(report));
    page.section("runs", "All runs", runs(report));
    page.section("inputs", "Inputs", inputs(report));
    page.render()
}

fn outcome(report: &Report) -> Markup {
    let base = &report.baseline[0];
    let exact = base.exact_rate().map_or(String::new(), |e| format!("{:.1} % exact", 100.0 * e));
    let strict = report.auto.as_ref();
    let strict_value = strict.map_or("no layer passes".to_owned(), |a| {
        format!("{} tensors, +{:.4} nats", a.policy.tensors.len(), a.result.loss_increase[0])
    });
    cards(&[
        card(
            Outcome::Unknown,
            "B1 baseline",
            &format!("perplexity {:.4}", base.perplexity()),
            &exact,
        ),
        card(
            Outcome::from_option(strict.map(|a| !a.result.cliff)),
            "B5 strict policy",
            &strict_value,
            "must not collapse",
        ),
        card(
            Outcome::Unknown,
            "First cliff (B4)",
            report.findings.first_cliff.as_deref().unwrap_or("none"),
            "perplexity 1.5 times the baseline's, or 10 % of the answers lost",
        ),
    ])
}

fn foretold(report: &Report) -> Markup {
    let mut table = Table::new(&[
        ("known before", false),
        ("rank correlation (95 %)", true),
        ("stacks only", true),
        ("threshold", true),
        ("bad runs stopped", true),
        ("good runs passed", true),
        ("foresaw the cliff", false),
    ]);
    for f in &report.findings.foretellers {
        let show = |c: Option<super::stats::Correlation>| {
            c.map_or("-".to_owned(), |c| format!("{:.2} ({:.2} to {:.2})", c.rho, c.low, c.high))
        };
        let of = |get: fn(&super::stats::Threshold) -> String| {
            f.threshold.as_ref().map_or("-".to_owned(), get)
        };
        table.row([
            f.name.to_owned(),
            show(f.correlation),
            show(f.correlation_stacks),
            of(|t| format!("{:.4}", t.value)),
            of(|t| format!("{:.0} %", 100.0 * t.caught)),
            of(|t| format!("{:.0} %", 100.0 * t.passed)),
            f.foresaw_cliff.map_or("-", |yes| if yes { "yes" } else { "no" }).to_owned(),
        ]);
    }
    let points = |group: &str| {
        let of_group = report.runs.iter().filter(|r| r.group == group);
        let point = |r: &RunResult| (r.cost.stack_cost, r.loss_increase[0]);
        of_group.map(|r| (point(r), String::new())).collect()
    };
    let mut chart = Chart::new(Axis::new("stack_cost"), Axis::new("loss increase, nats"));
    for group in ["B2", "B3", "B4", "K", "base", "down"] {
        chart = chart.with(Series::points(group, points(group)));
    }
    html! {
        (table.render())
        (note("Bad means a loss increase above 0.05 nats per token. Intervals are bootstrap intervals over runs, \
               which share layers: they are narrower than those of independent models would be."))
        (figure(&chart, "Loss increase of every run against its stack_cost", "Every run: stack_cost, known \
                before, and the loss increase, measured."))
    }
}

fn loss_by_k(report: &Report) -> Markup {
    let mut chart = Chart::new(
        Axis::new("K, residuals per row").whole(),
        Axis::new("perplexity").logarithmic(),
    );
    let (unit, lengths) = &report.contexts;
    for (i, length) in lengths.iter().enumerate() {
        let of_k = report.runs.iter().filter(|r| r.group == "K");
        let k =
            |r: &RunResult| r.name.rsplit('@').next().and_then(|k| k.parse().ok()).unwrap_or(0.0);
        let points = of_k.map(|r| (k(r), r.outcomes[i].perplexity())).collect();
        chart = chart.with(Series::line(&format!("{length} {unit} per context"), points));
    }
    figure(
        &chart,
        "Perplexity against K",
        "All layers, gate and up, with the base of the runs over layers.",
    )
}

/// A table with shaded cells: text in every cell, so that colour is never alone.
fn pairs(report: &Report) -> Markup {
    let layers: Vec<usize> =
        report.runs.iter().filter(|r| r.group == "B2").map(|r| r.layers[0]).collect();
    let find = |a: usize, b: usize| {
        let wanted = if a == b { vec![a] } else { vec![a.min(b), a.max(b)] };
        let runs = report.runs.iter().filter(|r| r.group == "B2" || r.group == "B3");
        runs.filter(|r| r.layers == wanted).map(|r| r.loss_increase[0]).next()
    };
    let peak = layers.iter().flat_map(|&a| layers.iter().filter_map(move |&b| find(a, b)));
    let peak = peak.fold(1e-9, f64::max);
    let shade = |v: f64| {
        let share = (100.0 * (v / peak).clamp(0.0, 1.0)).round();
        format!("background: color-mix(in srgb, #d9480f {share}%, transparent)")
    };
    html! {
        div class="scroll" tabindex="0" { table {
            thead { tr { th { "layer" } @for b in &layers { th class="number" { (b) } } } }
            tbody { @for &a in &layers { tr {
                th { (a) }
                @for &b in &layers { @match find(a, b) {
                    Some(v) => { td class="number" style=(shade(v)) { (format!("{v:.3}")) } }
                    None => { td {} }
                } }
            } } }
        } }
        (note("Loss increase in nats with both layers coded; on the diagonal the layer alone."))
    }
}

fn fragile(report: &Report) -> Markup {
    let mut table = Table::new(&[("layer", true), ("loss increase alone, nats", true)]);
    for (layer, loss) in &report.findings.fragile {
        table.row([layer.to_string(), format!("{loss:.4}")]);
    }
    table.render()
}

fn runs(report: &Report) -> Markup {
    let (unit, lengths) = &report.contexts;
    let names: Vec<String> = lengths.iter().map(|n| format!("perplexity, {n} {unit}")).collect();
    let mut columns = vec![("group", false), ("run", false)];
    columns.extend(names.iter().map(|n| (n.as_str(), true)));
    columns.extend([
        ("exact", true),
        ("of dense bytes", true),
        ("worst gap", true),
        ("worst cosine", true),
        ("stack_cost", true),
        ("pack", false),
        ("cliff", false),
    ]);
    let mut table = Table::new(&columns);
    for r in report.runs.iter().chain(report.auto.as_ref().map(|a| &a.result)) {
        let mut cells = vec![r.group.clone(), r.name.clone()];
        cells.extend(r.outcomes.iter().map(|o| format!("{:.4}", o.perplexity())));
        let exact = r.outcomes[0].tasks.iter().map(|(task, (n, ok))| {
            format!("{task} {:.1} %", 100.0 * *ok as f64 / (*n).max(1) as f64)
        });
        cells.push(exact.collect::<Vec<_>>().join(", "));
        cells.push(format!("{:.0} %", 100.0 * r.cost.size_ratio()));
        cells.push(format!("{:.4}", r.cost.worst_gap()));
        cells.push(format!("{:.4}", r.cost.worst_cosine()));
        cells.push(format!("{:.4}", r.cost.stack_cost));
        cells.push(if r.pack_passed { "PASS" } else { "FAIL" }.to_owned());
        cells.push(if r.cliff { "cliff" } else { "" }.to_owned());
        table.row(cells);
    }
    table.render()
}

fn inputs(report: &Report) -> Markup {
    let mut table = Table::new(&[("file", false), ("SHA-256", false)]);
    for (path, hash) in &report.sha256 {
        table.row([path.display().to_string(), hash.clone()]);
    }
    html! { p { (report.tool) ", " (report.llama_cpp) } (table.render()) }
}
