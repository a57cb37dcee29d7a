"""Finds what the pack offers: each file with an entry in a folder of its kind (`methods/`, `recipes/`, `guards/`, ...).

A method file defines `METHOD`, a recipe file `RECIPE`, a guard file `GUARD`, an attack file `ATTACK`, a probe file
`PROBE`, a family file `FAMILY`, a merge file `MERGE`, a gate file `GATE`, a
layout file (`exchange/layouts/`) `LAYOUT`. There is no list to edit.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache
from types import MappingProxyType
from typing import Any, Protocol, TypeVar

from .errors import SettingError
from .exchange.layout import Layout
from .gates import GateKind
from .guard import Guard
from .learn.plan import Plan, Schedule
from .merging import Merge
from .probe import Probe
from .result import Eraser
from .sites import Family
from .spec import MethodSpec, Value
from .target import Attack
from .task import Task

Entry = TypeVar("Entry")


class Method(Protocol):
    """A closed-form method: fits a frozen result to a task and leaves the model alone."""

    spec: MethodSpec

    def fit(self, task: Task, settings: Mapping[str, Value]) -> Eraser:
        """Fit with checked settings (`spec.settings`)."""
        ...


class TrainingRecipe(Protocol):
    """A published way to train an eraser, as blocks of `learn/`.

    Attributes:
        schedule: as published.
        small: for the demo world, whose model is a hundred times smaller and learns at other rates.
    """

    spec: MethodSpec
    schedule: Schedule
    small: Schedule

    def plan(self, task: Task, settings: Mapping[str, Value]) -> Plan:
        """The blocks for a task, with checked settings (`spec.settings`).

        Raises:
            LetheError: the task lacks something that the recipe needs.
        """
        ...


@cache
def methods() -> Mapping[str, Method]:
    """Every method by name."""
    return MappingProxyType({entry.spec.name: entry for entry in _entries("methods", "METHOD")})


@cache
def recipes() -> Mapping[str, TrainingRecipe]:
    """Every training recipe by name."""
    return MappingProxyType({entry.spec.name: entry for entry in _entries("recipes", "RECIPE")})


@cache
def guards() -> Mapping[str, Guard]:
    """Every guard by name."""
    return MappingProxyType({entry.spec.name: entry for entry in _entries("guards", "GUARD")})


@cache
def families() -> Mapping[str, Family]:
    """Every model family by name."""
    return MappingProxyType({entry.name: entry for entry in _entries("families", "FAMILY")})


@cache
def merges() -> Mapping[str, Merge]:
    """Every way of merging a stack by name."""
    return MappingProxyType({entry.spec.name: entry for entry in _entries("merges", "MERGE")})


@cache
def gates() -> Mapping[str, GateKind]:
    """Every kind of gate by name."""
    return MappingProxyType({entry.name: entry for entry in _entries("gates", "GATE")})


@cache
def layouts() -> Mapping[str, Layout]:
    """Every layout of other programs' files by name."""
    return MappingProxyType({entry.name: entry for entry in _entries("exchange.layouts", "LAYOUT")})


@cache
def attacks() -> Mapping[str, Attack]:
    """Every attack by name."""
    return MappingProxyType({entry.spec.name: entry for entry in _entries("attacks", "ATTACK")})


@cache
def probes() -> Mapping[str, Probe]:
    """Every probe by name."""
    return MappingProxyType({entry.spec.name: entry for entry in _entries("probes", "PROBE")})


def method_named(name: str | None) -> Method:
    """Look a method up; SettingError names those that exist."""
    return _named("method", name, methods())


def recipe_named(name: str | None) -> TrainingRecipe:
    """Look a training recipe up; SettingError names those that exist."""
    return _named("recipe", name, recipes())


def guard_named(name: str | None) -> Guard:
    """Look a guard up; SettingError names those that exist."""
    return _named("guard", name, guards())


def attack_named(name: str | None) -> Attack:
    """Look an attack up; SettingError names those that exist."""
    return _named("attack", name, attacks())


def layout_named(name: str | None) -> Layout:
    """Look a file layout up; SettingError names those that exist."""
    return _named("layout", name, layouts())


def probe_named(name: str | None) -> Probe:
    """Look a probe up; SettingError names those that exist."""
    return _named("probe", name, probes())


def merge_named(name: str | None) -> Merge:
    """Look a way of merging up; SettingError names those that exist."""
    return _named("mode", name, merges())


def _named(kind: str, name: str | None, known: Mapping[str, Entry]) -> Entry:
    found = known.get(name or "")
    if found is None:
        raise SettingError(f"There is no {kind} '{name}'.", f"Choose one of: {', '.join(known)}.")
    return found


def _entries(folder: str, attribute: str) -> list[Any]:
    package = importlib.import_module(f".{folder}", __package__)
    found = sorted(info.name for info in pkgutil.iter_modules(package.__path__))
    modules = (importlib.import_module(f".{folder}.{name}", __package__) for name in found)
    return [getattr(module, attribute) for module in modules]
