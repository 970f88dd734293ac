//! The script for zsh: `_arguments` with what the command that was typed takes.

use super::{Values, commands, options, spellings, typed, values, words};
use std::fmt::Write as _;

/// What is the same whatever the tables hold.
const BODY: &str = r#"    local -a commands specs
    local command= word
    commands=(
COMMANDS
    )
    for word in ${words[2,CURRENT-1]}; do
        if (( ${commands[(I)$word:*]} )); then command=$word; break; fi
    done
    case $command in
OPTIONS
        *) specs=('1:command:->command') ;;
    esac
    local state line
    _arguments -S : $specs && return
    [[ $state == command ]] && _describe command commands
"#;

pub(super) fn script(program: &str) -> String {
    let function = format!("_{}", program.replace('-', "_"));
    let (mut names, mut specs) = (String::new(), String::new());
    for (name, help, command) in commands() {
        let _ = writeln!(names, "        '{name}:{}'", quoted(help));
        let _ = writeln!(specs, "        {name}) specs=(");
        for def in options(command) {
            let help = quoted(def.help_for(command));
            let value = match values(def, command) {
                Values::Flag => String::new(),
                Values::Words(words) => format!(":value:({})", words.join(" ")),
                Values::Path => ":path:_files".to_owned(),
                Values::Any => ":value: ".to_owned(),
            };
            for spelling in spellings(def, command) {
                let (mark, value) = match (spelling == typed(def), value.as_str()) {
                    (true, "") | (false, _) => ("", ""),
                    (true, value) => ("=", value),
                };
                let many = if def.ty.is_multi() { "*" } else { "" };
                let _ = writeln!(specs, "            '{many}--{spelling}{mark}[{help}]{value}'");
            }
        }
        let words = words(command);
        let parameter = match (words.is_empty(), command.def().params.is_empty()) {
            (false, _) => format!(":parameter:({})", words.join(" ")),
            (true, false) => ":parameter:_files".to_owned(),
            (true, true) => String::new(),
        };
        // The command itself is the first word that is no option.
        let _ = writeln!(specs, "            '1:command: '");
        if !parameter.is_empty() {
            let _ = writeln!(specs, "            '*{parameter}'");
        }
        specs.push_str("        ) ;;\n");
    }
    let body = BODY.replace("COMMANDS", names.trim_end()).replace("OPTIONS", specs.trim_end());
    format!(
        "#compdef {program}\n# Completion of {program} for zsh: put it as {function} into a directory of $fpath.\n\
         {function}() {{\n{body}}}\n{function} \"$@\"\n"
    )
}

/// Text for a description within quotes and brackets.
fn quoted(text: &str) -> String {
    text.replace('\\', "\\\\").replace('\'', "'\\''").replace('[', "\\[").replace(']', "\\]").replace(':', "\\:")
}
