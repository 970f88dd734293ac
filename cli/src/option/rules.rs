//! Rules that look at more than one option.

use super::action::actions;
use super::command::{Command, StanzaUse};
use super::def::{Def, Group};
use super::error::OptionError;
use super::files;
use super::resolve::Draft;
use super::settings::{Cipher, Repo, Setting, Settings, Source};
use super::table::{Opt, TABLE};
use super::value::Value;
use crate::buckets::Address;
use crate::exit::Status;
use crate::size::{CpuShare, cpus, exact_cpus};
use pgkeep_engine::expire::Policy;
use std::time::Duration;

/// How much longer than a query another process is waited for, when only one of the two was set.
const PROTOCOL_MARGIN: Duration = Duration::from_secs(30);

/// Refuses root where files would end up with a wrong owner.
pub(super) fn check_user(draft: &Draft<'_>) -> Result<(), OptionError> {
    if !draft.runs_as_root() || draft.root_is_allowed() {
        return Ok(());
    }
    let message = format!("command {} does not run as root", draft.command.name());
    Err(OptionError::new(Status::OPTION_INVALID, message)
        .hint("run it as the user who owns the cluster and the repository")
        .hint("allow-root=y allows it all the same"))
}

/// Refuses to go on without an option that the command needs.
pub(super) fn check_required(draft: &Draft<'_>, def: &Def, index: u16) -> Result<(), OptionError> {
    if def.required & draft.command.bit() == 0 || !draft.applies(def, index) {
        return Ok(());
    }
    // Without a stanza the command goes through all of them and each is resolved for itself.
    let of_one_stanza = def.group == Group::Pg && draft.command.def().stanza == StanzaUse::Optional;
    if of_one_stanza && !draft.has_stanza() {
        return Ok(());
    }
    let message = format!("command {} needs option '{}'", draft.command.name(), def.display(index));
    let mut error = OptionError::new(Status::OPTION_REQUIRED, message);
    if def.group == Group::Pg && draft.stanza_is_unknown() {
        error = error.hint("no configuration file has a section for this stanza");
    }
    Err(error)
}

/// An option was typed that counts only with another.
pub(super) fn needs_other(def: &Def, index: u16) -> OptionError {
    let name = def.display(index);
    let message = match def.depend {
        Some(depend) => {
            let on = depend.on.def().display(index);
            let how =
                if depend.values.is_empty() { String::new() } else { format!(" = {}", depend.values.join(" or ")) };
            format!("option '{name}' is not valid without option '{on}'{how}")
        }
        None => format!("option '{name}' is not valid here"),
    };
    OptionError::new(Status::OPTION_INVALID, message)
}

/// Checks what belongs together once every value is known, adjusts what follows from another, and collects
/// remarks on what is different here.
pub(super) fn check_together(settings: &mut Settings, draft: &mut Draft<'_>) -> Result<(), OptionError> {
    action_needs(settings)?;
    set_of_stanza(settings)?;
    timeouts(settings)?;
    hosts(settings)?;
    repositories(settings)?;
    buckets(settings, draft)?;
    ciphers(settings, draft)?;
    deltas(settings, draft);
    retention(settings, draft)?;
    cpu_limit(settings, draft);
    remarks(settings, draft);
    Ok(())
}

/// What an action of a command cannot do without.
fn action_needs(settings: &Settings) -> Result<(), OptionError> {
    let name = settings.param(0).to_string_lossy();
    let Some(action) = actions(settings.command).iter().find(|action| action.name == name) else { return Ok(()) };
    let Some(opt) = action.needs.iter().find(|opt| settings.value(**opt, 0).is_none()) else { return Ok(()) };
    let message = format!("'{} {name}' needs option '{}'", settings.command.name(), opt.def().name);
    Err(OptionError::new(Status::OPTION_REQUIRED, message).hint(action.hint(*opt)))
}

/// A label means something within one stanza only.
fn set_of_stanza(settings: &Settings) -> Result<(), OptionError> {
    if settings.command == Command::Info && settings.is_given(Opt::Set) && settings.stanza().is_none() {
        let message = "option 'set' is not valid without option 'stanza'";
        return Err(OptionError::new(Status::OPTION_INVALID, message));
    }
    Ok(())
}

fn given_time(settings: &Settings, opt: Opt) -> (Duration, bool) {
    (settings.time(opt), settings.is_given(opt))
}

