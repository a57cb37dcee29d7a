"""`python -m lethe kernels`: what runs each operation here, and why."""

from __future__ import annotations

import argparse

from ...kernels.report import report


class Kernels:
    """Fulfils `commands.Command`."""

    name = "kernels"
    help = "Say which implementation of each operation runs on this machine, and why."

    def configure(self, parser: argparse.ArgumentParser) -> None:
        pass

    def run(self, arguments: argparse.Namespace) -> str:
        return report()


COMMAND = Kernels()
