//! Which forms of a model are tried.

use std::collections::BTreeMap;

use format::{MatrixId, Role};
use serde::{Deserialize, Serialize};

/// Base and delta of one tensor, as in a policy file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Base.
    pub base: String,
    /// Residuals per row.
    pub delta_k: usize,
}

/// A policy of `seeddelta-build`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// Tensors that are coded.
    pub tensors: BTreeMap<String, Entry>,
}

/// The matrix that is coded only where that is asked for.
pub(crate) const LAST: Role = Role::Down;

impl Policy {
    /// Codes gate and up of `layer`, and `ffn_down` if asked for.
    pub fn code(&mut self, layer: usize, entry: &Entry, down: bool) {
        for role in Role::PLAIN.into_iter().filter(|&t| down || t != LAST) {
            self.tensors.insert(MatrixId { layer, role }.to_string(), entry.clone());
        }
    }

    /// As `seeddelta-build --policy` reads it.
    ///
    /// # Panics
    /// Never: texts and numbers can always be written.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("texts and numbers") + "\n"
    }
}

/// One form of the model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Run {
    /// `B2`, `B3`, `B4`, `K`, `base` or `down`.
    pub group: &'static str,
    /// What it is, short.
    pub name: String,
    /// Coded layers.
    pub layers: Vec<usize>,
    /// Base and residuals.
    pub entry: Entry,
    /// Whether `ffn_down` is coded too.
    pub down: bool,
}

impl Run {
    /// The policy that makes it.
    #[must_use]
    pub fn policy(&self) -> Policy {
        let mut policy = Policy::default();
        for &layer in &self.layers {
            policy.code(layer, &self.entry, self.down);
        }
        policy
    }
}

/// What varies in a sweep.
#[derive(Clone, Debug)]
pub struct Sweep {
    /// Layers of the model.
    pub n_layers: usize,
    /// The form of the runs over layers.
    pub main: Entry,
    /// Residuals per row.
    pub ks: Vec<usize>,
    /// Bases.
    pub bases: Vec<String>,
    /// Single layers, those of pairs, and every how many layers B4 takes one.
    pub layers: Vec<usize>,
}

impl Sweep {
    /// The sweep over a model of `n_layers`; the short one samples six layers and few forms.
    #[must_use]
    pub fn new(n_layers: usize, main: Entry, short: bool) -> Self {
        let all: Vec<usize> = (0..n_layers).collect();
        let bases = [
            "none",
            "identity",
            "diagonal",
            "circulant",
            "block:16",
            "lowrank:16",
            "lowrank:8+diagonal",
        ];
        if !short {
            let ks = vec![6, 12, 16, 24, 32, 48, 64];
            return Self {
                n_layers,
                main,
                ks,
                bases: bases.map(str::to_owned).into(),
                layers: all,
            };
        }
        let n = 6.min(n_layers);
        let layers = (0..n).map(|i| i * (n_layers - 1) / (n - 1).max(1)).collect();
        let bases = ["none", "circulant", "block:16"].map(str::to_owned).into();
        Self { n_layers, main, ks: vec![6, 16, 64], bases, layers }
    }

    /// B2: each layer alone.
    #[must_use]
    pub fn single_layers(&self) -> Vec<Run> {
        self.layers.iter().map(|&l| self.main("B2", &[l])).collect()
    }

    /// All runs but the baseline, in order.
    #[must_use]
    pub fn runs(&self) -> Vec<Run> {
        let mut runs = self.single_layers();
        runs.extend(self.several_layers());
        runs.extend(self.forms());
        runs
    }

    /// B3 and B4.
    fn several_layers(&self) -> Vec<Run> {
        let mut runs = Vec::new();
        for (i, &a) in self.layers.iter().enumerate() {
            runs.extend(self.layers[i + 1..].iter().map(|&b| self.main("B3", &[a, b])));
        }
        for n in [3, 4] {
            let step = self.n_layers / n;
            if step >= 2 {
                runs.push(self.main("B3", &(0..n).map(|i| i * step).collect::<Vec<_>>()));
            }
        }
        for (start, step) in [(0, 2), (1, 2), (0, 3), (0, 1)] {
            let layers: Vec<usize> = (start..self.n_layers).step_by(step).collect();
            for n in [layers.len() / 2, layers.len()] {
                if n > 1 {
                    runs.push(self.main("B4", &layers[..n]));
                }
            }
        }
        runs
    }

    /// Numbers of residuals in all layers; bases in the later half of the layers, with `ffn_down` and without.
    fn forms(&self) -> Vec<Run> {
        let all: Vec<usize> = (0..self.n_layers).collect();
        let of_k =
            |&delta_k: &usize| self.run("K", &all, &Entry { delta_k, ..self.main.clone() }, false);
        let mut runs: Vec<Run> = self.ks.iter().map(of_k).collect();
        for base in &self.bases {
            let entry = Entry { base: base.clone(), ..self.main.clone() };
            for (group, down) in [("base", false), ("down", true)] {
                runs.push(self.run(group, &self.layers[self.layers.len() / 2..], &entry, down));
            }
        }
        runs
    }

    fn main(&self, group: &'static str, layers: &[usize]) -> Run {
        self.run(group, layers, &self.main, false)
    }

    fn run(&self, group: &'static str, layers: &[usize], entry: &Entry, down: bool) -> Run {
        let list: Vec<String> = layers.iter().map(ToString::to_string).collect();
        let list = if layers.len() == self.n_layers { "all".to_owned() } else { list.join(",") };
        let with = if down { " +down" } else { "" };
        let name = format!("{list} {}@{}{with}", entry.base, entry.delta_k);
        Run { group, name, layers: layers.to_vec(), entry: entry.clone(), down }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sweep_holds_all_pairs_and_names_its_tensors() {
        let main = Entry { base: "none".to_owned(), delta_k: 16 };
        let runs = Sweep::new(8, main.clone(), false).runs();
        let n = |group| runs.iter().filter(|r| r.group == group).count();
        assert_eq!((n("B2"), n("B3"), n("K"), n("base"), n("down")), (8, 28 + 1 + 1, 7, 7, 7));
        let policy = runs.iter().find(|r| r.down).unwrap().policy();
        assert_eq!(policy.tensors.len(), 12);
        assert!(policy.tensors.contains_key("blk.7.ffn_down"));
        let short = Sweep::new(30, main, true);
        assert_eq!(short.layers, [0, 5, 11, 17, 23, 29]);
    }
}
