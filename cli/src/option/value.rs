//! Values: what is written, read by the type of its option.

use super::def::Type;
use super::error::OptionError;
use crate::exit::Status;
use crate::size::{CpuShare, exact_cpus, exact_size, exact_time, parse_cpus, parse_size, parse_time};
use std::path::Path;
use std::time::Duration;
use zeroize::Zeroizing;

/// Text that is wiped when dropped and shows as `<redacted>`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes the text over.
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// The text itself.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("<redacted>")
    }
}

/// The value of an option.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// Of [`Type::Bool`].
    Bool(bool),
    /// Of [`Type::Int`].
    Int(i64),
    /// Of [`Type::Size`], in bytes.
    Size(u64),
    /// Of [`Type::Time`].
    Time(Duration),
    /// Of [`Type::Cpus`].
    Cpus(CpuShare),
    /// Of [`Type::Path`], [`Type::AnyPath`], [`Type::Text`] and [`Type::Enum`].
    Text(String),
    /// Of an option marked secret.
    Secret(Secret),
    /// Of [`Type::List`].
    List(Vec<String>),
    /// Of [`Type::Hash`], in the order given.
    Hash(Vec<(String, String)>),
}

/// Reads `y` or `n`.
#[must_use]
pub(super) fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "y" => Some(true),
        "n" => Some(false),
        _ => None,
    }
}

/// Reads what was written for option `name`. `written` has several elements only for lists and hashes.
///
/// # Errors
/// Status 32 for a value that does not fit, 31 for a hash element without `=`.
pub(super) fn parse(name: &str, ty: Type, written: &[String], cwd: &Path) -> Result<Value, OptionError> {
    let text = written.first().map_or("", String::as_str);
    let refuse =
        |why: String| OptionError::new(Status::OPTION_INVALID_VALUE, format!("'{text}' {why} for option '{name}'"));
    let outside = |least: String, most: String| {
        refuse("is out of range".to_owned()).hint(format!("the value must be between {least} and {most}"))
    };
    match ty {
        Type::Bool => parse_bool(text).map(Value::Bool).ok_or_else(|| refuse("is neither 'y' nor 'n'".to_owned())),
        Type::Int(least, most) => match text.parse::<i64>() {
            Ok(n) if (least..=most).contains(&n) => Ok(Value::Int(n)),
            Ok(_) => Err(outside(least.to_string(), most.to_string())),
            Err(_) => Err(refuse("is not a whole number".to_owned())),
        },
        Type::Size(least, most) => {
            match parse_size(text) {
                Some(n) if (least..=most).contains(&n) => Ok(Value::Size(n)),
                Some(_) => Err(outside(exact_size(least), exact_size(most))),
                None => Err(refuse("is not a size".to_owned())
                    .hint("write a size as a whole number with a unit, such as 20MiB")),
            }
        }
        Type::Time(least, most) => match parse_time(text) {
            Some(t) if (u128::from(least)..=u128::from(most)).contains(&t.as_millis()) => Ok(Value::Time(t)),
            Some(_) => {
                let [least, most] = [least, most].map(|ms| exact_time(Duration::from_millis(ms)));
                Err(outside(least, most))
            }
            None => {
                Err(refuse("is not a time".to_owned()).hint("write a time in seconds, or with a unit, such as 15m"))
            }
        },
        Type::Cpus => match parse_cpus(text) {
            Some(share) if share.is_allowed() => Ok(Value::Cpus(share)),
            Some(_) => {
                let range = |of: [CpuShare; 2]| of.map(exact_cpus).join(" or ");
                Err(outside(range(CpuShare::LEAST), range(CpuShare::MOST)))
            }
            None => Err(refuse("is not a share of CPUs".to_owned())
                .hint("write a percentage of the machine's CPUs, such as 50%, or a number of CPUs, such as 1.5")),
        },
        Type::Path => absolute(text).map_err(refuse).map(Value::Text),
        Type::AnyPath if text.starts_with('/') => absolute(text).map_err(refuse).map(Value::Text),
        Type::AnyPath if text.is_empty() => Err(refuse("is empty".to_owned())),
        Type::AnyPath => Ok(Value::Text(cwd.join(text).to_string_lossy().into_owned())),
        Type::Text if text.is_empty() => Err(refuse("is empty".to_owned())),
        Type::Text => Ok(Value::Text(text.to_owned())),
        Type::List => Ok(Value::List(written.to_vec())),
        Type::Hash => written.iter().map(|pair| key_value(name, pair)).collect::<Result<_, _>>().map(Value::Hash),
        Type::Enum(words) if words.contains(&text) => Ok(Value::Text(text.to_owned())),
        Type::Enum(words) => {
            Err(refuse("is not allowed".to_owned()).hint(format!("allowed are: {}", words.join(", "))))
        }
    }
}

fn absolute(text: &str) -> Result<String, String> {
    if !text.starts_with('/') {
        return Err("does not begin with '/'".to_owned());
    }
    if text.contains("//") {
        return Err("contains '//'".to_owned());
    }
    let trimmed = text.trim_end_matches('/');
    Ok(if trimmed.is_empty() { "/".to_owned() } else { trimmed.to_owned() })
}

fn key_value(name: &str, pair: &str) -> Result<(String, String), OptionError> {
    match pair.split_once('=') {
        Some((key, value)) if !key.trim().is_empty() => Ok((key.trim().to_owned(), value.trim().to_owned())),
        _ => Err(OptionError::new(Status::OPTION_INVALID, format!("'{pair}' is not key=value for option '{name}'"))),
    }
}
