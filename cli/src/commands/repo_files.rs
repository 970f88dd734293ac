//! `repo-ls` and `repo-get`: the names that readers of pgBackRest's repositories know, and what they stand for.

use super::Context;
use crate::error::Failure;
use crate::exit::Status;
use crate::option::{Opt, Repo, Settings};
use crate::pattern::Pattern;
use crate::repos;
use pgkeep_engine::classic::{Entry, Node, Order, Tree, TreePath};
use pgkeep_engine::repository::Repository;
use pgkeep_engine::{Error, Kind};
use serde_json::json;
use std::io::Write;
use std::sync::Arc;

pub(super) fn list(context: &Context<'_>) -> Result<Status, Failure> {
    let settings = context.settings;
    let (repo, path) = (one(settings)?, settings.param(0).to_string_lossy());
    let path = tree_path(repo, &path)?;
    let filter = filter(settings)?;
    // As they come is in order here.
    let order = if settings.text(Opt::Sort) == Some("desc") { Order::Descending } else { Order::Ascending };
    let mut out = Output::new(settings.text(Opt::Output) == Some("json"));
    let repository = repos::open(settings, repo)?;
    // Kept apart, as the listing knows errors of the engine only.
    let mut unwritten = None;
    let outcome = Tree::new(&repository).list(&path, settings.flag(Opt::Recurse), order, &mut |entry| {
        context.cancel.check()?;
        if filter.as_ref().is_none_or(|filter| filter.is_in(&entry.name))
            && let Err(e) = out.entry(&entry)
        {
            unwritten = Some(e);
            return Err(Error::refused(Kind::FileWrite, "cannot write to standard output"));
        }
        Ok(())
    });
    match (unwritten, outcome) {
        (Some(e), _) => Err(Failure::Output(e)),
        // What was listed is shown, and that there may be more.
        (None, Err(e)) => {
            out.flush().map_err(Failure::Output)?;
            Err(e.into())
        }
        (None, Ok(())) => {
            out.end().map_err(Failure::Output)?;
            Ok(Status::OK)
        }
    }
}

pub(super) fn get(context: &Context<'_>) -> Result<Status, Failure> {
    let settings = context.settings;
    let (repo, file) = (one(settings)?, settings.param(0).to_string_lossy());
    let path = tree_path(repo, &file)?;
    let repository: Arc<Repository> = repos::open(settings, repo)?;
    match Tree::new(&repository).read(&path, settings.flag(Opt::Raw))? {
        Some(content) => {
            let mut out = std::io::stdout().lock();
            out.write_all(&content).and_then(|()| out.flush()).map_err(Failure::Output)?;
            Ok(Status::OK)
        }
        None if settings.flag(Opt::IgnoreMissing) => Ok(Status::ABSENT),
        None => {
            Err(Error::refused(Kind::FileMissing, format!("there is no file '{file}' in repo{}", repo.key())).into())
        }
    }
}

/// What `--filter` asks for.
pub(super) fn filter(settings: &Settings) -> Result<Option<Pattern>, Error> {
    let compiled = settings.text(Opt::Filter).map(|text| {
        let wrong =
            |e| Error::refused(Kind::Format, format!("option 'filter': '{text}' is no regular expression: {e}"));
        Pattern::new(text).map_err(wrong)
    });
    compiled.transpose()
}

/// The one repository to work on: options say which if there are several.
fn one(settings: &Settings) -> Result<Repo<'_>, Failure> {
    let missing = || Error::refused(Kind::OptionRequired, "option repo is required when there are several");
    Ok(settings.target_repos().next().ok_or_else(missing)?)
}

/// What was typed: relative to the repository, or absolute and in its directory.
fn tree_path(repo: Repo<'_>, typed: &str) -> Result<TreePath, Failure> {
    let base = repo.path().to_string_lossy();
    let within = typed.strip_prefix(&*base).filter(|rest| rest.is_empty() || rest.starts_with('/'));
    Ok(TreePath::parse(within.map_or(typed, |rest| rest.strip_prefix('/').unwrap_or(rest)))?)
}

/// A listing on its way to standard output, entry by entry.
struct Output {
    to: std::io::BufWriter<std::io::StdoutLock<'static>>,
    is_json: bool,
    written: u64,
}

impl Output {
    fn new(is_json: bool) -> Self {
        Self { to: std::io::BufWriter::new(std::io::stdout().lock()), is_json, written: 0 }
    }

    fn entry(&mut self, entry: &Entry) -> std::io::Result<()> {
        if self.is_json {
            let before = if self.written == 0 { "{" } else { "," };
            write!(self.to, "{before}{}:{}", json!(entry.name), json(&entry.node))?;
        } else if entry.name != "." || matches!(entry.node, Node::File { .. }) {
            writeln!(self.to, "{}", entry.name)?;
        }
        self.written += 1;
        Ok(())
    }

    fn end(&mut self) -> std::io::Result<()> {
        if self.is_json {
            writeln!(self.to, "{}}}", if self.written == 0 { "{" } else { "" })?;
        }
        self.flush()
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.to.flush()
    }
}

fn json(node: &Node) -> serde_json::Value {
    match node {
        Node::Path => json!({ "type": "path" }),
        Node::File { size, time } => json!({ "type": "file", "size": size, "time": time }),
        Node::Link { destination } => json!({ "type": "link", "destination": destination }),
    }
}
