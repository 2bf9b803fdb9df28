"""`llmd check`: what a config resolves to, and everything that is wrong with it.

It looks at what `load` does not: the engine, the models' files, the certificate, names that
should be those of models. It starts no worker.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TextIO, TypeVar

import msgspec

from llmd.admin.directory import examine
from llmd.admin.peercred import Rights
from llmd.admin.socketfile import socket_path
from llmd.api.origin import listen_allowed
from llmd.api.tls import server_context
from llmd.config import Loaded, ModelConfig, runtime_dir, state_dir, survey
from llmd.config.faults import dotted
from llmd.config.locate import KeyPath
from llmd.errors import ConfigError, LlmdError
from llmd.fleet import Fleet, total_memory_bytes
from llmd.models.catalog import Catalog, CatalogFault
from llmd.models.hub import Missing, Unreachable, look_up
from llmd.models.model import CatalogModel
from llmd.workers.command import slot_count
from llmd.workers.engine import Engine, find_engine

_T = TypeVar("_T")
FindEngine = Callable[[str], Engine]


def report(
    path: Path | None,
    *,
    env: Mapping[str, str],
    out: TextIO,
    err: TextIO,
    find: FindEngine = find_engine,
    memory_bytes: int | None = None,
    online: bool = False,
) -> int:
    """Check a config, write what it resolves to on `out` and what is wrong on `err`.

    Args:
        path: The config; None searches for it.
        env: The environment.
        out: For the summary.
        err: For warnings and faults, one a line.
        find: Finds the engine.
        memory_bytes: What this box has; default: asked.
        online: Ask the hub about models that come from one.

    Returns:
        0 for a config without faults, else 1.
    """
    found = survey(path, env=env)
    if found.loaded is None:
        return _conclude(found.faults, err)
    box = total_memory_bytes() if memory_bytes is None else memory_bytes
    check = _Check(found.loaded, found.faults, env, box, online=online)
    lines = check.run(find)
    if not found.faults:  # defaults in the place of what is faulty would only mislead
        _write(out, lines)
    _write(err, (f"llmd: warning: {warning}" for warning in check.warnings))
    return _conclude(check.faults, err)


def _conclude(faults: Iterable[str], err: TextIO) -> int:
    told = list(dict.fromkeys(faults))
    _write(err, (f"llmd: {fault}" for fault in told))
    return 1 if told else 0


def _write(stream: TextIO, lines: Iterable[str]) -> None:
    """Write lines without what could steer a terminal: names of files are anybody's."""
    for line in lines:
        stream.write("".join(c if c.isprintable() else "\ufffd" for c in line) + "\n")


