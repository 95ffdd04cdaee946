//! Two files side by side.

use std::collections::{BTreeMap, BTreeSet};

use format::MatrixId;
use program::table::{Align, Table, bytes};
use serde::Serialize;

use crate::{FfnReport, Inspection, text as show};

/// What `--compare --json` prints.
#[derive(Debug, Serialize)]
pub struct Comparison {
    /// The file named first.
    pub file: Inspection,
    /// The one it is compared with.
    pub other: Inspection,
}

/// Table by tensor, totals and memory of both.
#[must_use]
pub fn text(file: &Inspection, other: &Inspection) -> String {
    let lines = [("A", file), ("B", other)].map(|(name, f)| {
        let memory = f.memory.as_ref().map(|m| format!("\n   {}", show::memory(m)));
        format!("{name}: {}{}", show::headline(f), memory.unwrap_or_default())
    });
    format!("{}\n\n{}", lines.join("\n"), table(file, other).render_for_stdout())
}

fn table(file: &Inspection, other: &Inspection) -> Table {
    let mut table = Table::new(&[
        ("tensor", Align::Left),
        ("A scheme", Align::Left),
        ("bits/weight", Align::Right),
        ("gap", Align::Right),
        ("bytes", Align::Right),
        ("B scheme", Align::Left),
        ("bits/weight", Align::Right),
        ("gap", Align::Right),
        ("bytes", Align::Right),
        ("A saves", Align::Right),
    ]);
    let (a, b) = (by_tensor(file), by_tensor(other));
    let tensors: BTreeSet<MatrixId> = a.keys().chain(b.keys()).copied().collect();
    for tensor in tensors {
        let (a, b) = (a.get(&tensor).copied(), b.get(&tensor).copied());
        let mut cells = vec![tensor.to_string()];
        cells.extend(side(a));
        cells.extend(side(b));
        cells.push(match (a, b) {
            (Some(a), Some(b)) => show::saved(a.bytes, b.bytes),
            _ => "-".to_owned(),
        });
        table.row(cells);
    }
    let sum = |label: &str, of: fn(&Inspection) -> u64| {
        let (a, b) = (of(file), of(other));
        let empty = String::new;
        let side = |n| [empty(), empty(), empty(), bytes(n)];
        let mut cells = vec![label.to_owned()];
        cells.extend(side(a));
        cells.extend(side(b));
        cells.push(show::saved(a, b));
        cells
    };
    table.total(sum("FFN, listed", |f| f.totals.ffn_bytes));
    table.total(sum("all tensors", |f| f.totals.tensor_bytes));
    if file.memory.is_some() && other.memory.is_some() {
        table.total(sum("weights + KV", |f| f.memory.as_ref().map_or(0, |m| m.total_bytes)));
    }
    table.total(sum("file", |f| f.file_bytes));
    table
}

fn by_tensor(file: &Inspection) -> BTreeMap<MatrixId, &FfnReport> {
    file.tensors.iter().map(|t| (t.tensor(), t)).collect()
}

fn side(tensor: Option<&FfnReport>) -> [String; 4] {
    let Some(t) = tensor else { return ["-", "", "", ""].map(str::to_owned) };
    let scheme = match (&t.scheme, &t.dense_type) {
        (None, Some(ty)) => ty.clone(),
        (Some(_), Some(ty)) => format!("{} beside {ty}", show::scheme(t)),
        _ => show::scheme(t),
    };
    [scheme, show::bits(t), show::gap(t), bytes(t.bytes)]
}
