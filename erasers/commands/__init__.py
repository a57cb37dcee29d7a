"""`python -m lethe COMMAND`: one file per command, found by folder; each has a `COMMAND`."""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys
from collections.abc import Sequence
from typing import Protocol

from ..errors import LetheError

_STOPPED = 130
"""What shells expect of a command that Ctrl-C ended."""


class Command(Protocol):
    """A command.

    Attributes:
        name: what it is called by.
        help: what it does, in a sentence.
    """

    name: str
    help: str

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add its arguments."""
        ...

    def run(self, arguments: argparse.Namespace) -> str:
        """Do it, and return what is to be shown, "" for nothing; LetheError where it cannot be done."""
        ...


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status, 1 for an error that was foreseen."""
    parser = argparse.ArgumentParser(prog="lethe", description="Erasers for text-to-image models.")
    chosen = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in _commands():
        own = chosen.add_parser(command.name, help=command.help, description=command.help)
        command.configure(own)
        own.set_defaults(command=command)
    parsed = parser.parse_args(arguments)
    try:
        said = parsed.command.run(parsed)
        sys.stdout.write(f"{said}\n" if said else "")
    except LetheError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("Stopped.\n")
        return _STOPPED
    return 0


def _commands() -> list[Command]:
    names = sorted(info.name for info in pkgutil.iter_modules(__path__))
    return [importlib.import_module(f".{name}", __name__).COMMAND for name in names]
