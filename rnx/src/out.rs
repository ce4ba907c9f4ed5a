//! The only printer: data on standard output, everything else on standard error.
//!
//! Whatever comes from a server or a job is untrusted text: it is made plain before it reaches a terminal or
//! a table. A closed pipe becomes [`Failure::closed_pipe`] and so a success. Colour is used on a terminal
//! unless `NO_COLOR` is set.

pub(crate) mod escape;
pub(crate) mod sink;

use std::{
    env,
    io::{self, IsTerminal, Write},
    path::PathBuf,
};

use comfy_table::{Table, presets};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use rnx::Omission;
use serde_json::Value;

use crate::{exit::Failure, text};

/// Where and how to print.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Out {
    /// `--json` was given.
    pub(crate) json: bool,
    /// Standard output is a terminal.
    pub(crate) stdout_tty: bool,
    /// Standard error is a terminal.
    pub(crate) stderr_tty: bool,
    color: bool,
}

/// What is transferred.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Progress {
    /// To the server: so many bytes, where that is known.
    Send(Option<u64>),
    /// From the server, which does not say how much it is.
    Receive,
}

/// How far a transfer is.
#[derive(Debug)]
pub(crate) struct Bar(Option<ProgressBar>);

impl Bar {
    /// So many bytes are done.
    pub(crate) fn set(&self, bytes: u64) {
        if let Some(bar) = &self.0 {
            bar.set_position(bytes);
        }
    }

    /// Says something beside it.
    pub(crate) fn aside(&self, say: impl FnOnce()) {
        match &self.0 {
            Some(bar) => bar.suspend(say),
            None => say(),
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

impl Out {
    pub(crate) fn new(json: bool) -> Self {
        let stderr_tty = io::stderr().is_terminal();
        let color = stderr_tty && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self {
            json,
            stdout_tty: io::stdout().is_terminal(),
            stderr_tty,
            color,
        }
    }

    /// One line of data.
    pub(crate) fn line(self, line: &str) -> Result<(), Failure> {
        self.data(format!("{line}\n").as_bytes())
    }

    /// Data as it is.
    pub(crate) fn data(self, bytes: &[u8]) -> Result<(), Failure> {
        let mut stdout = io::stdout().lock();
        stdout
            .write_all(bytes)
            .and_then(|()| stdout.flush())
            .map_err(Failure::from)
    }

    /// One JSON value: on several lines for a person, on one for a program.
    pub(crate) fn json(self, value: &Value) -> Result<(), Failure> {
        if self.stdout_tty {
            self.line(&format!("{value:#}"))
        } else {
            self.line(&value.to_string())
        }
    }

    /// A table without lines; cells are made plain.
    pub(crate) fn table(self, head: &[&str], rows: Vec<Vec<String>>) -> Result<(), Failure> {
        let mut table = Table::new();
        table
            .load_style(presets::NOTHING)
            .set_header(head.iter().copied());
        for row in rows {
            table.add_row(row.iter().map(|cell| text::plain(cell)));
        }
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        self.line(&table.trim_fmt())
    }

    /// A remark that is no data.
    pub(crate) fn note(self, note: &str) {
        self.say("", "", note);
    }

    /// What could be done.
    pub(crate) fn hint(self, hint: &str) {
        self.say("hint: ", "\x1b[36m", hint);
    }

    /// Something allowed but unwise.
    pub(crate) fn warn(self, warning: &str) {
        self.say("warning: ", "\x1b[33m", warning);
    }

    /// Shows how far a transfer is, on a terminal, until the result is dropped.
    pub(crate) fn progress(self, progress: Progress) -> Bar {
        let (verb, total) = match progress {
            Progress::Send(total) => ("uploading", total),
            Progress::Receive => ("downloading", None),
        };
        if !self.stderr_tty || total == Some(0) {
            return Bar(None);
        }
        let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr());
        let rest = match total {
            Some(_) => "{bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}",
            None => "{bytes} {bytes_per_sec}",
        };
        let style = ProgressStyle::with_template(&format!("{verb} {rest}"));
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        Bar(Some(bar))
    }

    /// What was to be sent and is neither file, directory nor link: each of it, and how much it is.
    pub(crate) fn left_out(self, paths: &[PathBuf]) {
        for path in paths {
            let path = text::plain(&path.to_string_lossy());
            self.warn(&format!(
                "{path} is left out: it is no file, directory or link"
            ));
        }
        self.left_out_count(paths.len());
    }

    /// What did not come as it is there.
    pub(crate) fn omission(self, omission: &Omission) {
        self.warn(&text::plain(&omission.to_string()));
    }

    /// How much was left out.
    pub(crate) fn left_out_count(self, count: usize) {
        match count {
            0 => {}
            1 => self.note("1 entry was left out"),
            more => self.note(&format!("{more} entries were left out")),
        }
    }

    /// Why a command failed, and what to do about it.
    pub(crate) fn failure(self, failure: &Failure) {
        if let Some(message) = &failure.message {
            self.say("error: ", "\x1b[1;31m", message);
        }
        if let Some(hint) = &failure.hint {
            self.hint(hint);
        }
    }

    /// Help and usage errors, which clap has laid out.
    pub(crate) fn clap(self, error: &clap::Error) -> Result<(), Failure> {
        let styled = error.render();
        if !error.use_stderr() {
            return self.data(styled.to_string().as_bytes());
        }
        let text = if self.color {
            styled.ansi().to_string()
        } else {
            styled.to_string()
        };
        // Nobody to tell when standard error is gone.
        let _ = io::stderr().write_all(text.as_bytes());
        Ok(())
    }

    fn say(self, label: &str, style: &str, what: &str) {
        let what: Vec<_> = what.lines().map(text::plain).collect();
        let what = what.join("\n");
        let line = if self.color && !style.is_empty() {
            format!("{style}{label}\x1b[0m{what}\n")
        } else {
            format!("{label}{what}\n")
        };
        // One write, so that lines of several processes on one terminal do not mix; nobody to tell when
        // standard error is gone.
        let _ = io::stderr().write_all(line.as_bytes());
    }
}
