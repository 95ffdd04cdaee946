//! The report as one page for people.

pub mod comparison;
mod pictures;
mod tables;

use maud::{Markup, html};
use report::Page;
use report::elements::{Outcome, card, cards, figure, note, warning};
use report::plot::Figure;

use crate::measured::value;
use crate::qa::{QaReport, QaRow};
use crate::report::EvaluationReport;
use crate::verdict::{Level, Rule, Verdict};

/// The page, complete in itself.
#[must_use]
pub fn render(report: &EvaluationReport) -> String {
    let mut page = Page::new("StateCells evaluation", head(report));
    page.section("verdict", "Verdict", verdict(report));
    page.section("quality", "Quality", quality(report));
    page.section("tensors", "By layer and tensor", tensors(report));
    page.section("speed", "Speed", speed(report));
    page.section("memory", "Memory", memory(report));
    if let Some(qa) = &report.qa {
        let body = match &qa.value {
            Some(found) => prompts(found),
            None => warning(qa.failure.as_deref().unwrap_or("failed")),
        };
        page.section("prompts", "Prompts", body);
    }
    page.section("measured", "How it was measured", tables::measured(report));
    page.render()
}

fn head(report: &EvaluationReport) -> Markup {
    let path = |key: &str| report.file(key).map_or("", |f| f.path.as_str());
    html! {
        p { code { (path("statecells")) } " against " code { (path("base")) } }
        p class="soft" {
            (report.date) ", " (report.machine.cpu) ", " (report.settings.threads) " threads, "
            (report.settings.chunks) " chunks of " (report.settings.n_ctx) " tokens"
        }
    }
}

fn show(picture: &dyn Figure, description: &str, caption: &str) -> Markup {
    figure(picture, description, caption)
}

fn verdict(report: &EvaluationReport) -> Markup {
    let Verdict { passed, rules } = &report.verdict;
    let of = |level: Level| -> Vec<Markup> {
        rules.iter().filter(|r| r.level == level).map(rule).collect()
    };
    let overall = Outcome::from_option(*passed);
    html! {
        p { (report::elements::badge(overall)) " " (crate::summary::verdict(&report.verdict)) "." }
        h3 { "Required" }
        (cards(&of(Level::Required)))
        h3 { "Aims beyond" }
        (cards(&of(Level::Aim)))
        (note("Q5_K_M stands for the base with its FFN matrices alone in the types that Q5_K_M gives them; a whole requantized file carries the damage of its other tensors too and is easier to match."))
        @for text in &report.warnings { (warning(text)) }
    }
}

fn rule(rule: &Rule) -> Markup {
    let whole = Rule { value: rule.against_whole_file, error: None, ..rule.clone() };
    let detail = match rule.against_whole_file {
        Some(_) => format!("against the whole file in Q5_K_M: {}", whole.figure()),
        None => rule.reason.clone().unwrap_or_default(),
    };
    card(Outcome::from_option(rule.passed), &rule.title, &rule.figure(), &detail)
}

fn quality(report: &EvaluationReport) -> Markup {
    let note_text = "Differences are paired: every file reads the same tokens, so the difference of two perplexities is known \
                     much better than either. Their standard error is that of the mean over chunks.";
    html! {
        (tables::files(report))
        @match &report.no_logits {
            Some(reason) => (warning(&format!("Quality was not measured: the model gives no logits for the next token ({reason})."))),
            None => (note(note_text)),
        }
        @if let Some(chart) = pictures::perplexity_by_bytes(report) {
            (show(&chart, "perplexity against FFN bytes", "Perplexity against bytes of the FFN matrices. Files on the front are those that no other beats in both."))
        }
        @if let Some(chart) = pictures::by_chunk(report) {
            (show(&chart, "difference by chunk", "By how much the perplexity of a chunk is above the base's, chunk by chunk."))
        }
    }
}

fn tensors(report: &EvaluationReport) -> Markup {
    html! {
        @if let Some(chart) = pictures::gaps(report) {
            (show(&chart, "gap by layer", "Gap of every coded matrix as its builder recorded it: root of the relative squared error of its outputs."))
        }
        @if let Some(chart) = pictures::bits(report) {
            (show(&chart, "bits per weight by layer", "Bits per weight of every FFN matrix, everything counted that the file holds for it."))
        }
        details { summary { "Table" } (tables::tensors(report)) }
    }
}

fn speed(report: &EvaluationReport) -> Markup {
    let Some(bars) = pictures::speed_ratios(report) else {
        return html! { (note("Speed was not measured.")) (tables::failures(report, |f| f.speed.as_ref().and_then(|s| s.failure.as_deref()))) };
    };
    let text = "All files were run in turn, round by round; a ratio is that of two runs of one round, and the median over the \
                rounds is shown. Absolute speeds depend on everything else that the machine does.";
    html! {
        (show(&bars, "speed ratios", "Speed of every file over that of the base with Q5_K_M's FFN."))
        (tables::speeds(report))
        (note(text))
        (tables::failures(report, |f| f.speed.as_ref().and_then(|s| s.failure.as_deref())))
    }
}

fn memory(report: &EvaluationReport) -> Markup {
    html! {
        (tables::memory(report))
        @if let Some(bars) = pictures::memory_by_context(report) {
            (show(&bars, "weights and KV cache by context length", "Weights and KV cache of one sequence, without compute buffers. At long contexts the cache dominates, and coding the FFN saves a smaller share."))
        }
    }
}

fn prompts(qa: &QaReport) -> Markup {
    let skipped = if qa.n_skipped > 0 {
        format!(" {} chat questions were left out: the model has no chat template.", qa.n_skipped)
    } else {
        String::new()
    };
    html! {
        p { "Greedy answers. Right: base " (qa.n_base) " of " (qa.n_asked) ", StateCells " (qa.n_statecells) " of " (qa.n_asked) "." (skipped) }
        (tables::prompts(qa))
        h3 { "Side by side" }
        @for row in &qa.prompts { (side_by_side(row)) }
    }
}

fn side_by_side(row: &QaRow) -> Markup {
    let answer = |name: &str, passes: bool, text: &str| {
        html! {
            div { (report::elements::badge(Outcome::of(passes))) " " (name) pre { (printable(text)) } }
        }
    };
    html! {
        details {
            summary { (row.kind) ": " (row.id) }
            pre { (printable(&row.prompt)) }
            div class="pairs" {
                (answer("base", row.base_passes, &row.base))
                (answer("StateCells", row.statecells_passes, &row.statecells))
            }
        }
    }
}

/// Text without control characters: a ruined model may write anything.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { '\u{fffd}' } else { c }).collect()
}

/// The figures of a file's speed, if it was measured.
fn speed_of(file: &crate::file_report::FileReport) -> Option<&crate::file_report::Speed> {
    value(&file.speed)
}
