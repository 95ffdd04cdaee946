//! Models without FFN matrices under the names that can be coded: what they are, and what to give instead.

use ggml::gguf::GgufFile;

/// The architecture of multimodal projectors.
const CLIP: &str = "clip";
/// Parts of names that tensors of recurrent layers have: Mamba's, RWKV's.
const RECURRENT: [&str; 2] = [".ssm_", ".time_mix_"];
/// Starts of names of tensors that belong to one half of an encoder and a decoder.
const HALVES: [&str; 2] = ["enc.", "dec."];

/// Why `file` is refused if it is a multimodal projector. Old ones do not say so in `general.type`.
pub(crate) fn projector(file: &GgufFile, architecture: &str) -> Option<String> {
    let says_so = file.string("general.type").ok().flatten().as_deref() == Some("mmproj");
    (architecture == CLIP || says_so).then(|| {
        "is a multimodal projector (mmproj), which only passes pictures or sound on: give the language model that it \
         belongs to"
            .to_owned()
    })
}

/// Why `file`, which has no FFN matrix that could be coded, is refused.
pub(crate) fn without_ffn(file: &GgufFile, architecture: &str) -> String {
    let named = |is: &dyn Fn(&str) -> bool| {
        file.tensors().iter().map(|t| t.name()).find(|name| is(name)).map(str::to_owned)
    };
    if file.tensors().is_empty() {
        return "holds metadata and no weights, as files of a vocabulary do: give the model itself"
            .to_owned();
    }
    if let Some(name) = named(&|name| HALVES.iter().any(|half| name.starts_with(half))) {
        return format!(
            "is a model of encoder and decoder ({architecture}, tensor {name}): give one with a decoder alone, only the \
             layers of such a model can be coded"
        );
    }
    if let Some(name) = named(&|name| RECURRENT.iter().any(|part| name.contains(part))) {
        return format!(
            "is a recurrent model without FFN matrices ({architecture}, tensor {name}): there is nothing to code, give \
             a model with blk.N.ffn_up.weight and blk.N.ffn_down.weight"
        );
    }
    format!(
        "has no tensor blk.N.ffn_up.weight or blk.N.ffn_down.weight ({architecture}): its layout is unknown, give a \
         language model that llama.cpp runs"
    )
}
