//! Coded models whose sidecars lie: what only the run-time hook can find.

use crate::Case;
use crate::gguf::{Gguf, Tensor, Value, tensor_type};
use crate::good::{self, N_FF};

const GATE: &str = "blk.0.ffn_gate";
const UP: &str = "blk.0.ffn_up";
const DOWN: &str = "blk.0.ffn_down";

/// F16 bits.
const NAN: u16 = 0x7e00;
const INFINITY: u16 = 0x7c00;
const MINUS_INFINITY: u16 = 0xfc00;

/// Files for the patched llama.cpp with `--statecells` and `--seeddelta`.
#[must_use]
pub fn coded() -> Vec<Case> {
    [values(), codes(), positions(), types(), shapes(), schemes(), seeddelta()].concat()
}

fn changed(name: &str, says: &[&'static str], change: impl FnOnce(&mut Gguf)) -> Case {
    let mut file = good::coded();
    change(&mut file);
    Case::of(format!("coded: {name}"), &file, says)
}

fn values() -> Vec<Case> {
    let mut cases = Vec::new();
    let places: [(&str, &'static str, usize, &'static str); 5] = [
        ("atom of a section", GATE, 8 * 16 * 2 - 1, "dict"),
        ("row scale of sections", GATE, N_FF - 1, "row_scale"),
        ("exact weight", GATE, 2, "outlier_val"),
        ("atom", UP, 0, "dict"),
        ("coefficient", UP, 3 * N_FF - 1, "vals"),
    ];
    for (what, stem, index, suffix) in places {
        for (value, bits) in [("NaN", NAN), ("+inf", INFINITY), ("-inf", MINUS_INFINITY)] {
            let says = [stem, if suffix == "outlier_val" { "outlier" } else { suffix }];
            cases.push(changed(&format!("{what} is {value}"), &says, |f| {
                f.tensor(format!("{stem}.{suffix}")).set_u16(index, bits);
            }));
        }
    }
    cases.push(changed("atom in F32 is NaN", &[DOWN, "dict"], |f| {
        f.tensor(format!("{DOWN}.dict")).set_u32(64 * 5 - 1, f32::NAN.to_bits());
    }));
    cases.push(changed("row scale is NaN", &[DOWN, "row_scale"], |f| {
        f.tensor(format!("{DOWN}.row_scale")).set_u16(0, NAN);
    }));
    cases
}

fn codes() -> Vec<Case> {
    [("M + 1", 6), ("-M - 1", -6), ("32767", i16::MAX), ("-32768", i16::MIN)]
        .into_iter()
        .map(|(name, code)| {
            changed(&format!("code {name}"), &[UP, "code"], |f| {
                f.tensor(format!("{UP}.codes")).set_u16(7, code as u16);
            })
        })
        .collect()
}

fn positions() -> Vec<Case> {
    let at = |name: &str, index: usize, position: i32| {
        changed(name, &[GATE], |f| {
            f.tensor(format!("{GATE}.outlier_idx")).set_u32(index, position as u32);
        })
    };
    vec![
        at("exact weight before the matrix", 0, -1),
        at("exact weight behind the matrix", 2, 2048),
        at("exact weight at 2^31 - 1", 2, i32::MAX),
        at("exact weight at -2^31", 0, i32::MIN),
        at("exact weights in no order", 0, 78),
        at("exact weight twice", 0, 77),
        changed("fewer exact values than places", &[GATE, "outlier_val"], |f| {
            let tensor = f.tensor(format!("{GATE}.outlier_val"));
            tensor.dims = vec![2];
            tensor.data.truncate(4);
        }),
        changed("places without exact values", &[GATE, "outlier_val"], |f| {
            f.remove_tensor(format!("{GATE}.outlier_val"));
        }),
    ]
}

fn types() -> Vec<Case> {
    // The same number of bytes, so that nothing but the type is wrong.
    let ty = |name: &str, stem: &'static str, suffix: &'static str, ty: u32| {
        changed(name, &[stem, suffix, "type"], |f| {
            f.tensor(format!("{stem}.{suffix}")).ty = ty;
        })
    };
    vec![
        ty("codes in F16", UP, "codes", tensor_type::F16),
        ty("dictionary in I16", UP, "dict", tensor_type::I16),
        ty("dictionary of sections in I16", GATE, "dict", tensor_type::I16),
        ty("coefficients in I16", UP, "vals", tensor_type::I16),
        ty("places in F32", GATE, "outlier_idx", tensor_type::F32),
        ty("dictionary in I32", DOWN, "dict", tensor_type::I32),
    ]
}

fn shapes() -> Vec<Case> {
    let shape = |name: &str, stem: &'static str, suffix: &'static str, dims: &[u64]| {
        changed(name, &[stem], |f| {
            let tensor = f.tensor(format!("{stem}.{suffix}"));
            let element = tensor.data.len() / tensor.dims.iter().product::<u64>() as usize;
            tensor.dims = dims.to_vec();
            tensor.data.resize(element * dims.iter().product::<u64>() as usize, 0);
        })
    };
    vec![
        shape("dictionary of another width", UP, "dict", &[31, 5]),
        shape("dictionary of three dimensions", UP, "dict", &[32, 5, 2]),
        shape("dictionary without atoms", UP, "dict", &[32, 0]),
        shape("dictionary of 32768 atoms", UP, "dict", &[32, 32768]),
        shape("codes of a row too few", UP, "codes", &[3, 63]),
        shape("more codes per row than atoms", UP, "codes", &[6, 64]),
        shape("no codes per row", UP, "codes", &[0, 64]),
        shape("coefficients of other shape than codes", UP, "vals", &[2, 64]),
        shape("row scales of another number", DOWN, "row_scale", &[31]),
        shape("sections of 15 atoms", GATE, "dict", &[8, 15, 2]),
        shape("sections of atoms of 7", GATE, "dict", &[7, 16, 2]),
        shape("17 sections", GATE, "dict", &[8, 16, 17]),
        shape("no section", GATE, "dict", &[8, 16, 0]),
        shape("a tile too few", GATE, "codes", &[32, 4, 1]),
        shape("a pair of planes too many", GATE, "codes", &[32, 5, 2]),
    ]
}

fn schemes() -> Vec<Case> {
    let key = format!("statecells.{UP}.scheme");
    let scheme = |name: &str, says: &[&'static str], value: Value| {
        changed(name, says, |f| f.set(&key, value))
    };
    vec![
        scheme("an unknown scheme", &[UP, "scheme"], Value::text("magic")),
        scheme("a scheme of 100000 letters", &[UP, "scheme"], Value::text("x".repeat(100_000))),
        scheme("a scheme without a name", &[UP, "scheme"], Value::text("")),
        scheme("a scheme as number", &[UP], Value::u32(1)),
        scheme("a scheme as array", &[UP], Value::texts(&["sign"])),
        scheme("another scheme's name", &[UP, "vals"], Value::text("sign")),
        scheme("sections without sections", &[UP], Value::text("sections")),
        changed("a gap as text", &[UP], |f| {
            f.set(format!("statecells.{UP}.gap"), Value::text("a"));
        }),
        changed("no version", &["statecells.version"], |f| f.remove("statecells.version")),
        changed("version 2", &["version 2"], |f| f.set("statecells.version", Value::u32(2))),
        changed("version as text", &["statecells.version"], |f| {
            f.set("statecells.version", Value::text("1"));
        }),
        changed("no dictionary", &[UP, "dict"], |f| f.remove_tensor(format!("{UP}.dict"))),
        changed("no codes", &[UP, "codes"], |f| f.remove_tensor(format!("{UP}.codes"))),
        changed("no sidecar at all", &[UP], |f| {
            for suffix in ["dict", "codes", "vals"] {
                f.remove_tensor(format!("{UP}.{suffix}"));
            }
        }),
        changed("codes without a scheme", &[UP], |f| f.remove(format!("statecells.{UP}.scheme"))),
    ]
}

/// Dictionaries for tensors that the architecture or the model does not have.
#[must_use]
pub fn strays() -> Vec<Case> {
    let stray = |name: &str, stem: &'static str, says: &[&'static str]| {
        changed(name, says, |f| {
            for suffix in ["dict", "codes"] {
                let copy = f.tensor(format!("{UP}.{suffix}")).clone();
                f.tensors.push(Tensor { name: format!("{stem}.{suffix}").into_bytes(), ..copy });
            }
            f.set(format!("statecells.{stem}.scheme"), Value::text("sign"));
        })
    };
    vec![
        stray("a dictionary for a layer beyond the last", "blk.7.ffn_up", &["blk.7.ffn_up"]),
        stray("a dictionary for an attention weight", "blk.0.attn_q", &["blk.0.attn_q"]),
        stray("a dictionary for experts", "blk.0.ffn_up_exps", &["blk.0.ffn_up_exps"]),
        changed("a dictionary for a gate that arcee lacks", &[GATE], |f| {
            for (key, _) in &mut f.keys {
                if let Some(rest) = key.strip_prefix(b"llama.") {
                    *key = [b"arcee.", rest].concat();
                }
            }
            f.set("general.architecture", Value::text("arcee"));
        }),
    ]
}

