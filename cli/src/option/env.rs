//! The environment: `PGKEEP_REPO1_PATH` means `repo1-path`.
//!
//! Lists and pairs are split at colons. Names of no option are warned of; so are `NO_` and `RESET_` forms,
//! which do not exist here.

use super::argv::not_found;
use super::def::Def;
use super::error::OptionError;
use super::lookup::{self, Lookup};
use super::program::Program;
use crate::exit::Status;
use std::ffi::OsString;

/// An option found in the environment.
#[derive(Debug, Clone)]
pub struct Variable {
    /// The option.
    pub def: &'static Def,
    /// Its number, 0 if it has none.
    pub index: u16,
    /// What was written, split if the option takes several.
    pub written: Vec<String>,
    /// The variable's name.
    pub name: String,
}

/// Picks our variables, sorted by name so that messages do not depend on the environment's order. Warnings are
/// appended to `warnings`.
///
/// # Errors
/// Status 31 for a name without its number or with one out of range, 32 for an empty value or one that is no text.
pub fn read(
    program: &Program,
    vars: &[(OsString, OsString)],
    warnings: &mut Vec<String>,
) -> Result<Vec<Variable>, OptionError> {
    let mut ours: Vec<_> = vars.iter().filter_map(|(k, v)| Some((k.to_str()?, v))).collect();
    ours.retain(|(name, _)| name.starts_with(program.env_prefix));
    ours.sort_unstable_by_key(|(name, _)| *name);
    let mut found = Vec::with_capacity(ours.len());
    for (name, value) in ours {
        let option = name.strip_prefix(program.env_prefix).unwrap_or("").to_ascii_lowercase().replace('_', "-");
        let (def, index) = match lookup::exact(&option) {
            Lookup::Found(def, index) => (def, index),
            Lookup::Unknown => {
                let form = ["no-", "reset-"].into_iter().find_map(|form| option.strip_prefix(form));
                warnings.push(match form.map(lookup::exact) {
                    Some(Lookup::Found(..)) => {
                        format!("environment variable '{name}' is ignored: it cannot negate or reset")
                    }
                    _ => format!("environment variable '{name}' is ignored: there is no such option"),
                });
                continue;
            }
            other => return Err(not_found(name, other)),
        };
        let refuse =
            |why| OptionError::new(Status::OPTION_INVALID_VALUE, format!("environment variable '{name}' {why}"));
        let text = value.to_str().ok_or_else(|| refuse("is not valid text"))?;
        if text.is_empty() {
            return Err(refuse("is empty"));
        }
        let written =
            if def.ty.is_multi() { text.split(':').map(str::to_owned).collect() } else { vec![text.to_owned()] };
        found.push(Variable { def, index, written, name: name.to_owned() });
    }
    Ok(found)
}
