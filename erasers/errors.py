"""The pack's errors: each says what was given, what is allowed and what to do next.

`__module__` is set by hand because a host imports this pack under a name that is its path on disk,
and shows `module.ClassName` to the user.
"""

from __future__ import annotations


class LetheError(Exception):
    """Base of every error the pack raises on purpose.

    Attributes:
        problem: what is wrong, naming the value that was given.
        advice: what to do next, including what is allowed.
    """

    __module__ = "lethe"

    def __init__(self, problem: str, advice: str) -> None:
        super().__init__(f"{problem} {advice} Nothing was changed.")
        self.problem = problem
        self.advice = advice


class ConceptError(LetheError):
    """A concept is empty, tokenises to nothing, or is both erased and preserved."""

    __module__ = "lethe"


class SettingError(LetheError):
    """A setting is missing, of the wrong type, out of its range or not finite."""

    __module__ = "lethe"


class FamilyError(LetheError):
    """The model's family is unknown, or not the one the eraser or the method is for."""

    __module__ = "lethe"


class NumericsError(LetheError):
    """A tensor holds non-finite values, or a system could not be solved."""

    __module__ = "lethe"


class EraserFileError(LetheError):
    """A file cannot be read or written as an eraser."""

    __module__ = "lethe"


class ReportError(LetheError):
    """A text is no report."""

    __module__ = "lethe"


class HostError(LetheError):
    """A host that work was sent to is missing, does not answer, or failed."""

    __module__ = "lethe"


class TrainingError(LetheError):
    """Training cannot go on: its loss is not finite from the start, or a state to go on from does not fit."""

    __module__ = "lethe"


class GuardError(LetheError):
    """A guard cannot act on this model, this prompt or this sampling."""

    __module__ = "lethe"
