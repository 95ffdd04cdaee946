//! SeedDelta with parameters by tensor.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use format::seeddelta::{BaseType, PartSpec};
use format::{Matrix, MatrixId, MatrixShape, Role};
use inspect::Settings;
use numerics::Codec;
use program::LayerList;
use seeddelta::{Choice, Delta, SeedDeltaCodec};

use crate::{Method, PlanItem};

/// Other parameters for some tensors, as typed: `LAYERS[:TARGETS]=BASE@K`.
#[derive(Clone, Debug)]
pub struct Override {
    text: String,
    /// Layers.
    pub layers: LayerList,
    roles: Option<Vec<Role>>,
    choice: Choice,
}

impl Override {
    fn fits(&self, tensor: MatrixId) -> bool {
        let role = |roles: &Vec<Role>| roles.contains(&tensor.role);
        self.layers.contains(tensor.layer) && self.roles.as_ref().is_none_or(role)
    }
}

impl fmt::Display for Override {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Override {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form = "write LAYERS[:TARGETS]=BASE@K, for instance 0,4-6:gate,up=circulant@64";
        let (where_, what) = text.split_once('=').ok_or(form)?;
        let (base, k) = what.rsplit_once('@').ok_or(form)?;
        let (layers, roles) = match where_.split_once(':') {
            None => (where_, None),
            Some((layers, roles)) => {
                let roles: Result<_, String> = roles.split(',').map(str::parse).collect();
                (layers, Some(roles?))
            }
        };
        let choice = Choice {
            base: base.parse().map_err(|e| format!("{e}"))?,
            delta_k: k.parse().map_err(|_| format!("'{k}' is no number of residuals"))?,
        };
        Ok(Self { text: text.to_owned(), layers: layers.parse()?, roles, choice })
    }
}

/// Where a tensor's parameters come from.
#[derive(Debug)]
pub enum Choices {
    /// The same for all, but for overrides.
    Flags(Choice, Vec<Override>),
    /// One by one.
    Policy(BTreeMap<MatrixId, Choice>),
}

/// SeedDelta with parameters for each tensor.
#[derive(Debug)]
pub struct SeedDeltaMethod {
    /// Base and delta.
    pub choices: Choices,
    /// Storage of the base.
    pub base_type: BaseType,
    /// Whether rows of the base are scaled.
    pub row_scale: bool,
}

impl SeedDeltaMethod {
    fn parameters(&self, tensor: MatrixId) -> SeedDeltaCodec {
        let choice = match &self.choices {
            Choices::Flags(all, overrides) => {
                overrides.iter().rev().find(|o| o.fits(tensor)).map_or(all, |o| &o.choice)
            }
            Choices::Policy(tensors) => &tensors[&tensor],
        };
        let delta = match choice.delta_k {
            0 => Delta::None,
            k => Delta::Coo { k },
        };
        let base = choice.base.clone();
        SeedDeltaCodec { base, base_type: self.base_type, row_scale: self.row_scale, delta }
    }
}

impl Method for SeedDeltaMethod {
    fn scheme(&self) -> &'static str {
        format::seeddelta::SCHEME
    }

    fn codec(&self, matrix: &Matrix) -> Box<dyn Codec> {
        Box::new(self.parameters(matrix.id))
    }

    fn smaller(&self, _items: &[&PlanItem]) -> String {
        match self.choices {
            Choices::Flags(..) => "use a smaller --base or --delta-k".to_owned(),
            Choices::Policy(_) => "use smaller bases or delta_k in the --policy".to_owned(),
        }
    }

    /// Each part of the base with its size (1 where it has none), and K.
    fn settings(&self, tensor: MatrixId, _shape: MatrixShape) -> Settings {
        let parameters = self.parameters(tensor);
        let part = |part: &PartSpec| match part {
            PartSpec::Identity => ("identity", 1),
            PartSpec::Diagonal => ("diagonal", 1),
            PartSpec::Circulant => ("circulant", 1),
            PartSpec::LowRank { rank } => ("lowrank", *rank),
            PartSpec::Block { size } => ("block", *size),
        };
        let k = match parameters.delta {
            Delta::None => 0,
            Delta::Coo { k } => k,
        };
        let all = parameters.base.parts().iter().map(part).chain([("K", k)]);
        all.map(|(name, value)| (name.to_owned(), value as u64)).collect()
    }

    fn arguments(&self) -> BTreeMap<String, String> {
        let mut arguments = BTreeMap::new();
        let mut set = |name: &str, value: String| arguments.insert(name.to_owned(), value);
        set("--base-type", self.base_type.to_string());
        set("--row-scale", self.row_scale.to_string());
        match &self.choices {
            Choices::Flags(all, overrides) => {
                set("--base", all.base.to_string());
                set("--delta-k", all.delta_k.to_string());
                let texts: Vec<String> = overrides.iter().map(ToString::to_string).collect();
                set("--override", texts.join(" "));
            }
            Choices::Policy(tensors) => {
                let text = |(t, c): (&MatrixId, &Choice)| format!("{t}={}@{}", c.base, c.delta_k);
                set("--policy", tensors.iter().map(text).collect::<Vec<_>>().join(" "));
            }
        }
        arguments
    }
}

#[cfg(test)]
mod tests {
    use format::seeddelta::BaseSpec;

    use super::*;

    fn tensor(layer: usize, role: Role) -> MatrixId {
        MatrixId { layer, role }
    }

    #[test]
    fn the_last_override_that_fits_counts() {
        let all = Choice { base: BaseSpec::none(), delta_k: 8 };
        let overrides = ["0-2=lowrank:4+diagonal@16", "1:up,down=circulant@0"];
        let overrides = overrides.map(|o| o.parse().unwrap()).into();
        let choices = Choices::Flags(all, overrides);
        let method = SeedDeltaMethod { choices, base_type: BaseType::F16, row_scale: false };
        let text = |layer, role| {
            let p = method.parameters(tensor(layer, role));
            format!("{} {:?}", p.base, p.delta)
        };
        assert_eq!(text(1, Role::Gate), "lowrank:4+diagonal Coo { k: 16 }");
        assert_eq!(text(1, Role::Up), "circulant None");
        assert_eq!(text(3, Role::Up), "none Coo { k: 8 }");
        let settings = method.settings(tensor(0, Role::Up), MatrixShape::new(8, 8));
        assert_eq!(format!("{settings:?}"), r#"{"K": 16, "diagonal": 1, "lowrank": 4}"#);
    }

    #[test]
    fn malformed_overrides_are_refused() {
        for text in
            ["", "1", "1=none", "1=@3", "x=none@3", "1:side=none@3", "1=none@-1", "1=magic@3"]
        {
            assert!(text.parse::<Override>().is_err(), "{text}");
        }
    }
}
