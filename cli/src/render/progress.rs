//! The progress bar: bytes, rate, new, stored and remaining time, on a terminal only.

use crate::size::{human_size, human_time};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use pgkeep_engine::observe::{Counter, Observer, Silent};
use std::fmt::Write;
use std::io::IsTerminal as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

const TEMPLATE: &str = "{task} {bar:24} {done} of {total}  {rate}/s  new {new}  stored {stored}  {left} left";
/// Redrawing more often than this only costs time.
const DRAWS_PER_SECOND: u8 = 8;

/// The bar now on the screen, for [`suspended`].
static SHOWN: Mutex<Option<ProgressBar>> = Mutex::new(None);

/// Runs `write` with the bar taken off the screen, if there is one.
pub fn suspended(write: impl FnOnce()) {
    let bar = SHOWN.lock().unwrap_or_else(PoisonError::into_inner).clone();
    match bar {
        Some(bar) => bar.suspend(write),
        None => write(),
    }
}

/// An observer for this process: a bar if standard error is a terminal, else one that looks away.
#[must_use]
pub fn observer() -> Box<dyn Observer> {
    if std::io::stderr().is_terminal() {
        Box::new(Progress::new(ProgressDrawTarget::stderr_with_hz(DRAWS_PER_SECOND)))
    } else {
        Box::new(Silent)
    }
}

#[derive(Default)]
struct Counts {
    new: AtomicU64,
    stored: AtomicU64,
}

/// Shows the counters of one operation.
pub struct Progress {
    bar: ProgressBar,
    counts: Arc<Counts>,
}

impl Progress {
    fn new(target: ProgressDrawTarget) -> Self {
        Self { bar: ProgressBar::with_draw_target(None, target), counts: Arc::default() }
    }

    fn style(&self, task: &str) -> ProgressStyle {
        let (task, counts, more) = (task.to_owned(), Arc::clone(&self.counts), Arc::clone(&self.counts));
        // The template is a constant of ours; the plain bar stands in should it ever be wrong.
        ProgressStyle::with_template(TEMPLATE)
            .unwrap_or_else(|_| ProgressStyle::default_bar())
            .with_key("task", move |_: &ProgressState, w: &mut dyn Write| ignore(w.write_str(&task)))
            .with_key("done", |s: &ProgressState, w: &mut dyn Write| put(w, s.pos()))
            .with_key("total", |s: &ProgressState, w: &mut dyn Write| put(w, s.len().unwrap_or(0)))
            .with_key("rate", |s: &ProgressState, w: &mut dyn Write| put(w, rate(s)))
            .with_key("new", move |_: &ProgressState, w: &mut dyn Write| put(w, counts.new.load(Ordering::Relaxed)))
            .with_key("stored", move |_: &ProgressState, w: &mut dyn Write| put(w, more.stored.load(Ordering::Relaxed)))
            .with_key("left", |s: &ProgressState, w: &mut dyn Write| ignore(w.write_str(&left(s))))
    }
}

fn put(w: &mut dyn Write, bytes: u64) {
    ignore(w.write_str(&human_size(bytes)));
}

/// The bar formats into memory, which does not fail.
fn ignore(_: std::fmt::Result) {}

/// Bytes per second; a cast of a finite positive float saturates.
fn rate(state: &ProgressState) -> u64 {
    state.per_sec() as u64
}

fn left(state: &ProgressState) -> String {
    let left = Duration::from_secs(state.eta().as_secs());
    if rate(state) == 0 { "?".to_owned() } else { human_time(left) }
}

impl Observer for Progress {
    fn begin(&self, task: &str, total: u64) {
        self.counts.new.store(0, Ordering::Relaxed);
        self.counts.stored.store(0, Ordering::Relaxed);
        // Each of the others draws, and the first drawing should have a meaning too.
        self.bar.set_style(self.style(task));
        self.bar.set_length(total);
        self.bar.reset();
        *SHOWN.lock().unwrap_or_else(PoisonError::into_inner) = Some(self.bar.clone());
    }

    fn add(&self, counter: Counter, n: u64) {
        match counter {
            Counter::Done => self.bar.inc(n),
            Counter::New => {
                self.counts.new.fetch_add(n, Ordering::Relaxed);
            }
            Counter::Stored => {
                self.counts.stored.fetch_add(n, Ordering::Relaxed);
            }
            _ => {}
        }
    }

    fn end(&self) {
        SHOWN.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.bar.finish_and_clear();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use indicatif::TermLike;
    use std::io;

    /// A terminal that remembers what was written to it.
    #[derive(Debug, Clone, Default)]
    struct Paper(Arc<Mutex<String>>);

    impl Paper {
        fn put(&self, text: &str) -> io::Result<()> {
            self.0.lock().unwrap().push_str(text);
            Ok(())
        }

        fn take(&self) -> String {
            std::mem::take(&mut *self.0.lock().unwrap())
        }
    }

    impl TermLike for Paper {
        fn width(&self) -> u16 {
            160
        }
        fn move_cursor_up(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_down(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_right(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_left(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn write_line(&self, text: &str) -> io::Result<()> {
            self.put(text).and_then(|()| self.put("\n"))
        }
        fn write_str(&self, text: &str) -> io::Result<()> {
            self.put(text)
        }
        fn clear_line(&self) -> io::Result<()> {
            self.put("<clear>")
        }
        fn flush(&self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn the_bar_shows_the_counters_and_makes_room_for_lines() {
        let paper = Paper::default();
        let progress = Progress::new(ProgressDrawTarget::term_like(Box::new(paper.clone())));
        progress.begin("backup", 4 << 30);
        let first = paper.take();
        let lines: Vec<_> = first.split(['\n', '\r']).flat_map(|l| l.split("<clear>")).collect();
        let lines: Vec<_> = lines.into_iter().map(str::trim).filter(|l| !l.is_empty()).collect();
        assert!(!lines.is_empty() && lines.iter().all(|l| l.starts_with("backup ")), "{first:?}");
        assert!(lines.iter().all(|l| l.contains("0B of 4GB") && l.ends_with("left")), "{first:?}");
        progress.add(Counter::New, 3 << 20);
        progress.add(Counter::Stored, 1 << 20);
        progress.add(Counter::Files, 5);
        progress.add(Counter::Done, 1 << 30);
        progress.bar.force_draw();
        let shown = paper.take();
        assert!(shown.contains("backup ") && shown.contains("1GB of 4GB"), "{shown}");
        assert!(shown.contains("new 3MB  stored 1MB"), "{shown}");
        suspended(|| paper.put("[a log line]").unwrap());
        let around = paper.take();
        let (before, after) = around.split_once("[a log line]").unwrap();
        assert!(before.contains("<clear>") && after.contains("backup "), "{around}");
        progress.end();
        assert!(paper.take().contains("<clear>"));
        suspended(|| paper.put("alone").unwrap());
        assert_eq!(paper.take(), "alone");
    }
}
