//! Which matrices of a layer may be coded, and what they read: the one table of roles.

/// What a matrix does in its layer. A variant here and a line in `ROLES` make a role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "snake_case")
)]
pub enum Role {
    /// `ffn_gate`: [n_embd, n_ff].
    Gate,
    /// `ffn_up`: [n_embd, n_ff].
    Up,
    /// `ffn_down`: [n_ff, n_embd].
    Down,
    /// `ffn_gate_exps`: [n_embd, n_ff, n_expert].
    GateExps,
    /// `ffn_up_exps`: [n_embd, n_ff, n_expert].
    UpExps,
    /// `ffn_gate_up_exps`: [n_embd, 2 n_ff, n_expert], the rows of the gate first.
    GateUpExps,
    /// `ffn_down_exps`: [n_ff, n_embd, n_expert].
    DownExps,
    /// `ffn_gate_shexp`: [n_embd, n_ff].
    GateShexp,
    /// `ffn_up_shexp`: [n_embd, n_ff].
    UpShexp,
    /// `ffn_down_shexp`: [n_ff, n_embd].
    DownShexp,
}

/// The FFNs that a layer may have side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Branch {
    /// One for all tokens.
    Plain,
    /// Many, of which every token uses some.
    Experts,
    /// One for all tokens beside the experts.
    SharedExpert,
}

/// What an input of matrices is in its layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum InputRole {
    /// What `ffn_gate` and `ffn_up` see: `[n_embd]`.
    FfnIn,
    /// What `ffn_down` sees: `[n_ff]`.
    FfnDown,
    /// What the gates and ups of experts see: `[n_embd]`.
    ExpsIn,
    /// What `ffn_down_exps` sees: `[n_ff]`, of every expert in use another.
    ExpsDown,
    /// What the gate and up of the shared expert see: `[n_embd]`.
    ShexpIn,
    /// What `ffn_down_shexp` sees: `[n_ff]`.
    ShexpDown,
}

/// A length that inputs or outputs of matrices have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// n_embd, the same in all layers.
    Embedding,
    /// n_ff, each layer's and branch's own.
    Ffn,
    /// Twice n_ff.
    TwiceFfn,
}

/// What is known of a role.
struct Entry {
    role: Role,
    /// On the command line and in messages.
    word: &'static str,
    /// In a tensor's name.
    part: &'static str,
    input: InputRole,
    d_out: Width,
    branch: Branch,
    /// A layer with the branch but without this matrix has an unknown layout.
    required: bool,
}

/// In the order in which a layer uses them.
const ROLES: [Entry; 10] = [
    Entry {
        role: Role::Gate,
        word: "gate",
        part: "ffn_gate",
        input: InputRole::FfnIn,
        d_out: Width::Ffn,
        branch: Branch::Plain,
        required: false,
    },
    Entry {
        role: Role::Up,
        word: "up",
        part: "ffn_up",
        input: InputRole::FfnIn,
        d_out: Width::Ffn,
        branch: Branch::Plain,
        required: true,
    },
    Entry {
        role: Role::Down,
        word: "down",
        part: "ffn_down",
        input: InputRole::FfnDown,
        d_out: Width::Embedding,
        branch: Branch::Plain,
        required: true,
    },
    Entry {
        role: Role::GateExps,
        word: "gate_exps",
        part: "ffn_gate_exps",
        input: InputRole::ExpsIn,
        d_out: Width::Ffn,
        branch: Branch::Experts,
        required: false,
    },
    Entry {
        role: Role::UpExps,
        word: "up_exps",
        part: "ffn_up_exps",
        input: InputRole::ExpsIn,
        d_out: Width::Ffn,
        branch: Branch::Experts,
        required: false,
    },
    Entry {
        role: Role::GateUpExps,
        word: "gate_up_exps",
        part: "ffn_gate_up_exps",
        input: InputRole::ExpsIn,
        d_out: Width::TwiceFfn,
        branch: Branch::Experts,
        required: false,
    },
    Entry {
        role: Role::DownExps,
        word: "down_exps",
        part: "ffn_down_exps",
        input: InputRole::ExpsDown,
        d_out: Width::Embedding,
        branch: Branch::Experts,
        required: true,
    },
    Entry {
        role: Role::GateShexp,
        word: "gate_shexp",
        part: "ffn_gate_shexp",
        input: InputRole::ShexpIn,
        d_out: Width::Ffn,
        branch: Branch::SharedExpert,
        required: false,
    },
    Entry {
        role: Role::UpShexp,
        word: "up_shexp",
        part: "ffn_up_shexp",
        input: InputRole::ShexpIn,
        d_out: Width::Ffn,
        branch: Branch::SharedExpert,
        required: true,
    },
    Entry {
        role: Role::DownShexp,
        word: "down_shexp",
        part: "ffn_down_shexp",
        input: InputRole::ShexpDown,
        d_out: Width::Embedding,
        branch: Branch::SharedExpert,
        required: true,
    },
];

