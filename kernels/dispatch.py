"""Operations with several backends, and the choice between them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from .constraints import Constraint, Facts
from .errors import NoBackendError

LOG = logging.getLogger("lethe")
_FORCED: ContextVar[Mapping[str, str] | None] = ContextVar("forced", default=None)
_TOLD: set[str] = set()


@dataclass(frozen=True)
class Backend:
    """One way to run an operation.

    Attributes:
        name: `eager` is the definition, in plain torch.
        load: returns the function; what it needs is imported no earlier.
        constraints: all have to hold.
        pays: where it is worth its while; not asked when it is forced.
    """

    name: str
    load: Callable[[], Callable[..., Any]]
    constraints: tuple[Constraint, ...] = ()
    pays: tuple[Constraint, ...] = ()

    def failing(self, facts: Facts, forced: bool = False) -> Constraint | None:
        """The first constraint that does not hold."""
        needs = self.constraints if forced else (*self.constraints, *self.pays)
        return next((need for need in needs if need.refusal(facts)), None)


@dataclass(frozen=True)
class Operation:
    """An operation and its backends, in the order that measurement decided.

    Attributes:
        name: what `forced` calls it.
        title: what it computes, in a line.
        decided: what the order rests on.
        backends: the first whose constraints hold runs.
    """

    name: str
    title: str
    decided: str
    backends: tuple[Backend, ...]

    def choose(self, facts: Facts) -> Callable[..., Any]:
        """The function of the first backend that can run a call.

        Raises:
            NoBackendError: none can, or the forced one cannot.
        """
        forced = (_FORCED.get() or {}).get(self.name)
        refusals: dict[str, str] = {}
        for backend in self.backends:
            if forced not in (None, backend.name):
                refusals[backend.name] = f"'{forced}' is forced"
                continue
            failing = backend.failing(facts, forced is not None)
            if failing is None:
                return backend.load()
            refusals[backend.name] = failing.refusal(facts)
            if failing.installable:
                _tell(backend.name, refusals[backend.name])
        raise NoBackendError(self.name, refusals)


@contextmanager
def forced(**choice: str) -> Iterator[None]:
    """Run operations on the named backends only, such as `forced(stacked="eager")`; for tests and benchmarks."""
    token = _FORCED.set({**(_FORCED.get() or {}), **choice})
    try:
        yield
    finally:
        _FORCED.reset(token)


def _tell(backend: str, reason: str) -> None:
    """One log line per process and reason."""
    if reason not in _TOLD:
        _TOLD.add(reason)
        LOG.info("Kernels: %s is not used, %s; others take its place, maybe slower.", backend, reason)