fn seeddelta() -> Vec<Case> {
    let changed = |name: &str, says: &[&'static str], change: &dyn Fn(&mut Gguf)| {
        let mut file = good::seeddelta();
        change(&mut file);
        Case::of(format!("seeddelta: {name}"), &file, says)
    };
    let set = |name: &str, stem: &'static str, suffix: &'static str, index: usize, bits: u16| {
        changed(name, &[stem], &|f| f.tensor(format!("{stem}.{suffix}")).set_u16(index, bits))
    };
    vec![
        set("a column before the row", GATE, "delta_idx", 0, u16::MAX),
        set("a column behind the row", GATE, "delta_idx", 1, 32),
        set("column 32767", DOWN, "delta_idx", 1, 32767),
        set("a column twice", GATE, "delta_idx", 1, 0),
        set("a delta that is NaN", GATE, "delta_val", 5, NAN),
        set("an infinite factor", GATE, "base_u", 3, INFINITY),
        set("a factor that is NaN", GATE, "base_v", 0, NAN),
        set("an infinite diagonal", UP, "base_diag", 63, MINUS_INFINITY),
        set("a row scale that is NaN", UP, "row_scale", 0, NAN),
        changed("a factor without its partner", &[GATE], &|f| {
            f.remove_tensor(format!("{GATE}.base_u"));
        }),
        changed("a rank of 33", &[GATE, "rank"], &|f| {
            let tensor = f.tensor(format!("{GATE}.base_v"));
            tensor.dims = vec![32, 33];
            tensor.data.resize(2 * 32 * 33, 0);
        }),
        changed("a diagonal of another length", &[UP, "base_diag"], &|f| {
            let tensor = f.tensor(format!("{UP}.base_diag"));
            tensor.dims = vec![32];
            tensor.data.truncate(64);
        }),
        changed("columns without values", &[DOWN, "delta_val"], &|f| {
            f.remove_tensor(format!("{DOWN}.delta_val"));
        }),
        changed("a diagonal in I16", &[UP, "base_diag"], &|f| {
            f.tensor(format!("{UP}.base_diag")).ty = tensor_type::I16;
        }),
    ]
}
