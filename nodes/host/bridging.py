"""What the halves of a UNet hand over for an edited prompt, beside the unedited one's (`erasers.guard.SkipPart`).

The unedited prompt is looked at first, in a call of its own, so that it does not matter which prompts share a batch,
nor on how many devices they are: what a part has to know of it is kept by the prompt's id.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import torch
from torch import Tensor

from ...erasers.guard import SkipPart

_KEEPING, _CHANGING = "lethe.bridging.keeping", "lethe.bridging.changing"
_FIRST = ("output", 0)
"""Where features are as wide as the middle block's."""


@dataclass(frozen=True, eq=False)
class Bridged:
    """A part in one step, the prompt's rows that it acts on by condition, and the conditions without its edit."""

    part: SkipPart
    rows: Mapping[UUID, Sequence[bool]]
    originals: Sequence[Mapping[str, Any]]
    kept: dict[tuple[Any, UUID], Tensor] = field(default_factory=dict)


def bridge(options: dict[str, Any]) -> None:
    """Let parts act in the sampling whose transformer options these are, in the steps that have them."""
    patches = options.setdefault("patches", {})
    patches["output_block_patch"] = [*patches.get("output_block_patch", []), _patch()]


def with_originals(executor: Callable[..., Any], bridged: Sequence[Bridged]) -> Callable[..., Any]:
    """What predicts a step's batch (the host's `calc_cond_batch`), with parts that look at the unedited prompt."""
    if not bridged:
        return executor

    def predict(
        model: Any, conds: list[Any], x: Tensor, timestep: Tensor, options: dict[str, Any], *args: Any
    ) -> list[Tensor]:
        def look(asked: list[Any], told: Mapping[str, Any]) -> list[Tensor]:
            inner = {**options, "transformer_options": {**options.get("transformer_options", {}), **told}}
            return executor(model, asked, x, timestep, inner, *args)

        for one in bridged:
            look([one.originals], {_KEEPING: one})
        return look(conds, {_CHANGING: bridged})

    return predict


def _patch() -> Callable[..., tuple[Tensor, Tensor]]:
    middle: list[int] = []

    def patch(h: Tensor, skip: Tensor, options: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        if options.get("block") == _FIRST:
            middle[:] = [h.shape[1]]
        keeping: Bridged | None = options.get(_KEEPING)
        changing: Sequence[Bridged] = options.get(_CHANGING, ())
        if not middle or (keeping is None and not changing):
            return h, skip
        width = h.shape[1] / middle[0]
        chunks = list(skip.chunk(len(options["uuids"])))
        if keeping is not None:
            for uuid, own in zip(options["uuids"], chunks, strict=True):
                kept = keeping.part.keep(own, width)
                if kept is not None:
                    keeping.kept[options["block"], uuid] = kept
            return h, skip
        return h, torch.cat(_changed(chunks, changing, width, options))

    return patch


def _changed(
    chunks: Sequence[Tensor], bridged: Sequence[Bridged], width: float, options: Mapping[str, Any]
) -> list[Tensor]:
    found = list(chunks)
    for one in bridged:
        # The unedited prompt may be in the batch under the same id: it stands behind prompt and negative.
        for i, (uuid, kind) in enumerate(zip(options["uuids"], options["cond_or_uncond"], strict=True)):
            kept, rows = one.kept.get((options["block"], uuid)), one.rows.get(uuid)
            if kept is None or rows is None or kind > 1:
                continue
            acting = torch.tensor(rows, device=found[i].device).repeat(-(-len(found[i]) // len(rows)))[: len(found[i])]
            at = acting.nonzero()[:, 0]
            changed = one.part.change(found[i][at], kept[at], width)
            found[i] = found[i].index_copy(0, at, changed)
    return found
