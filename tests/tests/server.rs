//! llama-server on coded files: parallel slots, prompt caching, quantized caches.

use std::path::PathBuf;
use std::thread;

use end_to_end::coding::{Coding, Twins};
use end_to_end::model_file::ModelFile;
use end_to_end::programs::{Run, command};
use end_to_end::server::Server;
use fixtures::architectures;
use fixtures::models::Model;
use ggml::Type;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Tokens of an answer.
const N_PREDICT: usize = 12;

/// Different lengths, so that slots are never in step.
const PROMPTS: [&str; 6] = [
    "one",
    "two and two",
    "a third prompt, a good deal longer than the first one",
    "z",
    "0123456789",
    "and the last of them",
];

/// Of the model's weights; one that is never undecided, see [`MARGIN`].
const SEED: u64 = 12;

/// Least difference of log-probability between a token and the next best: far above what the order of
/// additions changes, so that the same greedy text is to be expected of the same model.
const MARGIN: f64 = 0.005;

struct Fixture {
    folder: TempDir,
}

impl Fixture {
    fn new() -> Self {
        Self { folder: TempDir::new().unwrap() }
    }

    /// A coded model; its heads of 32 suit quantized caches.
    fn coded(&self) -> PathBuf {
        let path = self.folder.path().join("base.gguf");
        let model = Model { n_heads: 2, other_type: Type::F32, seed: SEED, ..Model::default() };
        model.write(&path).unwrap();
        let coded = self.folder.path().join("coded.gguf");
        Twins::of(&ModelFile::read(&path), &Coding::default()).coded.write(&coded);
        coded
    }

    /// A coded mixture of experts; its vocabulary knows no text.
    fn coded_mixture(&self, architecture: &str) -> PathBuf {
        let [model, coded] = ["model", "coded"]
            .map(|what| self.folder.path().join(format!("{architecture}-{what}.gguf")));
        architectures::write_experts(architecture, &model).unwrap();
        let mut build =
            command("statecells-build", "--S 6 --no-calib --rounds 1 --beam 2 -i".split(' '));
        build.arg(&model).arg("-o").arg(&coded);
        let _ = Run::to_the_end(build).ok();
        coded
    }
}

fn complete(server: &Server, prompt: &Value, cache: bool) -> Value {
    let body = json!({
        "prompt": prompt, "n_predict": N_PREDICT, "temperature": 0, "ignore_eos": true,
        "cache_prompt": cache, "return_tokens": true, "n_probs": 2,
    });
    server.post("/completion", &body)
}

/// The tokens of an answer.
fn tokens(answer: &Value) -> Vec<u64> {
    let tokens = answer["tokens"].as_array().unwrap();
    assert_eq!(tokens.len(), N_PREDICT, "{answer}");
    tokens.iter().map(|t| t.as_u64().unwrap()).collect()
}

/// By how much each token of an answer is more likely than the next best.
fn margins(answer: &Value) -> Vec<f64> {
    let steps = answer["completion_probabilities"].as_array().unwrap();
    let logprob =
        |step: &Value, rank: usize| step["top_logprobs"][rank]["logprob"].as_f64().unwrap();
    steps.iter().map(|step| logprob(step, 0) - logprob(step, 1)).collect()
}

/// The least of them.
fn margin(answer: &Value) -> f64 {
    margins(answer).into_iter().fold(f64::INFINITY, f64::min)
}

/// The tokens of an answer up to the first one that might as well be another. The server tells no margins of parts of a character,
/// so that there may be fewer of them than tokens.
fn decided(answer: &Value) -> Vec<u64> {
    let n = margins(answer).iter().position(|margin| *margin <= MARGIN);
    tokens(answer)[..n.unwrap_or(N_PREDICT)].to_vec()
}

