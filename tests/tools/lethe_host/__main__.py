"""`python -m lethe_host`: builds or checks the host and prints the path of its Python."""

from __future__ import annotations

import logging
import sys

from .errors import HostError
from .install import ensure_host


def main() -> int:
    """Returns the exit status: 0 when a sound host is there."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    try:
        host = ensure_host()
    except HostError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"{host.python}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
