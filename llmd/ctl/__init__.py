"""The program `llmctl`: admin commands for people and scripts.

`program.py` is what it does. Here is only how it comes to start fast: nothing is imported before
`main` is called, and then without what it can do without.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


def main(argv: Sequence[str] | None = None) -> int:
    """Run `llmctl` and return its exit status.

    Args:
        argv: Its words; None = those of the process, which is then nothing but `llmctl`.

    Raises:
        SystemExit: From argparse, for `--help`.
    """
    if argv is None:
        gc.disable()
    if sys.version_info >= (3, 11):
        # msgspec takes from it, where it is installed, what typing has had since 3.11, and its
        # import takes longer than anything else that llmctl does
        with not_installed("typing_extensions"):
            import msgspec  # noqa: F401
    from llmd.ctl import program

    if argv is None:
        # what is imported stays to the end: the collector need not search it, now or at the exit
        gc.freeze()
        gc.enable()
    return program.main(argv)


@contextmanager
def not_installed(name: str) -> Iterator[None]:
    """Have imports of a module fail within the block as if it were not installed.

    Afterwards it can be imported as before. One that is imported already stays what it is, for the
    block too: then there is nothing to be gained. For programs that are still starting, as it holds
    for all threads.

    Args:
        name: Of a module at the top level.
    """
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]  # how Python spells "there is none"
    try:
        yield
    finally:
        if sys.modules.get(name, ...) is None:
            del sys.modules[name]
