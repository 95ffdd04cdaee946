//! The results, for people and as JSON.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Result, anyhow};
use program::table::{Align, Table};
use serde::Serialize;
use statecells_kernels::{Dispatch, Isa};

use crate::bench::Program;
use crate::bench::contenders::Contender;
use crate::bench::measure::{Seconds, Spread};
use crate::bench::order::{Coded, Order};

/// Version of the JSON's layout.
const REPORT_VERSION: u32 = 1;

/// Everything that was measured. The maps have one entry per type, of its faster layout; `gweights_per_s`
/// and `gb_per_s` one for our scheme, too.
#[derive(Debug, Serialize)]
pub struct Report {
    report_version: u32,
    program: &'static str,
    version: &'static str,
    llama_cpp: &'static str,
    processor: Option<String>,
    /// Instruction set of our kernels.
    isa: String,
    /// Which product of scheme sections ran, `lookup` or `decode`.
    #[serde(skip_serializing_if = "Option::is_none")]
    route: Option<&'static str>,
    /// What memory delivers, for one token.
    #[serde(skip_serializing_if = "Option::is_none")]
    read: Option<Read>,
    arguments: BTreeMap<&'static str, serde_json::Value>,
    /// Median time of a type over ours: above 1, ours is faster.
    ratio: BTreeMap<&'static str, f64>,
    /// The same, round by round.
    ratio_spread: BTreeMap<&'static str, Spread>,
    /// 1e9 weights times columns per second.
    gweights_per_s: BTreeMap<&'static str, f64>,
    /// 1e9 bytes of the matrix per second.
    gb_per_s: BTreeMap<&'static str, f64>,
    /// ggml's name for the memory of the faster layout.
    memory: BTreeMap<&'static str, &'static str>,
    contenders: Vec<Entry>,
}

/// A plain sum over as many bytes as our copies have.
#[derive(Debug, Serialize)]
struct Read {
    milliseconds: Spread,
    gb_per_s: f64,
    /// Bytes of our matrix per second over these.
    share: f64,
}

/// One contender.
#[derive(Debug, Serialize)]
struct Entry {
    name: &'static str,
    /// Whether it is ours.
    coded: bool,
    /// `CPU` is the layout of the file, anything else one of llama.cpp's repacked ones.
    memory: &'static str,
    bits_per_weight: f64,
    bytes: usize,
    /// Those that a product reads.
    #[serde(skip)]
    bytes_read: f64,
    copies: usize,
    milliseconds: Spread,
    gweights_per_s: f64,
    gb_per_s: f64,
    /// Median time over ours.
    ratio: f64,
    /// Whether no other layout of the type was faster.
    fastest: bool,
    #[serde(skip)]
    ratio_spread: Spread,
}

impl Read {
    /// The line of the table, for a sum over `copies` copies.
    fn row(&self, copies: usize) -> Vec<String> {
        let ms = self.milliseconds;
        vec![
            "plain read".to_owned(),
            String::new(),
            String::new(),
            copies.to_string(),
            format!("{:.3}", ms.median),
            format!("{:.3}-{:.3}", ms.q1, ms.q3),
            String::new(),
            format!("{:.1}", self.gb_per_s),
            String::new(),
        ]
    }
}

impl Entry {
    /// The line of the table.
    fn row(&self) -> Vec<String> {
        let ms = self.milliseconds;
        let mark = if !self.coded && self.fastest { "*" } else { " " };
        vec![
            self.name.to_owned(),
            self.memory.to_owned(),
            format!("{:.2}", self.bits_per_weight),
            self.copies.to_string(),
            format!("{:.3}", ms.median),
            format!("{:.3}-{:.3}", ms.q1, ms.q3),
            format!("{:.1}", self.gweights_per_s),
            format!("{:.1}", self.gb_per_s),
            format!("{:.2}{mark}", self.ratio),
        ]
    }
}

impl Report {
    /// What the times for `n_tokens` tokens say; the first contender is ours.
    pub(super) fn new(
        program: Program,
        order: &Order,
        n_tokens: usize,
        contenders: &[Contender],
        seconds: &Seconds,
    ) -> Self {
        let entries = entries(order, n_tokens, contenders, &seconds.contenders);
        let dispatch = Dispatch::from_env();
        let n_sections = match &order.coded {
            Coded::Sections(params) => Some(params.sections),
            Coded::Global(_) => None,
        };
        let per_matrix = order.n_tokens_per_matrix(n_tokens);
        let route = |(dispatch, n): (Dispatch, usize)| dispatch.route(n, per_matrix).name();
        let n_products = contenders[0].copies.len() * order.routings(n_tokens).len().max(1);
        let read = read(n_products, &entries[0], &seconds.reading);
        let fastest = || entries.iter().filter(|e| e.fastest);
        let types = || fastest().filter(|e| !e.coded);
        Self {
            report_version: REPORT_VERSION,
            program: program.name,
            version: program.version,
            llama_cpp: ggml::LLAMA_CPP_VERSION,
            processor: program::machine::processor(),
            isa: Isa::from_env().map_or_else(|e| e.to_string(), |isa| isa.name().to_owned()),
            route: dispatch.ok().zip(n_sections).map(route),
            read,
            arguments: arguments(order, n_tokens),
            ratio: types().map(|e| (e.name, e.ratio)).collect(),
            ratio_spread: types().map(|e| (e.name, e.ratio_spread)).collect(),
            gweights_per_s: fastest().map(|e| (e.name, e.gweights_per_s)).collect(),
            gb_per_s: fastest().map(|e| (e.name, e.gb_per_s)).collect(),
            memory: types().map(|e| (e.name, e.memory)).collect(),
            contenders: entries,
        }
    }

