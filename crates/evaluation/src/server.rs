//! A running llama-server, asked over HTTP.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use program::Interrupt;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::error::io;
use crate::run::{read_lossy, without_foreign_flags};
use crate::{Error, logs};

const NAME: &str = "llama-server";

/// What the server says once it accepts requests, before the port.
const READY: &str = "listening on http://127.0.0.1:";

/// Loading the largest models takes minutes.
const LOAD_TIMEOUT: Duration = Duration::from_secs(1800);

/// So does a short answer on a slow machine.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1800);

/// How often a starting server is looked after.
const POLL: Duration = Duration::from_millis(200);

/// A llama-server that ends with this value.
#[derive(Debug)]
pub struct Server {
    child: Child,
    log: PathBuf,
    agent: ureq::Agent,
    port: u16,
}

impl Drop for Server {
    fn drop(&mut self) {
        // If it has ended by itself there is nothing to stop.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Greedy text.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Completion {
    /// The text.
    pub content: String,
    /// Its tokens.
    pub tokens: Vec<i64>,
}

impl Server {
    /// Starts `program` with `arguments`, which name the model, on a free port, and waits until it is ready.
    ///
    /// # Errors
    /// [`Error::Program`] if it does not get ready; [`Error::Stopped`]; [`Error::Common`] for the log.
    pub fn start(
        program: &Path,
        arguments: &[std::ffi::OsString],
        log: &Path,
        interrupt: &Interrupt,
    ) -> Result<Self, Error> {
        let mut command = Command::new(program);
        without_foreign_flags(&mut command);
        let fixed = ["--host", "127.0.0.1", "--port", "0", "--no-ui", "--no-warmup"];
        command
            .args(arguments)
            .args(fixed)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child =
            command.spawn().map_err(|e| Error::program(NAME, format!("cannot be started: {e}")))?;
        let ports = follow(child.stderr.take().expect("it is piped"), log)?;
        let config = ureq::Agent::config_builder().timeout_global(Some(ANSWER_TIMEOUT)).proxy(None);
        let agent = ureq::Agent::new_with_config(config.build());
        // From here on, whatever happens ends the server.
        let mut server = Self { child, log: log.to_owned(), agent, port: 0 };
        server.port = server.wait_for_port(&ports, interrupt)?;
        Ok(server)
    }

    fn wait_for_port(&self, ports: &Receiver<u16>, interrupt: &Interrupt) -> Result<u16, Error> {
        let started = Instant::now();
        loop {
            match ports.recv_timeout(POLL) {
                Ok(port) => return Ok(port),
                Err(_) if interrupt.is_set() => return Err(Error::Stopped),
                Err(RecvTimeoutError::Timeout) if started.elapsed() < LOAD_TIMEOUT => {}
                Err(_) => return Err(self.failure("did not get ready")),
            }
        }
    }

    fn failure(&self, what: &str) -> Error {
        let reason = logs::explanation(&read_lossy(&self.log)).unwrap_or_default();
        Error::program(NAME, format!("{what}: {reason} (log: {})", self.log.display()))
    }

    fn post<T: serde::de::DeserializeOwned>(&self, path: &str, body: &Value) -> Result<T, Error> {
        let url = format!("http://127.0.0.1:{}{path}", self.port);
        let answer = self.agent.post(&url).send_json(body);
        let answer = answer.and_then(|mut a| a.body_mut().read_json());
        answer.map_err(|e| self.failure(&format!("{path} was not answered ({e})")))
    }

    /// A conversation with one question as the model's chat template writes it.
    ///
    /// # Errors
    /// [`Error::Program`].
    pub fn chat_prompt(&self, question: &str) -> Result<String, Error> {
        #[derive(Deserialize)]
        struct Answer {
            prompt: String,
        }
        let body = json!({"messages": [{"role": "user", "content": question}]});
        Ok(self.post::<Answer>("/apply-template", &body)?.prompt)
    }

    /// The likeliest continuation of `prompt`, token by token, up to `n` tokens.
    ///
    /// # Errors
    /// [`Error::Program`].
    pub fn complete(&self, prompt: &str, n: usize) -> Result<Completion, Error> {
        // Without its cache a prompt is always computed in the same batches.
        let body = json!({"prompt": prompt, "n_predict": n, "temperature": 0, "top_k": 1, "return_tokens": true, "cache_prompt": false});
        self.post("/completion", &body)
    }
}

/// Copies what the server says to `log`, and gives the port when it tells it. A thread reads all of it, or
/// the server would wait for a reader.
fn follow(stderr: ChildStderr, log: &Path) -> Result<Receiver<u16>, Error> {
    let mut file = std::fs::File::create(log).map_err(io(log, "write"))?;
    let (sender, receiver) = channel();
    thread::spawn(move || {
        let mut lines = BufReader::new(stderr);
        let mut line = Vec::new();
        while lines.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
            // A log that cannot be written is no reason to let the server wait.
            let _ = file.write_all(&line);
            let text = String::from_utf8_lossy(&line);
            if let Some((_, port)) = text.split_once(READY)
                && let Ok(port) = port.trim().parse()
            {
                let _ = sender.send(port);
            }
            line.clear();
        }
    });
    Ok(receiver)
}
