//! Aligned tables for people: coloured on a terminal, plain elsewhere.

use std::io::IsTerminal;

use comfy_table::{Attribute, Cell, CellAlignment, Color, presets};

/// How a column is aligned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    /// Text.
    Left,
    /// Numbers.
    Right,
}

/// A table with a header and perhaps a line of totals.
#[derive(Clone, Debug)]
pub struct Table {
    columns: Vec<(String, Align)>,
    rows: Vec<(bool, Vec<String>)>,
}

impl Table {
    /// A table with these columns and no rows.
    #[must_use]
    pub fn new(columns: &[(&str, Align)]) -> Self {
        let columns = columns.iter().map(|(name, align)| ((*name).to_owned(), *align)).collect();
        Self { columns, rows: Vec::new() }
    }

    /// Appends a row.
    pub fn row(&mut self, cells: Vec<String>) {
        self.rows.push((false, cells));
    }

    /// Appends a row that sums up those above.
    pub fn total(&mut self, cells: Vec<String>) {
        self.rows.push((true, cells));
    }

    /// The table as text, with colours if `coloured`.
    #[must_use]
    pub fn render(&self, coloured: bool) -> String {
        let mut table = comfy_table::Table::new();
        table.load_style(presets::NOTHING);
        if coloured {
            table.enforce_styling();
        } else {
            table.force_no_tty();
        }
        let header = self
            .columns
            .iter()
            .map(|(name, _)| Cell::new(name).fg(Color::Cyan).add_attribute(Attribute::Bold));
        table.set_header(header);
        for (is_total, cells) in &self.rows {
            table.add_row(cells.iter().map(|text| {
                let cell = Cell::new(text);
                if *is_total { cell.add_attribute(Attribute::Bold) } else { cell }
            }));
        }
        for (column, (_, align)) in table.column_iter_mut().zip(&self.columns) {
            column.set_cell_alignment(match align {
                Align::Left => CellAlignment::Left,
                Align::Right => CellAlignment::Right,
            });
        }
        let lines: Vec<String> = table.lines().map(|line| line.trim_end().to_owned()).collect();
        lines.join("\n")
    }

    /// The table as text, coloured if stdout is a terminal that wants colours.
    #[must_use]
    pub fn render_for_stdout(&self) -> String {
        self.render(stdout_is_coloured())
    }
}

/// Whether stdout is a terminal and the user did not ask for plain text (`NO_COLOR`).
#[must_use]
pub fn stdout_is_coloured() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
}

/// Prints a line on stdout; a closed pipe (`| head`) is no error.
///
/// # Errors
/// Those of stdout.
pub fn print_line(text: &str) -> std::io::Result<()> {
    use std::io::Write;
    match writeln!(std::io::stdout(), "{text}") {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

/// `1 234 567` bytes, grouped so that columns can be compared by eye.
#[must_use]
pub fn bytes(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

/// A share in percent: `42.1 %`.
#[must_use]
pub fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

/// Bits per weight of `n_bytes` for `n_weights`.
#[must_use]
pub fn bits_per_weight(n_bytes: u64, n_weights: u64) -> f64 {
    8.0 * n_bytes as f64 / n_weights as f64
}

/// Share of `reference` that `n_bytes` saves; negative if it is larger.
#[must_use]
pub fn saved(n_bytes: u64, reference: u64) -> f64 {
    1.0 - n_bytes as f64 / reference as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new(&[("name", Align::Left), ("bytes", Align::Right)]);
        table.row(vec!["a".into(), bytes(1_234_567)]);
        table.row(vec!["long name".into(), bytes(12)]);
        table.total(vec!["sum".into(), bytes(1_234_579)]);
        table
    }

    #[test]
    fn plain_tables_are_aligned_and_free_of_escapes() {
        let text = table().render(false);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 4, "{text}");
        assert!(!text.contains('\u{1b}'));
        let ends: Vec<usize> = lines.iter().map(|l| l.len()).collect();
        assert!(ends.iter().all(|e| *e == ends[0]), "{text}");
        assert!(lines[1].ends_with("1 234 567") && lines[2].ends_with(" 12"));
    }

    #[test]
    fn colours_change_nothing_else() {
        let coloured = table().render(true);
        assert!(coloured.contains('\u{1b}'));
    }

    #[test]
    fn numbers_are_grouped() {
        let cases = [(0, "0"), (999, "999"), (1000, "1 000"), (1_234_567, "1 234 567")];
        for (n, text) in cases {
            assert_eq!(bytes(n), text);
        }
        assert_eq!(percent(-0.5), "-50.0 %");
    }
}
