//! Progress over the whole plan: a bar on a terminal, plain lines elsewhere, always on stderr.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use program::progress::duration;

/// How far a plan has come. Units are tokens to compute, so a step of twice as many takes about twice as long.
#[derive(Debug)]
pub struct Progress {
    bar: Option<ProgressBar>,
    started: Instant,
    total: u64,
    done: u64,
    /// Units of reused steps, which took no time.
    free: u64,
    n_steps: usize,
    step: usize,
}

impl Progress {
    /// For a plan of `n_steps` steps with `total` units.
    #[must_use]
    pub fn new(n_steps: usize, total: u64) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(total);
            let template = "{spinner} {msg:48!} {wide_bar} {percent}%";
            bar.set_style(ProgressStyle::with_template(template).expect("the template is fixed"));
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        Self { bar, started: Instant::now(), total, done: 0, free: 0, n_steps, step: 0 }
    }

    /// A step begins.
    pub fn begin(&mut self, title: &str) {
        self.step += 1;
        let text = format!("[{}/{}] {title}{}", self.step, self.n_steps, self.left());
        match &self.bar {
            Some(bar) => bar.set_message(text),
            None => eprintln!("{text}"),
        }
    }

    /// `share` (0 to 1) of a step with `units` is done.
    pub fn part(&self, units: u64, share: f64) {
        if let Some(bar) = &self.bar {
            #[allow(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a share of units"
            )]
            bar.set_position(self.done + (units as f64 * share.clamp(0.0, 1.0)) as u64);
        }
    }

    /// A step of `units` has ended; `reused` if it took no time.
    pub fn end(&mut self, units: u64, reused: bool) {
        self.done += units;
        if reused {
            self.free += units;
        }
        self.part(0, 0.0);
    }

    /// Says something that stays.
    pub fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None => eprintln!("{text}"),
        }
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    /// `, about 3 min 05 s left`, once there is something to estimate from.
    fn left(&self) -> String {
        let seconds = estimate(
            self.started.elapsed().as_secs_f64(),
            self.done - self.free,
            self.total - self.done.min(self.total),
        );
        seconds.map_or_else(String::new, |s| format!(", about {} left", duration(s)))
    }
}

/// Seconds for `left` units if `done` took `elapsed`.
fn estimate(elapsed: f64, done: u64, left: u64) -> Option<f64> {
    (done > 0).then(|| elapsed * left as f64 / done as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn estimates_follow_the_units() {
        assert_eq!(estimate(10.0, 100, 300), Some(30.0));
        assert_eq!(estimate(10.0, 0, 300), None);
        assert_eq!(estimate(10.0, 5, 0), Some(0.0));
    }
}
