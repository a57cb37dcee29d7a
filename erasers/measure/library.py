"""Well-kept libraries that some measures and charts are made with, and that a host need not have."""

from __future__ import annotations

from importlib.util import find_spec

from ..errors import SettingError


def missing(*names: str) -> str:
    """What to do about libraries that are not installed, as a sentence; "" where all are there."""
    absent = [name for name in names if find_spec(name) is None]
    if not absent:
        return ""
    return f"Install what is missing in the host's Python: pip install {' '.join(absent)}."


def need(purpose: str, *names: str) -> None:
    """SettingError unless all libraries are installed; `purpose` begins its message."""
    advice = missing(*names)
    if advice:
        raise SettingError(f"{purpose} needs {' and '.join(names)}.", advice)
