"""`python -m lethe inspect FILE`: what an eraser, or a file of another erasure program, holds."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..measure.inspection import describe_file


class Inspect:
    """Fulfils `commands.Command`."""

    name = "inspect"
    help = "Say what an eraser, or a file of another erasure program, holds."

    def configure(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("file", type=Path, help="A safetensors file.")

    def run(self, arguments: argparse.Namespace) -> str:
        return describe_file(arguments.file)


COMMAND = Inspect()
