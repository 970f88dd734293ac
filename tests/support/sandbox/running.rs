//! A command under way: watched, signalled, killed.

use std::{
    fs,
    process::{Child, Command},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::NamedTempFile;

use super::Run;

/// How long one command may take. Reached only when it hangs: killed then, so that the test says which.
const PATIENCE: Duration = Duration::from_secs(600);

/// A command that runs. Dropping it kills it.
#[derive(Debug)]
pub struct Running {
    command: String,
    child: Child,
    out: NamedTempFile,
    err: NamedTempFile,
}

impl Running {
    pub(super) fn new(mut command: Command) -> Self {
        // Files, not pipes: a daemon the command leaves behind keeps its outputs open, and a pipe would never end.
        let (out, err) = (NamedTempFile::new(), NamedTempFile::new());
        let (out, err) = (out.expect("cannot create a file"), err.expect("cannot create a file"));
        command.stdout(out.reopen().expect("cannot open a file")).stderr(err.reopen().expect("cannot open a file"));
        let line = format!("{command:?}");
        let child = command.spawn().unwrap_or_else(|error| panic!("cannot run {line}: {error}"));
        Self { command: line, child, out, err }
    }

    /// What it has printed so far.
    pub fn stdout(&self) -> String {
        text(&self.out)
    }

    /// Waits until it has printed a text.
    ///
    /// # Panics
    /// When it ends without.
    pub fn wait_for(&mut self, what: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.stdout().contains(what) {
            if self.ended() && !self.stdout().contains(what) {
                panic!("ended before it printed '{what}': {}\n{}{}", self.command, self.stdout(), text(&self.err));
            }
            assert!(Instant::now() < deadline, "'{what}' is not printed: {}\n{}", self.command, self.stdout());
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Whether it has ended.
    pub fn ended(&mut self) -> bool {
        self.child.try_wait().expect("cannot ask for a command's state").is_some()
    }

    /// Sends it a signal; none if it has ended.
    pub fn signal(&mut self, signal: Signal) {
        if !self.ended() {
            // It is our child and not waited for yet, so the number is still its own.
            _ = kill_process(Pid::from_child(&self.child), signal);
        }
    }

    /// Waits for its end, whatever that is.
    ///
    /// # Panics
    /// When it does not end.
    pub fn wait(mut self) -> Run {
        let deadline = Instant::now() + PATIENCE;
        let mut step = Duration::from_millis(1);
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("cannot wait for a command") {
                break Some(status);
            }
            if Instant::now() > deadline {
                self.child.kill().expect("cannot kill a command");
                self.child.wait().expect("cannot wait for a command");
                break None;
            }
            thread::sleep(step);
            step = (step * 2).min(Duration::from_millis(20));
        };
        let run = Run {
            command: self.command.clone(),
            code: status.and_then(|status| status.code()),
            stdout: text(&self.out),
            stderr: text(&self.err),
        };
        assert!(status.is_some(), "killed after {} s\n{run}", PATIENCE.as_secs());
        run
    }

    /// Kills it as a failing machine would, and waits until it is gone.
    pub fn kill9(mut self) -> Run {
        self.signal(Signal::KILL);
        self.wait()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.ended() {
            _ = self.child.kill(); // it may end just now
            _ = self.child.wait();
        }
    }
}

fn text(file: &NamedTempFile) -> String {
    String::from_utf8_lossy(&fs::read(file.path()).unwrap_or_default()).into_owned()
}

/// The process in the background whose command line has this word: the one that serves what the word names.
///
/// # Panics
/// If there is none.
pub fn serving(word: &str) -> Pid {
    for entry in fs::read_dir("/proc").expect("cannot list processes").flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // It may have ended meanwhile.
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
        if words.contains(&word.as_bytes())
            && words.contains(&b"--ready-pipe".as_slice())
            && let Some(pid) = Pid::from_raw(pid)
        {
            return pid;
        }
    }
    panic!("nothing serves {word}");
}