impl Role {
    /// All roles, in the order in which a layer uses them.
    pub const ALL: [Self; ROLES.len()] = {
        let mut all = [Self::Gate; ROLES.len()];
        let mut i = 0;
        while i < all.len() {
            all[i] = ROLES[i].role;
            i += 1;
        }
        all
    };

    /// Those of [`Branch::Plain`].
    pub const PLAIN: [Self; 3] = [Self::Gate, Self::Up, Self::Down];

    fn entry(self) -> &'static Entry {
        &ROLES[self as usize]
    }

    /// The role whose matrices are called `part` (`ffn_up`) in their layer.
    pub(crate) fn of_part(part: &str) -> Option<Self> {
        ROLES.iter().find(|entry| entry.part == part).map(|entry| entry.role)
    }

    /// The FFN that it belongs to.
    #[must_use]
    pub fn branch(self) -> Branch {
        self.entry().branch
    }

    /// `gate`, `up`, `down`, `gate_exps` and so on.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.entry().word
    }

    /// `ffn_gate`, `ffn_up`, `ffn_down`, `ffn_gate_exps` and so on: what the matrix is called in its layer.
    #[must_use]
    pub fn part(self) -> &'static str {
        self.entry().part
    }

    /// What a matrix of this role is multiplied with.
    #[must_use]
    pub fn input(self) -> InputRole {
        self.entry().input
    }

    /// Length of the inputs.
    #[must_use]
    pub fn d_in(self) -> Width {
        self.input().width()
    }

    /// Number of outputs.
    #[must_use]
    pub fn d_out(self) -> Width {
        self.entry().d_out
    }

    /// The matrices that every layer has which has one of the branch at all.
    pub fn required(branch: Branch) -> impl Iterator<Item = Self> {
        let needed = move |entry: &&Entry| entry.branch == branch && entry.required;
        ROLES.iter().filter(needed).map(|entry| entry.role)
    }
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        crate::named("matrix", text, &Self::ALL, Self::as_str)
    }
}

impl InputRole {
    /// All inputs, in the order in which a layer makes them.
    pub const ALL: [Self; 6] =
        [Self::FfnIn, Self::FfnDown, Self::ExpsIn, Self::ExpsDown, Self::ShexpIn, Self::ShexpDown];

    /// Length of the input.
    #[must_use]
    pub fn width(self) -> Width {
        match self {
            Self::FfnIn | Self::ExpsIn | Self::ShexpIn => Width::Embedding,
            Self::FfnDown | Self::ExpsDown | Self::ShexpDown => Width::Ffn,
        }
    }

    /// `ffn_in`, `ffn_down` and so on: what the input is called in its layer.
    #[must_use]
    pub fn part(self) -> &'static str {
        match self {
            Self::FfnIn => "ffn_in",
            Self::FfnDown => "ffn_down",
            Self::ExpsIn => "ffn_exps_in",
            Self::ExpsDown => "ffn_down_exps",
            Self::ShexpIn => "ffn_shexp_in",
            Self::ShexpDown => "ffn_down_shexp",
        }
    }

    /// Whether what its matrix makes of it is added to the hidden state.
    #[must_use]
    pub fn feeds_state(self) -> bool {
        self.width() == Width::Ffn
    }

    /// The roles of the matrices that read it, in the order in which a layer uses them.
    pub fn readers(self) -> impl Iterator<Item = Role> {
        ROLES.iter().filter(move |entry| entry.input == self).map(|entry| entry.role)
    }
}

impl Width {
    /// The number that is meant, of the two that a model has.
    #[must_use]
    pub fn pick(self, n_embd: usize, n_ff: usize) -> usize {
        match self {
            Self::Embedding => n_embd,
            Self::Ffn => n_ff,
            Self::TwiceFfn => n_ff.saturating_mul(2),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_the_order_of_the_roles() {
        for role in Role::ALL {
            assert_eq!(role.entry().role, role);
            assert_eq!(role.as_str().parse(), Ok(role));
            assert_eq!(Role::of_part(role.part()), Some(role));
            assert_eq!(role.branch() == Branch::Plain, Role::PLAIN.contains(&role));
            assert!(role.input().readers().any(|reader| reader == role));
        }
        let error = "sideways".parse::<Role>().unwrap_err();
        assert!(error.contains("'sideways'") && error.contains("gate, up, down"), "{error}");
    }

    #[test]
    fn every_input_is_read_by_matrices_of_its_width() {
        for input in InputRole::ALL {
            assert!(input.readers().next().is_some());
            assert!(input.readers().all(|role| role.d_in() == input.width()));
        }
    }
}
