//! Random matrices and inputs. The seeds are fixed: two runs measure the same numbers.

use format::{ElementType, MatrixShape, Sidecar, SidecarSpec, find_sidecar};
use ggml::{Type, TypeError};
use half::f16;
use rand::{RngExt, SeedableRng, seq::index};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

/// Rows that are really quantized; the others repeat them. Some types take seconds per million weights.
const QUANTIZED_ROWS: usize = 64;

/// `n` values of a standard normal distribution.
pub fn gaussian(n: usize) -> Vec<f32> {
    let rng = ChaCha8Rng::seed_from_u64(0);
    StandardNormal.sample_iter(rng).take(n).collect()
}

/// A matrix as `ty` stores it.
pub fn dense(ty: Type, shape: MatrixShape) -> Result<Vec<u8>, TypeError> {
    let n_rows = shape.d_out.min(QUANTIZED_ROWS);
    let importance = vec![1.0; shape.d_in];
    let importance = ty.needs_importance().then_some(importance.as_slice());
    let rows = ty.quantize(&gaussian(shape.d_in * n_rows), shape.d_in, importance)?;
    let row_bytes = rows.len() / n_rows;
    Ok(rows.iter().copied().cycle().take(row_bytes * shape.d_out).collect())
}

/// Sidecars of a matrix of `shape` as `specs` say.
pub fn sidecars(specs: &[SidecarSpec], shape: MatrixShape) -> Vec<Sidecar> {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut done: Vec<Sidecar> = Vec::new();
    for spec in specs {
        let sidecar = match spec.element_type {
            ElementType::I16 => {
                let dict = find_sidecar(&done, format::global::DICT);
                signed_codes(spec, dict.map_or(1, |dict| dict.spec.dims[1]), &mut rng)
            }
            ElementType::I32 => positions(spec, shape, &mut rng),
            ElementType::F16 => {
                let n = spec.n_elements().unwrap_or_default();
                let values: Vec<_> = gaussian(n).into_iter().map(f16::from_f32).collect();
                Sidecar::from_f16(spec.suffix, &spec.dims, &values)
            }
            _ => {
                let mut data = vec![0; spec.n_bytes().unwrap_or_default()];
                rng.fill(&mut data[..]);
                Sidecar { spec: spec.clone(), data }
            }
        };
        done.push(sidecar);
    }
    done
}

/// Codes [k, d_out] of `m` atoms: each row has k different atoms in ascending order, as in real files.
fn signed_codes(spec: &SidecarSpec, m: usize, rng: &mut ChaCha8Rng) -> Sidecar {
    let (k, d_out) = (spec.dims[0], spec.dims[1]);
    let mut codes = Vec::with_capacity(k * d_out);
    for _ in 0..d_out {
        let mut atoms = index::sample(rng, m, k).into_vec();
        atoms.sort_unstable();
        codes.extend(atoms.into_iter().map(|atom| {
            let code = i16::try_from(atom + 1).expect("the codec checked the number of atoms");
            if rng.random() { code } else { -code }
        }));
    }
    Sidecar::from_i16(spec.suffix, &spec.dims, &codes)
}

/// Different flat positions in the matrix, in ascending order.
fn positions(spec: &SidecarSpec, shape: MatrixShape, rng: &mut ChaCha8Rng) -> Sidecar {
    let n = spec.n_elements().unwrap_or_default();
    let mut positions = index::sample(rng, shape.n_weights(), n).into_vec();
    positions.sort_unstable();
    let positions: Vec<_> = positions
        .into_iter()
        .map(|p| i32::try_from(p).expect("the codec checked that positions fit"))
        .collect();
    Sidecar::from_i32(spec.suffix, &spec.dims, &positions)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_codes_name_every_atom_once_and_in_order() {
        let spec = |suffix, element, dims: &[usize]| SidecarSpec::new(suffix, element, dims);
        let specs =
            [spec("dict", ElementType::F16, &[8, 5]), spec("codes", ElementType::I16, &[4, 50])];
        let made = sidecars(&specs, MatrixShape::new(8, 50));
        assert_eq!(made.iter().map(|s| s.spec.clone()).collect::<Vec<_>>(), specs);
        for row in made[1].to_i16().unwrap().chunks(4) {
            assert!(row.iter().all(|c| (1..=5).contains(&c.abs())));
            assert!(row.windows(2).all(|pair| pair[0].abs() < pair[1].abs()), "{row:?}");
        }
    }

    #[test]
    fn dense_rows_repeat_and_have_the_size_of_the_type() {
        let shape = MatrixShape::new(256, QUANTIZED_ROWS + 3);
        let bytes = dense(Type::Q4_K, shape).unwrap();
        assert_eq!(Some(bytes.len()), Type::Q4_K.tensor_bytes(&[256, shape.d_out]));
        let period = bytes.len() / shape.d_out * QUANTIZED_ROWS;
        assert_eq!(bytes[..300], bytes[period..][..300]);
    }
}
