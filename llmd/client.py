"""The Python client of the admin socket: `from llmd.client import Client, AsyncClient`.

`Client` blocks, `AsyncClient` is for asyncio; they have the same methods and return the same
frozen data, which `llmd.admin.protocol` documents. Both raise `Refused` when the daemon says no and
`Unreachable` when there is none.

    with Client() as llmd:
        plan = llmd.switch("qwen3-32b", dry_run=True)
        if plan.fits:
            llmd.switch("qwen3-32b", if_gen=plan.generation, wait=True)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmd.admin.calls import AdminError, BadReply, Refused, Unreachable
from llmd.admin.client import Client

if TYPE_CHECKING:
    from llmd.admin.async_client import AsyncClient

__all__ = ["AdminError", "AsyncClient", "BadReply", "Client", "Refused", "Unreachable"]


def __getattr__(name: str) -> Any:
    # asyncio takes a third of the time that llmctl may take to start, and it does without
    if name == "AsyncClient":
        from llmd.admin.async_client import AsyncClient

        return AsyncClient
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