fn timeouts(settings: &mut Settings) -> Result<(), OptionError> {
    let ((db, db_given), (protocol, protocol_given)) =
        (given_time(settings, Opt::DbTimeout), given_time(settings, Opt::ProtocolTimeout));
    if db.is_zero() || protocol.is_zero() || protocol > db {
        return Ok(());
    }
    let adjusted = match (db_given, protocol_given) {
        (true, true) => {
            let message = format!(
                "option 'protocol-timeout' ({}s) is not greater than 'db-timeout' ({}s)",
                protocol.as_secs(),
                db.as_secs()
            );
            return Err(OptionError::new(Status::OPTION_INVALID_VALUE, message));
        }
        (false, _) => {
            (Opt::DbTimeout, protocol.checked_sub(PROTOCOL_MARGIN).filter(|t| !t.is_zero()).unwrap_or(protocol / 2))
        }
        (true, false) => (Opt::ProtocolTimeout, db + PROTOCOL_MARGIN),
    };
    settings.values.insert((adjusted.0, 0), Setting { value: Some(Value::Time(adjusted.1)), source: Source::Default });
    Ok(())
}

fn hosts(settings: &Settings) -> Result<(), OptionError> {
    let remote_pg = settings.pgs().find(|pg| pg.host().is_some());
    let remote_repo = settings.repos().find(|repo| repo.text(Opt::RepoHost).is_some());
    match (remote_pg, remote_repo) {
        (Some(pg), Some(repo)) => {
            let message = format!("pg{} and repo{} are both on other hosts", pg.key(), repo.key());
            Err(OptionError::new(Status::CONFIG, message).hint("run on the host of one of them"))
        }
        _ => Ok(()),
    }
}

/// What tells two places from each other: kind, service, bucket, path.
fn place(repo: Repo<'_>) -> [&str; 4] {
    let path = repo.path().to_str().unwrap_or_default();
    let (endpoint, bucket) = match repo.kind() {
        "s3" => (Opt::RepoS3Endpoint, Opt::RepoS3Bucket),
        "gcs" => (Opt::RepoGcsEndpoint, Opt::RepoGcsBucket),
        "azure" => (Opt::RepoAzureAccount, Opt::RepoAzureContainer),
        "sftp" => (Opt::RepoSftpHost, Opt::RepoSftpHostUser),
        _ => return ["", "", "", path],
    };
    [repo.kind(), repo.text(endpoint).unwrap_or_default(), repo.text(bucket).unwrap_or_default(), path]
}

fn repositories(settings: &Settings) -> Result<(), OptionError> {
    let here: Vec<_> =
        settings.repos().filter(|r| r.text(Opt::RepoHost).is_none()).map(|r| (r.key(), place(r), r.path())).collect();
    for (at, (key, place, path)) in here.iter().enumerate() {
        if let Some((other, ..)) = here.iter().skip(at + 1).find(|(_, other, _)| other == place) {
            let message = format!("repo{key} and repo{other} have the same path '{}'", path.display());
            return Err(OptionError::new(Status::OPTION_INVALID_VALUE, message));
        }
    }
    if let Some(chosen) = settings.chosen_repo() {
        if !settings.repo_keys.contains(&chosen) {
            let message = format!("there is no repo{chosen} for option 'repo'");
            return Err(OptionError::new(Status::OPTION_INVALID_VALUE, message));
        }
    } else if matches!(settings.command, Command::StanzaDelete | Command::RepoLs | Command::RepoGet)
        && settings.repo_keys != [1]
    {
        let message = format!("command {} needs option 'repo'", settings.command.name());
        return Err(OptionError::new(Status::OPTION_REQUIRED, message).hint("it works on one repository only"));
    }
    Ok(())
}

