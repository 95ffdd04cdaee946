//! Peak memory stays under 1 GB plus four times the largest tensor in F32, whatever the size of the file.

mod common;

use std::process::Stdio;

use common::Fixture;
use ggml::Type;
use test_models::Model;

/// What the program may use beyond four times the largest matrix: promised is 1 GB, needed far less.
const LIMIT_BYTES: u64 = 300 << 20;

/// Highest resident memory of a build of `model`, in bytes.
fn peak_bytes(model: &Model) -> (Fixture, u64) {
    let fixture = Fixture::new(model);
    let flags = "-i model.gguf -o out.gguf --layers 0 --dict-max-samples 128 -t 1";
    let mut command = fixture.quick(flags);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let mut peak_kib = 0;
    let status = loop {
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id()));
        let line = status.as_deref().unwrap_or("").lines().find(|l| l.starts_with("VmHWM:"));
        let kib = line.and_then(|l| l.split_whitespace().nth(1)?.parse::<u64>().ok());
        peak_kib = peak_kib.max(kib.unwrap_or(0));
        match child.try_wait().unwrap() {
            Some(status) => break status,
            None => std::thread::sleep(std::time::Duration::from_millis(2)),
        }
    };
    assert!(status.success() && peak_kib > 0);
    (fixture, peak_kib * 1024)
}

#[test]
fn memory_follows_the_largest_tensor_not_the_file() {
    let small = Model { n_embd: 256, n_ff: 512, ..Model::default() };
    let large = Model {
        n_embd: 1024,
        n_ff: 4096,
        n_vocab: 16384,
        ffn_type: Type::F32,
        other_type: Type::F32,
        ..Model::default()
    };
    for model in [small, large] {
        let (fixture, peak) = peak_bytes(&model);
        let largest = 4 * (model.n_embd * model.n_ff) as u64;
        let allowed = LIMIT_BYTES + 4 * largest;
        let file = fixture.bytes("model.gguf").len();
        println!("file {file} bytes, largest matrix {largest}, peak {peak}, allowed {allowed}");
        assert!(peak < allowed, "{peak} of {allowed} bytes, the largest matrix has {largest}");
    }
}
