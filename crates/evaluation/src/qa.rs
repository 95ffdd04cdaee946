//! Short prompts with answers that can be checked.

use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::error::io;
use crate::server::{Completion, Server};

/// The prompts that come with the program.
const PACK: &str = include_str!("../data/prompts.json");

/// Version of the format of prompt files.
const PACK_VERSION: u32 = 1;

/// A file of prompts.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pack {
    version: u32,
    /// The prompts.
    pub prompts: Vec<Prompt>,
}

/// One prompt.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prompt {
    /// Name, unique in its pack.
    pub id: String,
    /// What it tests: `arithmetic`, `copying`, `facts`, `brackets`, `chat`.
    pub kind: String,
    /// Text to go on with, or with `chat` a question to be put through the model's chat template.
    pub prompt: String,
    /// Whether the prompt is a question for an instruct model.
    #[serde(default)]
    pub chat: bool,
    /// Most tokens of the answer.
    pub tokens: usize,
    /// Right answers.
    pub expect: Vec<String>,
    /// How an answer is compared with these.
    #[serde(rename = "match")]
    pub matching: Matching,
}

/// How an answer is compared with an expected one; upper and lower case count alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Matching {
    /// The answer, without leading space, starts with it, and a word or number does not go on behind it.
    Starts,
    /// The answer holds it as whole words.
    Contains,
}

impl Matching {
    fn accepts(self, answer: &str, expected: &str) -> bool {
        let (answer, expected) = (answer.to_lowercase(), expected.to_lowercase());
        let is_word = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
        // Only an expected answer that ends in a word can go on as a longer word.
        let ends = |rest: &str| !(is_word(expected.chars().last()) && is_word(rest.chars().next()));
        match self {
            Self::Starts => answer.trim_start().strip_prefix(&expected).is_some_and(ends),
            Self::Contains => answer.match_indices(&expected).any(|(at, found)| {
                let before = answer[..at].chars().next_back();
                !(is_word(expected.chars().next()) && is_word(before))
                    && ends(&answer[at + found.len()..])
            }),
        }
    }
}

impl Prompt {
    /// Whether `answer` is right.
    #[must_use]
    pub fn passes(&self, answer: &str) -> bool {
        self.expect.iter().any(|e| self.matching.accepts(answer, e))
    }
}

impl Pack {
    /// The prompts in the file at `path`, or those of the program.
    ///
    /// # Errors
    /// [`Error::Common`]; [`Error::Input`] for a file that is none.
    pub fn read(path: Option<&Path>) -> Result<Self, Error> {
        let Some(path) = path else {
            return Self::parse(PACK, Path::new("the built-in prompts"));
        };
        Self::parse(&std::fs::read_to_string(path).map_err(io(path, "read"))?, path)
    }

    fn parse(text: &str, path: &Path) -> Result<Self, Error> {
        let pack: Self = serde_json::from_str(text)
            .map_err(|e| Error::input(path, format!("no prompts: {e}")))?;
        let mut seen = std::collections::HashSet::new();
        let flaw = match pack
            .prompts
            .iter()
            .find(|p| p.expect.is_empty() || p.tokens == 0 || !seen.insert(&p.id))
        {
            _ if pack.version != PACK_VERSION => {
                format!("version {}, this program knows {PACK_VERSION}", pack.version)
            }
            _ if pack.prompts.is_empty() => "no prompts".to_owned(),
            Some(p) => format!("prompt '{}' has no answer, no tokens, or the id of another", p.id),
            None => return Ok(pack),
        };
        Err(Error::input(path, flaw))
    }
}

/// Answers of one model, in the order of the prompts.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Answers {
    /// Prompt by prompt; `None` for a chat question and a model without a chat template.
    pub answers: Vec<Option<Answer>>,
}

/// An answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Answer {
    content: String,
    tokens: Vec<i64>,
}

impl From<Completion> for Answer {
    fn from(c: Completion) -> Self {
        Self { content: c.content, tokens: c.tokens }
    }
}

/// Asks all prompts; `asked` is called after each, and says whether to go on.
///
/// # Errors
/// Those of the server; [`Error::Stopped`].
pub fn ask(
    server: &Server,
    pack: &Pack,
    has_template: bool,
    mut asked: impl FnMut(usize) -> bool,
) -> Result<Answers, Error> {
    let mut answers = Vec::with_capacity(pack.prompts.len());
    for prompt in &pack.prompts {
        let answer = match (prompt.chat, has_template) {
            (true, false) => None,
            (true, true) => {
                Some(server.complete(&server.chat_prompt(&prompt.prompt)?, prompt.tokens)?)
            }
            (false, _) => Some(server.complete(&prompt.prompt, prompt.tokens)?),
        };
        answers.push(answer.map(Answer::from));
        if !asked(answers.len()) {
            return Err(Error::Stopped);
        }
    }
    Ok(Answers { answers })
}

/// What both models made of the prompts.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct QaReport {
    /// Prompts that were asked.
    pub n_asked: usize,
    /// Of these, those that the base answers rightly.
    pub n_base: usize,
    /// Of these, those that the compressed file answers rightly.
    pub n_statecells: usize,
    /// Chat questions left out because the model has no chat template.
    pub n_skipped: usize,
    /// Prompt by prompt.
    pub prompts: Vec<QaRow>,
}