/// Asks one prompt after the other, then all at once, which must give the same answers as far as the model is decided; how many of
/// all tokens that are.
fn check_slots(server: &Server, prompts: &[Value]) -> usize {
    let alone: Vec<Value> = prompts.iter().map(|p| complete(server, p, false)).collect();
    let expected: Vec<Vec<u64>> = alone.iter().map(decided).collect();
    let together: Vec<Value> = thread::scope(|scope| {
        let ask = |p| scope.spawn(move || complete(server, p, false));
        let threads: Vec<_> = prompts.iter().map(ask).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    let slots = |answers: &[Value]| {
        let mut slots: Vec<_> = answers.iter().map(|a| a["id_slot"].as_u64().unwrap()).collect();
        slots.sort_unstable();
        slots.dedup();
        slots.len()
    };
    assert!(slots(&together) > 1, "the requests did not run side by side");
    for ((prompt, expected), together) in prompts.iter().zip(&expected).zip(&together) {
        assert_eq!(*expected, tokens(together)[..expected.len()], "{prompt}");
    }
    let first = tokens(&alone[0]);
    assert!(alone.iter().any(|a| tokens(a) != first), "every prompt has the same answer");
    expected.iter().map(Vec::len).sum()
}

#[test]
fn parallel_slots_answer_as_one_request_after_the_other() {
    let fixture = Fixture::new();
    let server = Server::start(&fixture.coded(), "--statecells -np 4 -c 1024 -t 2");
    let n_decided = check_slots(&server, &PROMPTS.map(Value::from));
    assert_eq!(n_decided, PROMPTS.len() * N_PREDICT, "undecided: choose another seed");
}

/// Two servers at the same time, each with several tokens of several requests for its experts.
#[test]
fn mixtures_of_experts_are_served_in_parallel_slots() {
    let fixture = Fixture::new();
    let coded = ["qwen3moe", "gpt-oss"].map(|architecture| fixture.coded_mixture(architecture));
    let servers = coded.map(|path| Server::start(&path, "--statecells -np 4 -c 1024 -t 2"));
    let prompt = |i: usize| Value::from_iter((0..3 + 5 * i).map(|j| 3 + (37 * i + 11 * j) % 256));
    let prompts: Vec<Value> = (0..6).map(prompt).collect();
    thread::scope(|scope| {
        for server in &servers {
            let enough = prompts.len() * N_PREDICT / 2;
            let prompts = &prompts;
            scope.spawn(move || assert!(check_slots(server, prompts) > enough, "undecided"));
        }
    });
}

#[test]
fn cached_prompts_give_the_same_answer() {
    let fixture = Fixture::new();
    let server = Server::start(&fixture.coded(), "--statecells -np 1 -c 512 -t 2");
    let prompt = "the same long beginning of every request, and then";
    let fresh = complete(&server, &prompt.into(), false);
    assert!(margin(&fresh) > MARGIN, "the model is undecided: choose another seed");
    let _ = complete(&server, &format!("{prompt} something else").into(), true);
    let cached = complete(&server, &prompt.into(), true);
    let reused = cached["timings"]["cache_n"].as_u64().unwrap();
    assert!(reused >= 40, "only {reused} tokens came from the cache");
    assert_eq!(tokens(&cached), tokens(&fresh));
}

#[test]
fn quantized_caches_work() {
    let fixture = Fixture::new();
    let flags = "--statecells -np 2 -c 512 -t 2 -ctk q8_0 -ctv q8_0 -fa on";
    let server = Server::start(&fixture.coded(), flags);
    let prompt = Value::from(PROMPTS[2]);
    let answer = complete(&server, &prompt, true);
    assert!(margin(&answer) > MARGIN, "the model is undecided: choose another seed");
    assert_eq!(tokens(&complete(&server, &prompt, true)), tokens(&answer));
    drop(server);
    // 8 bits per value of the cache move nothing as far as the margin
    let plain = Server::start(&fixture.coded(), "--statecells -np 2 -c 512 -t 2");
    assert_eq!(tokens(&complete(&plain, &prompt, true)), tokens(&answer));
}
