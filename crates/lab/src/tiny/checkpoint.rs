//! A training on disk: weights, moments, steps taken and the hyperparameters, in one safetensors file.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use candle_core::{Device, Tensor, safetensors};
use program::files::write_atomically;

use crate::tiny::Error;
use crate::tiny::batch::Encoded;
use crate::tiny::train::{Hyperparameters, Trainer};

const HYPERPARAMETERS: &str = "plan.json";
const STEP: &str = "step";

/// Writes the state of `trainer` to `path`, which changes only when all is written.
///
/// # Errors
/// [`Error::Tensor`] or [`Error::Program`].
pub fn save(trainer: &Trainer, path: &Path) -> Result<(), Error> {
    let hyper = serde_json::to_vec(&trainer.hyper).map_err(std::io::Error::other);
    let hyper = hyper.map_err(Error::io(path))?;
    let mut tensors = HashMap::new();
    let vector = |values: &[f32]| Tensor::from_slice(values, values.len(), &Device::Cpu);
    for (i, p) in trainer.model.parameters().iter().enumerate() {
        tensors.insert(p.name.clone(), p.var.as_tensor().clone());
        tensors.insert(format!("first.{}", p.name), vector(&trainer.optimizer.first[i])?);
        tensors.insert(format!("second.{}", p.name), vector(&trainer.optimizer.second[i])?);
    }
    tensors
        .insert(HYPERPARAMETERS.to_owned(), Tensor::from_slice(&hyper, hyper.len(), &Device::Cpu)?);
    tensors.insert(STEP.to_owned(), Tensor::new(&[trainer.optimizer.step as i64], &Device::Cpu)?);
    let bytes = ::safetensors::serialize(&tensors, None).map_err(candle_core::Error::from)?;
    Ok(write_atomically(path, &bytes)?)
}

/// The hyperparameters of the training at `path`.
///
/// # Errors
/// [`Error::Checkpoint`].
pub fn hyperparameters(path: &Path) -> Result<Hyperparameters, Error> {
    hyper_of(&load(path)?, path)
}

/// The training at `path`, to go on with `train`.
///
/// # Errors
/// [`Error::Checkpoint`] if `hyper` are others or the file is damaged.
pub fn resume(path: &Path, hyper: Hyperparameters, train: Vec<Encoded>) -> Result<Trainer, Error> {
    let tensors = load(path)?;
    if hyper_of(&tensors, path)? != hyper {
        return Err(refuse(
            path,
            "was made with other arguments; give the same, or another --checkpoint",
        ));
    }
    let mut trainer = Trainer::new(hyper, train)?;
    let damaged = || refuse(path, "is damaged; delete it to begin anew");
    let get = |name: &str| tensors.get(name).ok_or_else(damaged);
    let optimizer = &mut trainer.optimizer;
    for (i, p) in trainer.model.parameters().iter().enumerate() {
        p.var.set(get(&p.name)?).map_err(|_| damaged())?;
        for (moments, name) in
            [(&mut optimizer.first[i], "first"), (&mut optimizer.second[i], "second")]
        {
            let values =
                get(&format!("{name}.{}", p.name))?.to_vec1::<f32>().map_err(|_| damaged())?;
            if values.len() != moments.len() {
                return Err(damaged());
            }
            *moments = values;
        }
    }
    let step = get(STEP)?.to_vec1::<i64>().map_err(|_| damaged())?;
    optimizer.step = step.first().and_then(|&s| u64::try_from(s).ok()).ok_or_else(damaged)?;
    Ok(trainer)
}

fn load(path: &Path) -> Result<HashMap<String, Tensor>, Error> {
    fs::metadata(path).map_err(Error::io(path))?;
    safetensors::load(path, &Device::Cpu)
        .map_err(|e| refuse(path, &format!("is no checkpoint: {e}")))
}

fn hyper_of(tensors: &HashMap<String, Tensor>, path: &Path) -> Result<Hyperparameters, Error> {
    let bytes = tensors.get(HYPERPARAMETERS).and_then(|t| t.to_vec1::<u8>().ok());
    let hyper = bytes.and_then(|b| serde_json::from_slice(&b).ok());
    hyper.ok_or_else(|| refuse(path, "is no checkpoint of this program"))
}

fn refuse(path: &Path, reason: &str) -> Error {
    Error::Checkpoint { path: path.to_owned(), reason: reason.to_owned() }
}
