"""What opens over the board. Each window gets a `Desk` and is pushed; it asks and acts by itself.

`RequestDetail(desk, id)`, `WorkerDetail(desk, model)`, `Logs(desk, model)` and `Help(desk, lines)`
only look. `Switch(desk, model)`, `Unload(desk, model)`, `Cancel(desk, requests)` and
`Carry(desk, command, text)` ask first, act once told to, say what came of it on the board, and
return whether they did it.

A window is imported when its name is first asked for: the board's first frame needs none of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmtui.screens.cancel import Cancel as Cancel
    from llmtui.screens.carry import Carry as Carry
    from llmtui.screens.help import Help as Help
    from llmtui.screens.logs import Logs as Logs
    from llmtui.screens.request import RequestDetail as RequestDetail
    from llmtui.screens.switch import Switch as Switch
    from llmtui.screens.unload import Unload as Unload
    from llmtui.screens.worker import WorkerDetail as WorkerDetail

WINDOWS: Mapping[str, str] = {
    "Help": "help",
    "RequestDetail": "request",
    "WorkerDetail": "worker",
    "Logs": "logs",
    "Switch": "switch",
    "Unload": "unload",
    "Cancel": "cancel",
    "Carry": "carry",
}
"""Each window's class, and the module of this package that has it."""


def __getattr__(name: str) -> Any:
    if name not in WINDOWS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{WINDOWS[name]}"), name)
