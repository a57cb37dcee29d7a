"""`python -m lethe COMMAND`."""

from __future__ import annotations

import sys

from .erasers.commands import main

if __name__ == "__main__":
    sys.exit(main())
