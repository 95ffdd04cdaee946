//! The sound files that the bad ones are made from, small enough to be kept as seeds.

use crate::gguf::{Gguf, Tensor, Value, tensor_type};

/// Width of the hidden state.
pub const N_EMBD: usize = 32;
/// Width of the FFN.
pub const N_FF: usize = 64;
/// Tokens: three special ones and one per byte.
pub(crate) const N_VOCAB: usize = 259;

/// Bits of 1.0, 0.5 and 0.25 in F16.
const HALVES: [u16; 3] = [0x3c00, 0x3800, 0x3400];

/// Small numbers without a pattern that a codec could find.
pub(crate) fn noise(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        ((state >> 16) as f32 / 32768.0 - 1.0) / 8.0
    };
    std::iter::repeat_with(next).take(n).collect()
}

pub(crate) fn matrix(name: &str, d_in: usize, d_out: usize) -> Tensor {
    let seed = name.bytes().fold(7, |h: u32, b| h.wrapping_mul(31).wrapping_add(u32::from(b)));
    Tensor::f32(name, &[d_in as u64, d_out as u64], &noise(d_in * d_out, seed))
}

pub(crate) fn norm(name: &str) -> Tensor {
    Tensor::f32(name, &[N_EMBD as u64], &[1.0; N_EMBD])
}

/// A model of the llama architecture with one layer, in F32, that llama.cpp loads and runs.
#[must_use]
pub fn model() -> Gguf {
    let mut file = Gguf::default();
    file.set("general.architecture", Value::text("llama"));
    file.set("general.name", Value::text("small"));
    for (key, value) in [
        ("context_length", 64),
        ("embedding_length", N_EMBD),
        ("block_count", 1),
        ("feed_forward_length", N_FF),
        ("attention.head_count", 2),
        ("attention.head_count_kv", 2),
        ("rope.dimension_count", N_EMBD / 2),
        ("vocab_size", N_VOCAB),
    ] {
        file.set(format!("llama.{key}"), Value::u32(value as u32));
    }
    file.set("llama.attention.layer_norm_rms_epsilon", Value::f32(1e-5));
    vocabulary(&mut file);
    file.tensors.push(matrix("token_embd.weight", N_EMBD, N_VOCAB));
    file.tensors.push(norm("blk.0.attn_norm.weight"));
    attention(&mut file, 0);
    file.tensors.push(norm("blk.0.ffn_norm.weight"));
    ffn(&mut file, 0);
    file.tensors.push(norm("output_norm.weight"));
    file.tensors.push(matrix("output.weight", N_EMBD, N_VOCAB));
    file
}

/// Attention with as many heads for keys as for queries.
pub(crate) fn attention(file: &mut Gguf, layer: usize) {
    for part in ["q", "k", "v", "output"] {
        file.tensors.push(matrix(&format!("blk.{layer}.attn_{part}.weight"), N_EMBD, N_EMBD));
    }
}

/// A plain FFN with a gate.
pub(crate) fn ffn(file: &mut Gguf, layer: usize) {
    file.tensors.push(matrix(&format!("blk.{layer}.ffn_gate.weight"), N_EMBD, N_FF));
    file.tensors.push(matrix(&format!("blk.{layer}.ffn_up.weight"), N_EMBD, N_FF));
    file.tensors.push(matrix(&format!("blk.{layer}.ffn_down.weight"), N_FF, N_EMBD));
}

/// `file` in `n` parts of about as many tensors each, as llama-gguf-split cuts it: all metadata in the first.
///
/// # Panics
/// If there are more parts or tensors than the format counts.
#[must_use]
pub fn parts(file: &Gguf, n: usize) -> Vec<Gguf> {
    let count = u16::try_from(n).expect("few parts");
    let n_tensors = i32::try_from(file.tensors.len()).expect("few tensors");
    let per_part = file.tensors.len().div_ceil(n);
    (0..count)
        .map(|number| {
            let from = per_part * usize::from(number);
            let to = (from + per_part).min(file.tensors.len());
            let keys = if number == 0 { file.keys.clone() } else { Vec::new() };
            let tensors = file.tensors[from..to].to_vec();
            Gguf { keys, tensors, ..Gguf::default() }
                .with("split.no", Value::u16(number))
                .with("split.count", Value::u16(count))
                .with("split.tensors.count", Value::i32(n_tensors))
        })
        .collect()
}

