//! PostgreSQL's programs as children of a command: they end with it, and are ended when it is asked to stop.

use crate::error::Failure;
use pgkeep_engine::observe::Cancel;
use pgkeep_engine::{Error, FileError, Kind};
use rustix::process::{Signal, getpid, getppid, set_parent_process_death_signal};
use std::io::Read;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::Duration;

/// Between two looks whether a program has ended.
const GLANCE: Duration = Duration::from_millis(20);
/// How much of what a program says is kept, in bytes; the rest is read and forgotten.
const KEPT_BYTES_MAX: u64 = 64 << 10;
/// The same of what it prints for us to read.
const ANSWER_BYTES_MAX: u64 = 64 << 20;

/// A program that runs. Dropping it ends it.
pub(super) struct Running {
    name: String,
    child: Child,
    said: Option<JoinHandle<Vec<u8>>>,
    answer: Option<JoinHandle<Vec<u8>>>,
    ended: Option<ExitStatus>,
}

/// What became of a program.
#[derive(Debug)]
pub(super) struct Ended {
    name: String,
    pub(super) status: ExitStatus,
    /// What it said on standard error.
    pub(super) said: String,
    /// What it printed, of one started by [`Running::start_to_ask`].
    pub(super) answer: Vec<u8>,
}

impl Running {
    /// Starts a program; what it says on standard error is collected. To be called by the main thread: the kernel ends
    /// the program with the thread that started it.
    ///
    /// # Errors
    /// `Execute` if it cannot be started.
    pub(super) fn start(command: &mut Command, name: &str) -> Result<Self, Failure> {
        command.stderr(Stdio::piped());
        let parent = getpid();
        let tie = move || {
            set_parent_process_death_signal(Some(Signal::KILL))?;
            // It may have ended before the line above.
            if getppid() == Some(parent) { Ok(()) } else { Err(std::io::ErrorKind::Interrupted.into()) }
        };
        // SAFETY: between fork and exec this makes two system calls; it allocates nothing and takes no lock.
        unsafe { command.pre_exec(tie) };
        let mut child = command.spawn().map_err(|e| cannot_start(Path::new(command.get_program()), e))?;
        let said = child.stderr.take().map(|pipe| collect(pipe, KEPT_BYTES_MAX)).transpose()?;
        Ok(Self { name: name.to_owned(), child, said, answer: None, ended: None })
    }

    /// Starts a program whose output is the caller's to read.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub(super) fn start_to_ask(command: &mut Command, name: &str) -> Result<Self, Failure> {
        let mut running = Self::start(command.stdin(Stdio::null()).stdout(Stdio::piped()), name)?;
        running.answer = running.child.stdout.take().map(|pipe| collect(pipe, ANSWER_BYTES_MAX)).transpose()?;
        Ok(running)
    }

    /// The process, for its pipes.
    pub(super) fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Whether it has ended.
    ///
    /// # Errors
    /// `Kernel`.
    pub(super) fn has_ended(&mut self) -> Result<bool, Failure> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().map_err(|e| kernel(&self.name, &e))?;
        }
        Ok(self.ended.is_some())
    }

    /// Waits for its end, whatever that is.
    ///
    /// # Errors
    /// `Interrupted` if the command is asked to stop: the program is ended then.
    pub(super) fn wait(mut self, cancel: &Cancel) -> Result<Ended, Failure> {
        while !self.has_ended()? {
            cancel.check()?;
            std::thread::sleep(GLANCE);
        }
        // Ctrl-C reaches the program too.
        cancel.check()?;
        self.told()
    }

    fn told(mut self) -> Result<Ended, Failure> {
        let status = match self.ended {
            Some(status) => status,
            None => self.child.wait().map_err(|e| kernel(&self.name, &e))?,
        };
        self.ended = Some(status);
        let text = |thread: Option<JoinHandle<Vec<u8>>>| thread.and_then(|t| t.join().ok()).unwrap_or_default();
        let said = String::from_utf8_lossy(&text(self.said.take())).trim().to_owned();
        Ok(Ended { name: self.name.clone(), status, said, answer: text(self.answer.take()) })
    }

    /// Ends it at once.
    pub(super) fn kill(&mut self) {
        if self.ended.is_none() {
            // It may end by itself just now.
            let _ = self.child.kill();
            self.ended = self.child.wait().ok();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Ended {
    /// Success, with a warning of what it said all the same.
    ///
    /// # Errors
    /// `Execute` with what it said.
    pub(super) fn success(self) -> Result<Self, Failure> {
        if !self.status.success() {
            return Err(self.failure());
        }
        if !self.said.is_empty() {
            tracing::warn!("{} says: {}", self.name, self.said);
        }
        Ok(self)
    }

    /// Its end as a failure.
    pub(super) fn failure(&self) -> Failure {
        let text = format!("{} failed ({}): {}", self.name, self.status, self.said);
        Error::refused(Kind::Execute, text.trim_end_matches([':', ' ']).to_owned()).into()
    }
}

fn cannot_start(program: &Path, error: std::io::Error) -> Failure {
    let missing = error.kind() == std::io::ErrorKind::NotFound;
    let failure: Error = FileError::at("start", program)(error).into();
    if missing {
        let text = format!(
            "there is no '{}': it belongs to PostgreSQL's client programs; option pg-bin names their directory",
            program.display()
        );
        return Error::refused(Kind::Execute, text).into();
    }
    failure.into()
}

fn kernel(name: &str, error: &std::io::Error) -> Failure {
    Error::refused(Kind::Kernel, format!("cannot wait for {name}: {error}")).into()
}

/// Reads a pipe to its end, on a thread of its own, and keeps the beginning.
fn collect(mut pipe: impl Read + Send + 'static, most: u64) -> Result<JoinHandle<Vec<u8>>, Failure> {
    let read = move || {
        let mut kept = Vec::new();
        // The pipe ends with the program; what cannot be read was not said.
        let _ = pipe.by_ref().take(most).read_to_end(&mut kept);
        let _ = std::io::copy(&mut pipe, &mut std::io::sink());
        kept
    };
    let thread = std::thread::Builder::new().name("listen".to_owned()).spawn(read);
    thread.map_err(|e| Error::refused(Kind::Kernel, format!("cannot start a thread: {e}")).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(line: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", line]);
        command
    }

    #[test]
    fn what_a_program_says_and_answers_comes_back() {
        let cancel = Cancel::default();
        let mut command = shell("echo answer; echo said >&2; exit 3");
        let ended = Running::start_to_ask(&mut command, "sh").unwrap().wait(&cancel).unwrap();
        assert_eq!(
            (ended.status.code(), ended.said.as_str(), ended.answer.as_slice()),
            (Some(3), "said", &b"answer\n"[..])
        );
        let failure = ended.success().unwrap_err();
        assert_eq!(failure.status().0, 102);
        assert!(failure.to_string().contains("sh failed (exit status: 3): said"), "{failure}");
    }

    #[test]
    fn a_stop_ends_the_program() {
        let cancel = Cancel::default();
        let running = Running::start(&mut shell("exec sleep 1000"), "sleep").unwrap();
        let pid = running.child.id();
        cancel.cancel();
        assert_eq!(running.wait(&cancel).unwrap_err().status().0, 63);
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
    }

    #[test]
    fn a_missing_program_is_named_with_the_remedy() {
        let failure = Running::start(&mut Command::new("/nowhere/pg_dump"), "pg_dump").err().unwrap();
        assert_eq!(failure.status().0, 102);
        assert!(failure.to_string().contains("'/nowhere/pg_dump'") && failure.to_string().contains("pg-bin"));
    }
}
