"""`python -m llmd`: the same as the program `llmd`."""

from __future__ import annotations

import sys

from llmd.cli import main

if __name__ == "__main__":
    sys.exit(main())
