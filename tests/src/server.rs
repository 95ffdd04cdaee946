//! A running llama-server, spoken to over HTTP.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::programs::{PATIENCE, program};

/// Neither loading a small model nor one answer takes as long.
const TIMEOUT: Duration = Duration::from_secs(120);

/// What the server says once it accepts requests, before the port.
const READY: &str = "listening on http://127.0.0.1:";

/// A llama-server that ends with this value.
#[derive(Debug)]
pub struct Server {
    child: Child,
    port: u16,
    /// Lines of its messages that nobody has waited for yet.
    log: Mutex<Receiver<String>>,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    /// Starts a server for `model` on a free port and waits until it is ready.
    ///
    /// # Panics
    /// If it does not get ready, with its messages.
    #[must_use]
    pub fn start(model: &Path, flags: &str) -> Self {
        let mut arguments: Vec<OsString> = vec!["-m".into(), model.into()];
        let fixed = "--host 127.0.0.1 --port 0 --no-ui --no-warmup -fit off";
        arguments.extend(fixed.split(' ').chain(flags.split_whitespace()).map(OsString::from));
        let mut child = Command::new(program("llama-server"))
            .env(PATIENCE.0, PATIENCE.1)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the server starts");
        let log = follow(child.stderr.take().expect("it is piped"));
        // from here on a panic ends the server, too
        let mut server = Self { child, port: 0, log: Mutex::new(log) };
        let port = port_when_ready(&server.lines());
        server.port = port;
        server
    }

    fn lines(&self) -> MutexGuard<'_, Receiver<String>> {
        self.log.lock().expect("nobody panicked while waiting for a line")
    }

    /// The answer to `body`, sent to `path`.
    ///
    /// # Panics
    /// If there is none, or it says anything but success.
    #[must_use]
    pub fn post(&self, path: &str, body: &Value) -> Value {
        let (status, body) = self.try_post(path, body);
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).expect("JSON")
    }

    /// Status and body of the answer to `body`, sent to `path`.
    ///
    /// # Panics
    /// If there is none.
    #[must_use]
    pub fn try_post(&self, path: &str, body: &Value) -> (u16, String) {
        let answer = self.exchange(path, &body.to_string()).expect("an answer");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
        let status = head.split(' ').nth(1).and_then(|s| s.parse().ok());
        (status.unwrap_or_else(|| panic!("no status in {head}")), body.to_owned())
    }

    /// The next line of the server's messages that holds all of `parts`.
    ///
    /// # Panics
    /// If it does not come, with what came.
    #[must_use]
    pub fn wait_for(&self, parts: &[&str]) -> String {
        let mut seen = String::new();
        while let Ok(line) = self.lines().recv_timeout(TIMEOUT) {
            if parts.iter().all(|part| line.contains(part)) {
                return line;
            }
            seen += &line;
        }
        panic!("no line with {parts:?} in:\n{seen}");
    }

    /// One exchange of HTTP/1.0, at whose end the server closes the connection.
    fn exchange(&self, path: &str, body: &str) -> std::io::Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        let n = body.len();
        let head = format!("Content-Type: application/json\r\nContent-Length: {n}\r\n");
        write!(stream, "POST {path} HTTP/1.0\r\n{head}\r\n{body}")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }
}

fn port_when_ready(log: &Receiver<String>) -> u16 {
    let mut seen = String::new();
    while let Ok(line) = log.recv_timeout(TIMEOUT) {
        if let Some((_, port)) = line.split_once(READY) {
            return port.trim().parse().expect("a port number");
        }
        seen += &line;
    }
    panic!("llama-server did not get ready:\n{seen}");
}

/// The lines of `stderr` as they come. A thread reads them all, or the server would wait for a reader.
fn follow(stderr: ChildStderr) -> Receiver<String> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        let mut lines = BufReader::new(stderr);
        let mut line = Vec::new();
        while lines.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
            let _ = sender.send(String::from_utf8_lossy(&line).into_owned());
            line.clear();
        }
    });
    receiver
}