/// A SentencePiece-like vocabulary of special tokens and one per byte.
pub(crate) fn vocabulary(file: &mut Gguf) {
    const UNKNOWN: i32 = 2;
    const CONTROL: i32 = 3;
    const BYTE: i32 = 6;
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_owned).to_vec();
    tokens.extend((0..256).map(|b| format!("<0x{b:02X}>")));
    let mut types = vec![UNKNOWN, CONTROL, CONTROL];
    types.resize(N_VOCAB, BYTE);
    let scores: Vec<f32> = (0..N_VOCAB).map(|i| -(i as f32)).collect();
    file.set("tokenizer.ggml.model", Value::text("llama"));
    file.set("tokenizer.ggml.tokens", Value::texts(&tokens));
    file.set("tokenizer.ggml.scores", Value::f32s(&scores));
    file.set("tokenizer.ggml.token_type", Value::i32s(&types));
    file.set("tokenizer.ggml.bos_token_id", Value::u32(1));
    file.set("tokenizer.ggml.eos_token_id", Value::u32(2));
    file.set("tokenizer.ggml.unknown_token_id", Value::u32(0));
}

/// `n` values of F16 that are not all the same, as bits.
pub(crate) fn halves(n: usize) -> Vec<u16> {
    (0..n).map(|i| HALVES[i % HALVES.len()] | if i % 2 == 0 { 0 } else { 0x8000 }).collect()
}

/// Puts sidecars of `scheme` where the dense weight of `stem` stands.
fn code(file: &mut Gguf, stem: &str, scheme: &str, sidecars: Vec<Tensor>) {
    code_tensor(file, &format!("{stem}.weight"), stem, scheme, sidecars);
}

/// Puts sidecars of `scheme` for `stem` where the tensor `weight` stands.
pub(crate) fn code_tensor(
    file: &mut Gguf,
    weight: &str,
    stem: &str,
    scheme: &str,
    sidecars: Vec<Tensor>,
) {
    let at = file.tensors.iter().position(|t| t.name == weight.as_bytes()).expect("a dense weight");
    file.tensors.splice(at..=at, sidecars);
    file.set(format!("statecells.{stem}.scheme"), Value::text(scheme));
    file.set(format!("statecells.{stem}.gap"), Value::f32(0.25));
}

pub(crate) fn mark_coded(file: &mut Gguf, scheme: &str) {
    file.set("statecells.enabled", Value::bool(true));
    file.set("statecells.version", Value::u32(1));
    file.set("statecells.scheme", Value::text(scheme));
}

/// [`model`] with `ffn_gate` in sections (two of them, with outliers), `ffn_up` with the scheme `sign+vals` and
/// `ffn_down` with `sign+row_scale`.
#[must_use]
pub fn coded() -> Gguf {
    let mut file = model();
    mark_coded(&mut file, "sections");
    let (e, f) = (N_EMBD as u64, N_FF as u64);
    let planes: Vec<u8> = (0..32 * 4 * 2).map(|i| (i * 37 % 256) as u8).collect();
    let gate = "blk.0.ffn_gate";
    let sections = vec![
        Tensor::f16(format!("{gate}.dict"), &[8, 16, 2], &halves(8 * 16 * 2)),
        Tensor::new(format!("{gate}.codes"), tensor_type::I8, &[32, 4, 2], planes),
        Tensor::f16(format!("{gate}.row_scale"), &[f], &halves(N_FF)),
        Tensor::i32(format!("{gate}.outlier_idx"), &[3], &[0, 77, 2047]),
        Tensor::f16(format!("{gate}.outlier_val"), &[3], &halves(3)),
    ];
    code(&mut file, gate, "sections", sections);
    let codes =
        |k: usize, n: usize| -> Vec<i16> { (0..k * n).map(|i| (i * 5 % 11) as i16 - 5).collect() };
    let up = "blk.0.ffn_up";
    let vals = vec![
        Tensor::f16(format!("{up}.dict"), &[e, 5], &halves(N_EMBD * 5)),
        Tensor::i16(format!("{up}.codes"), &[3, f], &codes(3, N_FF)),
        Tensor::f16(format!("{up}.vals"), &[3, f], &halves(3 * N_FF)),
    ];
    code(&mut file, up, "sign+vals", vals);
    let down = "blk.0.ffn_down";
    let scaled = vec![
        Tensor::f32(format!("{down}.dict"), &[f, 5], &noise(N_FF * 5, 3)),
        Tensor::i16(format!("{down}.codes"), &[2, e], &codes(2, N_EMBD)),
        Tensor::f16(format!("{down}.row_scale"), &[e], &halves(N_EMBD)),
    ];
    code(&mut file, down, "sign+row_scale", scaled);
    file
}