/// Credentials that their kind needs, and addresses.
fn buckets(settings: &Settings, draft: &mut Draft<'_>) -> Result<(), OptionError> {
    for repo in settings.target_repos().filter(|r| r.text(Opt::RepoHost).is_none()) {
        let key = repo.key();
        let (kind, unless, needs): (_, &[&str], &[Opt]) = match repo.kind() {
            "s3" => {
                (Opt::RepoS3KeyType, &["auto", "web-id", "pod-id", "process"], &[Opt::RepoS3Key, Opt::RepoS3KeySecret])
            }
            "azure" => (Opt::RepoAzureKeyType, &["auto"], &[Opt::RepoAzureKey]),
            "gcs" => (Opt::RepoGcsKeyType, &["auto"], &[Opt::RepoGcsKey]),
            _ => continue,
        };
        let chosen = repo.text(kind).unwrap_or_default();
        if let Some(missing) = needs.iter().find(|opt| !unless.contains(&chosen) && repo.text(**opt).is_none()) {
            let (command, missing) = (settings.command.name(), missing.def().display(key));
            let message = format!("command {command} needs option '{missing}'");
            let hint = format!("{}={chosen}; other kinds of it do without", kind.def().display(key));
            return Err(OptionError::new(Status::OPTION_REQUIRED, message).hint(hint));
        }
        let address = Address::of(repo).map_err(|text| OptionError::new(Status::OPTION_INVALID_VALUE, text))?;
        if address.is_exposed() {
            draft.warn_of_host(format!(
                "repo{key} is reached without TLS: credentials and requests can be read and changed on the way"
            ));
        }
        if !repo.flag(Opt::RepoStorageVerifyTls) {
            draft.warn_of_host(format!(
                "repo{key}-storage-verify-tls=n: anybody on the way can pose as the store of repo{key}"
            ));
        }
    }
    Ok(())
}

fn ciphers(settings: &Settings, draft: &mut Draft<'_>) -> Result<(), OptionError> {
    if settings.setting(Opt::RepoCipherType, settings.repo_keys.first().copied().unwrap_or(1)).is_none() {
        return Ok(());
    }
    for repo in settings.repos().filter(|r| r.text(Opt::RepoHost).is_none()) {
        let key = repo.key();
        let given = |opt| settings.value(opt, key).is_some();
        let secrets =
            [Opt::RepoCipherPass, Opt::RepoCipherPassFile, Opt::RepoKeyFile].into_iter().filter(|o| given(*o));
        let secrets: Vec<_> = secrets.map(|o| o.def().display(key)).collect();
        let kind = repo.text(Opt::RepoCipherType).unwrap_or("none");
        match (repo.cipher(), secrets.as_slice()) {
            (Cipher::None, []) if kind != "none" => {
                let message = format!("command {} needs option 'repo{key}-cipher-pass'", settings.command.name());
                return Err(OptionError::new(Status::OPTION_REQUIRED, message)
                    .hint(format!("or repo{key}-cipher-pass-file, or repo{key}-key-file")));
            }
            (Cipher::None, [first, ..]) => {
                draft.warn(format!("option '{first}' is ignored because of repo{key}-cipher-type=none"));
            }
            (_, [first, second, ..]) => {
                let message = format!("options '{first}' and '{second}' exclude each other");
                return Err(OptionError::new(Status::OPTION_INVALID, message));
            }
            (Cipher::None, []) | (_, _) => {}
        }
        let secret_file = match repo.cipher() {
            Cipher::PassphraseFile(path) => Some((path, "holds the passphrase")),
            Cipher::KeyFile(path) => Some((path, "is the key")),
            Cipher::None | Cipher::Passphrase(_) => None,
        };
        if let Some((path, what)) = secret_file.filter(|(path, _)| files::is_exposed(path)) {
            draft.warn_of_host(files::exposed(&path.display().to_string(), &format!("{what} of repo{key}")));
        }
        if kind == "aes-256-cbc" {
            draft.remark(format!(
                "option 'repo{key}-cipher-type': the repository is sealed with ChaCha20-Poly1305, not aes-256-cbc"
            ));
        }
    }
    Ok(())
}

/// Warns of a size for what is not kept.
fn deltas(settings: &Settings, draft: &mut Draft<'_>) {
    for repo in settings.target_repos() {
        let (key, opt) = (repo.key(), Opt::RepoDeltaCacheSize);
        if repo.text(Opt::RepoDelta) == Some("off") && repo.size(opt).is_some_and(|size| size > 0) {
            draft.warn(format!("option '{}' is ignored because of repo{key}-delta=off", opt.def().display(key)));
        }
    }
}

/// What says how long a repository keeps backups.
const RETENTION: [Opt; 8] = [
    Opt::RepoRetentionFull,
    Opt::RepoRetentionPolicy,
    Opt::RepoKeepLast,
    Opt::RepoKeepHourly,
    Opt::RepoKeepDaily,
    Opt::RepoKeepWeekly,
    Opt::RepoKeepMonthly,
    Opt::RepoKeepYearly,
];

