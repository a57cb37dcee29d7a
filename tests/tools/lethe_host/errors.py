"""What can go wrong around a host, as errors with fields."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

TAIL_LINES = 20


def tail(text: str, lines: int = TAIL_LINES) -> str:
    """Returns the last lines of a text, without blank space around them."""
    return "\n".join(text.strip().splitlines()[-lines:])


def tail_of(log: Path | None, lines: int = TAIL_LINES) -> str:
    """Returns the last lines of a log file, or a note that there is none."""
    if log is None or not log.is_file():
        return "(no log)"
    return tail(log.read_text(encoding="utf-8", errors="replace"), lines)


class HostError(Exception):
    """A host could not be built or used.

    Args:
        step: what was being done.
        advice: what the reader can do about it.
        command: the command that failed, if there was one.
        output: the end of its output.
    """

    def __init__(self, step: str, advice: str, command: Sequence[str] = (), output: str = "") -> None:
        self.step, self.advice, self.command, self.output = step, advice, tuple(command), tail(output)
        parts = [f"ComfyUI host: {step} failed."]
        if self.command:
            parts.append(f"command: {shlex.join(self.command)}")
        if self.output:
            parts.append(f"last lines of its output:\n{self.output}")
        super().__init__("\n".join([*parts, f"what to do: {advice}"]))


class ServerError(Exception):
    """The server did not start, died, or did not answer as expected; the message ends with its log."""

    def __init__(self, problem: str, log: Path | None = None) -> None:
        self.problem, self.log = problem, log
        super().__init__(f"{problem}\nend of the server's log:\n{tail_of(log, 40)}" if log else problem)


class GraphError(Exception):
    """A prompt was refused or failed while it ran.

    Args:
        node_id, node_type: where; empty when the prompt as a whole is at fault.
        exception_type: the error's type, or the server's word for why it refused the prompt.
        exception_message: what it said.
    """

    def __init__(self, node_id: str, node_type: str, exception_type: str, exception_message: str) -> None:
        self.node_id, self.node_type = node_id, node_type
        self.exception_type, self.exception_message = exception_type, exception_message
        where = f"node {node_id} ({node_type})" if node_id else "the prompt"
        super().__init__(f"{where}: {exception_type}: {exception_message.strip()}")


class ConvertError(Exception):
    """A saved workflow holds something that the conversion to a prompt does not know."""
