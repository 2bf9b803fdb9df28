"""Completion scripts, made from the grammar so that they cannot fall behind it."""

from __future__ import annotations

import argparse

from llmd.admin.grammar import Parser, commands_of

MODEL_COMMANDS = ("switch", "load", "unload", "restart", "reset", "logs")
REQUEST_COMMANDS = ("why", "cancel")

_BASH = """\
_llmctl() {{
  local current=${{COMP_WORDS[COMP_CWORD]}} previous=${{COMP_WORDS[COMP_CWORD-1]}} command= word
  for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
    case $word in
      {commands_case}) command=$word; break ;;
    esac
  done
  case $previous in
    --socket) COMPREPLY=($(compgen -f -- "$current")); return ;;
    --model|--from) COMPREPLY=($(compgen -W "$(llmctl _names models 2>/dev/null)" -- "$current"))
      return ;;
  esac
  local words
  case $command in
    "") words="{commands} {globals}" ;;
{cases}
  esac
  case $command in
    {models_case}) [[ $current == -* ]] || words+=" $(llmctl _names models 2>/dev/null)" ;;
    {requests_case}) [[ $current == -* ]] || words+=" $(llmctl _names requests 2>/dev/null)" ;;
  esac
  COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -F _llmctl llmctl
"""

_ZSH = """\
#compdef llmctl
_llmctl() {{
  local command= word
  for word in "${{(@)words[2,CURRENT-1]}}"; do
    case $word in
      {commands_case}) command=$word; break ;;
    esac
  done
  case ${{words[CURRENT-1]}} in
    --socket) _files; return ;;
    --model|--from) compadd -- ${{(f)"$(llmctl _names models 2>/dev/null)"}}; return ;;
  esac
  case $command in
    "") compadd -- {commands} {globals} ;;
{cases}
  esac
  case $command in
    {models_case}) compadd -- ${{(f)"$(llmctl _names models 2>/dev/null)"}} ;;
    {requests_case}) compadd -- ${{(f)"$(llmctl _names requests 2>/dev/null)"}} ;;
  esac
}}
compdef _llmctl llmctl
"""


def script(parser: Parser, shell: str) -> str:
    """Return the script for `bash`, `zsh` or `fish`."""
    commands = commands_of(parser)
    if shell == "fish":
        return _fish(commands)
    form = (
        '    {name}) words="{words}" ;;' if shell == "bash" else "    {name}) compadd -- {words} ;;"
    )
    cases = [form.format(name=name, words=_words(sub)) for name, sub in commands.items()]
    return (_BASH if shell == "bash" else _ZSH).format(
        commands=" ".join(commands),
        commands_case="|".join(commands),
        globals="--help --json --socket",
        cases="\n".join(cases),
        models_case="|".join(MODEL_COMMANDS),
        requests_case="|".join(REQUEST_COMMANDS),
    )


def _words(parser: argparse.ArgumentParser) -> str:
    words = [option for action in parser._actions for option in action.option_strings]
    words += [str(choice) for action in parser._actions for choice in action.choices or ()]
    return " ".join(words)


def _fish(commands: dict[str, argparse.ArgumentParser]) -> str:
    lines = [
        "complete -c llmctl -f",
        "complete -c llmctl -l json -d 'one JSON object a line'",
        "complete -c llmctl -l socket -r -F -d 'the admin socket'",
    ]
    for name, sub in commands.items():
        about = (sub.description or "").replace("'", "\\'")
        lines.append(f"complete -c llmctl -n __fish_use_subcommand -a {name} -d '{about}'")
        seen = f"complete -c llmctl -n '__fish_seen_subcommand_from {name}'"
        for action in sub._actions:
            for option in action.option_strings:
                if option in ("-h", "--help", "--json", "--socket"):
                    continue
                flag = f"-l {option[2:]}" if option.startswith("--") else f"-s {option[1:]}"
                value = "" if action.nargs == 0 else " -r"
                lines.append(f"{seen} {flag}{value}")
            if not action.option_strings and action.choices:
                lines.append(f"{seen} -a '{' '.join(map(str, action.choices))}'")
    for kind, names in (("models", MODEL_COMMANDS), ("requests", REQUEST_COMMANDS)):
        lines.append(
            f"complete -c llmctl -n '__fish_seen_subcommand_from {' '.join(names)}'"
            f" -a '(llmctl _names {kind} 2>/dev/null)'"
        )
    return "\n".join(lines) + "\n"
