//! Which layers and roles the user asked for.

use std::ops::RangeInclusive;

use format::{MatrixId, Role};

use crate::Error;

/// A list of layers as typed: `0,2,5-8`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerList {
    text: String,
    ranges: Vec<RangeInclusive<usize>>,
}

impl LayerList {
    /// Whether `layer` is in the list.
    #[must_use]
    pub fn contains(&self, layer: usize) -> bool {
        self.ranges.iter().any(|r| r.contains(&layer))
    }

    /// Checks that every layer of the list is below `n_layers`.
    ///
    /// # Errors
    /// [`Error::Layers`].
    pub fn check(&self, n_layers: usize) -> Result<(), Error> {
        if self.ranges.iter().all(|r| *r.end() < n_layers) {
            return Ok(());
        }
        Err(Error::Layers { list: self.text.clone(), n_layers })
    }
}

/// What the user wants coded.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// Layers; `None` means all.
    pub layers: Option<LayerList>,
    /// Roles; `None` means those of [`Self::default_roles`] that the model has.
    pub roles: Option<Vec<Role>>,
    /// What is taken where no roles are named; empty for all.
    pub default_roles: Vec<Role>,
    /// Single tensors that a policy names, instead of layers and roles.
    pub tensors: Option<Vec<MatrixId>>,
}

impl Selection {
    /// The tensors of `available` that are wanted, in the same order, for a model of `n_layers` layers.
    ///
    /// # Errors
    /// [`Error::Layers`], or [`Error::Flag`] if a role that was asked for by name does not exist,
    /// or nothing is left.
    pub fn resolve(&self, available: &[MatrixId], n_layers: usize) -> Result<Vec<MatrixId>, Error> {
        if let Some(layers) = &self.layers {
            layers.check(n_layers)?;
        }
        if let Some(missing) = self.tensors.iter().flatten().find(|t| !available.contains(t)) {
            let reason = format!("the model has no {missing}: take it out of the policy");
            return Err(Error::Flag { flag: "--policy", reason });
        }
        for role in self.roles.iter().flatten() {
            if !available.iter().any(|t| t.role == *role) {
                let reason = format!("the model has no {}: leave it out", role.part());
                return Err(Error::Flag { flag: "--targets", reason });
            }
        }
        let roles = self.roles.as_ref().unwrap_or(&self.default_roles);
        let wanted = |t: &MatrixId| {
            self.layers.as_ref().is_none_or(|l| l.contains(t.layer))
                && (self.roles.is_none() && roles.is_empty() || roles.contains(&t.role))
                && self.tensors.as_ref().is_none_or(|tensors| tensors.contains(t))
        };
        let selected: Vec<MatrixId> = available.iter().copied().filter(wanted).collect();
        if selected.is_empty() {
            let flag = if self.tensors.is_some() { "--policy" } else { "--layers" };
            let reason = "no FFN matrix of the model is selected: choose others".to_owned();
            return Err(Error::Flag { flag, reason });
        }
        Ok(selected)
    }
}

impl std::fmt::Display for LayerList {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::str::FromStr for LayerList {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let ranges = text.split(',').map(parse_range).collect::<Result<_, _>>()?;
        Ok(Self { text: text.to_owned(), ranges })
    }
}

/// `7` or `5-8`.
fn parse_range(part: &str) -> Result<RangeInclusive<usize>, String> {
    let number = |digits: &str| {
        let number = digits.trim().parse::<usize>();
        number.map_err(|_| {
            format!("'{part}' is neither a layer number nor a range: write 7, 5-8 or 0,2,5-8")
        })
    };
    let (first, last) = match part.split_once('-') {
        Some((first, last)) => (number(first)?, number(last)?),
        None => (number(part)?, number(part)?),
    };
    if first > last {
        return Err(format!("the range '{part}' runs backwards: write {last}-{first}"));
    }
    Ok(first..=last)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(text: &str) -> LayerList {
        text.parse().unwrap()
    }

    fn resolve(layers: &str, roles: Option<Vec<Role>>) -> Result<Vec<String>, String> {
        let available: Vec<MatrixId> = (0..9)
            .flat_map(|layer| [Role::Up, Role::Down].map(|role| MatrixId { layer, role }))
            .collect();
        let selection = Selection { layers: Some(list(layers)), roles, ..Selection::default() };
        let selected = selection.resolve(&available, 9).map_err(|e| e.to_string())?;
        Ok(selected.iter().map(|t| t.to_string()).collect())
    }

    #[test]
    fn lists_and_ranges() {
        let up = |text| resolve(text, Some(vec![Role::Up])).unwrap();
        let names = |layers: &[usize]| -> Vec<String> {
            layers.iter().map(|l| format!("blk.{l}.ffn_up")).collect()
        };
        assert_eq!(up("0,2,5-8"), names(&[0, 2, 5, 6, 7, 8]));
        assert_eq!(up("3"), names(&[3]));
        assert_eq!(up("2-3, 1-2"), names(&[1, 2, 3]));
        assert_eq!(resolve("4", None).unwrap(), ["blk.4.ffn_up", "blk.4.ffn_down"]);
    }

    #[test]
    fn a_layer_the_model_lacks_is_refused_with_the_range_that_exists() {
        let message = resolve("5-9", None).unwrap_err();
        assert_eq!(message, "--layers 5-9: the model has 9 layers, numbered 0 to 8");
        assert!(resolve("18446744073709551615", None).is_err());
    }

    #[test]
    fn a_target_the_model_lacks_is_refused() {
        let message = resolve("1", Some(vec![Role::Gate])).unwrap_err();
        assert_eq!(message, "--targets: the model has no ffn_gate: leave it out");
    }

    #[test]
    fn default_targets_are_taken_where_the_model_has_them() {
        let available = [Role::Up, Role::Down].map(|role| MatrixId { layer: 0, role });
        let default_roles = vec![Role::Gate, Role::Up];
        let selection = Selection { default_roles, ..Selection::default() };
        assert_eq!(selection.resolve(&available, 1).unwrap(), available[..1]);
        let named = Selection { roles: selection.default_roles.clone().into(), ..selection };
        assert!(named.resolve(&available, 1).is_err());
    }

    #[test]
    fn malformed_lists_are_refused() {
        for text in ["", "a", "1,", "1-", "-3", "3-1", "1-2-3", "99999999999999999999999"] {
            assert!(text.parse::<LayerList>().is_err(), "{text}");
        }
    }
}
