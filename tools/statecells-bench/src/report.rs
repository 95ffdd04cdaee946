//! The results, for people and as JSON.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Result, anyhow};
use builder::table::{Align, Table};
use serde::Serialize;

use crate::config::Config;
use crate::contenders::Contender;
use crate::machine;
use crate::measure::Spread;

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

impl Report {
    /// What `seconds[contender][round]` say; the first contender is ours.
    pub fn new(config: &Config, contenders: &[Contender], seconds: &[Vec<f64>]) -> Self {
        let mut entries: Vec<Entry> = contenders
            .iter()
            .zip(seconds)
            .map(|(contender, own)| entry(config, contender, own, &seconds[0]))
            .collect();
        let medians: Vec<_> = entries.iter().map(|e| (e.name, e.milliseconds.median)).collect();
        for entry in &mut entries {
            let same = medians.iter().filter(|(name, _)| *name == entry.name);
            entry.fastest = same.into_iter().all(|(_, ms)| *ms >= entry.milliseconds.median);
        }
        let fastest = || entries.iter().filter(|e| e.fastest);
        let types = || fastest().filter(|e| !e.coded);
        Self {
            report_version: REPORT_VERSION,
            program: crate::NAME,
            version: env!("CARGO_PKG_VERSION"),
            llama_cpp: ggml::LLAMA_CPP_VERSION,
            processor: machine::processor(),
            isa: statecells_kernels::Isa::from_env()
                .map_or_else(|e| e.to_string(), |isa| isa.name().to_owned()),
            arguments: arguments(config),
            ratio: types().map(|e| (e.name, e.ratio)).collect(),
            ratio_spread: types().map(|e| (e.name, e.ratio_spread)).collect(),
            gweights_per_s: fastest().map(|e| (e.name, e.gweights_per_s)).collect(),
            gb_per_s: fastest().map(|e| (e.name, e.gb_per_s)).collect(),
            memory: types().map(|e| (e.name, e.memory)).collect(),
            contenders: entries,
        }
    }

    /// Writes the JSON file; under its name appears all of it or nothing.
    pub fn write(&self, path: &Path) -> Result<()> {
        let mut json = serde_json::to_vec_pretty(self)?;
        json.push(b'\n');
        // The message holds its cause already.
        builder::files::write_atomically(path, &json).map_err(|e| anyhow!("{e}"))
    }

    /// The table for stdout.
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
        for e in &self.contenders {
            let ms = e.milliseconds;
            let mark = if !e.coded && e.fastest { "*" } else { " " };
            table.row(vec![
                e.name.to_owned(),
                e.memory.to_owned(),
                format!("{:.2}", e.bits_per_weight),
                e.copies.to_string(),
                format!("{:.3}", ms.median),
                format!("{:.3}-{:.3}", ms.q1, ms.q3),
                format!("{:.1}", e.gweights_per_s),
                format!("{:.1}", e.gb_per_s),
                format!("{:.2}{mark}", e.ratio),
            ]);
        }
        let note =
            "ratio: median time over ours (above 1: ours is faster); * the type's faster layout";
        format!("{}\n{note}", table.render_for_stdout())
    }
}

fn entry(config: &Config, contender: &Contender, own: &[f64], ours: &[f64]) -> Entry {
    let n_weights = config.shape.n_weights() as f64;
    let n_bytes = contender.n_bytes();
    let median = Spread::of(own.iter().copied()).median;
    Entry {
        name: contender.name,
        coded: contender.ty.is_none(),
        memory: contender.memory,
        bits_per_weight: 8.0 * n_bytes as f64 / n_weights,
        bytes: n_bytes,
        copies: contender.copies.len(),
        milliseconds: Spread::of(own.iter().map(|s| s * 1e3)),
        gweights_per_s: n_weights * config.n_tokens as f64 / median / 1e9,
        gb_per_s: n_bytes as f64 / median / 1e9,
        ratio: median / Spread::of(ours.iter().copied()).median,
        fastest: false,
        ratio_spread: Spread::of(own.iter().zip(ours).map(|(own, ours)| own / ours)),
    }
}

/// The order, so that the run can be repeated.
fn arguments(config: &Config) -> BTreeMap<&'static str, serde_json::Value> {
    let against: Vec<_> = config.against.iter().map(|ty| ty.name()).collect();
    let mut arguments = BTreeMap::from([
        ("rows", config.shape.d_out.into()),
        ("cols", config.shape.d_in.into()),
        ("batch", config.n_tokens.into()),
        ("threads", config.n_threads.into()),
        ("scheme", config.coded.scheme().into()),
        ("against", against.into()),
        ("rounds", config.rounds.into()),
        ("cold_bytes", config.cold_bytes.into()),
    ]);
    arguments.extend(config.coded.arguments(config.shape).into_iter().map(|(k, v)| (k, v.into())));
    arguments
}
