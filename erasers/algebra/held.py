"""What a task holds in place: the Gram matrix of every prompt to preserve, from the cache where it is there.

Shipped lists are cached whole; prompts of them that are to be erased are taken out again, so that
changing what is erased does not encode a list anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ...kernels.gram import accumulate_, gram_of
from ..concepts import preserve_list
from ..store.preserve_cache import Preserved
from ..task import Task
from .closed_form import Kept, finite
from .tokens import LAST, select_rows

_BATCH = 64


@dataclass(frozen=True)
class Held:
    """The prompts a task holds.

    Attributes:
        prompts: `m` of them, the empty one first.
        tokens: the Gram matrix of their token rows.
        pooled: the Gram matrix of their pooled features; None where there are none.
        last: `[m, d]` float32, each prompt's last content token.
    """

    prompts: tuple[str, ...]
    tokens: Kept
    pooled: Kept | None
    last: Tensor


def hold(task: Task, rule: str) -> Held:
    """Gather what `task` holds, with token rows chosen by `rule`; the empty prompt counts at all positions."""
    key = (task.encoder, task.family.name, rule, task.held, task.concepts.lists)
    return task.grams.recall(*key, make=lambda: _gather(task, rule))


def _gather(task: Task, rule: str) -> Held:
    wanted = dict.fromkeys(task.held)
    listed = [list(preserve_list(name)) for name in task.concepts.lists]
    own = [prompt for prompt in wanted if not any(prompt in prompts for prompts in listed)]
    few = None if listed else _few(task, rule, own)
    if few is not None:
        return few
    entries = [_entry(task, rule, prompts) for prompts in (own, *listed)]
    gram = torch.stack([entry.gram for entry in entries]).sum(0)
    pooled = torch.stack([_pooled_gram(entry) for entry in entries]).sum(0)
    rows: dict[str, Tensor] = {}
    for prompts, entry in zip((own, *listed), entries, strict=True):
        surplus = [prompt for prompt in prompts if prompt in rows or prompt not in wanted]
        if surplus:
            taken = _entry(task, rule, surplus)
            gram, pooled = gram - taken.gram, pooled - _pooled_gram(taken)
        rows |= {prompt: row for prompt, row in zip(prompts, entry.last, strict=True) if prompt in wanted}
    last = torch.stack([rows[prompt] for prompt in wanted])
    return Held(tuple(wanted), Kept(gram), Kept(pooled) if len(pooled) else None, last)


def _entry(task: Task, rule: str, prompts: list[str]) -> Preserved:
    return task.grams.get(task.encoder, task.family.name, rule, prompts, make=lambda: _measure(task, rule, prompts))


def _few(task: Task, rule: str, prompts: list[str]) -> Held | None:
    """Prompts whose rows are no more than half the width, held as rows: no d x d matrix is made. Else None."""
    rows, last, pooled, count = [], [], [], 0
    if len(prompts) > task.family.width // 2:
        return None
    for batch in _read(task, rule, prompts):
        rows.append(batch.rows)
        last += batch.last
        pooled += batch.pooled
        count += len(batch.rows)
        if count > task.family.width // 2:
            return None
    beside = Kept(rows=torch.stack(pooled)) if pooled else None
    return Held(tuple(prompts), Kept(rows=torch.cat(rows)), beside, torch.stack(last))


def _measure(task: Task, rule: str, prompts: list[str]) -> Preserved:
    gram = torch.zeros(task.family.width, task.family.width, dtype=torch.float64)
    last, pooled = [], []
    for batch in _read(task, rule, prompts):
        accumulate_(gram, batch.rows)
        last += batch.last
        pooled += batch.pooled
    return Preserved(gram, torch.stack(last), torch.stack(pooled) if pooled else torch.zeros(len(last), 0))


class _Batch(NamedTuple):
    """Rows to hold of some prompts `[m, d]`, and each prompt's last content token and pooled features."""

    rows: Tensor
    last: list[Tensor]
    pooled: list[Tensor]


def _read(task: Task, rule: str, prompts: list[str]) -> Iterator[_Batch]:
    for start in range(0, len(prompts), _BATCH):
        batch = task.encode(prompts[start : start + _BATCH])
        finite(preserve=torch.cat([prompt.states for prompt in batch]))
        rows = torch.cat([select_rows(rule if prompt.text else "all", [prompt]) for prompt in batch])
        last = [select_rows(LAST, [prompt])[0].float() for prompt in batch]
        yield _Batch(rows, last, [prompt.pooled.float() for prompt in batch if prompt.pooled is not None])


def _pooled_gram(entry: Preserved) -> Tensor:
    return gram_of(entry.pooled)
