"""Completion in the real shells, with an `llmctl` that knows some names."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import time

import pytest

from llmd.admin.grammar import SHELLS, build_parser
from llmd.ctl.completion import script

pytestmark = pytest.mark.system

DEADLINE_S = 30
_STUB = """\
#!/bin/sh
echo "$@" >> {log}
case "$1 $2" in
  "_names models") printf 'alpha-7b\\nalto-8b\\nwith space\\n' ;;
  "_names requests") printf 'r-1\\nr-22\\n' ;;
esac
"""
_BASH = """
source "$1"; shift
COMP_WORDS=(llmctl "$@"); COMP_CWORD=$#
_llmctl
printf '%s\\n' "${COMPREPLY[@]}"
"""


class Shell:
    """A shell with the completion loaded: what does it offer for the last word?"""

    def __init__(self, name, folder):
        self.name = name
        self.log = folder / "asked"
        self.file = folder / "completion"
        self.file.write_text(script(build_parser(), name))
        stub = folder / "bin" / "llmctl"
        stub.parent.mkdir()
        stub.write_text(_STUB.format(log=self.log))
        stub.chmod(0o755)
        self.env = {
            "PATH": f"{stub.parent}:{os.environ['PATH']}",
            "HOME": str(folder),
            "XDG_CONFIG_HOME": str(folder),
            "TERM": "dumb",
            "LANG": "C.UTF-8",
        }
        self.folder = folder

    @property
    def asked(self):
        return self.log.read_text().splitlines() if self.log.exists() else []

    def offers(self, *words):
        return set(getattr(self, f"_{self.name}")(*words))

    def _run(self, *argv):
        done = subprocess.run(
            argv,
            env=self.env,
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=DEADLINE_S,
        )
        assert "rror" not in done.stderr, done.stderr
        return [line for line in done.stdout.splitlines() if line]

    def _bash(self, *words):
        return self._run("bash", "--norc", "-c", _BASH, "_", str(self.file), *words)

    def _fish(self, *words):
        line = " ".join(["llmctl", *words])
        found = self._run("fish", "-c", f"source {self.file}; complete -C '{line}'")
        return [line.partition("\t")[0] for line in found]

    def _zsh(self, *words):
        """Have a zsh on a terminal list what it would insert, by way of its own menu."""
        setup = (
            "PS1= ; unsetopt zle_bracketed_paste beep\n"
            "autoload -Uz compinit; compinit -u -D\n"
            f"source {self.file}\n"
            'compadd_() { local -a found; builtin compadd -O found "$@"; '
            f'print -rl -- $found >> {self.folder}/offered; builtin compadd "$@" }}\n'
            'compadd() { compadd_ "$@" }\n'
            "done_() { print -r done >> " + f"{self.folder}/offered" + " }; zle -N done_\n"
            "bindkey '^X' done_\n"
        )
        offered = self.folder / "offered"
        offered.write_text("")
        pid, terminal = pty.fork()
        if pid == 0:
            os.environ.clear()
            os.environ.update(self.env)
            os.chdir(self.folder)
            os.execvp("zsh", ["zsh", "-f", "-i"])
        try:
            os.write(terminal, setup.encode())
            os.write(terminal, (" ".join(["llmctl", *words]) + "\t\x18").encode())
            end = time.monotonic() + DEADLINE_S
            while "done\n" not in offered.read_text():
                assert time.monotonic() < end
                if select.select([terminal], [], [], 0.05)[0]:
                    os.read(terminal, 65536)
        finally:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
            os.close(terminal)
        return [line for line in offered.read_text().splitlines() if line not in ("", "done")]


@pytest.fixture(params=SHELLS)
def shell(request, tmp_path):
    if shutil.which(request.param) is None:
        pytest.skip(f"no {request.param} here")
    return Shell(request.param, tmp_path)


def test_commands(shell):
    assert shell.offers("sw") == {"switch"}
    assert {"status", "models", "cancel", "why"} <= shell.offers("")
    assert "--socket" in shell.offers("--")


def test_models_and_requests_are_asked_of_the_daemon(shell):
    assert shell.offers("switch", "al") == {"alpha-7b", "alto-8b"}
    assert shell.offers("switch", "--from", "alt") == {"alto-8b"}
    assert shell.offers("requests", "--model", "alph") == {"alpha-7b"}
    assert shell.offers("cancel", "r-1", "r-2") == {"r-22"}
    assert len(shell.asked) == 4


def test_names_are_asked_of_the_daemon_whose_socket_was_named(shell):
    assert shell.offers("--socket", "/x/s", "why", "r-2") == {"r-22"}
    assert shell.asked[-1] == "_names requests /x/s"


def test_flags_and_known_words(shell):
    assert shell.offers("switch", "--dr") == {"--drain", "--dry-run"}
    assert shell.offers("watch", "wo") == {"workers"}
    assert shell.offers("requests", "--state", "de") == {"decode"}
    assert shell.offers("completion", "z") == {"zsh"}
    assert shell.asked == []


def test_a_value_is_no_command(shell):
    """`--key stop` names a key, so what follows is still about `requests`."""
    assert "--state" in shell.offers("requests", "--key", "stop", "--st")


def test_files_for_the_socket(shell):
    (shell.folder / "some.sock").write_text("")
    assert "some.sock" in shell.offers("--socket", "so")
