//! What a build tells while it runs: bars on a terminal, plain lines elsewhere, always on stderr.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// Stages of fewer bytes are over before anyone could read about them.
const LONG_STAGE_BYTES: u64 = 1 << 30;

const TICK: Duration = Duration::from_millis(200);

/// Progress of a whole build.
#[derive(Debug)]
pub struct Reporter {
    screen: Option<Screen>,
    is_silent: bool,
}

#[derive(Debug)]
struct Screen {
    bars: MultiProgress,
    layers: ProgressBar,
    tensors: ProgressBar,
    stage: ProgressBar,
}

impl Reporter {
    /// Bars if stderr is a terminal, else lines.
    #[must_use]
    pub fn new() -> Self {
        let screen = std::io::stderr().is_terminal().then(Screen::new);
        Self { screen, is_silent: false }
    }

    /// Says nothing: for work that is a step of other work.
    #[must_use]
    pub fn silent() -> Self {
        Self { screen: None, is_silent: true }
    }

    /// Announces `n_layers` layers with `n_tensors` tensors in all that remain to be done.
    pub fn start(&self, n_layers: usize, n_tensors: usize) {
        if let Some(screen) = &self.screen {
            for (bar, n) in [(&screen.layers, n_layers), (&screen.tensors, n_tensors)] {
                bar.reset();
                bar.set_length(n as u64);
                bar.enable_steady_tick(TICK);
            }
        }
    }

    /// Work on the tensor `name` of `layer` begins, the `n_layers_done`-th layer in hand.
    pub fn tensor(&self, layer: usize, n_layers_done: usize, name: &str) {
        if let Some(screen) = &self.screen {
            screen.layers.set_position(n_layers_done as u64);
            screen.layers.set_message(format!("layer {layer}"));
            screen.tensors.set_message(name.to_owned());
        }
    }

    /// A tensor is finished; `line` says how it went.
    pub fn tensor_done(&self, line: &str) {
        self.line(line);
        if let Some(screen) = &self.screen {
            screen.tensors.inc(1);
            if Some(screen.tensors.position()) == screen.tensors.length() {
                screen.layers.set_position(screen.layers.length().unwrap_or(0));
            }
        }
    }

    /// Says something that should stay on the screen.
    pub fn line(&self, line: &str) {
        match &self.screen {
            // An error here means that stderr is gone; there is no other place to say so.
            Some(screen) => drop(screen.bars.println(line)),
            None if self.is_silent => {}
            None => eprintln!("{line}"),
        }
    }

    /// Says which stage is in hand, and of how many steps.
    pub fn stage(&self, name: &str, total: u64) {
        if let Some(screen) = &self.screen {
            screen.stage.set_style(style("{spinner} {msg:28} {wide_bar} {pos}/{len} ETA {eta}"));
            screen.begin(name, total);
        }
    }

    /// `n` more steps of the stage are done.
    pub fn advance(&self, n: u64) {
        if let Some(screen) = &self.screen {
            screen.stage.inc(n);
        }
    }

    /// A stage of `total` bytes (hashing, writing); on plain output a long one is announced.
    #[must_use]
    pub fn bytes(&self, name: &str, total: u64) -> ByteStage<'_> {
        if let Some(screen) = &self.screen {
            screen
                .stage
                .set_style(style("{spinner} {msg:28} {wide_bar} {bytes}/{total_bytes} ETA {eta}"));
            screen.begin(name, total);
        } else if total >= LONG_STAGE_BYTES && !self.is_silent {
            eprintln!("{name} ({:.1} GB)", total as f64 / 1e9);
        }
        ByteStage { reporter: self }
    }

    /// Takes the bars off the screen.
    pub fn finish(&self) {
        if let Some(screen) = &self.screen {
            for bar in [&screen.layers, &screen.tensors, &screen.stage] {
                bar.finish_and_clear();
            }
        }
    }
}

impl Default for Reporter {
    fn default() -> Self {
        Self::new()
    }
}

impl Screen {
    fn new() -> Self {
        let bars = MultiProgress::new();
        let add = |template| bars.add(ProgressBar::new(0).with_style(style(template)));
        let counted = "{spinner} {msg:28} {wide_bar} {pos}/{len} ETA {eta}";
        let (layers, tensors, stage) = (add(counted), add(counted), add(counted));
        Self { bars, layers, tensors, stage }
    }

    fn begin(&self, name: &str, total: u64) {
        self.stage.reset();
        self.stage.set_length(total);
        self.stage.set_message(name.to_owned());
        self.stage.enable_steady_tick(TICK);
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("the templates are fixed")
}

/// A running stage that is counted in bytes.
#[derive(Debug)]
pub struct ByteStage<'a> {
    reporter: &'a Reporter,
}

impl ByteStage<'_> {
    /// `n` more bytes are done.
    pub fn advance(&self, n: u64) {
        self.reporter.advance(n);
    }
}

/// Estimates the time left from the weights done so far.
#[derive(Debug)]
pub struct Eta {
    start: Instant,
    done: u64,
    total: u64,
}

impl Eta {
    /// A clock for `total` units of work that starts now.
    #[must_use]
    pub fn new(total: u64) -> Self {
        Self { start: Instant::now(), done: 0, total }
    }

    /// Counts `n` more units and gives the estimated time left, as text.
    pub fn advance(&mut self, n: u64) -> String {
        self.done += n;
        let left = self.total.saturating_sub(self.done) as f64;
        let seconds = self.start.elapsed().as_secs_f64() * left / (self.done.max(1)) as f64;
        duration(seconds)
    }
}

/// `0.8 s`, `42 s`, `3 min 05 s`, `2 h 07 min`.
#[must_use]
pub fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        _ if seconds < 9.95 => format!("{seconds:.1} s"),
        0..120 => format!("{whole} s"),
        120..7200 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", whole / 3600, whole % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_well() {
        let cases = [
            (0.04, "0.0 s"),
            (9.9, "9.9 s"),
            (9.96, "10 s"),
            (119.4, "119 s"),
            (185.0, "3 min 05 s"),
            (7620.0, "2 h 07 min"),
        ];
        for (seconds, text) in cases {
            assert_eq!(duration(seconds), text);
        }
    }

    #[test]
    fn the_estimate_reaches_zero_at_the_end() {
        let mut eta = Eta::new(4);
        eta.advance(3);
        assert_eq!(eta.advance(1), "0.0 s");
    }
}
