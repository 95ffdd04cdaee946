//! The three tasks and their text.
//!
//! A line is `prompt` + `answer` + newline, and the newline is the model's end of answer:
//!
//! | task | line | |
//! |---|---|---|
//! | copy | `cqwmzb=qwmzb` | a word of 3 to 6 letters, repeats allowed, once more |
//! | sum | `s73+85=590` | 37 + 58 = 095; digits run from the lowest to the highest, so that every digit of the answer depends on digits and one carry that are already there |
//! | brackets | `b([()[=])]`... | the closing brackets that are missing, innermost first |

use std::fmt;

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

/// Letters of a word to copy.
const COPY_LENGTH: std::ops::RangeInclusive<usize> = 3..=6;
/// Digits of an operand.
pub const SUM_DIGITS: usize = 2;
/// Characters of an opening of brackets. There are few shorter ones: the test would take all of them from the training.
const BRACKETS_LENGTH: std::ops::RangeInclusive<usize> = 5..=11;
/// Brackets open at once, at most.
const MAX_DEPTH: usize = 5;

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Task {
    /// A word is repeated.
    Copy,
    /// Two numbers are added.
    Sum,
    /// Open brackets are closed.
    Brackets,
}

impl Task {
    /// All tasks, in the order of tables.
    pub const ALL: [Self; 3] = [Self::Copy, Self::Sum, Self::Brackets];

    /// Name in data files and tables.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Copy => "copy",
            Self::Sum => "sum",
            Self::Brackets => "brackets",
        }
    }

    /// A random example.
    pub fn example(self, rng: &mut ChaCha8Rng) -> Example {
        match self {
            Self::Copy => copy(rng),
            Self::Sum => {
                let n = 10u32.pow(SUM_DIGITS as u32);
                sum(rng.random_range(0..n), rng.random_range(0..n))
            }
            Self::Brackets => brackets(rng),
        }
    }

    /// The right answer to `prompt`, worked out from its text alone; `None` if it is no prompt of this task.
    #[must_use]
    pub fn solve(self, prompt: &str) -> Option<String> {
        let body = prompt.strip_suffix('=')?;
        match self {
            Self::Copy => body.strip_prefix('c').map(str::to_owned),
            Self::Sum => {
                let (a, b) = body.strip_prefix('s')?.split_once('+')?;
                let number =
                    |text: &str| text.chars().rev().collect::<String>().parse::<u32>().ok();
                Some(reversed(number(a)? + number(b)?, SUM_DIGITS + 1))
            }
            Self::Brackets => closing(body.strip_prefix('b')?),
        }
    }
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A question with its answer, without the newline that ends it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Example {
    /// Which task.
    pub task: Task,
    /// Up to and with the `=`.
    pub prompt: String,
    /// What follows.
    pub answer: String,
}

impl Example {
    /// The whole line, with its newline.
    #[must_use]
    pub fn line(&self) -> String {
        format!("{}{}\n", self.prompt, self.answer)
    }
}

fn copy(rng: &mut ChaCha8Rng) -> Example {
    let n = rng.random_range(COPY_LENGTH);
    let word: String = (0..n).map(|_| char::from(rng.random_range(b'a'..=b'z'))).collect();
    Example { task: Task::Copy, prompt: format!("c{word}="), answer: word }
}

fn sum(a: u32, b: u32) -> Example {
    let (left, right) = (reversed(a, SUM_DIGITS), reversed(b, SUM_DIGITS));
    Example {
        task: Task::Sum,
        prompt: format!("s{left}+{right}="),
        answer: reversed(a + b, SUM_DIGITS + 1),
    }
}

/// `value` in `n_digits` digits, the lowest first.
fn reversed(value: u32, n_digits: usize) -> String {
    format!("{value:0n_digits$}").chars().rev().collect()
}

/// A random walk over the depth that ends with something open.
fn brackets(rng: &mut ChaCha8Rng) -> Example {
    loop {
        let n = rng.random_range(BRACKETS_LENGTH);
        let (mut text, mut open) = (String::new(), Vec::new());
        while text.len() < n {
            let opens = open.is_empty() || open.len() < MAX_DEPTH && rng.random_bool(0.55);
            if opens {
                let (left, right) = if rng.random_bool(0.5) { ('(', ')') } else { ('[', ']') };
                open.push(right);
                text.push(left);
            } else {
                text.extend(open.pop());
            }
        }
        if !open.is_empty() {
            let answer = open.into_iter().rev().collect();
            return Example { task: Task::Brackets, prompt: format!("b{text}="), answer };
        }
    }
}

/// Closing brackets that `text` lacks; `None` if it closes what is not open.
fn closing(text: &str) -> Option<String> {
    let mut open = Vec::new();
    for c in text.chars() {
        match c {
            '(' => open.push(')'),
            '[' => open.push(']'),
            _ if open.pop() == Some(c) => {}
            _ => return None,
        }
    }
    Some(open.into_iter().rev().collect())
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn answers_are_right_and_follow_from_the_prompt() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        for task in Task::ALL {
            for _ in 0..500 {
                let e = task.example(&mut rng);
                assert_eq!(task.solve(&e.prompt).as_ref(), Some(&e.answer), "{e:?}");
            }
        }
        assert_eq!(sum(37, 58).line(), "s73+85=590\n");
        assert_eq!(sum(99, 99).answer, "891");
        assert_eq!(Task::Brackets.solve("b([()[=").unwrap(), "]])");
        assert_eq!(Task::Brackets.solve("b(]="), None);
        assert_eq!(Task::Copy.solve("s12="), None);
    }
}