/// [`model`] coded by SeedDelta: a low-rank base with a delta, a diagonal with row scales, a delta alone.
#[must_use]
pub fn seeddelta() -> Gguf {
    let mut file = model();
    mark_coded(&mut file, "seeddelta");
    let (e, f) = (N_EMBD as u64, N_FF as u64);
    let columns = |n: usize| -> Vec<i16> {
        (0..n).flat_map(|r| [(r % 16) as i16, (r % 16) as i16 + 9]).collect()
    };
    let gate = "blk.0.ffn_gate";
    let low_rank = vec![
        Tensor::f16(format!("{gate}.base_v"), &[e, 2], &halves(N_EMBD * 2)),
        Tensor::f16(format!("{gate}.base_u"), &[2, f], &halves(2 * N_FF)),
        Tensor::i16(format!("{gate}.delta_idx"), &[2, f], &columns(N_FF)),
        Tensor::f16(format!("{gate}.delta_val"), &[2, f], &halves(2 * N_FF)),
    ];
    code(&mut file, gate, "seeddelta", low_rank);
    let up = "blk.0.ffn_up";
    let diagonal = vec![
        Tensor::f16(format!("{up}.base_diag"), &[f], &halves(N_FF)),
        Tensor::f16(format!("{up}.row_scale"), &[f], &halves(N_FF)),
    ];
    code(&mut file, up, "seeddelta", diagonal);
    let down = "blk.0.ffn_down";
    let delta = vec![
        Tensor::i16(format!("{down}.delta_idx"), &[2, e], &columns(N_EMBD)),
        Tensor::f16(format!("{down}.delta_val"), &[2, e], &halves(2 * N_EMBD)),
    ];
    code(&mut file, down, "seeddelta", delta);
    file
}

/// An importance matrix for [`model`].
#[must_use]
pub fn imatrix() -> Gguf {
    let mut file = Gguf::default();
    file.set("general.type", Value::text("imatrix"));
    file.set("imatrix.datasets", Value::texts(&["text"]));
    file.set("imatrix.chunk_count", Value::u32(1));
    file.set("imatrix.chunk_size", Value::u32(64));
    for (part, n) in [("gate", N_EMBD), ("up", N_EMBD), ("down", N_FF)] {
        let weight = format!("blk.0.ffn_{part}.weight");
        let sums: Vec<f32> = (0..n).map(|i| 1.0 + i as f32).collect();
        file.tensors.push(Tensor::f32(format!("{weight}.in_sum2"), &[n as u64], &sums));
        file.tensors.push(Tensor::f32(format!("{weight}.counts"), &[1], &[64.0]));
    }
    file
}

