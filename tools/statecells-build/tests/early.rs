//! What can be known at the start is refused at the start, in a dry run too, and nothing is left behind.

mod common;

use common::calibration::{Made, write_calibration};
use common::{Fixture, fails, succeeds};
use fixtures::models::Model;
use ggml::Type;
use ggml::gguf::GgufWriter;

const BUILD: &str = "-i model.gguf --S 2 --rounds 1 --beam 2 --calib calib.gguf";

/// A step with the flag that its errors name.
type Step = (&'static str, &'static str);

/// The steps that run the model.
const STEPS: [Step; 4] = [
    ("--tune 3", "--tune: "),
    ("--tune-ffn 3", "--tune-ffn: "),
    ("--sequential 1", "--sequential: "),
    ("--sequential 2", "--sequential: "),
];

/// Those that need its gradients.
const GRADIENTS: [Step; 2] =
    [("--tune 3", "--tune: "), ("--sequential 1 --token-weights curvature", "--token-weights: ")];

fn with_text() -> Made {
    Made { n_fitted: 360, n_held_out: 40, with_tokens: true, ..Made::default() }
}

/// A model whose metadata `change` has changed, and a calibration of it.
fn changed(change: impl FnOnce(&mut GgufWriter)) -> Fixture {
    let fixture = Fixture::small();
    let set = |writer: &mut GgufWriter| {
        change(writer);
        Ok(())
    };
    Model::default().write_with(&fixture.path("model.gguf"), set, |_, _| {}).unwrap();
    write_calibration(&fixture, "calib.gguf", with_text());
    fixture
}

/// Each of `steps` is refused in one line with `parts`, before anything else is said or made; without it the model is coded.
fn refuses(steps: &[Step], fixture: &Fixture, parts: &[&str]) {
    let names = fixture.names();
    for (step, flag) in steps {
        for end in ["-o out.gguf", "-o out.gguf --dry-run", "--dry-run"] {
            let mut all = vec![*flag];
            all.extend(parts);
            fails(&mut fixture.plain(&format!("{BUILD} {step} {end}")), 1, &all);
            assert_eq!(fixture.names(), names, "{step} {end}");
        }
    }
    succeeds(&mut fixture.plain(&format!("{BUILD} --dry-run")));
}

#[test]
fn steps_that_cannot_run_a_model_are_refused_before_the_first_tensor() {
    let set = |key: &'static str, value: &'static str| {
        changed(move |w| w.set(&format!("llama.{key}"), value).unwrap())
    };
    let falcon = changed(|w| w.set("general.architecture", "falcon").unwrap());
    refuses(&GRADIENTS, &falcon, &["model.gguf", "'falcon'", "llama, qwen2", "leave out --"]);
    refuses(&GRADIENTS, &set("rope.scaling.type", "yarn"), &["model.gguf", "positions (yarn)"]);
    let both_ways = changed(|w| w.set("llama.attention.causal", false).unwrap());
    refuses(&GRADIENTS, &both_ways, &["later tokens"]);
    let heads = changed(|w| w.set("llama.attention.head_count_kv", 2u32).unwrap());
    refuses(&GRADIENTS, &heads, &["blk.0.attn_k.weight", "[64, 64], not [64, 32]"]);
    let layers = changed(|w| w.set("llama.block_count", 1u32).unwrap());
    refuses(&GRADIENTS, &layers, &["has a tensor 'blk.1."]);
    // Where the whole model needs no gradients, what llama.cpp runs is run, and what it does not is refused with its reason.
    let qwen = changed(|w| w.set("general.architecture", "qwen2").unwrap());
    refuses(&STEPS[1..2], &qwen, &["model.gguf", "qwen2.context_length", "leave out --tune-ffn"]);
    refuses(&STEPS[2..], &qwen, &["model.gguf", "qwen2.context_length", "--sequential 0"]);
    let yarn = set("rope.scaling.type", "yarn");
    succeeds(&mut yarn.plain(&format!("{BUILD} --sequential 1 --tune-ffn 2 -o out.gguf")));
}

