//! Names of the dictionary schemes, as they appear on the command line, in files and in reports.

/// How a matrix is coded with a dictionary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Scheme {
    /// Global dictionary, coefficients +1 and -1.
    #[cfg_attr(feature = "serde", serde(rename = "sign"))]
    Sign,
    /// Global dictionary, coefficients +1 and -1, times one scale per row.
    #[cfg_attr(feature = "serde", serde(rename = "sign+row_scale"))]
    SignRowScale,
    /// Global dictionary, one coefficient per slot.
    #[cfg_attr(feature = "serde", serde(rename = "sign+vals"))]
    SignVals,
    /// Blocks of 8 inputs, one atom of every section per block.
    #[cfg_attr(feature = "serde", serde(rename = "sections"))]
    Sections,
}

impl Scheme {
    /// All schemes, in the order of the documentation.
    pub const ALL: &'static [Self] =
        &[Self::Sign, Self::SignRowScale, Self::SignVals, Self::Sections];

    /// The name, as on the command line and in files.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sign => "sign",
            Self::SignRowScale => "sign+row_scale",
            Self::SignVals => "sign+vals",
            Self::Sections => "sections",
        }
    }

    /// Whether the file holds one coefficient per code (`vals`).
    #[must_use]
    pub fn has_vals(self) -> bool {
        self == Self::SignVals
    }

    /// Whether the file holds one scale per row (`row_scale`).
    #[must_use]
    pub fn has_row_scale(self) -> bool {
        matches!(self, Self::SignRowScale | Self::Sections)
    }

    /// Whether the scheme has one dictionary over the whole input.
    #[must_use]
    pub fn is_global(self) -> bool {
        self != Self::Sections
    }
}

impl std::fmt::Display for Scheme {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

impl std::str::FromStr for Scheme {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        crate::named("scheme", text, Self::ALL, Self::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_through_text() {
        for &scheme in Scheme::ALL {
            assert_eq!(scheme.to_string().parse(), Ok(scheme));
        }
        assert_eq!("sign+row_scale".parse(), Ok(Scheme::SignRowScale));
        let error = "sign+scale".parse::<Scheme>().unwrap_err();
        assert!(error.contains("'sign+scale'") && error.contains("sign+vals"), "{error}");
    }

    #[test]
    fn optional_tensors_follow_the_scheme() {
        let optional = |s: Scheme| (s.has_vals(), s.has_row_scale());
        assert_eq!(optional(Scheme::Sign), (false, false));
        assert_eq!(optional(Scheme::SignRowScale), (false, true));
        assert_eq!(optional(Scheme::SignVals), (true, false));
    }
}
