//! The acceptance rules.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::file_report::FileReport;

/// FFN bytes to save against Q5_K_M: what is accepted, and the aim beyond.
const SAVED: [f64; 2] = [0.30, 0.50];
/// Speed over Q5_K_M's: the same.
const FASTER: [f64; 2] = [1.10, 1.20];
/// Perplexity above that of the file with Q5_K_M's FFN, at most.
const WORSE: f64 = 0.02;

/// All rules, and what follows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Verdict {
    /// Whether all rules that are required passed; `null` if none failed and one was not measured.
    pub passed: Option<bool>,
    /// The rules.
    pub rules: Vec<Rule>,
}

/// What a rule is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// It decides.
    Required,
    /// An aim beyond; it does not decide.
    Aim,
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Rule {
    /// Short name, such as `ffn_memory_30`.
    pub id: String,
    /// What it asks.
    pub title: String,
    /// Whether it decides.
    pub level: Level,
    /// The figure; `null` if not measured.
    pub value: Option<f64>,
    /// Its standard error, where there is one.
    pub error: Option<f64>,
    /// The limit, on the same scale.
    pub limit: f64,
    /// Whether the figure may be below the limit, or above.
    pub at_most: bool,
    /// `null` if not measured.
    pub passed: Option<bool>,
    /// Why it cannot be measured for this model, where that is so.
    #[serde(default)]
    pub reason: Option<String>,
    /// The same figure against the whole file in Q5_K_M; it does not decide.
    pub against_whole_file: Option<f64>,
}

impl Rule {
    fn new(
        id: &str,
        title: String,
        level: Level,
        value: Option<f64>,
        limit: f64,
        at_most: bool,
    ) -> Self {
        let value = value.filter(|v| v.is_finite());
        let passed = value.map(|v| if at_most { v <= limit } else { v >= limit });
        Self {
            id: id.to_owned(),
            title,
            level,
            value,
            error: None,
            limit,
            at_most,
            passed,
            reason: None,
            against_whole_file: None,
        }
    }

    /// The figure as text.
    #[must_use]
    pub fn figure(&self) -> String {
        let Some(value) = self.value else { return "-".to_owned() };
        if self.id.starts_with("ffn_memory") {
            format!("{:.1} % less", 100.0 * value)
        } else if self.id.starts_with("perplexity") {
            let error = self.error.map(|e| format!(" \u{b1} {:.2}", 100.0 * e));
            format!("{:+.2}{} %", 100.0 * value, error.unwrap_or_default())
        } else {
            format!("{value:.2}x")
        }
    }
}

impl Verdict {
    /// Judges `coded` against `reference`, the base with Q5_K_M's FFN, and beside it against `whole`, the
    /// whole file in Q5_K_M. `no_logits` tells why quality cannot be measured, if it cannot.
    #[must_use]
    pub fn new(
        coded: &FileReport,
        reference: &FileReport,
        whole: Option<&FileReport>,
        no_logits: Option<&str>,
    ) -> Self {
        let mut rules = Vec::new();
        let levels = [Level::Required, Level::Aim];
        let saved = |other: &FileReport| {
            Some(1.0 - coded.sizes()?.ffn_bytes as f64 / other.sizes()?.ffn_bytes as f64)
        };
        for (limit, level) in SAVED.into_iter().zip(levels) {
            let id = format!("ffn_memory_{:.0}", 100.0 * limit);
            let title = format!("FFN memory at least {:.0} % under Q5_K_M", 100.0 * limit);
            let rule = Rule::new(&id, title, level, saved(reference), limit, false);
            rules.push(Rule { against_whole_file: whole.and_then(saved), ..rule });
        }
        let speed = |other| coded.speed_ratio(other);
        for (limit, level) in FASTER.into_iter().zip(levels) {
            for (name, of) in [("generation", 1), ("prompt", 0)] {
                let pick =
                    |(prompt, generation): (f64, f64)| if of == 1 { generation } else { prompt };
                let id = format!("speed_{name}_{:.0}", 100.0 * limit);
                let title = format!("{name} speed at least {limit:.2}x of Q5_K_M");
                let rule = Rule::new(&id, title, level, speed(reference).map(pick), limit, false);
                rules.push(Rule { against_whole_file: whole.and_then(speed).map(pick), ..rule });
            }
        }
        let ppl_gap = |other: &FileReport| no_logits.map_or_else(|| coded.ppl_gap(other), |_| None);
        let gap = ppl_gap(reference);
        let title = format!("perplexity at most {:.0} % above the Q5_K_M FFN", 100.0 * WORSE);
        let rule =
            Rule::new("perplexity_2", title, Level::Required, gap.map(|g| g.value), WORSE, true);
        let against_whole_file = whole.and_then(ppl_gap).map(|g| g.value);
        let reason = no_logits.map(|why| format!("no logits for the next token: {why}"));
        rules.push(Rule { error: gap.and_then(|g| g.error), reason, against_whole_file, ..rule });
        Self { passed: overall(&rules), rules }
    }
}

impl Verdict {
    /// The rules that decide.
    pub fn required(&self) -> impl Iterator<Item = &Rule> {
        self.rules.iter().filter(|r| r.level == Level::Required)
    }
}

fn overall(rules: &[Rule]) -> Option<bool> {
    let required = || rules.iter().filter(|r| r.level == Level::Required).map(|r| r.passed);
    if required().any(|p| p == Some(false)) {
        return Some(false);
    }
    required().all(|p| p == Some(true)).then_some(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(level: Level, value: Option<f64>) -> Rule {
        Rule::new("perplexity_2", String::new(), level, value, 0.02, true)
    }

    #[test]
    fn limits_belong_to_what_passes() {
        let passes = |value, limit, at_most| {
            Rule::new("r", String::new(), Level::Required, Some(value), limit, at_most).passed
        };
        assert_eq!(passes(0.30, 0.30, false), Some(true));
        assert_eq!(passes(0.2999, 0.30, false), Some(false));
        assert_eq!(passes(0.02, 0.02, true), Some(true));
        assert_eq!(passes(0.0201, 0.02, true), Some(false));
        assert_eq!(passes(f64::NAN, 0.02, true), None);
    }

    #[test]
    fn aims_do_not_decide_and_what_is_missing_does_not_pass() {
        let (good, bad) = (Some(0.0), Some(1.0));
        let cases = [
            (vec![rule(Level::Required, good), rule(Level::Aim, bad)], Some(true)),
            (vec![rule(Level::Required, good), rule(Level::Required, bad)], Some(false)),
            (vec![rule(Level::Required, good), rule(Level::Required, None)], None),
            (vec![rule(Level::Required, None), rule(Level::Required, bad)], Some(false)),
        ];
        for (rules, expected) in cases {
            assert_eq!(overall(&rules), expected, "{rules:?}");
        }
    }

    #[test]
    fn figures_read_well() {
        let figure =
            |id: &str, value| Rule::new(id, String::new(), Level::Aim, value, 1.0, true).figure();
        assert_eq!(figure("ffn_memory_30", Some(0.3184)), "31.8 % less");
        assert_eq!(figure("speed_prompt_110", Some(1.678)), "1.68x");
        assert_eq!(figure("perplexity_2", Some(-0.0012)), "-0.12 %");
        assert_eq!(figure("perplexity_2", None), "-");
    }
}
