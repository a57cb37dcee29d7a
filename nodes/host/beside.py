"""Reference pictures that go through the model beside those that are drawn (`erasers.guard.BesidePart`).

A step is told of a batch that is larger by the references, so that whatever else acts in it, control nets included,
takes them for pictures of the batch; what is predicted for them is left out of what the step gets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ...erasers.guard import BesidePart
from .acting import Sampling, feature_size

_PLACED = "lethe.beside"
_SEED = 0


@dataclass(frozen=True, eq=False)
class _Placed:
    """A part, the pictures of a batch that it acts on `[n]` bool, and where its references stand behind them."""

    part: BesidePart
    pictures: Tensor
    references: slice


def push_features(options: dict[str, Any]) -> None:
    """Let parts act in the sampling whose transformer options these are, in the steps that have references."""
    patches = options.setdefault("patches", {})
    for name, crosses in (("attn1_output_patch", False), ("attn2_output_patch", True)):
        patches[name] = [*patches.get(name, []), _pushing(crosses)]


def with_references(
    executor: Callable[..., Any], parts: Sequence[tuple[Any, BesidePart]], run: Sampling, percent: float
) -> Callable[..., Any]:
    """What predicts a step's batch (the host's `calc_cond_batch`), with the references of parts that act now."""

    def predict(
        model: Any, conds: list[Any], x: Tensor, timestep: Tensor, options: dict[str, Any], *args: Any
    ) -> list[Tensor]:
        placed, extra = [], []
        for guard, part in parts:
            pictures = run.rows(guard, len(x))
            if part.window.holds(percent) and bool(pictures.any()):
                start = len(x) + sum(map(len, extra))
                extra.append(_noised(model, part, x, timestep[:1]))
                placed.append(_Placed(part, pictures, slice(start, start + len(extra[-1]))))
        if not placed:
            return executor(model, conds, x, timestep, options, *args)
        more = torch.cat([x, *extra])
        told = {**options.get("transformer_options", {}), _PLACED: placed}
        fitted = [own and [_fitted(cond, len(more)) for cond in own] for own in conds]
        found = executor(
            model,
            fitted,
            more,
            timestep[:1].expand(len(more)),
            {**options, "transformer_options": told},
            *args,
        )
        return [own[: len(x)] for own in found]

    return predict


def _noised(model: Any, part: BesidePart, x: Tensor, sigma: Tensor) -> Tensor:
    """References at the step's own level and of the pictures' size, with the same noise at every step."""
    latents = part.latents
    if latents.shape[2:] != x.shape[2:]:
        latents = functional.interpolate(latents, x.shape[2:], mode="bilinear")
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(_SEED))
    wide = sigma.expand(len(latents)).view(-1, *[1] * (x.ndim - 1))
    return model.model_sampling.noise_scaling(wide, noise.to(x), latents.to(x)).to(x)


def _fitted(cond: Mapping[str, Any], count: int) -> Mapping[str, Any]:
    """A condition with a mask for each picture of a larger batch, where it has several."""
    mask = cond.get("mask")
    if mask is None or len(mask) == 1:
        return cond
    return {**cond, "mask": mask.repeat(-(-count // len(mask)), *[1] * (mask.ndim - 1))[:count]}


def _pushing(crosses: bool) -> Callable[..., Tensor]:
    def patch(n: Tensor, extra_options: Mapping[str, Any]) -> Tensor:
        placed: Sequence[_Placed] = extra_options.get(_PLACED, ())
        if not placed or extra_options.get("block") is None:
            return n
        height = feature_size(extra_options, n.shape[1])[0]
        reduction = extra_options["original_shape"][-2] / height
        chunks = n.unflatten(0, (len(extra_options["uuids"]), -1))
        for one in placed:
            if one.part.acts(extra_options["block"][0], crosses, reduction):
                at = one.pictures.to(n.device).nonzero()[:, 0]
                pushed = [one.part.push(own[at], own[one.references].flatten(0, 1)) for own in chunks]
                chunks = chunks.index_copy(1, at, torch.stack(pushed))
        return chunks.flatten(0, 1)

    return patch
