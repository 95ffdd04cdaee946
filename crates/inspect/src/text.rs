//! One file as text for people.

use program::printable;
use program::table::{Align, Table, bytes, percent};
use serde_json::Value;

use crate::{FfnReport, Inspection, Memory, settings_text};

/// Table, totals, record and memory.
#[must_use]
pub fn text(file: &Inspection) -> String {
    let mut parts = vec![headline(file)];
    if !file.tensors.is_empty() {
        parts.push(table(file).render_for_stdout());
    }
    parts.push(summary(file));
    parts.extend(file.coding.as_ref().and_then(|c| c.record.as_ref()).map(record));
    parts.join("\n\n")
}

/// `coded.gguf: llama 'SmolLM2', 30 layers, 97 102 240 bytes; scheme sign+row_scale, format 1`.
pub(crate) fn headline(file: &Inspection) -> String {
    let mut line = format!("{}: ", file.path);
    match &file.architecture {
        Some(architecture) => line += &printable(architecture),
        None => line += "no model (no general.architecture)",
    }
    if let Some(name) = &file.name {
        line += &format!(" '{}'", printable(name));
    }
    line += &format!(", {} layers", file.n_layers);
    if file.n_mtp_layers > 0 {
        line += &format!(" ({} of them for multi-token prediction)", file.n_mtp_layers);
    }
    line += &format!(", {} bytes", bytes(file.file_bytes));
    if file.n_parts > 1 {
        line += &format!(" in {} files", file.n_parts);
    }
    if let Some(coding) = &file.coding {
        let scheme = printable(coding.scheme.as_deref().unwrap_or("unknown"));
        let version = coding.format_version.map_or_else(|| "?".to_owned(), |v| v.to_string());
        line += &format!("; scheme {scheme}, format {version}");
        if let Some(tolerance) = coding.default_gap_tol {
            line += &format!(", gap tolerance {tolerance}");
        }
    }
    line
}

fn table(file: &Inspection) -> Table {
    let mut table = Table::new(&[
        ("tensor", Align::Left),
        ("scheme", Align::Left),
        ("dense", Align::Left),
        ("shape", Align::Right),
        ("parameters", Align::Left),
        ("bits/weight", Align::Right),
        ("gap", Align::Right),
        ("bytes", Align::Right),
        ("Q5_K_M", Align::Left),
        ("bytes", Align::Right),
        ("saved", Align::Right),
    ]);
    for t in &file.tensors {
        table.row(vec![
            t.name.clone(),
            scheme(t),
            t.dense_type.clone().unwrap_or_else(|| "-".to_owned()),
            t.matrix().map_or_else(|| "?".to_owned(), |m| m.to_string()),
            settings_text(&t.settings),
            bits(t),
            gap(t),
            bytes(t.bytes),
            t.q5_k_m_type.clone().unwrap_or_default(),
            bytes(t.bytes_q5_k_m),
            saved(t.bytes, t.bytes_q5_k_m),
        ]);
    }
    let t = &file.totals;
    let empty = String::new;
    table.total(vec![
        format!("{} tensors", file.tensors.len()),
        empty(),
        empty(),
        empty(),
        empty(),
        format!("{:.2}", t.ffn_bits_per_weight),
        empty(),
        bytes(t.ffn_bytes),
        empty(),
        bytes(t.ffn_bytes_q5_k_m),
        saved(t.ffn_bytes, t.ffn_bytes_q5_k_m),
    ]);
    table
}

pub(crate) fn scheme(t: &FfnReport) -> String {
    printable(t.scheme.as_deref().unwrap_or("dense")).into_owned()
}

pub(crate) fn bits(t: &FfnReport) -> String {
    t.bits_per_weight.map_or_else(|| "?".to_owned(), |b| format!("{b:.2}"))
}

pub(crate) fn gap(t: &FfnReport) -> String {
    t.gap.filter(|_| t.scheme.is_some()).map_or_else(|| "-".to_owned(), |g| format!("{g:.4}"))
}

pub(crate) fn saved(n: u64, reference: u64) -> String {
    if reference == 0 { "-".to_owned() } else { percent(program::table::saved(n, reference)) }
}

fn summary(file: &Inspection) -> String {
    let t = &file.totals;
    let mut lines = vec![format!(
        "FFN matrices listed: {} coded, {} dense; {} bytes. Other tensors: {} bytes. All tensors: {} bytes.",
        t.n_coded,
        t.n_dense,
        bytes(t.ffn_bytes),
        bytes(t.other_bytes),
        bytes(t.tensor_bytes),
    )];
    lines.extend(file.memory.as_ref().map(memory));
    lines.join("\n")
}

/// `Memory at 8192 tokens: 97 000 000 weights + 188 743 680 KV cache (K f16, V f16) = 285 743 680 bytes`.
pub(crate) fn memory(memory: &Memory) -> String {
    let kv = &memory.kv_cache;
    let bound = if kv.is_upper_bound { ", at most: some layers see a window only" } else { "" };
    let trained = match kv.n_ctx_train {
        Some(n) if n < kv.n_ctx => format!(" (the model is made for {n})"),
        _ => String::new(),
    };
    format!(
        "Memory at {} tokens{trained}: {} weights + {} KV cache (K {}, V {}{bound}) = {} bytes, without \
         compute buffers.",
        kv.n_ctx,
        bytes(memory.weights_bytes),
        bytes(kv.bytes),
        kv.type_k,
        kv.type_v,
        bytes(memory.total_bytes),
    )
}

/// The record, one line per entry; hashes of single tensors are left to `--json`.
fn record(record: &Value) -> String {
    let Value::Object(fields) = record else {
        return format!("Record: {}", printable(&record.to_string()));
    };
    let mut lines = vec!["Record:".to_owned()];
    for (name, value) in fields {
        match value {
            Value::Object(entries) if name == "arguments" => {
                let flags =
                    entries.iter().map(|(flag, v)| format!("{} {}", printable(flag), plain(v)));
                lines.push(format!("  {name}: {}", flags.collect::<Vec<_>>().join(" ")));
            }
            Value::Object(entries) => {
                lines.push(format!("  {}: {}", printable(name), entries.len()));
            }
            _ => lines.push(format!("  {}: {}", printable(name), plain(value))),
        }
    }
    lines.join("\n")
}

/// A value as text, without the quotes of JSON.
fn plain(value: &Value) -> String {
    printable(&value.as_str().map_or_else(|| value.to_string(), str::to_owned)).into_owned()
}
