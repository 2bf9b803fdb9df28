"""Steer llmd from Python: show what is loaded, plan a switch, carry it out, watch it happen.

python examples/admin_client.py [MODEL]
"""

from __future__ import annotations

import sys

from llmd.client import Client, Refused, Unreachable


def main() -> int:
    try:
        with Client() as llmd:
            for worker in llmd.status().workers:
                print(f"{worker.model}: {worker.state} {worker.slots_busy}/{worker.slots}")
            if len(sys.argv) < 2:
                return 0
            plan = llmd.switch(sys.argv[1], dry_run=True)
            print("evicts", [gone.model for gone in plan.evict] or "nothing", plan.reason)
            if not plan.fits:
                return 1
            events = llmd.subscribe("workers")
            next(events)
            llmd.switch(plan.model, if_gen=plan.generation)
            for event in events:
                for worker in getattr(event, "workers", None) or ():
                    print(f"{worker.model}: {worker.state} {worker.note}")
                    if worker.model == plan.model and worker.state in ("ready", "failed"):
                        return 0 if worker.state == "ready" else 1
    except (Refused, Unreachable) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
