//! Intact GGUF files that are no model which can be coded.

use crate::Case;
use crate::gguf::{Gguf, Tensor, Value, tensor_type};
use crate::good::{self, N_EMBD, N_FF};

const UP: &str = "blk.0.ffn_up.weight";

/// Files for `statecells-build -i` and `seeddelta-build -i`.
#[must_use]
pub fn models() -> Vec<Case> {
    [metadata(), tensors(), kinds(), values()].concat()
}

fn changed(name: &str, says: &[&'static str], change: impl FnOnce(&mut Gguf)) -> Case {
    let mut file = good::model();
    change(&mut file);
    Case::of(name, &file, says)
}

fn metadata() -> Vec<Case> {
    let architecture = "general.architecture";
    vec![
        changed("no architecture", &[architecture], |f| f.remove(architecture)),
        changed("architecture as number", &[architecture], |f| f.set(architecture, Value::u32(1))),
        changed("architecture with a line break", &["general.architecture"], |f| {
            f.set(architecture, Value::text("lla\nma"));
        }),
        changed("block count as text", &["llama.block_count"], |f| {
            f.set("llama.block_count", Value::text("1"));
        }),
        changed("block count as array", &["llama.block_count"], |f| {
            f.set("llama.block_count", Value::i32s(&[1]));
        }),
        changed("an adapter", &["general.type", "'adapter'"], |f| {
            f.set("general.type", Value::text("adapter"));
        })
        .fine_for_llama(),
        changed("a type that writes to the terminal", &["general.type"], |f| {
            f.set("general.type", Value::text("\x1b[31mgood\nfile"));
        })
        .fine_for_llama(),
        changed(
            "more layers for further tokens than there are",
            &["nextn_predict_layers = 2"],
            |f| {
                f.set("llama.nextn_predict_layers", Value::u32(2));
            },
        )
        .stops_llama(),
        changed("layers for further tokens as text", &["nextn_predict_layers"], |f| {
            f.set("llama.nextn_predict_layers", Value::text("1"));
        }),
        changed("layers for further tokens only", &["nextn_predict_layers = 1", "name"], |f| {
            f.set("llama.nextn_predict_layers", Value::u32(1));
        }),
        changed("a number of parts as u32", &["split.count", "u16"], |f| {
            f.set("split.count", Value::u32(3));
        }),
        changed("experts in the metadata", &["llama.expert_count"], |f| {
            f.set("llama.expert_count", Value::u32(8));
        })
        .stops_llama(),
    ]
}

fn tensors() -> Vec<Case> {
    let shape = |name: &str, says: &[&'static str], dims: &[u64], n: usize| {
        changed(name, says, |f| {
            let tensor = f.tensor(UP);
            tensor.dims = dims.to_vec();
            tensor.data.resize(4 * n, 0);
        })
    };
    vec![
        changed("no FFN", &["ffn_up", "layout"], |f| {
            for part in ["gate", "up", "down"] {
                f.remove_tensor(format!("blk.0.ffn_{part}.weight"));
            }
        }),
        changed("no ffn_down", &["blk.0.ffn_down.weight"], |f| {
            f.remove_tensor("blk.0.ffn_down.weight");
        }),
        shape("an FFN weight of three dimensions", &[UP, "matri"], &[32, 8, 8], 32 * 64),
        shape("an empty FFN weight", &[UP, "empty"], &[0, 64], 0),
        changed("an FFN weight of integers", &[UP, "i32"], |f| {
            f.tensor(UP).ty = tensor_type::I32;
        })
        .stops_llama(),
        changed("experts among the tensors", &["blk.0.ffn_up_exps.weight", "experts"], |f| {
            f.tensors.push(Tensor::f32("blk.0.ffn_up_exps.weight", &[1], &[0.0]));
        }),
        changed("a layer number of 20 digits", &["blk.0.ffn_up.weight"], |f| {
            f.tensor(UP).name = b"blk.99999999999999999999.ffn_up.weight".to_vec();
        }),
    ]
}

/// Sound files of models whose layers cannot be coded.
fn kinds() -> Vec<Case> {
    // Without its own FFN, with `tensors` instead.
    let kind = |name: &str, says: &[&'static str], arch: &str, tensors: &[&str]| {
        changed(name, says, |f| {
            f.set("general.architecture", Value::text(arch));
            for part in ["gate", "up", "down"] {
                f.remove_tensor(format!("blk.0.ffn_{part}.weight"));
            }
            f.tensors.extend(tensors.iter().map(|name| Tensor::f32(name, &[1], &[0.0])));
        })
    };
    let halves = ["enc.blk.0.ffn_up.weight", "dec.blk.0.ffn_up.weight"];
    let vision = ["v.blk.0.ffn_up.weight", "mm.0.weight"];
    vec![
        kind("Mamba", &["recurrent", "mamba", "blk.0.ssm_in"], "mamba", &["blk.0.ssm_in.weight"]),
        kind("RWKV", &["recurrent", "rwkv6", "time_mix"], "rwkv6", &["blk.0.time_mix_key.weight"]),
        kind("T5", &["encoder and decoder", "t5", "decoder alone"], "t5", &halves),
        kind("an old mmproj", &["projector", "give the language model"], "clip", &vision),
        changed("a new mmproj", &["projector", "give the language model"], |f| {
            f.set("general.type", Value::text("mmproj"));
        })
        .fine_for_llama(),
        changed("a vocabulary alone", &["vocabulary", "model itself"], |f| f.tensors.clear()),
    ]
}

fn values() -> Vec<Case> {
    let value = |name: &str, bits: u32, says: &[&'static str]| {
        changed(name, says, |f| f.tensor(UP).set_u32(N_EMBD * N_FF - 1, bits)).fine_for_llama()
    };
    vec![
        value("a weight that is NaN", f32::NAN.to_bits(), &["blk.0.ffn_up.weight", "NaN"]),
        value("an infinite weight", f32::INFINITY.to_bits(), &["blk.0.ffn_up.weight", "inf"]),
        value("an infinite negative weight", f32::NEG_INFINITY.to_bits(), &[UP, "-inf"]),
    ]
}
