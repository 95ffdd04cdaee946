//! Which matrices of a layer may be coded, and what they read: the one table of roles.

/// What a matrix does in its layer. A variant here and a line in `ROLES` make a role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "lowercase")
)]
pub enum Role {
    /// `ffn_gate`: [n_embd, n_ff].
    Gate,
    /// `ffn_up`: [n_embd, n_ff].
    Up,
    /// `ffn_down`: [n_ff, n_embd].
    Down,
}

/// What an input of matrices is in its layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum InputRole {
    /// What `ffn_gate` and `ffn_up` see: `[n_embd]`.
    FfnIn,
    /// What `ffn_down` sees: `[n_ff]`.
    FfnDown,
}

/// A length that inputs or outputs of matrices have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// n_embd, the same in all layers.
    Embedding,
    /// n_ff, each layer's own.
    Ffn,
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
    /// A layer without this matrix has an unknown layout.
    required: bool,
}

/// In the order in which a layer uses them.
const ROLES: [Entry; 3] = [
    Entry {
        role: Role::Gate,
        word: "gate",
        part: "ffn_gate",
        input: InputRole::FfnIn,
        d_out: Width::Ffn,
        required: false,
    },
    Entry {
        role: Role::Up,
        word: "up",
        part: "ffn_up",
        input: InputRole::FfnIn,
        d_out: Width::Ffn,
        required: true,
    },
    Entry {
        role: Role::Down,
        word: "down",
        part: "ffn_down",
        input: InputRole::FfnDown,
        d_out: Width::Embedding,
        required: true,
    },
];

impl Role {
    /// All roles, in the order in which a layer uses them.
    pub const ALL: [Self; 3] = [ROLES[0].role, ROLES[1].role, ROLES[2].role];

    fn entry(self) -> &'static Entry {
        &ROLES[self as usize]
    }

    /// The role whose matrices are called `part` (`ffn_up`) in their layer.
    pub(crate) fn of_part(part: &str) -> Option<Self> {
        ROLES.iter().find(|entry| entry.part == part).map(|entry| entry.role)
    }

    /// `gate`, `up` or `down`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.entry().word
    }

    /// `ffn_gate`, `ffn_up` or `ffn_down`: what the matrix is called in its layer.
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

    /// The matrices that every layer has which has one at all.
    pub fn required() -> impl Iterator<Item = Self> {
        ROLES.iter().filter(|entry| entry.required).map(|entry| entry.role)
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
    pub const ALL: [Self; 2] = [Self::FfnIn, Self::FfnDown];

    /// Length of the input.
    #[must_use]
    pub fn width(self) -> Width {
        match self {
            Self::FfnIn => Width::Embedding,
            Self::FfnDown => Width::Ffn,
        }
    }

    /// `ffn_in` or `ffn_down`: what the input is called in its layer.
    #[must_use]
    pub fn part(self) -> &'static str {
        match self {
            Self::FfnIn => "ffn_in",
            Self::FfnDown => "ffn_down",
        }
    }

    /// Whether what its matrix makes of it is added to the hidden state.
    #[must_use]
    pub fn feeds_state(self) -> bool {
        self == Self::FfnDown
    }

    /// The roles of the matrices that read it, in the order in which a layer uses them.
    pub fn readers(self) -> impl Iterator<Item = Role> {
        ROLES.iter().filter(move |entry| entry.input == self).map(|entry| entry.role)
    }
}

impl Width {
    /// The number that is meant, of the two that a model has.
    #[must_use]
    pub fn pick<T>(self, n_embd: T, n_ff: T) -> T {
        match self {
            Self::Embedding => n_embd,
            Self::Ffn => n_ff,
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
