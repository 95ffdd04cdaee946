//! A build from start to end.

use std::path::Path;

use program::table::print_line;
use program::{Interrupt, Reporter};

use super::request::Job;
use super::session::Session;
use super::start::Start;
use crate::error::{io, watch};
use crate::report::BuildReport;
use crate::{Error, Source};

impl Job {
    /// Checks everything that can be known before the work, without reading weights or writing anything. A dry run and
    /// a build begin with it.
    ///
    /// # Errors
    /// [`Error`] if the job could not be done as it is.
    pub fn check(&self) -> Result<(), Error> {
        Start::of(self, &Source::open(&self.input)?, false).map(drop)
    }

    /// Prints what the job would bring, without writing anything. Weights are read only to share out a budget.
    ///
    /// # Errors
    /// [`Error`] if the job could not be done as it is.
    pub fn dry_run(&self) -> Result<(), Error> {
        let source = Source::open(&self.input)?;
        let mut session = Session::open(self, &source, None, Reporter::new())?;
        if session.must_allocate() {
            session.identify_input()?;
            session.read_calibration()?;
            session.allocate()?;
        }
        session.print_plan()
    }

    /// Builds the output and prints the report. The user may ask for a stop meanwhile.
    ///
    /// # Errors
    /// [`Error`]; finished tensors are kept for `--resume`.
    ///
    /// # Panics
    /// If there is no output.
    pub fn run(&self) -> Result<(), Error> {
        let source = Source::open(&self.input)?;
        let mut session = Session::open(self, &source, self.output.as_deref(), Reporter::new())?;
        session.interrupt = watch(self.tool, "stopping after the tensor in hand", &self.input)?;
        let report = session.run_to_its_end()?;
        print_line(&report.text()).map_err(io(Path::new("stdout"), "write"))
    }

    /// As [`Self::run`], as a step of other work that says what there is to say and watches for requests to stop.
    ///
    /// # Errors
    /// As [`Self::run`].
    ///
    /// # Panics
    /// As [`Self::run`].
    pub fn build_quietly(&self, interrupt: &Interrupt) -> Result<BuildReport, Error> {
        let source = Source::open(&self.input)?;
        let mut session = Session::open(self, &source, self.output.as_deref(), Reporter::silent())?;
        session.interrupt = interrupt.clone();
        session.run_to_its_end()
    }
}
