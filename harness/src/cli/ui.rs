//! How commands speak: text or JSON on the output, progress and complaints on the error stream.

use super::Common;
use crate::engines::Live;
use crate::report::table::grouped;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use std::fmt::Display;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The conversation with the user.
pub(super) struct Ui {
    common: Common,
    /// Hidden until something runs.
    bar: ProgressBar,
    /// Counters of the engines, and whether the user pressed Ctrl-C.
    pub(super) live: Arc<Live>,
}

impl Ui {
    /// Starts listening for Ctrl-C: the first one ends the engines and keeps what was found, a second one ends us.
    pub(super) fn new(common: Common) -> Self {
        let live = Arc::new(Live::default());
        let heard = Arc::clone(&live);
        let handler = ctrlc::set_handler(move || {
            if heard.is_stopped() {
                std::process::exit(130);
            }
            heard.stop();
        });
        let ui = Self { common, bar: ProgressBar::hidden(), live };
        if let Err(e) = handler {
            ui.tell(format!("Ctrl-C will lose what was found: {e}"));
        }
        ui
    }

    /// Where folders of failures go.
    pub(super) fn out(&self) -> &Path {
        &self.common.out
    }

    /// A line for people; nothing in JSON mode.
    pub(super) fn say(&self, line: impl Display) {
        if !self.common.json {
            print(&line.to_string());
        }
    }

    /// The result: as text for people, as one JSON object for machines.
    pub(super) fn result(&self, value: &impl Serialize, text: impl Display) {
        if self.common.json {
            print(&serde_json::to_string(value).unwrap_or_else(|e| format!("{{\"error\":\"{e}\"}}")));
        } else {
            print(text.to_string().trim_end());
        }
    }

    /// Something the user should know while the command goes on.
    pub(super) fn tell(&self, line: impl Display) {
        // A closed error stream leaves nobody to tell.
        self.bar.suspend(|| drop(writeln!(std::io::stderr(), "hammer: {line}")));
    }

    /// What begins now: beside the progress line, or as a line of its own where there is none.
    pub(super) fn phase(&self, words: &str) {
        self.bar.set_prefix(words.to_owned());
        if self.bar.is_hidden() && !self.common.json {
            self.tell(words);
        }
    }

    /// Why the command could not do its work.
    pub(super) fn fail(&self, message: &str) {
        self.tell(message);
        if self.common.json {
            print(&serde_json::json!({ "ok": false, "error": message }).to_string());
        }
    }

    /// Shows a progress line on the error stream while `work` runs, if that is a terminal and text is wanted.
    pub(super) fn with_progress<T>(&self, length: Duration, work: impl FnOnce() -> T) -> T {
        self.start_bar(length);
        let finished = AtomicBool::new(false);
        let result = std::thread::scope(|scope| {
            scope.spawn(|| {
                let start = Instant::now();
                while !finished.load(Ordering::Relaxed) {
                    self.show(start.elapsed(), length);
                    std::thread::sleep(Duration::from_millis(200));
                }
            });
            let result = work();
            finished.store(true, Ordering::Relaxed);
            result
        });
        self.bar.finish_and_clear();
        result
    }

    fn start_bar(&self, length: Duration) {
        let style = ProgressStyle::with_template("{prefix} [{wide_bar}] {msg}");
        self.bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        self.bar.set_length(length.as_millis() as u64);
        if !self.common.json {
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
        }
    }

    fn show(&self, elapsed: Duration, length: Duration) {
        let rate = self.live.ops() as f64 / elapsed.as_secs_f64().max(0.001);
        let left = length.saturating_sub(elapsed).as_secs();
        self.bar.set_position(elapsed.min(length).as_millis() as u64);
        self.bar.set_message(format!(
            "{} operations/s, {} edges, {} violations, {left} s left",
            grouped(rate as u64),
            grouped(self.live.edges()),
            self.live.violations()
        ));
    }
}

/// Prints a line; a reader that went away (as `head` does) is no reason to panic.
fn print(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}
