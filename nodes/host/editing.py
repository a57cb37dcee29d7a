"""The picture's prompt with its text features as guards edit them: those of the sites, and those that enter beside.

A condition is edited once for each set of guards and rows that act, not once a step; where none acts it stays the very
same. What a guard read of the prompt's tokens is known for the sites' text encoders together, and for each of the
others by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol
from uuid import UUID

import torch
from torch import Tensor

from ...erasers.guard import Guarding, TextPart
from ...erasers.sites import Family
from .entering import edit_further
from .sampling import READINGS

SITES = ""
"""The text features that the sites read, among streams of others."""
Holds = Mapping[str, tuple[bool, ...]]
"""Rows of a condition that are edited now, by stream; streams of which none is are left out."""


class Owner(Protocol):
    """A guard on a model."""

    @property
    def plan(self) -> Guarding:
        """What it does."""
        ...

    @property
    def family(self) -> Family | None:
        """The model's; None for one whose text is a single CLIP encoder's."""
        ...


@dataclass(eq=False)
class Edits:
    """Conditions as guards edit them in one sampling.

    Attributes:
        acting: by guard, which rows of each of the prompt's conditions it acts on, by the condition's id.
        replaced: the condition that a guard puts in the place of one, by its id; None where it puts none.
        made: what was edited before.
    """

    acting: Mapping[Any, Mapping[UUID, Tensor]]
    replaced: Callable[[Any, UUID], Mapping[str, Any] | None]
    made: dict[Any, dict[str, Any]] = field(default_factory=dict)

    def edited(self, guards: Sequence[Owner], cond: Mapping[str, Any], percent: float) -> Mapping[str, Any]:
        """A condition with its text features edited, or the very same where no guard edits them now."""
        acting = [(guard, holds) for guard in guards if (holds := self.holding(guard, cond, percent))]
        if not acting:
            return cond
        drawn, editing = cond, []
        for guard, holds in acting:
            replaced = self.replaced(guard, cond["uuid"])
            if replaced is None:
                editing.append((guard, holds))
            else:
                drawn = replaced
        key = (cond["uuid"], *((guard, *holds.items()) for guard, holds in acting))
        if key not in self.made:
            self.made[key] = _changed(editing, cond, drawn)
        return {**cond, "model_conds": {**drawn["model_conds"], **self.made[key]}}

    def holding(self, guard: Owner, cond: Mapping[str, Any], percent: float) -> Holds:
        """Which rows of a condition a guard edits now; empty where it edits none."""
        rows, found = self.acting[guard].get(cond["uuid"]), dict[str, tuple[bool, ...]]()
        if rows is None:
            return found
        reads = guard.plan.reader is not None
        for stream, part in parts_of(guard.plan).items():
            pairs = paired(rows, _readings(guard, cond, stream))
            found[stream] = tuple(
                row and not (reads and own is None) and part.holds(own, percent) for row, own in pairs
            )
        return {stream: holds for stream, holds in found.items() if any(holds)}


def parts_of(plan: Guarding) -> dict[str, TextPart]:
    """A guard's parts that edit text features, by stream."""
    return {**({} if plan.text is None else {SITES: plan.text}), **plan.further}


def paired(rows: Tensor, readings: Sequence[Any], count: int = 0) -> list[tuple[bool, Any]]:
    """Rows and readings side by side, the shorter repeated."""
    count = max(count, len(rows), len(readings))
    return [(bool(rows[i % len(rows)]), readings[i % len(readings)]) for i in range(count)]


def _changed(
    editing: Sequence[tuple[Owner, Holds]], cond: Mapping[str, Any], drawn: Mapping[str, Any]
) -> dict[str, Any]:
    """What guards change of a condition, by the host's names for the model's inputs."""
    given = drawn["model_conds"]

    def edit(states: Tensor, stream: str) -> Tensor:
        tokens = drawn["cross_attn"].shape[1] if stream == SITES else states.shape[1]
        for guard, holds in editing:
            if stream in holds:
                part, readings = parts_of(guard.plan)[stream], _readings(guard, cond, stream)
                states = _edit_rows(part, states, holds[stream], readings, tokens)
        return states

    found: dict[str, Tensor] = {}
    if any(SITES in holds for _, holds in editing):
        found["c_crossattn"] = edit(given["c_crossattn"].cond, SITES)
    family = next((guard.family for guard, holds in editing if set(holds) - {SITES}), None)
    if family is not None:
        beside = {own.taken: given[own.taken].cond for own in family.further if own.taken in given}
        found |= edit_further(family, beside, edit, "taken")
    return {name: given[name]._copy_with(states) for name, states in found.items()}


def _readings(guard: Owner, cond: Mapping[str, Any], stream: str) -> Sequence[Any]:
    """What a guard made of the tokens that a stream's features belong to, row by row."""
    owner: Any = guard
    if stream != SITES and guard.family is not None:
        owner = guard, next(own.encoder for own in guard.family.further if own.stream == stream)
    return cond.get(READINGS, {}).get(owner, [None])


def _edit_rows(part: TextPart, states: Tensor, holds: Sequence[bool], readings: Sequence[Any], tokens: int) -> Tensor:
    """Rows `[n, ..., d]` of a condition of so many tokens; some models have zeros put in front of them."""
    rows, front = max(len(holds), len(states)), max(states.shape[1] - tokens, 0)
    states = states.expand(rows, -1, -1)
    pairs = paired(torch.tensor(holds), readings, rows)
    found = [
        torch.cat([row[:front], part.edit(row[front:], own)]) if acts else row
        for row, (acts, own) in zip(states, pairs, strict=True)
    ]
    return torch.stack(found)
