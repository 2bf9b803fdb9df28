"""Steer llmd from Python: show what is loaded, plan a switch, carry it out, watch it happen.

python examples/admin_client.py [MODEL]

It finds the daemon as llmctl does: $LLMD_SOCKET, the runtime directory, /run/llmd/admin.sock.
"""

from __future__ import annotations

import sys
from contextlib import closing

from llmd.client import Client, Refused, Unreachable


def main() -> int:
    try:
        with Client() as llmd:
            workers = llmd.status().workers
            for worker in workers:
                print(f"{worker.model}: {worker.state}, {worker.slots_busy}/{worker.slots} busy")
            if not workers:
                print("nothing is loaded")
            return switch(llmd, sys.argv[1]) if len(sys.argv) > 1 else 0
    except (Refused, Unreachable) as error:
        print(error, file=sys.stderr)
        return 1


def switch(llmd: Client, model: str) -> int:
    plan = llmd.switch(model, dry_run=True)
    if not plan.fits:
        print(plan.reason, file=sys.stderr)
        return 1
    for gone in plan.evict:
        print(f"{gone.model} goes for it, {gone.running} running")
    # closing() ends the connection that the events come on
    with closing(llmd.subscribe("workers")) as events:
        next(events)  # the snapshot: how everything is now
        if not plan.loaded:
            # refused if anything was loaded or unloaded since the plan was made
            llmd.switch(plan.model, if_gen=plan.generation)
            for event in events:
                for worker in getattr(event, "workers", None) or ():
                    print(f"{worker.model}: {worker.state} {worker.note}".rstrip())
                    if worker.model == plan.model and worker.state in ("ready", "failed"):
                        return 0 if worker.state == "ready" else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
