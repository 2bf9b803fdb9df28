"""The program `llmd`: serve, demo, init, check, engine, version.

Exit status: 0 done, 1 refused or with faults, 2 wrong usage. What a command needs is imported by
that command, so that `llmd --help` and `llmd check` start fast.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from llmd import __version__
from llmd.errors import ConfigError

OK, REFUSED, USAGE = 0, 1, 2

Command: TypeAlias = Callable[[argparse.Namespace], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run `llmd` with `argv` (default: the process's own) and return its exit status.

    Raises:
        SystemExit: From argparse, for `--help`, `--version` and wrong usage.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["engine"]:  # its flags are llama-server's, none of which is ours to read
        from llmd.workers import embedded

        return embedded.main(words[1:])
    parser = _parser()
    options = parser.parse_args(words)
    run: Command | None = options.run
    if run is None:
        parser.print_help(sys.stderr)
        return USAGE
    try:
        return run(options)
    except ConfigError as error:
        for fault in error.faults:
            _complain(fault)
        return REFUSED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="llmd",
        description="One daemon for one Linux box with GGUF models on it.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"llmd {__version__}")
    parser.set_defaults(run=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    def command(name: str, run: Command, about: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=about, description=about, allow_abbrev=False)
        added.set_defaults(run=run)
        return added

    serve = command("serve", _serve, "Serve models until stopped.")
    _config_flag(serve)
    _address_flags(serve)
    serve.add_argument("--models-dir", metavar="DIR", help="every GGUF file below it is a model")
    serve.add_argument(
        "--model",
        metavar="FILE|hf:REPO[:QUANT]",
        action="append",
        default=[],
        type=_model,
        help="a model besides those of the config; may be repeated",
    )
    demo = command("demo", _demo, "Serve two tiny models that llmd writes itself.")
    _address_flags(demo)
    init = command("init", _init, "Write a config with a fresh admin key, which is shown once.")
    init.add_argument("--models-dir", metavar="DIR", help="the directory of your GGUF files")
    init.add_argument(
        "--output",
        metavar="FILE",
        type=Path,
        help="where to write it (default: your config's place; for root, the system's)",
    )
    init.add_argument("--force", action="store_true", help="replace a file that exists")
    check = command("check", _check, "Check a config and say what it resolves to.")
    _config_flag(check)
    check.add_argument(
        "--online", action="store_true", help="ask Hugging Face about models that it has, too"
    )
    commands.add_parser(
        "engine", help="Run the embedded engine, with llama-server's flags.", add_help=False
    )
    command("version", _version, "Print the version.")
    return parser


def _config_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="FILE", type=Path, help="the config to read")


def _address_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", help="the address to listen on")
    parser.add_argument("--port", type=int, help="the port to listen on; 0 takes a free one")


def _model(text: str) -> dict[str, str]:
    if text.startswith("hf:"):
        return {"hf": text.removeprefix("hf:")}
    if not text:
        raise argparse.ArgumentTypeError("must be a file or hf:REPO[:QUANT]")
    return {"path": text}


# --- commands ------------------------------------------------------------------------------


def _serve(options: argparse.Namespace) -> int:
    from llmd.config import load

    loaded = load(options.config, env=os.environ, overrides=_overrides(options))
    count = len(options.model)
    given = [model.path for model in loaded.config.models[-count:]] if count else []
    faults = [fault for path in given if path for fault in _unreadable(Path(path), "--model")]
    if options.models_dir:
        faults += _unreadable(Path(loaded.config.llama.models_dir), "--models-dir")
    if faults:
        raise ConfigError(faults)
    from llmd.programs import run_serve

    try:
        return run_serve(loaded)
    except ConfigError as error:
        raise ConfigError([loaded.placed(fault) for fault in error.faults]) from error


def _unreadable(path: Path, flag: str) -> list[str]:
    """Return why what a flag names cannot be used, so that nobody waits for it in vain."""
    wanted = "directory" if flag == "--models-dir" else "file"
    if not path.exists():
        return [f"command line: {flag}: {path} does not exist"]
    if not (path.is_dir() if wanted == "directory" else path.is_file()):
        return [f"command line: {flag}: {path} is no {wanted}"]
    if not os.access(path, os.R_OK | (os.X_OK if wanted == "directory" else 0)):
        return [f"command line: {flag}: {path} cannot be read: Permission denied"]
    return []


def _overrides(options: argparse.Namespace) -> Mapping[str, Any]:
    return {
        "server.host": options.host,
        "server.port": options.port,
        "llama.models_dir": options.models_dir,
        "models": options.model or None,
    }


def _demo(options: argparse.Namespace) -> int:
    from llmd.config import load_variables

    flags = {"server.host": options.host, "server.port": options.port, "llama.models_dir": ""}
    loaded = load_variables(env=os.environ, overrides=flags)
    from llmd.programs import run_demo

    return run_demo(loaded)


def _init(options: argparse.Namespace) -> int:
    from llmd.config.places import SYSTEM_CONFIG, user_config
    from llmd.config.template import new_key, starter

    target: Path = options.output or (
        SYSTEM_CONFIG if os.geteuid() == 0 else user_config(os.environ)
    )
    models_dir = ""
    if options.models_dir:
        directory = Path(options.models_dir).expanduser().absolute()
        if not directory.is_dir():
            _complain(f"{directory} is no directory")
            return REFUSED
        models_dir = str(directory)
    key = new_key()
    try:
        _write_private(target, starter(key, models_dir), replace=options.force)
    except FileExistsError:
        _complain(f"{target} exists; --force replaces it")
        return REFUSED
    except OSError as error:
        _complain(f"cannot write {target}: {error.strerror or error}")
        return REFUSED
    flag = f" --config {target}" if options.output else ""
    print(f"Wrote {target}. Its admin key, which is shown this once:\n")
    print(f"    {key}\n")
    print(f"Next: llmd check{flag}, then llmd serve{flag}")
    return OK


def _write_private(target: Path, text: str, *, replace: bool) -> None:
    """Write `text` to `target`, which nobody else can read at any moment.

    Raises:
        FileExistsError: It exists, and `replace` is false.
    """
    try:
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except FileExistsError as error:  # the parent, as a file: another trouble than `target`
        raise NotADirectoryError(error.errno, f"{target.parent} is no directory") from error
    if replace:
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=".llmd-")  # mode 0600
    else:
        name = str(target)
        handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
        if replace:
            Path(name).replace(target)
    except BaseException:
        Path(name).unlink(missing_ok=True)  # a config cut short is worse than none
        raise


def _check(options: argparse.Namespace) -> int:
    from llmd.check import report

    return report(
        options.config, env=os.environ, out=sys.stdout, err=sys.stderr, online=options.online
    )


def _version(options: argparse.Namespace) -> int:
    print(f"llmd {__version__}")
    return OK


def _complain(message: str) -> None:
    print(f"llmd: {message}", file=sys.stderr)
