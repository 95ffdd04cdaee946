//! Writes a page with every element, filled with what is hard to show: long names, crowded points, huge
//! ratios, missing values. `sample_page OUT.html`.

use report::Page;
use report::elements::{Outcome, Table, card, cards, figure, note, warning};
use report::maud::html;
use report::plot::{Axis, Bar, Bars, Chart, Part, Series, Texture};

const LONG: &str = "a-name-without-any-break-that-is-longer-than-the-screen-of-a-phone-is-wide.Q5_K_M.gguf";

fn main() {
    let out = std::env::args().nth(1).expect("usage: sample_page OUT.html");
    let mut page = Page::new("Every element", html! { p { "The file is " code { (LONG) } } });
    let verdicts = [
        card(Outcome::Pass, "memory", "31.8 % less", "at least 30 % less than Q5_K_M"),
        card(Outcome::Fail, "speed", "0.97x", "at least 1.10x"),
        card(Outcome::Unknown, LONG, "-", "the program failed"),
    ];
    page.section("verdict", "Verdict", cards(&verdicts));
    page.section("tables", "Tables", html! { (table()) (note("A remark.")) (warning(LONG)) });
    let charts = html! {
        @for (name, chart) in charts() { (figure(&chart, name, name)) }
        (figure(&bars(), "bars", "Bars with parts."))
    };
    page.section("pictures", "Pictures", charts);
    std::fs::write(out, page.render()).expect("the page can be written");
}

fn table() -> report::maud::Markup {
    let mut table = Table::new(&[("file", false), ("bytes", true), ("perplexity", true)]);
    table.row([LONG, "123 456 789 012", "22.0012 +- 0.7286"]);
    table.marked(["sum", "1", "-"]);
    table.render()
}

fn charts() -> Vec<(&'static str, Chart)> {
    let wave = |k: usize| (0..30).map(|i| (i as f64, ((i + k) as f64 * 0.3).sin() + k as f64)).collect();
    let mut lines = Chart::new(Axis::new("layer").whole(), Axis::new("gap of a tensor, root of the relative error"));
    for k in 0..8 {
        lines = lines.with(Series::line(&format!("series number {k}"), wave(k)));
    }
    let crowded = (0..9).map(|i| ((40e6 + f64::from(i) * 1e5, 22.0 + f64::from(i % 3) * 0.01), format!("variant {i}")));
    let crowded = crowded.chain([((60e6, 22.9), "the one at the right edge".to_owned())]);
    let points = Chart::new(
        Axis::new("bytes of the FFN").format(|v| format!("{:.0} MB", v / 1e6)),
        Axis::new("perplexity"),
    );
    let points = points
        .with(Series::points("", crowded.collect()))
        .with(Series::line("front", vec![(40e6, 22.1), (60e6, 22.0)]));
    let ruined = vec![((1.0, 22.0), "good".into()), ((2.0, 3.7e6), "ruined, far off".into()), ((3.0, f64::NAN), "none".into())];
    let logs = Chart::new(Axis::new("x").from(0.0), Axis::new("perplexity, logarithmic").logarithmic());
    vec![
        ("Lines of many series.", lines),
        ("Crowded points with labels.", points),
        ("A logarithmic axis.", logs.with(Series::points("files", ruined))),
        ("Nothing at all.", Chart::new(Axis::new("x"), Axis::new("y"))),
    ]
}

fn bars() -> Bars {
    let part = |name: &str, texture| Part::new(name, texture);
    let parts = vec![
        part("FFN weights", Texture::Full),
        part("other weights", Texture::Lines),
        part("KV cache", Texture::Hollow),
    ];
    let bar = |series, kv| Bar {
        label: if series == 0 { "base".into() } else { LONG.into() },
        values: vec![5.0, 2.0, kv],
        text: format!("{:.1} GB", 7.0 + kv),
        series,
    };
    Bars::new("weights and KV cache by context length, which is a title that needs two lines on a phone", parts)
        .group("4096 tokens", vec![bar(0, 0.1), bar(1, 0.2)])
        .group("131072 tokens", vec![bar(0, 30.0), bar(1, 30.2)])
        .mark(10.0, "memory of the machine")
}
