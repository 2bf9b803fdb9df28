"""Completion scripts, made from the grammar so that they cannot fall behind it.

What a word may be follows from its metavar: MODEL and ID are asked of the daemon (`llmctl _names`),
PATH is a file, STATE, TOPIC and a shell are words known here.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping

from llmd.admin import protocol as p
from llmd.admin.grammar import Parser, commands_of

_NAMES: Mapping[str, str] = {"MODEL": "models", "ID": "requests"}

_BASH = """\
# eval "$(llmctl completion bash)"
_llmctl() {{
  local current=${{COMP_WORDS[COMP_CWORD]}} previous= command= socket= names= words= word
  for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
    case $previous in
      --socket) socket=$word previous=; continue ;;
      {valued}) previous=; continue ;;
    esac
    case $word in {commands}) command=${{command:-$word}} ;; esac
    previous=$word
  done
  COMPREPLY=()
  case $previous in
{values}
    *)
      case $command in
        "") words="{firsts}" ;;
{positionals}
      esac
      if [[ $current == -* || -z $names$words ]]; then
        case $command in
          "") words="{globals}" ;;
{flags}
        esac
        names=
      fi ;;
  esac
  if [[ $names == files ]]; then
    compopt -o filenames
    while IFS= read -r word; do COMPREPLY+=("$word"); done < <(compgen -f -- "$current")
  elif [[ $names ]]; then
    while IFS= read -r word; do
      [[ $word == "$current"* ]] && COMPREPLY+=("$(printf %q "$word")")
    done < <(llmctl _names "$names" "$socket" 2>/dev/null)
    [[ $(type -t __ltrim_colon_completions) ]] && __ltrim_colon_completions "$current"
  else
    for word in $words; do [[ $word == "$current"* ]] && COMPREPLY+=("$word"); done
  fi
}}
complete -F _llmctl llmctl
"""

_ZSH = """\
#compdef llmctl
# eval "$(llmctl completion zsh)", after compinit; or save it as _llmctl in a directory of $fpath
_llmctl() {{
  local previous= command= socket= names= word
  local -a words_of about
  for word in "${{(@)words[2,CURRENT-1]}}"; do
    case $previous in
      (--socket) socket=$word previous=; continue ;;
      ({valued}) previous=; continue ;;
    esac
    case $word in ({commands}) command=${{command:-$word}} ;; esac
    previous=$word
  done
  case $previous in
{values}
    (*)
      case $command in
        ("") about=(
{described}
          ) ;;
{positionals}
      esac
      if [[ $PREFIX == -* || -z $names$words_of$about ]]; then
        case $command in
          ("") words_of=({globals}) ;;
{flags}
        esac
        names= about=()
      fi ;;
  esac
  if [[ $names == files ]]; then
    _files
  elif [[ -n $names ]]; then
    words_of=(${{(f)"$(llmctl _names $names "$socket" 2>/dev/null)"}})
    compadd -a words_of
  elif (( $#about )); then
    _describe command about
  else
    compadd -a words_of
  fi
}}
if [[ $funcstack[1] == _llmctl ]]; then _llmctl "$@"; else compdef _llmctl llmctl; fi
"""

_FISH = """\
# llmctl completion fish | source
function __llmctl_names
    string match -q -- '-*' (commandline -ct); and return
    set -l words (commandline -opc)
    set -l socket
    if set -l at (contains -i -- --socket $words)
        set socket $words[(math $at + 1)]
    end
    llmctl _names $argv[1] "$socket" 2>/dev/null
end
complete -c llmctl -f
complete -c llmctl -l json -d 'one JSON object a line'
complete -c llmctl -l socket -r -F -d 'the admin socket'
complete -c llmctl -n __fish_use_subcommand -l version -d 'print it'
"""


def script(parser: Parser, shell: str) -> str:
    """Return the script for `bash`, `zsh` or `fish`."""
    commands = commands_of(parser)
    if shell == "fish":
        return _FISH + "".join(f"{line}\n" for line in _fish(commands))
    zsh = shell == "zsh"
    valued = {
        flag: action
        for used in (parser, *commands.values())
        for action in used._actions
        for flag in action.option_strings
        if action.nargs != 0
    }
    positionals = {
        name: action
        for name, used in commands.items()
        for action in used._actions
        if not action.option_strings
    }
    return (_ZSH if zsh else _BASH).format(
        commands="|".join(commands),
        firsts=" ".join(commands),
        valued="|".join(flag for flag in valued if flag != "--socket"),
        globals=_flags(parser),
        values="\n".join(_case(4, flag, _assign(valued[flag], zsh=zsh), zsh) for flag in valued),
        positionals="\n".join(
            _case(8, name, _assign(action, zsh=zsh), zsh) for name, action in positionals.items()
        ),
        flags="\n".join(
            _case(10, name, f"words_of=({_flags(used)})" if zsh else f'words="{_flags(used)}"', zsh)
            for name, used in commands.items()
        ),
        described="\n".join(
            f"            {_quoted(f'{name}:{used.description}')}"
            for name, used in commands.items()
        ),
    )


def _case(indent: int, word: str, then: str, zsh: bool) -> str:
    return f"{' ' * indent}{'(' if zsh else ''}{word}) {then} ;;"


def _assign(action: argparse.Action, *, zsh: bool) -> str:
    """Return the assignment that says what a word may be."""
    names, words = _kind(action)
    if names:
        return f"names={names}"
    if not words:
        return "return"
    return f"words_of=({words})" if zsh else f'words="{words}"'


def _kind(action: argparse.Action) -> tuple[str, str]:
    """Return what names to ask for, and the words that are known."""
    metavar = str(action.metavar)
    if metavar == "PATH":
        return "files", ""
    if metavar in _NAMES:
        return _NAMES[metavar], ""
    if metavar == "TOPIC":
        return "", " ".join(p.TOPICS)
    return "", " ".join(map(str, action.choices or ()))


def _flags(parser: argparse.ArgumentParser) -> str:
    flags = [flag for action in parser._actions for flag in action.option_strings]
    return " ".join(flag for flag in flags if flag.startswith("--"))


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def _fish(commands: Mapping[str, argparse.ArgumentParser]) -> Iterator[str]:
    for name, used in commands.items():
        about = _quoted(used.description or "").replace("'\\''", "\\'")
        yield f"complete -c llmctl -n __fish_use_subcommand -a {name} -d {about}"
        seen = f"complete -c llmctl -n '__fish_seen_subcommand_from {name}'"
        for action in used._actions:
            if {"--json", "--socket"} & set(action.option_strings):
                continue
            names, words = _kind(action)
            offer = f"(__llmctl_names {names})" if names else words
            parts = [
                seen,
                *(
                    f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}"
                    for flag in action.option_strings
                ),
            ]
            if action.option_strings:
                parts += [] if action.nargs == 0 else ["-x"]
                parts.append("-d " + _quoted(action.help or "").replace("'\\''", "\\'"))
            if offer:
                parts.append(f"-a '{offer}'")
            if offer or action.option_strings:
                yield " ".join(parts)