/// Refuses a policy that is none. Warns of a repository that only grows, if nobody asked for anything else.
fn retention(settings: &Settings, draft: &mut Draft<'_>) -> Result<(), OptionError> {
    if !matches!(settings.command, Command::Backup | Command::Expire) {
        return Ok(());
    }
    for repo in settings.target_repos() {
        if let Some(Err(e)) = repo.text(Opt::RepoRetentionPolicy).map(str::parse::<Policy>) {
            let name = Opt::RepoRetentionPolicy.def().display(repo.key());
            let text = repo.text(Opt::RepoRetentionPolicy).unwrap_or_default();
            let message = format!("'{text}' is not valid for option '{name}': {e}");
            return Err(OptionError::new(Status::OPTION_INVALID_VALUE, message));
        }
        let is_set = |opt: &Opt| settings.value(*opt, repo.key()).is_some();
        if !RETENTION.iter().any(is_set) {
            draft.warn(format!("option 'repo{}-retention-full' is not set: backups are kept for ever", repo.key()));
        }
    }
    Ok(())
}

/// Warns of a number of CPUs that the machine does not have, which may be a forgotten percent sign.
fn cpu_limit(settings: &Settings, draft: &mut Draft<'_>) {
    let has = cpus();
    if let Some(share @ CpuShare::Cpus(_)) = settings.cpus(Opt::CpuLimit)
        && share.thousandths(has) > has as u64 * 1000
    {
        draft.warn(format!(
            "option 'cpu-limit' limits nothing: {} CPUs, and there are {has}; a percentage is written with its sign",
            exact_cpus(share)
        ));
    }
}

fn remarks(settings: &Settings, draft: &mut Draft<'_>) {
    let mut last = None;
    for (opt, index, setting) in settings.iter() {
        let def = opt.def();
        // Once per option, and only if its value would mean something elsewhere.
        let Some(effect) = def.effect.filter(|_| setting.source != Source::Default && last != Some(opt)) else {
            continue;
        };
        if !is_default(def, settings, setting) {
            last = Some(opt);
            draft.remark(format!("option '{}' has no effect: {effect}", def.display(index)));
        }
    }
    if let Some(kind @ ("gz" | "bz2" | "lz4")) = settings.text(Opt::CompressType) {
        draft.remark(format!("option 'compress-type': zst at level 3 is used, not {kind}"));
    }
}

fn is_default(def: &Def, settings: &Settings, setting: &Setting) -> bool {
    let default = def.default_for(settings.command).map(|d| settings.program.fill(d));
    match (&setting.value, default.as_deref()) {
        (Some(Value::Bool(yes)), Some(default)) => *yes == (default == "y"),
        (Some(Value::Text(text)), Some(default)) => text == default,
        _ => false,
    }
}

/// Refuses what this version cannot do although its options are understood: remote hosts, some kinds of storage and of
/// credentials, the repository of another time.
///
/// # Errors
/// Status 67.
pub fn check_supported(settings: &Settings) -> Result<(), OptionError> {
    let refuse = |message| Err(OptionError::new(Status::FEATURE_NOT_SUPPORTED, message));
    // Doing something else than what was asked would be told too late.
    if settings.is_given(Opt::RepoTargetTime) {
        let message =
            "option 'repo-target-time' is not supported by this version: the repository would be read as it is now";
        return refuse(message.to_owned());
    }
    for repo in settings.target_repos() {
        if repo.text(Opt::RepoHost).is_some() {
            return refuse(format!("repo{} is on another host, which this version does not support", repo.key()));
        }
        let key = repo.key();
        if repo.kind() == "sftp" {
            return refuse(format!("repo{key}-type=sftp is not supported by this version"));
        }
        if repo.text(Opt::RepoS3KeyType) == Some("process") {
            return refuse(format!("repo{key}-s3-key-type=process is not supported by this version"));
        }
        if repo.text(Opt::RepoS3Service).is_some_and(|service| service != "s3") {
            return refuse(format!(
                "repo{key}-s3-service is not supported by this version: requests are signed for s3"
            ));
        }
    }
    for pg in settings.pgs() {
        if pg.host().is_some() {
            return refuse(format!("pg{} is on another host, which this version does not support", pg.key()));
        }
    }
    Ok(())
}

/// All rows that `command` takes and help shows, by name.
#[must_use]
pub fn options_of(command: Command) -> Vec<&'static Def> {
    let mut rows: Vec<_> = TABLE.iter().filter(|d| d.is_valid_for(command) && !d.hidden && !d.later).collect();
    rows.sort_by_key(|d| d.name);
    rows
}
