"""Finds what the pack offers: every file in `methods/` and `families/` that carries an entry.

A method file defines `METHOD`, a family file `FAMILY`. There is no list to edit.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache
from types import MappingProxyType
from typing import Any, Protocol

from .errors import SettingError
from .result import Eraser
from .sites import Family
from .spec import MethodSpec, Value
from .task import Task


class Method(Protocol):
    """A closed-form method: fits a frozen result to a task and leaves the model alone."""

    spec: MethodSpec

    def fit(self, task: Task, settings: Mapping[str, Value]) -> Eraser:
        """Fit with checked settings (`spec.settings`)."""
        ...


@cache
def methods() -> Mapping[str, Method]:
    """Every method by name."""
    return MappingProxyType({entry.spec.name: entry for entry in _entries("methods", "METHOD")})


@cache
def families() -> Mapping[str, Family]:
    """Every model family by name."""
    return MappingProxyType({entry.name: entry for entry in _entries("families", "FAMILY")})


def method_named(name: str | None) -> Method:
    """Look a method up; SettingError names those that exist."""
    found = methods().get(name or "")
    if found is None:
        raise SettingError(f"There is no method '{name}'.", f"Choose one of: {', '.join(methods())}.")
    return found


def _entries(folder: str, attribute: str) -> list[Any]:
    package = importlib.import_module(f".{folder}", __package__)
    found = sorted(info.name for info in pkgutil.iter_modules(package.__path__))
    modules = (importlib.import_module(f".{folder}.{name}", __package__) for name in found)
    return [getattr(module, attribute) for module in modules]
