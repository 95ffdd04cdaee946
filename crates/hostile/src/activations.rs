//! Importance matrices and calibration files that cannot be true.

use crate::Case;
use crate::gguf::{Gguf, Value, tensor_type};
use crate::good::{self, N_EMBD};

const NAN: u32 = 0x7fc0_0000;
const INFINITY: u32 = 0x7f80_0000;
const MINUS_ONE: u32 = 0xbf80_0000;

/// Files for `--imatrix` beside [`good::model`].
#[must_use]
pub fn imatrices() -> Vec<Case> {
    let changed = |name: &str, says: &[&'static str], change: &dyn Fn(&mut Gguf)| {
        let mut file = good::imatrix();
        change(&mut file);
        Case::of(format!("imatrix: {name}"), &file, says)
    };
    let (sums, counts) = ("blk.0.ffn_up.weight.in_sum2", "blk.0.ffn_up.weight.counts");
    let value = |name: &str, tensor: &'static str, bits: u32, says: &[&'static str]| {
        changed(name, says, &|f| f.tensor(tensor).set_u32(0, bits))
    };
    let up = "blk.0.ffn_up.weight";
    vec![
        changed("no chunk count", &["no importance matrix"], &|f| f.remove("imatrix.chunk_count")),
        changed("no entries", &["no importance matrix"], &|f| f.tensors.clear()),
        changed("a weight without sums", &["no entry", up], &|f| f.remove_tensor(sums)),
        changed("a weight without a count", &["no entry", up], &|f| f.remove_tensor(counts)),
        changed("sums in F16", &[up], &|f| {
            f.tensor(sums).ty = tensor_type::F16;
            f.tensor(sums).data.truncate(2 * N_EMBD);
        }),
        changed("sums of another width", &[up, "32 inputs"], &|f| {
            f.tensor(sums).dims = vec![31];
            f.tensor(sums).data.truncate(4 * 31);
        }),
        changed("sums in two dimensions", &[up, "32 inputs"], &|f| {
            f.tensor(sums).dims = vec![16, 2];
        }),
        changed("no inputs", &[up], &|f| {
            f.tensor(sums).dims = vec![0];
            f.tensor(sums).data.clear();
        }),
        value("a sum that is NaN", sums, NAN, &[up, "NaN"]),
        value("an infinite sum", sums, INFINITY, &[up, "inf"]),
        value("a negative sum", sums, MINUS_ONE, &[up, "-1"]),
        value("a count of 0", counts, 0, &[up, "count of 0"]),
        value("a count that is NaN", counts, NAN, &[up, "count of NaN"]),
        value("a count so small that means overflow", counts, 1, &[up]),
    ]
}

/// Files for `--imatrix` in the format before GGUF.
#[must_use]
pub fn old_imatrices() -> Vec<Case> {
    let good = good::old_imatrix();
    let up = "blk.0.ffn_up.weight";
    let at = |name: &str| {
        let found = good.windows(name.len()).position(|w| w == name.as_bytes());
        found.expect("a name in the file")
    };
    // Behind the number of entries and the length of the first name.
    let (gate, up_at) = (8, at(up));
    let (calls, n_values, values) = (up_at + up.len(), up_at + up.len() + 4, up_at + up.len() + 8);
    let case = |name: &str, says: &[&'static str], change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = good.clone();
        change(&mut bytes);
        Case::new(format!("old imatrix: {name}"), bytes, says)
    };
    let number = |name: &str, says: &[&'static str], at: usize, n: u32| {
        case(name, says, &|b| b[at..at + 4].copy_from_slice(&n.to_le_bytes()))
    };
    let cut = |name: &str, end: usize| {
        case(name, &["old format", "truncated or damaged"], &|b| b.truncate(end))
    };
    vec![
        cut("cut after the first name", gate + "blk.0.ffn_gate.weight".len()),
        cut("cut in the middle of values", values + 2),
        cut("cut in the name of the text", good.len() - 1),
        number("an entry more than there are", &["old format"], 0, 4),
        number("an entry less than there are", &["old format", "damaged"], 0, 2),
        number("no length of a name", &["entry 1", "0 bytes of a name"], up_at - 4, 0),
        number("a name of 2^31 - 1", &["entry 1", "bytes of a name"], up_at - 4, i32::MAX as u32),
        number("a name of -1", &["entry 1", "-1 bytes of a name"], up_at - 4, u32::MAX),
        number("no values", &["entry 1", "0 values"], n_values, 0),
        number("-1 values", &["entry 1", "-1 values"], n_values, u32::MAX),
        number("2^31 - 1 values", &[up, "truncated or damaged"], n_values, i32::MAX as u32),
        number(
            "a value less than there are",
            &["old format", "damaged"],
            n_values,
            N_EMBD as u32 - 1,
        ),
        number("-1 calls", &[up, "count of -1"], calls, u32::MAX),
        number("a value that is NaN", &[up, "NaN"], values, NAN),
        number("an infinite value", &[up, "inf"], values, INFINITY),
        number("a negative value", &[up, "-1"], values, MINUS_ONE),
        case("a name with a line break", &["not a text"], &|b| b[up_at + 3] = b'\n'),
        case("a name that is no UTF-8", &["not a text"], &|b| b[up_at + 3] = 0xff),
        case("a weight that the model lacks", &["no entry for", up], &|b| b[up_at + 4] = b'1'),
        case("a weight twice", &["entry 1", "there twice"], &|b| {
            b[..4].copy_from_slice(&2i32.to_le_bytes());
            let first = b[4..up_at - 4].to_vec();
            b.truncate(up_at - 4);
            b.extend(first);
        }),
        case("bytes behind the end", &["should end here"], &|b| b.push(0)),
        case("a name of the text of -1", &["name of the text"], &|b| {
            let at = b.len() - 8;
            b[at..at + 4].copy_from_slice(&(-1i32).to_le_bytes());
        }),
    ]
}