/// [`imatrix`] in the format before GGUF: mean squares times the number of calls.
#[must_use]
pub fn old_imatrix() -> Vec<u8> {
    const CALLS: i32 = 2;
    let mut bytes = 3i32.to_le_bytes().to_vec();
    for (part, n) in [("gate", N_EMBD), ("up", N_EMBD), ("down", N_FF)] {
        let weight = format!("blk.0.ffn_{part}.weight");
        bytes.extend((weight.len() as i32).to_le_bytes());
        bytes.extend(weight.as_bytes());
        bytes.extend([CALLS.to_le_bytes(), (n as i32).to_le_bytes()].concat());
        let means = (0..n).map(|i| (1.0 + i as f32) / 64.0);
        bytes.extend(means.flat_map(|v| (v * CALLS as f32).to_le_bytes()));
    }
    bytes.extend([1i32.to_le_bytes(), 4i32.to_le_bytes()].concat());
    bytes.extend(b"text");
    bytes
}

/// A calibration for a model of [`model`]'s shapes: second moments for gate and up, samples for down.
#[must_use]
pub fn calibration() -> Gguf {
    let mut file = Gguf::default();
    let hash = "ab".repeat(32);
    file.set("general.type", Value::text("calibration"));
    file.set("calibration.version", Value::u32(1));
    file.set("calibration.model.sha256", Value::text(&hash));
    file.set("calibration.model.architecture", Value::text("llama"));
    file.set("calibration.model.n_layer", Value::u32(1));
    file.set("calibration.model.n_embd", Value::u32(N_EMBD as u32));
    file.set("calibration.model.n_ff", Value::u32(N_FF as u32));
    file.set("calibration.text.names", Value::texts(&["text.txt"]));
    file.set("calibration.text.sha256", Value::texts(&[&hash]));
    file.set("calibration.tokens.fitted", Value::u64(20));
    file.set("calibration.tokens.held_out", Value::u64(4));
    file.set("calibration.n_ctx", Value::u32(4));
    file.set("calibration.tokens.ids", Value::i32s(&(0..24).collect::<Vec<_>>()));
    file.set("calibration.seed", Value::u64(7));
    file.set("calibration.tool", Value::text("by hand"));
    file.set("calibration.llama_cpp", Value::text("none"));
    file.set("calibration.text.shingle_tokens", Value::u32(32));
    file.set("calibration.text.shingle_hashes", Value::u64s(&[3, 5, 8]));
    let input = "blk.0.ffn_in";
    let diagonal = |d: usize| -> Vec<f32> {
        (0..d)
            .flat_map(|i| (0..=i).map(move |j| if i == j { 2.0 + i as f32 } else { 0.5 }))
            .collect()
    };
    let triangle = diagonal(N_EMBD);
    let n = triangle.len() as u64;
    let (e, f) = (N_EMBD as u64, N_FF as u64);
    file.tensors.push(Tensor::f32(format!("{input}.h"), &[n], &triangle));
    file.tensors.push(Tensor::f32(format!("{input}.holdout_h"), &[n], &triangle));
    file.tensors.push(Tensor::f16(format!("{input}.holdout"), &[e, 3], &halves(N_EMBD * 3)));
    file.tensors.push(Tensor::f32(format!("{input}.holdout_scale"), &[3], &[1.0, 2.0, 0.5]));
    let down = "blk.0.ffn_down";
    file.tensors.push(Tensor::f16(format!("{down}.samples"), &[f, 4], &halves(N_FF * 4)));
    file.tensors.push(Tensor::f32(format!("{down}.sample_scale"), &[4], &[1.0; 4]));
    file.tensors.push(Tensor::f16(format!("{down}.holdout"), &[f, 2], &halves(N_FF * 2)));
    file.tensors.push(Tensor::f32(format!("{down}.holdout_scale"), &[2], &[1.0; 2]));
    file
}

/// A policy for [`model`].
pub const POLICY: &str = r#"{"tensors": {"blk.0.ffn_up": {"base": "lowrank:4", "delta_k": 7}, "blk.0.ffn_down": {"base": "none", "delta_k": 3}}}"#;

/// Sensitivities for [`model`].
pub const SENSITIVITY: &str = r#"{"blk.0.ffn_gate": 1.0, "blk.0.ffn_down": 2.5}"#;
