//! What was typed: a tree of keys, taken out one by one.
//!
//! Every value is taken with its default and its allowed range, so an error always names the full key, the
//! value and what would be allowed. What nobody took is an unknown key.

use std::{fmt, ops::RangeInclusive, time::Duration};

use serde_json::{Map, Value};

use super::ConfigError;
use crate::job::units::{format_duration, format_size, parse_duration, parse_size};

/// One mapping of the file, and where it stands.
#[derive(Debug)]
pub(super) struct RawConfig {
    path: String,
    entries: Map<String, Value>,
    known: Vec<&'static str>,
}

impl RawConfig {
    /// Reads a whole file. An empty one is an empty mapping.
    pub(super) fn parse(text: &str) -> Result<Self, ConfigError> {
        let value: Option<Value> =
            serde_saphyr::from_str(text).map_err(|source| ConfigError::Syntax {
                source: Box::new(source),
            })?;
        Self::mapping(String::new(), value.unwrap_or(Value::Null))
    }

    fn mapping(path: String, value: Value) -> Result<Self, ConfigError> {
        let entries = match value {
            Value::Null => Map::new(),
            Value::Object(entries) => entries,
            other @ (Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_)) => {
                let key = if path.is_empty() {
                    "the whole file".to_owned()
                } else {
                    path
                };
                return Err(refuse(key, &other, "a mapping of keys to values"));
            }
        };
        Ok(Self {
            path,
            entries,
            known: Vec::new(),
        })
    }

    /// The mapping below `key`, empty when there is none.
    pub(super) fn section(&mut self, key: &'static str) -> Result<Self, ConfigError> {
        let value = self.take(key).unwrap_or(Value::Null);
        Self::mapping(self.full(key), value)
    }

    /// An integer of `allowed`.
    pub(super) fn integer(
        &mut self,
        key: &'static str,
        default: u64,
        allowed: &RangeInclusive<u64>,
    ) -> Result<u64, ConfigError> {
        let range = || {
            format!(
                "a whole number from {} to {}",
                allowed.start(),
                allowed.end()
            )
        };
        self.read(
            key,
            default,
            |value| value.as_u64().filter(|number| allowed.contains(number)),
            range,
        )
    }

    /// A size in bytes of `allowed`: a number, or a number with a unit.
    pub(super) fn size(
        &mut self,
        key: &'static str,
        default: u64,
        allowed: &RangeInclusive<u64>,
    ) -> Result<u64, ConfigError> {
        let parse = |value: &Value| bytes(value).filter(|bytes| allowed.contains(bytes));
        let range = || {
            format!(
                "a size from {} to {}",
                format_size(*allowed.start()),
                format_size(*allowed.end())
            )
        };
        self.read(key, default, parse, range)
    }

    /// An integer of `allowed`, or 0 for none.
    pub(super) fn integer_or_none(
        &mut self,
        key: &'static str,
        default: Option<u64>,
        allowed: &RangeInclusive<u64>,
    ) -> Result<Option<u64>, ConfigError> {
        let (start, end) = (allowed.start(), allowed.end());
        self.read(
            key,
            default,
            |value| or_none(value.as_u64()?, allowed),
            || format!("0 for none, or a whole number from {start} to {end}"),
        )
    }

    /// A size in bytes of `allowed`, or 0 for none.
    pub(super) fn size_or_none(
        &mut self,
        key: &'static str,
        default: Option<u64>,
        allowed: &RangeInclusive<u64>,
    ) -> Result<Option<u64>, ConfigError> {
        let range = || {
            let (start, end) = (format_size(*allowed.start()), format_size(*allowed.end()));
            format!("0 for none, or a size from {start} to {end}")
        };
        self.read(key, default, |value| or_none(bytes(value)?, allowed), range)
    }

    /// A number up to `most`, or `auto`: `None`.
    pub(super) fn count_or_auto(
        &mut self,
        key: &'static str,
        most: u64,
    ) -> Result<Option<usize>, ConfigError> {
        let parse = |value: &Value| match value.as_str() {
            Some("auto") => Some(None),
            Some(_) => None,
            None => {
                let number = value.as_u64().filter(|number| *number <= most)?;
                usize::try_from(number).ok().map(Some)
            }
        };
        self.read(key, None, parse, || {
            format!("auto, or a whole number from 0 to {most}")
        })
    }

    /// Yes or no.
    pub(super) fn flag(&mut self, key: &'static str, default: bool) -> Result<bool, ConfigError> {
        self.read(key, default, Value::as_bool, || "true or false".to_owned())
    }

    /// A duration of at most `longest`: a number with its unit.
    pub(super) fn duration(
        &mut self,
        key: &'static str,
        default: Duration,
        longest: Duration,
    ) -> Result<Duration, ConfigError> {
        let parse = |value: &Value| {
            let duration = if value.as_u64() == Some(0) {
                Some(Duration::ZERO)
            } else {
                parse_duration(value.as_str()?)
            };
            duration.filter(|duration| *duration <= longest)
        };
        self.read(key, default, parse, || {
            format!(
                "a duration with its unit from 0 to {}",
                format_duration(longest)
            )
        })
    }

    /// One of several words.
    pub(super) fn word<T: Copy>(
        &mut self,
        key: &'static str,
        default: T,
        words: &[(&str, T)],
    ) -> Result<T, ConfigError> {
        let parse = |value: &Value| {
            let typed = value.as_str()?;
            words
                .iter()
                .find(|(word, _)| *word == typed)
                .map(|(_, meaning)| *meaning)
        };
        let names = || {
            words
                .iter()
                .map(|(word, _)| *word)
                .collect::<Vec<_>>()
                .join(" or ")
        };
        self.read(key, default, parse, names)
    }

    /// Text that `parse` understands; `allowed` says what that is.
    pub(super) fn text<T>(
        &mut self,
        key: &'static str,
        default: T,
        parse: impl FnOnce(&str) -> Option<T>,
        allowed: &str,
    ) -> Result<T, ConfigError> {
        self.read(
            key,
            default,
            |value| parse(value.as_str()?),
            || allowed.to_owned(),
        )
    }

    /// Refuses keys that nobody took.
    pub(super) fn finish(self) -> Result<(), ConfigError> {
        match self.entries.keys().next() {
            None => Ok(()),
            Some(key) => Err(ConfigError::Unknown {
                key: self.full(key),
                known: self.known.join(", "),
            }),
        }
    }

    fn read<T>(
        &mut self,
        key: &'static str,
        default: T,
        parse: impl FnOnce(&Value) -> Option<T>,
        allowed: impl FnOnce() -> String,
    ) -> Result<T, ConfigError> {
        match self.take(key) {
            None => Ok(default),
            Some(value) => parse(&value).ok_or_else(|| refuse(self.full(key), &value, allowed())),
        }
    }

    /// A key without a value is a key that was not written.
    fn take(&mut self, key: &'static str) -> Option<Value> {
        self.known.push(key);
        self.entries.remove(key).filter(|value| !value.is_null())
    }

    fn full(&self, key: &str) -> String {
        if self.path.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.path)
        }
    }
}

fn bytes(value: &Value) -> Option<u64> {
    match value {
        Value::Number(number) => number.as_u64(),
        Value::String(text) => parse_size(text),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    }
}

fn or_none(number: u64, allowed: &RangeInclusive<u64>) -> Option<Option<u64>> {
    match number {
        0 => Some(None),
        number => allowed.contains(&number).then_some(Some(number)),
    }
}

/// The refusal of one value.
pub(super) fn refuse(
    key: impl Into<String>,
    value: &impl fmt::Display,
    allowed: impl Into<String>,
) -> ConfigError {
    ConfigError::Value {
        key: key.into(),
        value: value.to_string(),
        allowed: allowed.into(),
    }
}