    /// The table for stdout.
    #[must_use]
    pub fn table(&self) -> String {
        let mut table = Table::new(&[
            ("weights", Align::Left),
            ("layout", Align::Left),
            ("bits/weight", Align::Right),
            ("copies", Align::Right),
            ("ms", Align::Right),
            ("quartiles", Align::Right),
            ("Gweights/s", Align::Right),
            ("GB/s", Align::Right),
            ("ratio", Align::Right),
        ]);
        for entry in &self.contenders {
            table.row(entry.row());
        }
        if let (Some(read), Some(ours)) = (&self.read, self.contenders.first()) {
            table.row(read.row(ours.copies));
        }
        let note =
            "ratio: median time over ours (above 1: ours is faster); * the type's faster layout";
        format!("{}\n{note}\n{}", table.render_for_stdout(), self.form())
    }

    /// How ours ran.
    fn form(&self) -> String {
        let tokens = self.arguments["batch"].as_u64().unwrap_or_default();
        let by = self.route.map_or(String::new(), |route| format!(", by {route}"));
        let share = self.read.as_ref().map_or(String::new(), |read| {
            format!(", at {:.0} % of a plain read's bytes per second", 100.0 * read.share)
        });
        format!("ours: {tokens} tokens with {}{by}{share}", self.isa)
    }
}

/// Writes the JSON file: one report, or an array of several. Under its name appears all of it or nothing.
///
/// # Errors
/// Those of the file.
pub fn write(reports: &[Report], path: &Path) -> Result<()> {
    let mut json = match reports {
        [one] => serde_json::to_vec_pretty(one)?,
        all => serde_json::to_vec_pretty(all)?,
    };
    json.push(b'\n');
    // The message holds its cause already.
    program::files::write_atomically(path, &json).map_err(|e| anyhow!("{e}"))
}

/// Times of what one product reads, as for the contenders.
fn read(n_products: usize, entry: &Entry, seconds: &[f64]) -> Option<Read> {
    if seconds.is_empty() {
        return None;
    }
    let milliseconds = Spread::of(seconds.iter().map(|s| s * 1e3 / n_products as f64));
    let gb_per_s = entry.bytes_read / milliseconds.median / 1e6;
    Some(Read { milliseconds, gb_per_s, share: entry.gb_per_s / gb_per_s })
}

/// One entry per contender, from the seconds of each; the first contender is ours.
fn entries(
    order: &Order,
    n_tokens: usize,
    contenders: &[Contender],
    seconds: &[Vec<f64>],
) -> Vec<Entry> {
    let n_used = order.experts.map_or(1, |experts| experts.n_used);
    let n_multiplied = order.shape.n_weights() as f64 * (n_tokens * n_used) as f64;
    // Of experts a product reads those in use.
    let share = (n_tokens * n_used) as f64 / order.n_experts() as f64;
    let share = if order.experts.is_some() { share.min(1.0) } else { 1.0 };
    let pairs = contenders.iter().zip(seconds);
    let made = pairs.map(|(c, own)| entry(order, (n_multiplied, share), c, own, &seconds[0]));
    let mut entries: Vec<Entry> = made.collect();
    let medians: Vec<_> = entries.iter().map(|e| (e.name, e.milliseconds.median)).collect();
    for entry in &mut entries {
        let same = medians.iter().filter(|(name, _)| *name == entry.name);
        entry.fastest = same.into_iter().all(|(_, ms)| *ms >= entry.milliseconds.median);
    }
    entries
}

fn entry(
    order: &Order,
    (n_multiplied, share): (f64, f64),
    contender: &Contender,
    own: &[f64],
    ours: &[f64],
) -> Entry {
    let n_weights = order.stacked().n_weights() as f64;
    let n_bytes = contender.n_bytes();
    let bytes_read = n_bytes as f64 * share;
    let median = Spread::of(own.iter().copied()).median;
    Entry {
        name: contender.name,
        coded: contender.ty.is_none(),
        memory: contender.memory,
        bits_per_weight: 8.0 * n_bytes as f64 / n_weights,
        bytes: n_bytes,
        bytes_read,
        copies: contender.copies.len(),
        milliseconds: Spread::of(own.iter().map(|s| s * 1e3)),
        gweights_per_s: n_multiplied / median / 1e9,
        gb_per_s: bytes_read / median / 1e9,
        ratio: median / Spread::of(ours.iter().copied()).median,
        fastest: false,
        ratio_spread: Spread::of(own.iter().zip(ours).map(|(own, ours)| own / ours)),
    }
}

/// The order, so that the run can be repeated.
fn arguments(order: &Order, n_tokens: usize) -> BTreeMap<&'static str, serde_json::Value> {
    let against: Vec<_> = order.against.iter().map(|ty| ty.name()).collect();
    let mut arguments = BTreeMap::from([
        ("rows", order.shape.d_out.into()),
        ("cols", order.shape.d_in.into()),
        ("batch", n_tokens.into()),
        ("threads", order.n_threads.into()),
        ("scheme", order.coded.scheme().into()),
        ("against", against.into()),
        ("rounds", order.rounds.into()),
        ("cold_bytes", order.cold_bytes.into()),
    ]);
    if let Some(experts) = order.experts {
        arguments.extend([("experts", experts.n.into()), ("used", experts.n_used.into())]);
    }
    arguments.extend(order.coded.arguments(order.shape).into_iter().map(|(k, v)| (k, v.into())));
    arguments
}
