//! Any bytes as a policy and as sensitivities.
#![no_main]

use builder::by_tensor;
use libfuzzer_sys::fuzz_target;
use seeddelta::Choice;

fuzz_target!(|data: &[u8]| {
    if let Ok(choices) = by_tensor::policy::<Choice>(data) {
        for (tensor, choice) in choices {
            // A base can be written down as it was read.
            assert_eq!(choice.base.to_string().parse(), Ok(choice.base), "{tensor}");
        }
    }
    if let Ok(factors) = by_tensor::sensitivities(data) {
        assert!(factors.values().all(|f| f.is_finite() && *f >= 0.0));
    }
});
