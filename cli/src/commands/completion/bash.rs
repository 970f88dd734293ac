//! The script for bash. It splits words at `=`, so an option and its value arrive as three.

use super::{Values, commands, options, spellings, typed, values, words};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// What is the same whatever the tables hold.
const BODY: &str = r#"    local cur=${COMP_WORDS[COMP_CWORD]} prev= before= option= command= word offered=
    (( COMP_CWORD > 0 )) && prev=${COMP_WORDS[COMP_CWORD-1]}
    (( COMP_CWORD > 1 )) && before=${COMP_WORDS[COMP_CWORD-2]}
    COMPREPLY=()
    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
        case " $commands " in *" $word "*) command=$word; break ;; esac
    done
    if [[ $cur == = ]]; then
        option=$prev cur=
    elif [[ $prev == = ]]; then
        option=$before
    elif [[ $prev == --* ]]; then
        option=$prev
    fi
    if [[ $option == --* ]]; then
        case $command:$option in
VALUES
        esac
        [[ -n $offered && $offered != / ]] && { COMPREPLY=($(compgen -W "$offered" -- "$cur")); return; }
        [[ $offered == / || $prev == = || $cur == = ]] && { COMPREPLY=($(compgen -f -- "$cur")); return; }
    fi
    case $command in
OPTIONS
    esac
    if [[ $cur == -* ]]; then
        COMPREPLY=($(compgen -W "$options" -- "$cur"))
        [[ ${COMPREPLY[0]} == *= ]] && type compopt >/dev/null 2>&1 && compopt -o nospace 2>/dev/null
    elif [[ -z $command ]]; then
        COMPREPLY=($(compgen -W "$commands" -- "$cur"))
    elif [[ -n $parameters ]]; then
        COMPREPLY=($(compgen -W "$parameters" -- "$cur"))
    else
        COMPREPLY=($(compgen -f -- "$cur"))
    fi
    return 0
"#;

pub(super) fn script(program: &str) -> String {
    let function = format!("_{}", program.replace('-', "_"));
    let names: Vec<_> = commands().map(|(name, ..)| name).collect();
    // What an option's value may be, and the commands of which that is so.
    let mut of_values: BTreeMap<(String, String), Vec<&str>> = BTreeMap::new();
    let mut of_options = String::new();
    let mut common: Option<Vec<String>> = None;
    for (name, _, command) in commands() {
        let mut offered = Vec::new();
        for def in options(command) {
            let value = match values(def, command) {
                Values::Flag => None,
                Values::Words(words) => Some(words.join(" ")),
                Values::Path => Some("/".to_owned()),
                Values::Any => Some(String::new()),
            };
            let end = if value.is_some() { "=" } else { "" };
            for spelling in spellings(def, command) {
                let end = if spelling.starts_with("no-") { "" } else { end };
                offered.push(format!("--{spelling}{end}"));
            }
            if let Some(value) = value.filter(|value| !value.is_empty()) {
                of_values.entry((typed(def), value)).or_default().push(name);
            }
        }
        let parameters = words(command).join(" ");
        let _ = writeln!(of_options, "        {name}) options='{}' parameters='{parameters}' ;;", offered.join(" "));
        // Before the command is typed: what every command takes that takes a stanza.
        if !offered.is_empty()
            && offered.iter().any(|o| o == "--stanza=")
            && offered.iter().any(|o| o == "--lock-path=")
        {
            let both = |all: Vec<String>| all.into_iter().filter(|o| offered.contains(o)).collect();
            common = Some(common.map_or_else(|| offered.clone(), both));
        }
    }
    let _ = write!(of_options, "        *) options='{}' parameters= ;;", common.unwrap_or_default().join(" "));
    let mut of_value = String::new();
    for ((option, value), commands) in &of_values {
        let patterns: Vec<_> = commands.iter().map(|command| format!("{command}:--{option}")).collect();
        let _ = writeln!(of_value, "        {}) offered='{value}' ;;", patterns.join("|"));
    }
    let body = BODY.replace("VALUES\n", &of_value).replace("OPTIONS", of_options.trim_end_matches('\n'));
    format!(
        "# Completion of {program} for bash: source it, or put it into /usr/share/bash-completion/completions/{program}.\n\
         {function}() {{\n    local commands='{}' options= parameters=\n{body}}}\ncomplete -F {function} {program}\n",
        names.join(" ")
    )
}
