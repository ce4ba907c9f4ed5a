//! Everything about one thing, in sections.

use std::fmt::Write;

use crate::text;

/// Aligned `Name: value` lines under a heading each; values are made plain.
#[derive(Default)]
pub(super) struct Page(String);

impl Page {
    pub(super) fn section(&mut self, title: &str) {
        let gap = if self.0.is_empty() { "" } else { "\n" };
        self.put(format_args!("{gap}{title}:\n"));
    }

    pub(super) fn line(&mut self, name: &str, value: &str) {
        let label = format!("{name}:");
        self.put(format_args!("  {label:<13} {}\n", text::plain(value)));
    }

    /// A line without a name.
    pub(super) fn entry(&mut self, value: &str) {
        self.put(format_args!("  {}\n", text::plain(value)));
    }

    pub(super) fn into_text(self) -> String {
        self.0
    }

    fn put(&mut self, text: std::fmt::Arguments<'_>) {
        self.0.write_fmt(text).expect("a string takes everything");
    }
}