#[test]
fn tensors_that_are_not_computed_are_refused_before_the_first_tensor() {
    let with_tensor = |name: &str, dims: &[usize]| {
        let fixture = Fixture::small();
        fixture.add_tensor(name, dims);
        write_calibration(&fixture, "calib.gguf", with_text());
        fixture
    };
    for (name, dims) in [
        ("blk.0.attn_norm.bias", &[64][..]),
        ("blk.0.attn_q_norm.weight", &[16]),
        ("blk.1.ffn_up.scale", &[1]),
        ("output_norm.bias", &[64]),
    ] {
        refuses(&GRADIENTS, &with_tensor(name, dims), &["model.gguf", name]);
    }
    for (name, dims) in [("blk.1.attn_q.bias", 64), ("blk.0.ffn_up.bias", 192)] {
        refuses(&GRADIENTS, &with_tensor(name, &[dims + 1]), &["model.gguf", name]);
        let build = format!("{BUILD} --sequential 1 --tune-ffn 1 --tune 1 -o out.gguf");
        succeeds(&mut with_tensor(name, &[dims]).plain(&build));
    }
    let fixture = Fixture::small();
    fixture.add_tensor("rope_freqs.weight", &[5]);
    write_calibration(&fixture, "calib.gguf", with_text());
    refuses(&GRADIENTS, &fixture, &["rope_freqs.weight"]);
    let without_gate = Fixture::new(&Model { has_gate: false, ..Model::default() });
    write_calibration(&without_gate, "calib.gguf", with_text());
    refuses(&GRADIENTS, &without_gate, &["'arcee'"]);
}

#[test]
fn a_calibration_that_does_not_do_is_refused_before_the_first_tensor() {
    let fixture = Fixture::small();
    write_calibration(&fixture, "calib.gguf", Made::default());
    refuses(&STEPS, &fixture, &["calib.gguf", "does not hold the tokens", "statecells-calib"]);
    write_calibration(&fixture, "calib.gguf", Made { first_token: 40, ..with_text() });
    refuses(&STEPS, &fixture, &["calib.gguf", "not in the model's vocabulary of 288"]);
}

#[test]
fn a_model_that_no_memory_holds_is_refused_before_the_first_tensor() {
    let fixture = Fixture::small();
    // 8 TB in F32, none of which is on the disk.
    let model = Model {
        n_layers: 20,
        n_embd: 1 << 16,
        n_ff: 1 << 19,
        n_heads: 512,
        ffn_type: Type::F16,
        ..Model::default()
    };
    model.write_hollow(&fixture.path("model.gguf")).unwrap();
    let made = Made { n_layers: 0, is_hashed: false, ..with_text() };
    write_calibration(&fixture, "calib.gguf", made);
    for (step, flag) in [("--sequential 1", "--sequential: "), ("--sequential 1 --tune 1", "--")] {
        let command = format!("{BUILD} {step} --dry-run");
        fails(&mut fixture.plain(&command), 1, &[flag, "GB of memory", "leave it out"]);
    }
}

#[test]
fn an_architecture_that_nothing_runs_is_not_coded() {
    let fixture = changed(|w| w.set("general.architecture", "llama-of-tomorrow").unwrap());
    let names = fixture.names();
    for flags in
        ["-o out.gguf", "-o out.gguf --row-scale", "--dry-run", "-o o.gguf --calib calib.gguf"]
    {
        let mut command = fixture.plain(&format!("-i model.gguf {flags}"));
        fails(&mut command, 1, &["model.gguf", "'llama-of-tomorrow'", "unknown", "llama.cpp"]);
    }
    assert_eq!(fixture.names(), names);
}

#[test]
fn what_is_in_the_way_is_told_by_a_dry_run_too() {
    let fixture = Fixture::small();
    let dry = |output: &str, flags: &str| {
        fixture.quick(&format!("-i model.gguf -o {output} --dry-run {flags}"))
    };
    let refused = |output: &str, parts: &[&str]| {
        fails(&mut dry(output, ""), 1, parts);
        fails(&mut fixture.quick(&format!("-i model.gguf -o {output}")), 1, parts);
    };
    fixture.build("out.gguf", "--layers 0");
    refused("out.gguf", &["out.gguf", "already exists"]);
    succeeds(&mut dry("out.gguf", "--resume"));
    succeeds(&mut dry("out.gguf", "--force"));
    fails(&mut dry("out.gguf", "--resume --seed 3"), 1, &["--seed is 3"]);
    std::fs::create_dir(fixture.path("folder")).unwrap();
    refused("folder", &["folder", "name a file"]);
    refused("no/such.gguf", &["no", "check the path"]);
    // Neither a name that is too long itself nor one whose work folder's would be.
    for n in [256, 240] {
        refused(&"x".repeat(n), &["xxx", "too long", "choose a shorter name"]);
    }
    std::fs::write(fixture.path("a.gguf.statecells-work"), "a file").unwrap();
    refused("a.gguf", &["a.gguf.statecells-work", "already exists"]);
    fails(&mut dry("a.gguf", "--force"), 1, &["a.gguf.statecells-work", "ot a directory"]);
    let names = fixture.names();
    fails(&mut fixture.quick("-i model.gguf -o a.gguf --resume"), 1, &["statecells-work"]);
    let mut report = dry("b.gguf", "--report-json folder");
    fails(&mut report, 1, &["folder", "name a file"]);
    assert_eq!(fixture.names(), names);
}