class _Check:
    """One check of one config; `faults` and `warnings` are what it found."""

    def __init__(
        self,
        loaded: Loaded,
        faults: Iterable[str],
        env: Mapping[str, str],
        memory_bytes: int,
        *,
        online: bool,
    ) -> None:
        self._online = online
        self.faults: list[str] = list(faults)
        self.warnings: list[str] = list(loaded.warnings)
        self._loaded = loaded
        self._config = loaded.config
        self._env = env
        self._memory_bytes = memory_bytes
        self._numbers: list[int] = []  # of the entries that the catalog was made of

    def run(self, find: FindEngine) -> list[str]:
        """Return the summary, a line each."""
        config = self._config
        if config.server.tls_key:  # else there is a fault already
            server = config.server
            self._try(lambda: server_context(server.tls_cert, server.tls_key))
        keys = bool(config.api_keys)
        allow_open = config.auth.allow_open
        self._try(lambda: listen_allowed(config.server.host, has_keys=keys, allow_open=allow_open))
        engine = self._try(lambda: find(config.llama.binary))
        models_dir = Path(config.llama.models_dir) if config.llama.models_dir else None
        self._numbers, entries = _sound(config.models)
        catalog = Catalog.load(entries, models_dir)
        self.faults += map(self._of_catalog, catalog.faults)
        self.warnings += catalog.warnings
        if models_dir is None and not config.models:
            if not self._told("models", "llama.models_dir"):
                self.faults.append("there are no models: set llama.models_dir or add [[models]]")
        elif not catalog.models and not catalog.faults:
            self.warnings.append(f"there is no model in {models_dir}")
        self._names(catalog)
        self._admin_socket()
        return [
            *self._settings(),
            *self._engine(engine),
            *self._models(engine, catalog),
        ]

    # --- parts ------------------------------------------------------------------------------

    def _settings(self) -> list[str]:
        config = self._config
        host = f"[{config.server.host}]" if ":" in config.server.host else config.server.host
        admins = sum(key.role == "admin" for key in config.api_keys)
        keys = f"{len(config.api_keys)} ({admins} admin)"
        scheme = "https" if config.server.tls_cert else "http"
        return [
            f"config   {self._loaded.path or 'none, all defaults'}",
            f"listens  {scheme}://{host}:{config.server.port}",
            f"keys     {keys if config.api_keys else 'none: every caller is an admin'}",
            f"state    {state_dir(self._env)}",
            f"runtime  {runtime_dir(self._env)}",
            f"admin    {self._admin()}",
        ]

    def _admin(self) -> str:
        """Return where the admin socket is, and who may use it."""
        server = self._config.server
        group = f" and group {server.admin_group}" if server.admin_group else ""
        readers = "; every local user may look" if server.admin_read_all else ""
        path = socket_path(server.admin_socket, runtime_dir(self._env))
        return f"{path}: for root, llmd's own user{group}{readers}"

    def _engine(self, engine: Engine | None) -> list[str]:
        if engine is None:
            return []
        self.warnings += engine.warnings
        gpu = {True: ", with GPU", False: ", CPU only", None: ""}[engine.gpu]
        return [f"engine   {engine.kind.value}, {engine.version}{gpu}: {' '.join(engine.argv)}"]

    def _models(self, engine: Engine | None, catalog: Catalog) -> list[str]:
        lines = [f"memory   {_gib(self._memory_bytes)}", f"models   {len(catalog.models)}"]
        if engine is None:
            return [*lines, *(f"  {model.name}" for model in catalog.models)]
        # a GPU's memory is not known here, and the box's own says nothing then
        memory_bytes = 0 if engine.gpu else self._memory_bytes
        sockets = runtime_dir(self._env) / "workers"
        fleet = Fleet(engine, catalog, self._config, sockets, memory_bytes=memory_bytes)
        width = max((len(model.name) for model in catalog.models), default=0)
        for model in catalog.models:
            self._command(fleet, model)
            fault = f"cannot be loaded: {model.fault}"
            told = fault if model.fault else self._model(fleet, model, memory_bytes)
            lines.append(f"  {model.name:{width}}  {told}")
        return lines

    def _command(self, fleet: Fleet, model: CatalogModel) -> None:
        """Tell what the engine cannot do of a model's settings."""
        try:
            fleet.spec_of(model, fleet.planned_context(model))
        except ConfigError as error:
            self.faults += [self._of_model(model, fault) for fault in error.faults]

    def _model(self, fleet: Fleet, model: CatalogModel, memory_bytes: int) -> str:
        context_tokens = fleet.planned_context(model)
        if model.header is None:
            told = self._at_the_hub(model) if self._online else "its needs are unknown"
            return f"{model.hf}, fetched when it is first loaded; {told}"
        needs = fleet.memory(model, context_tokens)
        cache = _cache_words(fleet.prompt_cache_mib(model))
        fit = "on the GPU" if not memory_bytes else "fits"
        if memory_bytes and needs > memory_bytes:
            fit = "DOES NOT FIT"
            self.warnings.append(
                f"{model.name} needs about {_gib(needs)} and this box has {_gib(memory_bytes)}: "
                "choose a smaller quantisation, context_size, parallel or cache_type_k and _v"
            )
        return (
            f"{_gib(model.size_bytes)} {model.header.quantisation}, {context_tokens} tokens for "
            f"each of {slot_count(model.config)} requests, needs {_gib(needs)} and "
            f"{cache} prompt cache: {fit}"
        )

    def _at_the_hub(self, model: CatalogModel) -> str:
        try:
            found = look_up(model.hf or "", self._env)
        except Missing as missing:
            self.faults.append(self._of_model(model, f"models.{model.name}.hf: {missing}"))
            return "IT IS NOT THERE"
        except Unreachable as trouble:
            self.warnings.append(f"{model.name}: {trouble}")
            return "the hub cannot be asked"
        files = "" if found.files == 1 else f" in {found.files} files"
        if self._memory_bytes and found.size_bytes > self._memory_bytes:
            self.warnings.append(
                f"{model.name} is {_gib(found.size_bytes)} and this box has "
                f"{_gib(self._memory_bytes)}: choose a smaller quantisation"
            )
        return f"{_gib(found.size_bytes)}{files}"

    def _admin_socket(self) -> None:
        """Check who may use the admin socket, and whether they can."""
        server = self._config.server
        path = socket_path(server.admin_socket, runtime_dir(self._env))
        rights = self._try(lambda: Rights.of(server.admin_group, read_all=server.admin_read_all))
        if rights is None:
            return
        if rights.owner == 0 and path.parent.exists():
            # root checks for whom the daemon will run as
            rights = replace(rights, owner=path.parent.stat().st_uid)
        own = not server.admin_socket
        self.warnings += self._try(lambda: examine(path, rights, own=own)) or []

    def _names(self, catalog: Catalog) -> None:
        """Check every name in the config that should be a model's."""
        config = self._config
        named: list[tuple[KeyPath, str]] = [
            (("scheduler", "default_model"), config.scheduler.default_model)
        ]
        for index, name in enumerate(config.worker.preload):
            named.append((("worker", "preload", index), "" if name == "*" else name))
        for number, key in enumerate(config.api_keys):
            for index, name in enumerate(key.models):
                named.append((("api_keys", number, "models", index), name))
        known = {name for model in catalog.models for name in (model.name, *model.aliases)}
        known.update(name for entry in config.models for name in (entry.name, *entry.aliases))
        for path, name in named:
            if name and name not in known:
                near = difflib.get_close_matches(name, [model.name for model in catalog.models], 1)
                guess = f'; did you mean "{near[0]}"?' if near else ""
                self.faults.append(self._at(path, f'"{name}" is no model{guess}'))

    # --- helpers ----------------------------------------------------------------------------

    def _try(self, step: Callable[[], _T]) -> _T | None:
        """Run a step; what it refuses becomes faults, and None."""
        try:
            return step()
        except ConfigError as error:
            self.faults += map(self._loaded.placed, error.faults)
        except LlmdError as error:
            self.faults.append(error.message)
        return None

    def _told(self, *keys: str) -> bool:
        """Tell whether there is a fault of one of these keys, or of what is below it."""
        below = "|".join(map(re.escape, keys))
        return any(re.search(rf"(^|: )({below})(\[|\.|:)", fault) for fault in self.faults)

    def _at(self, path: KeyPath, message: str) -> str:
        """Return a fault with its TOML path and its line."""
        return ": ".join(filter(None, (self._loaded.where(path), dotted(path), message)))

    def _of_catalog(self, fault: CatalogFault) -> str:
        if not fault.model:
            return self._at(fault.path, fault.message)
        return self._at_entry(int(fault.path[1]), fault.path[2:], fault.message)

    def _of_model(self, model: CatalogModel, fault: str) -> str:
        """Return a fault that another room tells as `models.NAME.key: ...`, or about no key."""
        about = f"models.{model.name}."
        if model.entry is None or not fault.startswith(about):
            return self._loaded.placed(fault)
        key, _, message = fault[len(about) :].partition(": ")
        return self._at_entry(model.entry, (key,), message)

    def _at_entry(self, number: int, key: KeyPath, message: str) -> str:
        """Return a fault of a key of the entry that the catalog knows as `number`."""
        return self._at(("models", self._numbers[number], *key), message)


def _sound(entries: Iterable[ModelConfig]) -> tuple[list[int], list[ModelConfig]]:
    """Return the entries that can be looked at, without names that have a fault already.

    Before them, the number of each in the config.
    """
    numbers, found, seen = [], [], set[str]()
    for number, entry in enumerate(entries):
        if bool(entry.path) == bool(entry.hf) or entry.name in seen:
            continue
        aliases = tuple(alias for alias in entry.aliases if alias not in seen)
        seen.update(name for name in (entry.name, *aliases) if name)
        numbers.append(number)
        found.append(msgspec.structs.replace(entry, aliases=aliases))
    return numbers, found


def _cache_words(mib: int) -> str:
    if mib < 0:
        return "any"
    return f"up to {_gib(mib << 20)} of" if mib else "no"


def _gib(size_bytes: int) -> str:
    if size_bytes < 1 << 30:
        return f"{size_bytes / (1 << 20):.1f} MiB"
    return f"{size_bytes / (1 << 30):.1f} GiB"