/// Files for `--calib` beside a model of [`good::model`]'s shapes and hash.
#[must_use]
pub fn calibrations() -> Vec<Case> {
    [calibration_metadata(), calibration_tensors(), calibration_values()].concat()
}

fn calibration(name: &str, says: &[&'static str], change: impl FnOnce(&mut Gguf)) -> Case {
    let mut file = good::calibration();
    change(&mut file);
    Case::of(format!("calibration: {name}"), &file, says)
}

fn calibration_metadata() -> Vec<Case> {
    let set = |name: &str, key: &'static str, value: Value| {
        calibration(name, &[key], |f| f.set(key, value))
    };
    vec![
        calibration("a model", &["is no calibration file"], |f| {
            f.set("general.type", Value::text("model"));
        }),
        calibration("version 2", &["format version 2"], |f| {
            f.set("calibration.version", Value::u32(2));
        }),
        set("version as text", "calibration.version", Value::text("1")),
        set("hash as number", "calibration.model.sha256", Value::u32(1)),
        set("layers of 2^40", "calibration.model.n_layer", Value::u64(1 << 40)),
        set("names of texts as number", "calibration.text.names", Value::u32(1)),
        set("tokens as text", "calibration.tokens.ids", Value::texts(&["1"])),
        set("tokens that are negative", "calibration.tokens.ids", Value::i32s(&[-1; 24])),
        set("fewer tokens than counted", "calibration.tokens.ids", Value::i32s(&[1; 23])),
        set("hashes that fall", "calibration.text.shingle_hashes", Value::u64s(&[2, 1])),
        calibration("more names than hashes", &["record of the text"], |f| {
            f.set("calibration.text.names", Value::texts(&["a", "b"]));
        }),
        calibration("no tokens", &["no tokens"], |f| {
            f.set("calibration.tokens.fitted", Value::u64(0));
        }),
        calibration("2^64 - 1 tokens", &["calibration.tokens.ids"], |f| {
            f.set("calibration.tokens.fitted", Value::u64(u64::MAX));
        }),
        calibration("contexts of no tokens", &["calibration."], |f| {
            f.set("calibration.n_ctx", Value::u32(0));
        }),
    ]
}

fn calibration_tensors() -> Vec<Case> {
    let (h, holdout) = ("blk.0.ffn_in.h", "blk.0.ffn_in.holdout");
    vec![
        calibration("the text alone", &["no activations"], |f| f.tensors.clear()),
        calibration("no sums and no samples", &["neither h nor samples"], |f| f.remove_tensor(h)),
        calibration("a triangle short of a number", &["blk.0.ffn_in.h", "triangle"], |f| {
            let tensor = f.tensor(h);
            tensor.dims[0] -= 1;
            tensor.data.truncate(4 * tensor.dims[0] as usize);
        }),
        calibration("a triangle in two dimensions", &["blk.0.ffn_in.h", "triangle"], |f| {
            f.tensor(h).dims = vec![16, 33];
        }),
        calibration("a triangle in F16", &["blk.0.ffn_in.h", "F32"], |f| {
            let tensor = f.tensor(h);
            tensor.ty = tensor_type::F16;
            tensor.data.truncate(2 * tensor.dims[0] as usize);
        }),
        calibration("a hold-out in F32", &["blk.0.ffn_in.holdout", "F16"], |f| {
            let tensor = f.tensor(holdout);
            tensor.ty = tensor_type::F32;
            tensor.data.resize(4 * 3 * N_EMBD, 0);
        }),
        calibration("an empty hold-out", &["blk.0.ffn_in.holdout"], |f| {
            let tensor = f.tensor(holdout);
            tensor.dims = vec![0, 3];
            tensor.data.clear();
        }),
        calibration("a hold-out without scales", &["blk.0.ffn_in.holdout", "scales"], |f| {
            f.remove_tensor("blk.0.ffn_in.holdout_scale");
        }),
        calibration("inputs wider than the model's", &["blk.0.ffn_in", "32"], |f| {
            f.set("calibration.model.n_embd", Value::u32(33));
        }),
        calibration("samples of another width", &["blk.0.ffn_down"], |f| {
            let tensor = f.tensor("blk.0.ffn_down.samples");
            tensor.dims = vec![32, 8];
            let scales = f.tensor("blk.0.ffn_down.sample_scale");
            scales.dims = vec![8];
            scales.data = 1.0f32.to_le_bytes().repeat(8);
        }),
    ]
}

fn calibration_values() -> Vec<Case> {
    let value = |name: &str, tensor: &'static str, bits: u32| {
        calibration(name, &[tensor], |f| f.tensor(tensor).set_u32(0, bits))
    };
    vec![
        value("a sum that is NaN", "blk.0.ffn_in.h", NAN),
        value("a sum of squares below 0", "blk.0.ffn_in.h", MINUS_ONE),
        value("an infinite held-out sum", "blk.0.ffn_in.holdout_h", INFINITY),
        calibration("a sample that is NaN", &["blk.0.ffn_down.samples"], |f| {
            f.tensor("blk.0.ffn_down.samples").set_u16(5, 0x7e00);
        }),
        calibration("a scale of 0", &["blk.0.ffn_in.holdout"], |f| {
            f.tensor("blk.0.ffn_in.holdout_scale").set_u32(0, 0);
        }),
        calibration("a scale that is infinite", &["blk.0.ffn_in.holdout"], |f| {
            f.tensor("blk.0.ffn_in.holdout_scale").set_u32(0, INFINITY);
        }),
    ]
}
