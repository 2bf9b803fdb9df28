"""Imports only point down, and some rooms are kept free of what does not belong there.

Every import counts, those inside functions and under TYPE_CHECKING too. A module that is in no
room of the table fails: put it in one, here and in docs/design.md.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

LAYERS: dict[str, int] = {
    "llmd": 0,  # the package itself: its version
    "llmd.errors": 0,
    "llmd.core": 0,
    "llmd.admin.protocol": 0,
    "llmd.admin.framing": 0,
    "llmd.config": 1,
    "llmd.models": 1,
    "llmd.observe": 1,
    "llmd.store": 1,
    "llmd.netio": 1,
    "llmd.pump": 1,
    "llmd.places": 0,
    "llmd.workers": 2,
    "llmd.scheduler": 3,
    "llmd.registry": 3,
    "llmd.fleet": 3,
    "llmd.operations": 3,
    "llmd.api": 4,
    "llmd.admin": 4,
    "llmd.client": 4,
    "llmd.daemon": 5,
    "llmd.programs": 5,
    "llmd.check": 5,
    "llmd.cli": 5,
    "llmd.ctl": 5,
    "llmd.__main__": 5,
    "llmtui": 5,
}
"""The layer of each room. A room is a module or a package; the longest match counts."""

STRANGERS = {
    "llmd.api": {"llmd.admin", "llmd.client"},
    "llmd.admin": {"llmd.api"},
    "llmd.daemon": {"llmtui"},
    "llmd.programs": {"llmtui"},
    "llmtui": {"llmd.core", "llmd.errors", "llmd.config", "llmd.daemon", "llmd.cli", "llmd.ctl"},
}
"""Rooms that must not know each other though their layers would let them."""

PURE = {
    "__future__", "abc", "bisect", "collections", "dataclasses", "enum", "functools", "heapq",
    "itertools", "math", "operator", "re", "statistics", "types", "typing", "msgspec",
}  # fmt: skip
"""What `llmd.core` may import from outside: no I/O, no clock, no event loop, no logging."""

HEAVY = {"trio", "quart", "quart_trio", "hypercorn", "httpx", "textual", "xllamacpp", "numpy"}


@dataclass(frozen=True)
class Import:
    """One import: who, whom, where."""

    module: str
    target: str
    line: int

    def __str__(self) -> str:
        return f"{self.module}:{self.line} imports {self.target}"


def modules() -> dict[str, Path]:
    """Return every module of the two packages by its dotted name."""
    found = {}
    for package in ("llmd", "llmtui"):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found[name] = path
    return found


MODULES = modules()


def imports(module: str, text: str, *, package: bool) -> Iterator[Import]:
    """Yield the imports of a module's source, wherever in it they stand."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(module, alias.name, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                up = module.split(".")[: None if package and node.level == 1 else -node.level]
                if package and node.level > 1:
                    up = module.split(".")[: 1 - node.level]
                base = ".".join([*up, *([base] if base else [])])
            for alias in node.names:
                full = f"{base}.{alias.name}"
                # `from llmd import errors` is an import of llmd.errors
                yield Import(module, full if full in MODULES else base, node.lineno)


def room(module: str) -> str | None:
    """Return the room that a module of ours is in; None for one that is in no room."""
    parts = module.split(".")
    for end in range(len(parts), 0, -1):
        name = ".".join(parts[:end])
        if name in LAYERS:
            # the package's root is no room for what nobody has put in one
            return None if name == "llmd" and end < len(parts) else name
    return None


def ours(name: str) -> bool:
    return name.split(".")[0] in {"llmd", "llmtui"}


def all_imports() -> list[Import]:
    return [
        found
        for module, path in MODULES.items()
        for found in imports(
            module, path.read_text(encoding="utf-8"), package=path.name == "__init__.py"
        )
    ]


IMPORTS = all_imports()


def upward(found: Import) -> bool:
    """Tell whether an import points up, or at a room that its own must not know."""
    mine, theirs = room(found.module), room(found.target)
    assert mine is not None
    if theirs is None or mine == theirs:
        return False
    return LAYERS[theirs] > LAYERS[mine] or theirs in STRANGERS.get(mine, ())


def test_every_module_has_a_room():
    assert [module for module in MODULES if room(module) is None] == []


def test_imports_only_point_down():
    assert [str(found) for found in IMPORTS if ours(found.target) and upward(found)] == []


def test_rooms_of_one_layer_import_each_other_in_one_direction_only():
    edges = {
        (mine, theirs)
        for found in IMPORTS
        if (mine := room(found.module)) and (theirs := room(found.target)) and mine != theirs
    }
    assert [pair for pair in sorted(edges) if pair[::-1] in edges] == []


def test_the_core_is_pure():
    assert [
        str(found)
        for found in IMPORTS
        if room(found.module) == "llmd.core"
        and not ours(found.target)
        and found.target.split(".")[0] not in PURE
    ] == []


def test_the_clients_never_load_the_server():
    """`llmctl` and `llmtui` start fast and run where no worker could."""
    for module in ("llmd.ctl", "llmd.client", "llmd.admin.client", "llmtui"):
        seen, todo = set(), [name for name in MODULES if name == module]
        while todo:
            name = todo.pop()
            seen.add(name)
            targets = {found.target for found in IMPORTS if found.module == name}
            heavy = HEAVY - ({"textual"} if module == "llmtui" else set())
            assert not {target.split(".")[0] for target in targets} & heavy, name
            todo += [target for target in targets if target in MODULES and target not in seen]


@pytest.mark.parametrize(
    ("module", "source", "wrong"),
    [
        ("llmd.core.queue", "from llmd.errors import QueueFull", False),
        ("llmd.core.queue", "from llmd.config import Config", True),
        ("llmd.core.queue", "def f():\n    import llmd.workers.worker", True),
        ("llmd.core.queue", "if TYPE_CHECKING:\n    from llmd import daemon", True),
        ("llmd.core.queue", "from ..workers import worker", True),
        ("llmd.core.queue", "from .events import Queued", False),
        ("llmd.workers.worker", "from llmd.core.events import WorkerChanged", False),
        ("llmd.workers.worker", "from llmd.scheduler import Scheduler", True),
        ("llmd.scheduler", "from llmd.workers.supervisor import Supervisor", False),
        ("llmd.api.app", "from llmd.admin.server import Server", True),
        ("llmd.admin.protocol", "from llmd.admin.server import Server", True),
        ("llmd.admin.server", "from llmd.admin.protocol import Hello", False),
        ("llmd.admin.server", "from llmd.api.app import build_app", True),
        ("llmtui.app", "from llmd.admin.protocol import Hello", False),
        ("llmtui.app", "from llmd.config import Config", True),
    ],
)
def test_the_walk_sees_what_it_should(module, source, wrong):
    assert any(upward(found) for found in imports(module, source, package=False)) is wrong


def test_relative_imports_resolve():
    def targets(module: str, source: str, package: bool) -> list[str]:
        return [found.target for found in imports(module, source, package=package)]

    assert targets("llmd.core.queue", "from .events import Queued", False) == ["llmd.core.events"]
    assert targets("llmd.core", "from .events import Queued", True) == ["llmd.core.events"]
    assert targets("llmd.core", "from ..errors import QueueFull", True) == ["llmd.errors"]
    assert targets("llmd.core.queue", "from .. import errors", False) == ["llmd.errors"]
