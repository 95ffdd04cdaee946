//! Any bytes as a calibration file: what is taken can be calculated with.
#![no_main]

use calibration::Calibration;
use format::{MatrixId, Role};
use libfuzzer_sys::fuzz_target;

#[path = "file.rs"]
mod file;

fuzz_target!(|data: &[u8]| {
    let Ok(calibration) = Calibration::open(file::of(data)) else { return };
    for role in Role::PLAIN {
        let Ok(input) = calibration.input(MatrixId { layer: 0, role }.input()) else { continue };
        assert!(input.d() > 0);
        assert_eq!(input.mean_squares().len(), input.d());
        assert!(input.mean_squares().iter().all(|v| *v >= 0.0));
        assert_eq!(input.holdout_samples().len() % input.d(), 0);
        assert!(input.holdout_samples().iter().all(|v| v.is_finite()));
        if let Some(moment) = input.second_moment() {
            assert_eq!(moment.len(), input.d() * input.d());
        }
    }
});
