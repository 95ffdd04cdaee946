//! Which of the two products of a matrix in sections a batch takes.

use std::fmt;

use crate::Isa;
use crate::isa::{Dot, IsaError};

/// The two products of a matrix in sections. They round differently, so the results differ by what the
/// rounding of either may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Route {
    /// Lookups in tables of every token's projections.
    Lookup,
    /// Rows decoded to bytes, multiplied with the rounded inputs of all tokens.
    Decode,
}

/// Name of the environment variable that [`Dispatch::from_env`] reads.
const VARIABLE: &str = "STATECELLS_BATCH";

impl Route {
    const ALL: [Self; 2] = [Self::Lookup, Self::Decode];

    /// Name as in `STATECELLS_BATCH`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Lookup => "lookup",
            Self::Decode => "decode",
        }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How the products of a matrix in sections run: with which instructions, and by which route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dispatch {
    isa: Isa,
    forced: Option<Route>,
}

impl Dispatch {
    /// The faster route for every batch.
    #[must_use]
    pub fn new(isa: Isa) -> Self {
        Self { isa, forced: None }
    }

    /// What the environment asks for: [`Isa::from_env`], and one route for all batches if `STATECELLS_BATCH`
    /// is `lookup` or `decode`.
    ///
    /// # Errors
    /// If a name is unknown, or the machine or the set has nothing of that name.
    pub fn from_env() -> Result<Self, IsaError> {
        let isa = Isa::from_env()?;
        let name = std::env::var(VARIABLE).unwrap_or_default();
        let forced = if name.is_empty() { None } else { Some(Self::parse(isa, &name)?) };
        Ok(Self { isa, forced })
    }

    fn parse(isa: Isa, name: &str) -> Result<Route, IsaError> {
        let has = |route: &Route| *route == Route::Lookup || isa.decodes();
        let all: Vec<Route> = Route::ALL.into_iter().filter(has).collect();
        all.iter().copied().find(|route| route.name() == name).ok_or_else(|| IsaError {
            variable: VARIABLE,
            name: name.to_owned(),
            place: format!("with {isa}"),
            available: all.iter().map(|route| route.name()).collect::<Vec<_>>().join(", "),
        })
    }

    /// The instructions.
    #[must_use]
    pub fn isa(self) -> Isa {
        self.isa
    }

    /// The route of a product of a matrix with `n_sections` sections and `n_tokens` tokens. Nothing else
    /// decides, the number of threads least of all.
    #[must_use]
    pub fn route(self, n_sections: usize, n_tokens: usize) -> Route {
        let decodes = |from| n_tokens >= from;
        match self.forced {
            Some(route) => route,
            None if self.isa.dot().decode_from(n_sections).is_some_and(decodes) => Route::Decode,
            None => Route::Lookup,
        }
    }
}

/// The instructions, and the route that is forced if one is: `avx2, STATECELLS_BATCH=lookup`.
impl fmt::Display for Dispatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.isa)?;
        self.forced.map_or(Ok(()), |route| write!(f, ", {VARIABLE}={route}"))
    }
}

impl Dot {
    /// Fewest tokens from which on decoding is faster than lookups, whose time grows with the sections.
    fn decode_from(self, n_sections: usize) -> Option<usize> {
        match self {
            Self::Scalar => None,
            // Zen 3, 4096 x 4096 (`batches`, docs/results/speed.md): lookups' time over decoding's for 16, 32, 64 and
            // 512 tokens is 0.67, 0.81, 0.93, 1.02 at S = 8, 0.78, 0.97, 1.09, 1.22 at S = 10, 0.89, 1.09, 1.26,
            // 1.46 at S = 12 and 1.02, 1.33, 1.59, 1.93 at S = 16.
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => match n_sections {
                0..=8 => None,
                9 | 10 => Some(48),
                11..=13 => Some(32),
                _ => Some(24),
            },
            // Zen 4, 4096 x 4096 (`batches`, docs/results/speed.md), lookups of VBMI: their time over decoding's for 16,
            // 24, 32, 48, 64 and 512 tokens is 0.65, 0.77, 0.83, 0.92, 0.99, 1.17 at S = 4, 0.72, 0.91, 0.97, 1.10,
            // 1.16, 1.40 at S = 5, 0.79, 0.97, 1.07, 1.22, 1.33, 1.65 at S = 6 and 0.93, 1.17, 1.33, 1.54, 1.70, 2.20
            // at S = 8; for 8 and 16 tokens 0.66, 1.05 at S = 10 and 0.73, 1.21 at S = 16. AVX-VNNI was not measured; its
            // ratio of shuffles to products per cycle is the same.
            #[cfg(target_arch = "x86_64")]
            Self::AvxVnni | Self::Avx512Vnni => dot_from(n_sections),
            // Not measured: as the ratio of shuffles to products per cycle is.
            #[cfg(target_arch = "aarch64")]
            Self::Neon | Self::NeonI8mm => dot_from(n_sections),
        }
    }
}

/// Where products of bytes overtake lookups.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn dot_from(n_sections: usize) -> Option<usize> {
    match n_sections {
        0..=3 => None,
        4 => Some(96),
        5 => Some(36),
        6 => Some(30),
        7 => Some(24),
        8 => Some(18),
        _ => Some(16),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_change_the_route_once_at_most_and_a_forced_one_stays() {
        for (isa, s) in Isa::available().into_iter().flat_map(|isa| (1..=16).map(move |s| (isa, s)))
        {
            let routes: Vec<Route> = (1..600).map(|n| Dispatch::new(isa).route(s, n)).collect();
            assert_eq!(routes[0], Route::Lookup, "one token is never decoded");
            assert!(routes.windows(2).all(|pair| pair[0] == pair[1] || pair[1] == Route::Decode));
            // The more sections, the sooner.
            let more: Vec<Route> = (1..600).map(|n| Dispatch::new(isa).route(s + 1, n)).collect();
            assert!(
                routes.iter().zip(more).all(|(few, more)| *few == more || more == Route::Decode)
            );
            for route in Route::ALL {
                let dispatch = Dispatch { isa, forced: Some(route) };
                assert!((1..600).all(|n| dispatch.route(s, n) == route));
            }
        }
    }

    #[test]
    fn only_a_route_that_the_instructions_have_can_be_forced() {
        for isa in Isa::available() {
            assert_eq!(Dispatch::parse(isa, "lookup"), Ok(Route::Lookup));
            let decode = Dispatch::parse(isa, "decode");
            assert_eq!(decode.is_ok(), isa.decodes(), "{isa}");
            if let Err(error) = decode {
                let expected = format!(
                    "STATECELLS_BATCH: 'decode' is not available with {isa}, which has lookup"
                );
                assert_eq!(error.to_string(), expected);
            }
            assert!(Dispatch::parse(isa, "fast").is_err());
        }
    }
}
