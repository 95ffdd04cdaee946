//! The table on the terminal and the JSON report.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow};
use comfy_table::{Cell, CellAlignment, Table, presets};
use program::files::Unfinished;
use serde::Serialize;

use crate::toy::check::{Outcome, REQUIRED, Sabotage, Z};
use crate::toy::plan::Family;

/// Version of the JSON report; raised when a field changes its meaning or goes.
pub const SCHEMA_VERSION: u32 = 1;
/// Failing cases listed on the terminal; the JSON report has all.
const MAX_LISTED: usize = 20;

/// How the report was made.
#[derive(Clone, Debug, Serialize)]
pub struct Provenance {
    /// Program.
    pub tool: &'static str,
    /// Its version.
    pub version: &'static str,
    /// Command line without the program's name.
    pub arguments: Vec<String>,
    /// `--seed`.
    pub seed: u64,
    /// Mistake made on purpose.
    pub sabotage: Sabotage,
}

/// What "agrees" means.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Criterion {
    /// Standard deviations allowed.
    pub z: f64,
    /// Share of cases that must agree, in all and in each family.
    pub required: f64,
}

/// Totals of a family, or of all.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Totals {
    /// Cases run.
    pub cases: usize,
    /// Cases whose measured error is the expected one.
    pub passed: usize,
    /// Largest distance from the expectation, in units of the tolerance.
    pub worst_deviation: f64,
    /// Sum of the tensors' sizes.
    pub bytes: usize,
}

impl Totals {
    fn add(&mut self, outcome: &Outcome) {
        self.cases += 1;
        self.passed += usize::from(outcome.passed);
        self.worst_deviation = self.worst_deviation.max(outcome.deviation);
        self.bytes += outcome.bytes;
    }

    /// Share of the cases that passed; 0 of none.
    #[must_use]
    pub fn share(&self) -> f64 {
        self.passed as f64 / self.cases.max(1) as f64
    }

    /// Whether enough passed. A run without cases has shown nothing.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.cases > 0 && self.share() >= REQUIRED
    }
}

/// Everything about a run. Contains no times: the same arguments give the same bytes.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// How it was made.
    #[serde(rename = "record")]
    pub provenance: Provenance,
    /// What was asked for.
    pub criterion: Criterion,
    /// Whether all and each family hold.
    pub passed: bool,
    /// All cases.
    pub total: Totals,
    /// By family.
    pub families: BTreeMap<Family, Totals>,
    /// Planned cases that have no closed form and were not run.
    pub without_closed_form: usize,
    /// Every case.
    pub cases: Vec<Outcome>,
}

impl Report {
    /// Report on `outcomes`; `planned` counts also the cases without a closed form.
    #[must_use]
    pub fn new(provenance: Provenance, planned: usize, outcomes: Vec<Outcome>) -> Self {
        let mut total = Totals::default();
        let mut families: BTreeMap<Family, Totals> = BTreeMap::new();
        for outcome in &outcomes {
            total.add(outcome);
            families.entry(outcome.case.family).or_default().add(outcome);
        }
        Self {
            schema_version: SCHEMA_VERSION,
            provenance,
            criterion: Criterion { z: Z, required: REQUIRED },
            passed: total.holds() && families.values().all(Totals::holds),
            total,
            families,
            without_closed_form: planned - outcomes.len(),
            cases: outcomes,
        }
    }

    /// The table for the terminal, with the failing cases below it; `all` lists every case.
    #[must_use]
    pub fn to_text(&self, all: bool) -> String {
        let mut text = format!("{}\n", self.totals_table());
        let chosen = |o: &&Outcome| all || !o.passed;
        let limit = if all { usize::MAX } else { MAX_LISTED };
        let listed: Vec<&Outcome> = self.cases.iter().filter(chosen).take(limit).collect();
        if !listed.is_empty() {
            let what = if all { "All cases" } else { "Cases that failed" };
            text += &format!("\n{what}:\n{}\n", cases_table(&listed));
        }
        let failed = self.total.cases - self.total.passed;
        if !all && failed > MAX_LISTED {
            text += &format!("... and {} more, see --report-json\n", failed - MAX_LISTED);
        }
        let verdict = if self.passed { "PASS" } else { "FAIL" };
        text += &format!(
            "{verdict}: {} of {} cases agree with theory ({:.1} %, at least {:.0} % needed in all and in \
             each family); {} planned cases have no closed form\n",
            self.total.passed,
            self.total.cases,
            100.0 * self.total.share(),
            100.0 * REQUIRED,
            self.without_closed_form,
        );
        text
    }

    fn totals_table(&self) -> Table {
        let mut table = table(&["case", "about", "cases", "agree", "share", "worst", "bytes"], 2);
        let mut row = |name: String, title: &str, totals: &Totals| {
            table.add_row(vec![
                name,
                title.to_owned(),
                totals.cases.to_string(),
                totals.passed.to_string(),
                format!("{:.1} %", 100.0 * totals.share()),
                off_by(totals.worst_deviation),
                totals.bytes.to_string(),
            ]);
        };
        for (family, totals) in &self.families {
            row(format!("{family:?}"), family.title(), totals);
        }
        row("all".into(), "", &self.total);
        table
    }
}

/// A JSON report in the making. The file appears under its name when it is complete.
pub struct ReportFile {
    path: PathBuf,
    file: Unfinished,
}

impl ReportFile {
    /// Starts a report at `path`, so that a wrong path is found before the work is done.
    ///
    /// # Errors
    /// If no file can be made in that folder.
    pub fn create(path: &Path) -> Result<Self> {
        let file = Unfinished::create(path).map_err(|e| flagged(&e))?;
        Ok(Self { path: path.to_owned(), file })
    }

    /// Writes `report` and gives the file its name, replacing an older one.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn finish(mut self, report: &Report) -> Result<()> {
        let mut text = serde_json::to_vec_pretty(report)?;
        text.push(b'\n');
        let written = self.file.file().write_all(&text);
        written.map_err(|cause| flagged(&program::io(&self.path, "write")(cause)))?;
        self.file.publish().map_err(|e| flagged(&e))
    }
}

/// The message holds its cause already.
fn flagged(error: &program::Error) -> anyhow::Error {
    anyhow!("--report-json {error}")
}

/// A deviation for people.
fn off_by(deviation: f64) -> String {
    if deviation < 1e4 { format!("{deviation:.2}") } else { format!("{deviation:.1e}") }
}

fn cases_table(outcomes: &[&Outcome]) -> Table {
    let mut table = table(&["case", "expected gap", "measured gap", "off by", "bytes", ""], 1);
    for outcome in outcomes {
        table.add_row(vec![
            outcome.case.to_string(),
            format!("{:.3e}", outcome.expected_gap),
            format!("{:.3e}", outcome.gap),
            off_by(outcome.deviation),
            outcome.bytes.to_string(),
            if outcome.passed { String::new() } else { "FAIL".into() },
        ]);
    }
    table
}

/// Table with `header`, the columns from `numbers` on set right.
fn table(header: &[&str], numbers: usize) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(header.iter().map(Cell::new));
    for column in table.column_iter_mut().skip(numbers) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}