/// One prompt and both answers.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct QaRow {
    /// Name.
    pub id: String,
    /// What it tests.
    pub kind: String,
    /// The prompt, or the question.
    pub prompt: String,
    /// Right answers.
    pub expect: Vec<String>,
    /// What the base wrote.
    pub base: String,
    /// What the compressed file wrote.
    pub statecells: String,
    /// Whether the base is right.
    pub base_passes: bool,
    /// Whether the compressed file is right.
    pub statecells_passes: bool,
    /// Greedy tokens that both have in common before the first difference.
    pub same_tokens: usize,
    /// Whether there is a difference at all.
    pub differs: bool,
}

impl QaReport {
    /// Compares the answers to `pack`.
    #[must_use]
    pub fn new(pack: &Pack, base: &Answers, coded: &Answers) -> Self {
        let pairs = pack.prompts.iter().zip(base.answers.iter().zip(&coded.answers));
        let rows: Vec<QaRow> =
            pairs.filter_map(|(p, (a, b))| Some(row(p, a.as_ref()?, b.as_ref()?))).collect();
        Self {
            n_asked: rows.len(),
            n_base: rows.iter().filter(|r| r.base_passes).count(),
            n_statecells: rows.iter().filter(|r| r.statecells_passes).count(),
            n_skipped: pack.prompts.len() - rows.len(),
            prompts: rows,
        }
    }
}

fn row(prompt: &Prompt, base: &Answer, coded: &Answer) -> QaRow {
    let same = base.tokens.iter().zip(&coded.tokens).take_while(|(a, b)| a == b).count();
    QaRow {
        id: prompt.id.clone(),
        kind: prompt.kind.clone(),
        prompt: prompt.prompt.clone(),
        expect: prompt.expect.clone(),
        base: base.content.clone(),
        statecells: coded.content.clone(),
        base_passes: prompt.passes(&base.content),
        statecells_passes: prompt.passes(&coded.content),
        same_tokens: same,
        differs: base.tokens != coded.tokens,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompt(expect: &str, matching: Matching) -> Prompt {
        Prompt {
            id: "a".into(),
            kind: "facts".into(),
            prompt: "p".into(),
            chat: false,
            tokens: 8,
            expect: vec![expect.into()],
            matching,
        }
    }

    #[test]
    fn the_built_in_pack_is_complete() {
        let pack = Pack::read(None).unwrap();
        assert!(pack.prompts.len() >= 24, "{}", pack.prompts.len());
        for kind in ["arithmetic", "copying", "facts", "brackets", "chat"] {
            assert!(pack.prompts.iter().filter(|p| p.kind == kind).count() >= 3, "{kind}");
        }
        assert!(pack.prompts.iter().all(|p| p.chat == (p.kind == "chat")));
    }

    #[test]
    fn answers_are_compared_by_whole_words() {
        let starts = prompt("6", Matching::Starts);
        for (answer, right) in
            [(" 6\n\nThe", true), ("6.", true), (" 60", false), (" it is 6", false), ("", false)]
        {
            assert_eq!(starts.passes(answer), right, "{answer}");
        }
        let contains = prompt("Paris", Matching::Contains);
        for (answer, right) in
            [("It is paris.", true), ("Parisian", false), ("comParis", false), ("Paris", true)]
        {
            assert_eq!(contains.passes(answer), right, "{answer}");
        }
        assert!(prompt(")", Matching::Starts).passes(" )x"));
    }

    #[test]
    fn both_answers_are_compared_token_by_token() {
        let pack = Pack {
            version: 1,
            prompts: vec![prompt("yes", Matching::Starts), prompt("x", Matching::Starts)],
        };
        let answer = |content: &str, tokens: &[i64]| {
            Some(Answer { content: content.into(), tokens: tokens.to_vec() })
        };
        let base = Answers { answers: vec![answer("yes", &[1, 2, 3]), None] };
        let coded = Answers { answers: vec![answer("no", &[1, 2, 4]), None] };
        let report = QaReport::new(&pack, &base, &coded);
        assert_eq!(
            (report.n_asked, report.n_base, report.n_statecells, report.n_skipped),
            (1, 1, 0, 1)
        );
        assert_eq!((report.prompts[0].same_tokens, report.prompts[0].differs), (2, true));
    }

    #[test]
    fn bad_packs_are_refused() {
        let path = Path::new("p.json");
        let one =
            r#"{"id":"a","kind":"k","prompt":"p","tokens":1,"expect":["x"],"match":"starts"}"#;
        assert!(Pack::parse(&format!(r#"{{"version":1,"prompts":[{one}]}}"#), path).is_ok());
        for text in [
            "",
            "{}",
            r#"{"version":1,"prompts":[]}"#,
            &format!(r#"{{"version":2,"prompts":[{one}]}}"#),
            &format!(r#"{{"version":1,"prompts":[{one},{one}]}}"#),
        ] {
            let error = Pack::parse(text, path).unwrap_err().to_string();
            assert!(error.starts_with("p.json: "), "{error}");
        }
    }
}
