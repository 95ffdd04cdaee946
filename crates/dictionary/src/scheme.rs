//! Names of options, as they appear on the command line, in files and in reports.

use format::ElementType;
use serde::{Deserialize, Serialize};

/// Declares an enum whose variants have one name each, used by `Display`, `FromStr` and serde alike.
macro_rules! named_enum {
    ($(#[$doc:meta])* $name:ident, $what:literal, { $($(#[$vdoc:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum $name {
            $($(#[$vdoc])* #[serde(rename = $text)] $variant,)+
        }

        impl $name {
            /// All values, in the order of their names in the documentation.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The name, as on the command line and in files.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl std::str::FromStr for $name {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                format::named($what, text, Self::ALL, Self::as_str)
            }
        }
    };
}

named_enum! {
    /// Element type of the stored atoms of a global dictionary.
    DictType, "dictionary type", {
        /// Half precision.
        F16 = "f16",
        /// Single precision.
        F32 = "f32",
    }
}

impl DictType {
    /// The sidecar element type.
    #[must_use]
    pub fn element_type(self) -> ElementType {
        match self {
            Self::F16 => ElementType::F16,
            Self::F32 => ElementType::F32,
        }
    }
}

named_enum! {
    /// How the atoms of a row are chosen.
    Encoder, "encoder", {
        /// The k atoms with the largest |correlation|.
        TopK = "topk",
        /// One after the other, each the best given those before (orthogonal matching pursuit).
        Omp = "omp",
    }
}

#[cfg(test)]
mod tests {
    use format::Scheme;

    use super::*;

    #[test]
    fn names_are_the_same_in_text_and_json() {
        for &scheme in Scheme::ALL {
            assert_eq!(serde_json::to_string(&scheme).unwrap(), format!("\"{scheme}\""));
        }
        for &encoder in Encoder::ALL {
            assert_eq!(encoder.to_string().parse(), Ok(encoder));
            assert_eq!(serde_json::to_string(&encoder).unwrap(), format!("\"{encoder}\""));
        }
    }
}
