//! Which process of which kernel wrote something, so that another one beside it can tell that it has ended.
//!
//! A number alone says nothing: another process gets it, another container has its own, another host too. So it is told with
//! the kernel's id of this boot, the namespace that the number is of, and when the process began. Whoever finds the first
//! two to be its own knows whether that process is there; of all others nothing can be told. A namespace's number is given
//! to another one only when no process is left in the first.
//!
//! Source: proc(5), `/proc/<pid>/stat` field 22, `/proc/sys/kernel/random/boot_id`; pid_namespaces(7).

use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process};

/// Where in `/proc/<pid>/stat`, behind the name in parentheses, the start stands, from 0.
const START_FIELD: usize = 19;

/// A process while its kernel runs.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Process {
    boot: String,
    namespace: String,
    pid: i32,
    /// In ticks since the boot.
    start: u64,
}

impl Process {
    /// This process; `None` where the kernel does not say, or where `/proc` is that of another namespace.
    fn own() -> Option<Self> {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?.trim().to_owned();
        let namespace = std::fs::read_link("/proc/self/ns/pid").ok()?.to_str()?.to_owned();
        let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
        let pid = i32::try_from(std::process::id()).ok()?;
        let is_word = |text: &str| !text.is_empty() && !text.contains(char::is_whitespace);
        (stat.split(' ').next()?.parse() == Ok(pid) && is_word(&boot) && is_word(&namespace)).then_some(Self {
            boot,
            namespace,
            pid,
            start: start(&stat)?,
        })
    }

    fn parse(text: &str) -> Option<Self> {
        let [boot, namespace, pid, start] = *text.split(' ').collect::<Vec<_>>() else { return None };
        let (pid, start) = (pid.parse().ok()?, start.parse().ok()?);
        Some(Self { boot: boot.to_owned(), namespace: namespace.to_owned(), pid, start })
    }

    /// Whether it has certainly ended, as `own` can see. A zombie counts as alive: its first thread may have ended alone.
    fn has_ended(&self, own: &Self) -> bool {
        if (&self.boot, &self.namespace) != (&own.boot, &own.namespace) {
            return false;
        }
        let Some(pid) = Pid::from_raw(self.pid).filter(|_| self.pid > 0) else { return false };
        // `/proc` may hide the processes of other users; this does not.
        if test_kill_process(pid) == Err(Errno::SRCH) {
            return true;
        }
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        start(&stat).is_some_and(|start| start != self.start)
    }
}

/// When a process began, by its `stat`. Its name may hold anything, parentheses too.
fn start(stat: &str) -> Option<u64> {
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(START_FIELD)?.parse().ok()
}

/// This process, for [`has_ended`]; empty where it cannot be told.
pub(crate) fn own() -> String {
    Process::own().map_or_else(String::new, |p| format!("{} {} {} {}", p.boot, p.namespace, p.pid, p.start))
}

/// Whether the process that told this of itself by [`own`] has certainly ended. False of any of which it cannot be known.
pub(crate) fn has_ended(told: &str) -> bool {
    match (Process::parse(told), Process::own()) {
        (Some(process), Some(own)) => process.has_ended(&own),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn who_lives_and_who_is_unknown_has_not_ended() {
        let told = own();
        assert!(!told.is_empty() && !has_ended(&told), "{told}");
        for unknown in ["", "x", "a b c d", "a b 1 2 3"] {
            assert!(!has_ended(unknown), "{unknown}");
        }
    }

    #[test]
    fn only_what_is_seen_from_here_is_judged() {
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let own = Process::own().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let other = Process { pid, start: start(&stat).unwrap(), ..own.clone() };
        assert!(!other.has_ended(&own));
        // The number is another's by now.
        assert!(Process { start: other.start + 1, ..other.clone() }.has_ended(&own));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(other.has_ended(&own));
        assert!(!Process { boot: "another".into(), ..other.clone() }.has_ended(&own));
        assert!(!Process { namespace: "pid:[1]".into(), ..other }.has_ended(&own));
    }

    #[test]
    fn a_start_is_found_behind_any_name() {
        let fields = (3..=22).map(|n| n.to_string()).collect::<Vec<_>>().join(" ");
        assert_eq!(start(&format!("7 (a) b) ) {fields} 23")), Some(22));
        assert_eq!(start("7 (a) 3 4"), None);
    }
}
